from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.losses import (
    ALL,
    BLOCK,
    DEFINITIONS,
    EAGER_CALLS,
    Objective,
    Region,
    gram_matrix,
    guide,
    sum_of_squares,
    tap_products,
    total_variation,
)
from batchnst.transfer.weights import Weights
from tests import oracles
from tests.helpers import in_double


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gram_is_the_papers_over_positions(memory_format: torch.memory_format) -> None:
    features = random(3, 5, 4, 7).contiguous(memory_format=memory_format)
    for picture, gram in zip(features, gram_matrix(features), strict=True):
        np.testing.assert_allclose(gram, oracles.gram(picture.numpy()) / 28, rtol=1e-12)


def test_grams_derivative_is_right() -> None:
    assert torch.autograd.gradcheck(gram_matrix, random(2, 3, 4, 5).requires_grad_())
    # And with the features going on to other layers.
    for place in (ALL, (..., slice(1, 3), slice(0, 4))):
        assert torch.autograd.gradcheck(partial(tap_products, place=place), random(2, 3, 4, 5).requires_grad_())


def test_the_products_of_a_place_are_those_of_what_lies_there() -> None:
    features, place = random(2, 3, 8, 9), (..., slice(1, 6), slice(2, 9))
    assert torch.equal(tap_products(features, place)[1], tap_products(features[place], ALL)[1])
    # Without the sums themselves, their derivative is the same.
    derivatives = []
    for multiply in (True, False):
        variable = features.clone().requires_grad_()
        passed_on, products = tap_products(variable, place, multiply=multiply)
        (passed_on.sum() + (products * random(2, 3, 3, seed=1)).sum()).backward()
        assert variable.grad is not None
        derivatives.append(variable.grad)
        assert products.any() == multiply
    assert torch.equal(derivatives[0], derivatives[1])


def test_gram_of_more_positions_than_a_block_holds() -> None:
    features = random(2, 4, 90, 100) - 0.5
    assert features[0, 0].numel() > 2 * BLOCK
    for picture, gram in zip(features, gram_matrix(features), strict=True):
        np.testing.assert_allclose(gram, oracles.gram(picture.numpy()) / 9000, rtol=1e-10, atol=1e-14)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_recorded_objective_gives_what_it_gives_step_by_step(weights: Weights) -> None:
    device, recipe = torch.device("cuda"), Recipe(size=64)
    backbone = load_backbone(recipe, weights, device)
    pictures = 255 * torch.rand(2, 3, 64, 64, device=device)
    with torch.no_grad():
        features = backbone(255 - pictures)
    grams = {name: gram_matrix(features[name]) for name in recipe.style_layers}
    content = {"relu4_2": features["relu4_2"].float()}
    objective = Objective(backbone, recipe, content, [Region(grams, {}, torch.ones(2, device=device))])
    for call in range(EAGER_CALLS + 3):
        moved = (pictures + call).clamp(0, 255)
        losses, gradient = objective(moved)
        expected, derivative = objective.evaluate(moved)
        torch.testing.assert_close(losses.total, expected.total, rtol=1e-3, atol=0)
        torch.testing.assert_close(gradient, derivative, rtol=1e-2, atol=1e-3)


def test_gram_of_bf16_features_is_summed_in_float32() -> None:
    features = random(1, 8, 64, 64).bfloat16()
    gram = gram_matrix(features)
    assert gram.dtype == torch.float32
    np.testing.assert_allclose(gram[0], oracles.gram(features[0].double().numpy()) / 4096, rtol=1e-5)


def test_total_variation_is_the_sum_of_absolute_differences() -> None:
    pictures = random(2, 3, 5, 6)
    expected = [np.abs(np.diff(p, axis=1)).sum() + np.abs(np.diff(p, axis=2)).sum() for p in pictures.numpy()]
    np.testing.assert_allclose(total_variation(pictures), expected)


def test_neural_style_definition() -> None:
    f, p = random(2, 4, 6, 5), random(2, 4, 6, 5, seed=1)
    style = random(2, 4, 9, 8, seed=2)
    definition = DEFINITIONS["neural-style"]
    content = [np.mean((a - b) ** 2) for a, b in zip(f.numpy(), p.numpy(), strict=True)]
    np.testing.assert_allclose(definition.content(sum_of_squares(f, p), f[0].numel()), content)
    expected = [
        np.mean((oracles.gram(a) / a.size - oracles.gram(b) / b.size) ** 2)
        for a, b in zip(f.numpy(), style.numpy(), strict=True)
    ]
    np.testing.assert_allclose(definition.style(gram_matrix(f), gram_matrix(style)), expected)


