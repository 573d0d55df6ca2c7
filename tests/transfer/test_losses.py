from __future__ import annotations

import numpy as np
import pytest
import torch

from batchnst.recipe import Recipe
from batchnst.transfer.canvas import Canvas
from batchnst.transfer.losses import (
    ALL,
    BLOCK,
    DEFINITIONS,
    add_product_,
    add_variation_,
    gram_matrix,
    guide,
    sum_of_squares,
    total_variation,
)
from tests import oracles
from tests.helpers import CPU


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gram_is_the_papers_over_positions(memory_format: torch.memory_format) -> None:
    features = random(3, 5, 4, 7).contiguous(memory_format=memory_format)
    for picture, gram in zip(features, gram_matrix(features), strict=True):
        np.testing.assert_allclose(gram, oracles.gram(picture.numpy()) / 28, rtol=1e-12)


def test_grams_derivative_is_right() -> None:
    features, weights = random(2, 3, 4, 5), random(2, 3, 3, seed=1)
    features.requires_grad_()
    (expected,) = torch.autograd.grad((gram_matrix(features) * weights).sum(), features)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        total = random(2, 3, 4, 5, seed=2).contiguous(memory_format=memory_format)
        before = total.clone()
        add_product_(total, features.detach(), (weights + weights.mT) / 20)
        torch.testing.assert_close(total, before + expected, rtol=1e-12, atol=1e-12)


def test_gram_of_more_positions_than_a_block_holds() -> None:
    features = random(2, 4, 90, 100) - 0.5
    assert features[0, 0].numel() > 2 * BLOCK
    for picture, gram in zip(features, gram_matrix(features), strict=True):
        np.testing.assert_allclose(gram, oracles.gram(picture.numpy()) / 9000, rtol=1e-10, atol=1e-14)


def test_gram_of_bf16_features_is_summed_in_float32() -> None:
    features = random(1, 8, 64, 64).bfloat16()
    gram = gram_matrix(features)
    assert gram.dtype == torch.float32
    np.testing.assert_allclose(gram[0], oracles.gram(features[0].double().numpy()) / 4096, rtol=1e-5)


def canvas(height: int, width: int) -> Canvas:
    """The canvas of two pictures of one size."""
    return Canvas([(height, width)] * 2, [], CPU)


def test_total_variation_is_the_sum_of_absolute_differences() -> None:
    pictures = random(2, 3, 5, 6)
    expected = [np.abs(np.diff(p, axis=1)).sum() + np.abs(np.diff(p, axis=2)).sum() for p in pictures.numpy()]
    np.testing.assert_allclose(total_variation(pictures, canvas(5, 6).differences), expected)


def test_total_variations_derivative_is_right() -> None:
    pictures, inside = random(2, 3, 6, 7), canvas(6, 7).differences
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    for place in (ALL, (..., slice(1, 4), slice(0, 5))):
        variable = pictures.clone().requires_grad_()
        (expected,) = torch.autograd.grad(total_variation(variable, inside, place).sum(), variable)
        gradient = torch.ones_like(pictures)
        add_variation_(gradient, pictures, weights, inside, place)
        torch.testing.assert_close(gradient, 1 + weights[:, None, None, None] * expected)


def test_neural_style_definition() -> None:
    f, p = random(2, 4, 6, 5), random(2, 4, 6, 5, seed=1)
    style = random(2, 4, 9, 8, seed=2)
    definition = DEFINITIONS["neural-style"]
    content = [np.mean((a - b) ** 2) for a, b in zip(f.numpy(), p.numpy(), strict=True)]
    np.testing.assert_allclose(definition.content(p, torch.tensor([p[0].numel()] * 2)) * sum_of_squares(f - p), content)
    expected = [
        np.mean((oracles.gram(a) / a.size - oracles.gram(b) / b.size) ** 2)
        for a, b in zip(f.numpy(), style.numpy(), strict=True)
    ]
    found = definition.style(gram_matrix(style)) * sum_of_squares(gram_matrix(f) - gram_matrix(style))
    np.testing.assert_allclose(found, expected)


def test_gatys_definition_is_equations_1_and_4() -> None:
    f, p = random(2, 4, 6, 5), random(2, 4, 6, 5, seed=1)
    definition = DEFINITIONS["gatys2016"]
    content = [0.5 * ((a - b) ** 2).sum() for a, b in zip(f.numpy(), p.numpy(), strict=True)]
    np.testing.assert_allclose(definition.content(p, torch.tensor([p[0].numel()] * 2)) * sum_of_squares(f - p), content)
    expected = [
        ((oracles.gram(a) - oracles.gram(b)) ** 2).sum() / (4 * 4**2 * 30**2)
        for a, b in zip(f.numpy(), p.numpy(), strict=True)
    ]
    target = gram_matrix(p)
    np.testing.assert_allclose(definition.style(target) * sum_of_squares(gram_matrix(f) - target), expected)


def test_balanced_terms_are_relative_to_their_targets() -> None:
    f, p = random(2, 4, 6, 5), random(2, 4, 6, 5, seed=1)
    definition = DEFINITIONS["balanced"]
    content = [((a - b) ** 2).sum() / (b**2).sum() for a, b in zip(f.numpy(), p.numpy(), strict=True)]
    np.testing.assert_allclose(definition.content(p, torch.tensor([p[0].numel()] * 2)) * sum_of_squares(f - p), content)
    grams = [(oracles.gram(a), oracles.gram(b)) for a, b in zip(f.numpy(), p.numpy(), strict=True)]
    expected = [((a - b) ** 2).sum() / (b**2).sum() for a, b in grams]
    np.testing.assert_allclose(
        definition.style(gram_matrix(p)) * sum_of_squares(gram_matrix(f) - gram_matrix(p)), expected
    )
    assert float(
        definition.tv(torch.tensor(3 * 5 * 6)) * total_variation(p[:1, :3], canvas(6, 5).differences)
    ) == pytest.approx((np.abs(np.diff(p[0, :3], axis=1)).sum() + np.abs(np.diff(p[0, :3], axis=2)).sum()) / (255 * 90))
    weights = definition.style_weights(Recipe(style_layers={"relu1_1": 3, "relu2_1": 1}))
    assert weights == {"relu1_1": 0.75, "relu2_1": 0.25}


def test_a_target_that_is_zero_counts_for_nothing() -> None:
    target = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 0.5)])
    np.testing.assert_array_equal(DEFINITIONS["balanced"].style(target), [0.0, 0.25])


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
