from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from batchnst.painting.inputs import load_picture
from batchnst.painting.tensors import to_tensor
from batchnst.pictures.decode import DecodeOptions
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.losses import Region, gram_matrix
from batchnst.transfer.objective import Objective
from batchnst.transfer.optimizers import LBFGS, OPTIMIZERS, Adam, GradientDescent, Optimizer
from tests.helpers import canvas_for, in_double

RATES = {"lbfgs": None, "adam": None, "sgd": 0.02}  # sgd's own is for losses of millions

Function = Callable[[Tensor], tuple[Tensor, Tensor]]


def quadratic(minimum: Tensor, curvature: Tensor) -> Function:
    """½ Σ c (x − m)² of each picture, and its gradient."""

    def function(pictures: Tensor) -> tuple[Tensor, Tensor]:
        off = pictures - minimum
        return (curvature * off.square()).flatten(1).sum(1) / 2, curvature * off

    return function


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def minimise(optimizer: Optimizer, function: Function, steps: int) -> Tensor:
    """Losses of the kept pictures, (steps, B)."""
    losses, kept = [], None
    for _ in range(steps):
        loss, gradient = function(optimizer.trial)
        accepted = optimizer.observe(loss, gradient)
        kept = loss if kept is None else torch.where(accepted, loss, kept)
        losses.append(kept)
    return torch.stack(losses)


def root_filter(pictures: Tensor, power: float) -> Tensor:
    """P^power of pictures, with NumPy: the low-pass filter that projected L-BFGS starts from."""
    frequencies = np.meshgrid(*map(np.fft.fftfreq, pictures.shape[-2:]), indexing="ij")
    response = 1 / np.sqrt(1 + (np.hypot(*frequencies) / LBFGS.cutoff) ** 2)
    return torch.from_numpy(np.fft.ifft2(np.fft.fft2(pictures.numpy()) * response**power).real.copy())


class TorchLBFGS:
    """torch's own L-BFGS on z, where pictures are P^½ z."""

    def __init__(self, pictures: Tensor, function: Function) -> None:
        self.z, self.function = root_filter(pictures, -0.5).requires_grad_(), function
        self.optimizer = torch.optim.LBFGS([self.z], max_iter=1, history_size=20, tolerance_grad=0, tolerance_change=0)

    def step(self) -> float:
        return float(self.optimizer.step(self._closure))

    def _closure(self) -> Tensor:
        loss, gradient = self.function(root_filter(self.z.detach(), 0.5))
        self.z.grad = root_filter(gradient, 0.5)
        return loss.sum()


@pytest.mark.parametrize("cutoff", [math.inf, 0.2])  # without a filter, and with one
def test_lbfgs_follows_torchs_step_by_step(monkeypatch: pytest.MonkeyPatch, cutoff: float) -> None:
    monkeypatch.setattr(LBFGS, "cutoff", cutoff)
    minimum, curvature = 100 + 50 * random(1, 3, 4, 4), 0.1 + 3 * random(1, 3, 4, 4, seed=1)
    function, start = quadratic(minimum, curvature), torch.full((1, 3, 4, 4), 128.0, dtype=torch.float64)
    ours = LBFGS(start)
    # torch's first step has length 1/‖g‖₁; ours is told to take the same one.
    _, gradient = function(start)
    ours.gamma = 1 / root_filter(gradient, 0.5).abs().sum((1, 2, 3))
    theirs = TorchLBFGS(start, function)
    for step in range(18):
        loss, gradient = function(ours.trial)
        np.testing.assert_allclose(loss.item(), theirs.step(), rtol=1e-6, atol=1e-12, err_msg=f"step {step}")
        if not ours.observe(loss, gradient).all():
            break
    assert step >= 10, "the comparison ended before it meant anything"