def test_gatys_definition_is_equations_1_and_4() -> None:
    f, p = random(2, 4, 6, 5), random(2, 4, 6, 5, seed=1)
    definition = DEFINITIONS["gatys2016"]
    content = [0.5 * ((a - b) ** 2).sum() for a, b in zip(f.numpy(), p.numpy(), strict=True)]
    np.testing.assert_allclose(definition.content(sum_of_squares(f, p), f[0].numel()), content)
    expected = [
        ((oracles.gram(a) - oracles.gram(b)) ** 2).sum() / (4 * 4**2 * 30**2)
        for a, b in zip(f.numpy(), p.numpy(), strict=True)
    ]
    np.testing.assert_allclose(definition.style(gram_matrix(f), gram_matrix(p)), expected)


@pytest.mark.parametrize("loss", ["neural-style", "gatys2016"])
def test_the_objectives_gradient_is_that_of_its_total(vgg: Backbone, loss: str) -> None:
    # All in float64, against a finite difference along a random direction.
    recipe = Recipe(loss=loss, content_layers={"relu2_1": 1}, style_layers={"relu1_1": 0.5, "relu2_1": 2})
    exact = in_double(vgg)
    pictures, content, style = (random(2, 3, 24, 32, seed=seed) * 255 for seed in range(3))
    features, painted = exact(content), exact(style)
    objective = Objective(
        exact,
        recipe,
        {"relu2_1": features["relu2_1"]},
        [Region({name: gram_matrix(painted[name]) for name in recipe.style_layers}, {}, torch.ones(2).double())],
    )
    losses, gradient = objective(pictures)
    assert losses.total.shape == (2,)
    direction = random(2, 3, 24, 32, seed=9) - 0.5
    step = 1e-4
    ahead, behind = (objective(pictures + sign * step * direction)[0].total for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum((1, 2, 3)), slope, rtol=1e-5)


def test_a_guided_gram_is_the_mean_over_the_masked_part() -> None:
    # Gatys et al. 2017, eq. 6 and 7: T scaled so that Σ T² is the number of positions.
    features, mask = random(2, 5, 6, 8), (random(2, 1, 24, 32, seed=1) > 0.5).double()
    mask[:, :, :12] = 1
    factor = guide(mask, 6, 8)
    for picture, own, gram in zip(features.numpy(), mask.numpy(), gram_matrix(features * factor), strict=True):
        soft = own[0].reshape(6, 4, 8, 4).mean((1, 3)).reshape(-1)
        seen = picture.reshape(5, -1)
        np.testing.assert_allclose(gram, (seen * soft**2) @ seen.T / (soft**2).sum(), rtol=1e-10)


def test_a_hard_mask_hides_the_rest_completely() -> None:
    features, mask = random(1, 4, 6, 6), torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    mask[..., :3] = 1
    changed = features.clone()
    changed[..., 3:] = 99
    grams = [gram_matrix(f * guide(mask, 6, 6)) for f in (features, changed)]
    assert torch.equal(*grams)
    np.testing.assert_allclose(grams[0], gram_matrix(features[..., :3]), rtol=1e-12)


def test_losses_belong_to_one_picture_each(vgg: Backbone) -> None:
    recipe = Recipe()
    pictures, content, style = (random(3, 3, 32, 32, seed=seed).float() * 255 for seed in range(3))
    with torch.no_grad():
        c, s = vgg(content), vgg(style)

    def objective(which: slice) -> Objective:
        grams = {name: gram_matrix(s[name][which]) for name in recipe.style_layers}
        everywhere = Region(grams, {}, torch.ones(len(pictures[which])))
        return Objective(vgg, recipe, {"relu4_2": c["relu4_2"][which]}, [everywhere])

    together, gradients = objective(slice(0, 3))(pictures)
    for i in range(3):
        alone, gradient = objective(slice(i, i + 1))(pictures[i : i + 1])
        torch.testing.assert_close(together.total[i], alone.total[0], rtol=1e-4, atol=0)
        assert float((gradients[i] - gradient[0]).norm() / gradient.norm()) < 1e-3
