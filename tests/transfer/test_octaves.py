"""Losses at several sizes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer import pyramid
from batchnst.transfer.losses import Region, gram_matrix
from batchnst.transfer.memory import Fitting
from batchnst.transfer.objective import Objective
from batchnst.transfer.octaves import Halving, Octaves, halved
from batchnst.transfer.weights import Weights
from tests import oracles
from tests.helpers import CPU, canvas_for, in_double, load, paint, whole


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_half_is_the_mean_of_the_pixels_that_each_picture_has() -> None:
    sizes = [(5, 8), (6, 5), (7, 7)]
    backbone = load_backbone(Recipe(), load_weights("vgg19", "bundled"), CPU)
    canvas = canvas_for(backbone, *sizes, least=(8, 9))
    pictures = [random(1, 3, *size, seed=seed) for seed, size in enumerate(sizes)]
    halving, halves = Halving(canvas), canvas.halved().pixels
    assert halves.sizes == [(3, 4), (3, 3), (4, 4)] and (halves.height, halves.width) == (4, 5)
    found = halving(canvas.pixels.pack(pictures))
    expected = [halved(picture) for picture in pictures]
    torch.testing.assert_close(found, halves.pack(expected))
    assert float(expected[0][0, 0, 2, 0]) == pytest.approx(float(pictures[0][0, 0, 4, :2].mean()))
    # ⟨Hx, g⟩ = ⟨x, Hᵀg⟩ defines the transpose; outside of the pictures it is 0.
    gradient = halves.pack([random(*half.shape, seed=9) for half in expected])
    back = halving.transpose(gradient)
    torch.testing.assert_close((found * gradient).sum(), (canvas.pixels.pack(pictures) * back).sum())
    torch.testing.assert_close(canvas.pixels.clear_(back.clone()), back)


def octaves_of(recipe: Recipe, height: int, width: int, count: int) -> Octaves:
    """The objective, in float64, of two noisy pictures in the style of others, at `count` sizes."""
    network = in_double(load_backbone(recipe, load_weights(*recipe.network), CPU))
    canvas, objectives = canvas_for(network, (height, width), (height, width)), []
    contents, style = 255 * random(2, 3, height, width, seed=1), 255 * random(2, 3, 70, 66, seed=2)
    for _ in range(count):
        with torch.no_grad():
            seen, painted = network(contents), network(style)
        grams = {name: gram_matrix(painted[name]) for name in recipe.style_layers}
        region = Region(grams, {}, torch.ones(2, dtype=torch.float64))
        content = {name: seen[name] for name in recipe.content_layers}
        objectives.append(Objective(network, recipe, content, [region], canvas))
        contents, style, canvas = halved(contents), halved(style), canvas.halved()
    return Octaves(objectives)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_total_is_the_mean_over_the_octaves_and_the_gradient_is_autograds(channels: int) -> None:
    recipe = Recipe(style_layers={"relu1_1": 1, "relu2_1": 2}, content_layers={"relu2_1": 1}, tv_weight=0.5)
    octaves = octaves_of(recipe, 37, 53, 3)
    pictures = (255 * random(2, channels, 37, 53, seed=3)).requires_grad_()
    losses, gradient = octaves(pictures.detach())
    levels = [pictures, halved(pictures), halved(halved(pictures))]
    expected = [
        oracles.differentiate(objective, level.detach())
        for objective, level in zip(octaves.objectives, levels, strict=True)
    ]
    torch.testing.assert_close(losses.total, torch.stack([total for total, _ in expected]).mean(0))
    (slope,) = torch.autograd.grad(levels, pictures, [own / 3 for _, own in expected])
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)
    assert octaves.pixels == 37 * 53 + 19 * 27 + 10 * 14
    one, other = octaves.select(torch.tensor([1]))(pictures.detach()[1:])
    torch.testing.assert_close(one.total, losses.total[1:])
    torch.testing.assert_close(other, gradient[1:])


def test_octaves_keep_the_style_of_a_reduced_picture(
    images: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "LAYOUT_SIZE", 48)
    distances = {}
    for octaves in (False, True):
        recipe = Recipe(size=96, min_size=48, steps=20, octaves=octaves)
        content, style = (load(images / name, recipe) for name in ("coffee.png", "swirls.png"))
        painted, steps = paint([content], [whole(style)], recipe, weights)
        assert steps[-1].pixels == 96 * 64 + octaves * 48 * 32
        network = load_backbone(recipe.model_copy(update={"precision": "fp32"}), weights, CPU)
        made, wanted = (network(halved(picture)) for picture in (painted.pictures[0], style))
        grams = [[gram_matrix(seen[name])[0] for seen in (made, wanted)] for name in recipe.style_layers]
        distances[octaves] = sum(float(((a - b).norm() / b.norm()) ** 2) for a, b in grams) / len(grams)
    assert distances[True] < 0.6 * distances[False]


def test_octaves_of_a_tiled_picture_are_those_of_the_whole_one(
    images: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "LAYOUT_SIZE", 32)
    recipe = Recipe(size=128, min_size=64, steps=4, octaves=True, style_layers={"relu1_1": 1, "relu2_1": 1})
    content, style = (load(images / name, recipe) for name in ("coffee.png", "swirls.png"))
    curves = []
    for fitting in (Fitting(float("inf")), Fitting(64)):
        painted, steps = paint([content], [whole(style)], recipe, weights, fitting=fitting)
        curves.append(torch.stack([step.losses.total[0] for step in steps]))
        assert painted.pictures[0].shape == content.shape
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-3, atol=0)


def test_a_narrow_style_is_halved_as_far_as_the_layers_can_see(weights: Weights) -> None:
    recipe = Recipe(size=512, min_size=512, steps=1, octaves=True)
    content, narrow = (255 * random(1, 3, *size).float() for size in ((512, 384), (20, 512)))
    painted, steps = paint([content], [whole(narrow)], recipe, weights)
    assert steps[0].pixels == 512 * 384 + 256 * 192
    assert bool(painted.losses.total.isfinite().all())


def test_halves_of_whole_numbers_are_fractions() -> None:
    picture = torch.tensor([[[[1, 2, 4]]]], dtype=torch.uint8)
    torch.testing.assert_close(halved(picture), torch.tensor([[[[1.5, 4.0]]]]))