@pytest.mark.parametrize("cutoff", [pytest.param(math.inf, marks=pytest.mark.slow), LBFGS.cutoff])
def test_lbfgs_follows_torchs_on_a_real_pair(
    monkeypatch: pytest.MonkeyPatch, images: Path, vgg: Backbone, cutoff: float
) -> None:
    monkeypatch.setattr(LBFGS, "cutoff", cutoff)
    # In float64, and with paler pictures, so that neither rounding nor the box plays a part.
    recipe, exact = Recipe(size=48, tv_weight=0), in_double(vgg)
    pixels = [load_picture(str(images / name), DecodeOptions(size=48)).pixels for name in ("astronaut.png", "ihc.png")]
    content, style = (60 + to_tensor(p, torch.device("cpu")).double() / 2 for p in pixels)
    with torch.no_grad():
        target = {"relu4_2": exact(content)["relu4_2"]}
        grams = {name: gram_matrix(features) for name, features in exact(style).items() if name != "relu4_2"}
    canvas = canvas_for(exact, (content.shape[2], content.shape[3]))
    objective = Objective(exact, recipe, target, [Region(grams, {}, torch.ones(1, dtype=torch.float64))], canvas)

    def function(pictures: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradient = objective(pictures)
        return losses.total, gradient

    # torch's own first step, of length 1/‖g‖₁, moves no pixel by a thousandth: it is given the state after ours.
    ours = LBFGS(content)
    loss, gradient = function(content)
    ours.observe(loss, gradient)
    theirs = TorchLBFGS(ours.trial, function)
    inner = root_filter(gradient, 0.5).flatten()
    theirs.optimizer.state[theirs.z].update(
        d=-inner, t=ours.gamma.item(), old_dirs=[], old_stps=[], ro=[], al=[None] * 20, H_diag=1, n_iter=1, func_evals=1
    )
    theirs.optimizer.state[theirs.z].update(prev_flat_grad=inner, prev_loss=loss.item())
    for step in range(15):
        losses, gradient = objective(ours.trial)
        np.testing.assert_allclose(losses.total.item(), theirs.step(), rtol=1e-6, err_msg=str(step))
        assert ours.observe(losses.total, gradient).all(), "a step was taken back: nothing to compare"
        assert ours.trial.min() > 0 and ours.trial.max() < 255, "the box was met: nothing to compare"
    assert losses.total < 0.5 * objective(content)[0].total


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_picture_in_a_batch_moves_as_if_alone(name: str) -> None:
    minimum, curvature = 255 * random(4, 3, 5, 5), 0.1 + 40 * random(4, 3, 5, 5, seed=1) ** 3
    start = 255 * random(4, 3, 5, 5, seed=2)
    together = minimise(OPTIMIZERS[name](start, RATES[name]), quadratic(minimum, curvature), 40)
    for i in range(4):
        one = slice(i, i + 1)
        alone = minimise(OPTIMIZERS[name](start[one], RATES[name]), quadratic(minimum[one], curvature[one]), 40)
        np.testing.assert_allclose(together[:, i], alone[:, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pictures_stay_in_the_box_and_find_the_minimum_at_its_border(name: str) -> None:
    minimum = torch.tensor([-80.0, 300.0, 130.0], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    optimizer = OPTIMIZERS[name](torch.full((1, 3, 4, 4), 128.0, dtype=torch.float64), RATES[name])
    minimise(optimizer, quadratic(minimum, torch.ones_like(minimum)), 200)
    assert optimizer.trial.min() >= 0
    assert optimizer.trial.max() <= 255
    np.testing.assert_allclose(optimizer.trial, minimum.clamp(0, 255), atol=0.5)


def test_gradient_descent_is_its_equation() -> None:
    minimum = torch.full((1, 3, 2, 2), 100.0, dtype=torch.float64)
    optimizer = GradientDescent(torch.full((1, 3, 2, 2), 140.0, dtype=torch.float64), 0.25)
    minimise(optimizer, quadratic(minimum, torch.ones_like(minimum)), 3)
    np.testing.assert_allclose(optimizer.trial, 100 + 40 * 0.75**3)


def test_adam_follows_torchs_step_by_step() -> None:
    minimum, curvature = 60 + 120 * random(2, 3, 4, 4), 0.1 + 3 * random(2, 3, 4, 4, seed=1)
    function, start = quadratic(minimum, curvature), torch.full((2, 3, 4, 4), 128.0, dtype=torch.float64)
    ours, theirs = Adam(start, 2.0), start.clone().requires_grad_()
    reference = torch.optim.Adam([theirs], lr=2.0, betas=Adam.betas, eps=Adam.epsilon)
    for _ in range(30):
        ours.observe(*function(ours.trial))
        theirs.grad = function(theirs.detach())[1]
        reference.step()
        np.testing.assert_allclose(ours.trial, theirs.detach(), rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_selection_goes_on_as_if_nothing_happened(name: str) -> None:
    minimum, curvature = 255 * random(3, 3, 4, 4), 0.1 + 5 * random(3, 3, 4, 4, seed=1)
    start = 255 * random(3, 3, 4, 4, seed=2)
    whole, part = (OPTIMIZERS[name](start, RATES[name]) for _ in range(2))
    for optimizer in (whole, part):
        minimise(optimizer, quadratic(minimum, curvature), 6)
    keep = torch.tensor([2, 0])
    part.select(keep)
    minimise(whole, quadratic(minimum, curvature), 6)
    minimise(part, quadratic(minimum[keep], curvature[keep]), 6)
    np.testing.assert_allclose(part.trial, whole.trial[keep], rtol=1e-9)
    np.testing.assert_allclose(part.step_scale, whole.step_scale[keep], rtol=1e-6)


def test_lbfgs_takes_a_step_back_that_raises_the_loss() -> None:
    # A wall close to the start: the first, long steps all overshoot.
    def cliff(pictures: Tensor) -> tuple[Tensor, Tensor]:
        off = pictures - 128.5
        return (off**4).flatten(1).sum(1), 4 * off**3

    optimizer = LBFGS(torch.full((2, 3, 4, 4), 128.0, dtype=torch.float64), 100.0)
    losses = minimise(optimizer, cliff, 100)
    assert (losses.diff(dim=0) <= 0).all()
    assert (losses[-1] < 1e-3 * losses[0]).all()


def test_lbfgs_survives_losses_that_are_not_numbers() -> None:
    minimum = 200 * random(2, 3, 4, 4)
    inner = quadratic(minimum, torch.ones_like(minimum))
    calls = 0

    def function(pictures: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        loss, gradient = inner(pictures)
        if calls == 4:  # the first picture only
            loss[0], gradient[0] = torch.nan, torch.nan
        return loss, gradient

    losses = minimise(LBFGS(torch.full((2, 3, 4, 4), 250.0, dtype=torch.float64)), function, 40)
    assert losses.isfinite().all()
    assert (losses[-1] < 1e-6 * losses[0]).all()


def test_a_finer_scale_inherits_the_scale_of_the_inverse_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LBFGS, "cutoff", math.inf)
    coarse = LBFGS(torch.full((1, 3, 4, 4), 128.0, dtype=torch.float64))
    minimum = 255 * random(1, 3, 4, 4)
    minimise(coarse, quadratic(minimum, torch.full_like(minimum, 4.0)), 5)
    np.testing.assert_allclose(coarse.gamma, 0.25)
    fine = LBFGS(torch.full((1, 3, 8, 8), 128.0, dtype=torch.float64), step_scale=coarse.step_scale)
    np.testing.assert_allclose(fine.gamma, 1.0)


def test_memory_that_was_never_written_has_no_part_in_a_step() -> None:
    # The second step raises the loss, so that there are fewer curvature pairs than steps.
    minimum, curvature = 100 + 50 * random(1, 3, 4, 4), 0.1 + 30 * random(1, 3, 4, 4, seed=1) ** 3
    function, start = quadratic(minimum, curvature), torch.full((1, 3, 4, 4), 128.0, dtype=torch.float64)
    paths = []
    for leftover in (0.0, math.nan):
        optimizer, losses = LBFGS(start, step_scale=torch.full((1,), 10.0, dtype=torch.float64)), []
        optimizer.curvature.fill_(leftover)
        for _ in range(12):
            loss, gradient = function(optimizer.trial)
            losses.append((loss.item(), bool(optimizer.observe(loss, gradient))))
        paths.append(losses)
    assert paths[0] == paths[1]
    assert not all(kept for _, kept in paths[0])


def test_pixels_held_by_the_box_do_not_mislead_the_others() -> None:
    # Pixels that pull on one another, and a minimum outside the box for many: at the box's own minimum the gradient
    # is zero for every pixel that can move, and points outward for the rest.
    pixels = 48
    root = random(pixels, pixels, seed=1) - 0.5
    hessian = root @ root.T + 0.05 * torch.eye(pixels, dtype=torch.float64)
    minimum = 800 * random(pixels, seed=2) - 270

    def function(pictures: Tensor) -> tuple[Tensor, Tensor]:
        off = pictures.flatten(1) - minimum
        gradient = off @ hessian
        return (off * gradient).sum(1) / 2, gradient.view_as(pictures)

    optimizer = LBFGS(torch.full((1, 3, 4, 4), 128.0, dtype=torch.float64))
    minimise(optimizer, function, 100)
    _, gradient = function(optimizer.trial)
    stuck = ((optimizer.trial - gradient).clamp(0, 255) - optimizer.trial).abs().max()
    assert ((optimizer.trial == 0) | (optimizer.trial == 255)).sum() > 10
    assert stuck < 1e-3
