from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchnst.transfer.color import COLORS, luminance, match_histogram, match_luminance, with_luminance


def picture(seed: int, low: float = 60, high: float = 190, size: tuple[int, int] = (20, 30)) -> Tensor:
    """A picture of correlated colours well inside the box."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.rand(3, 3, dtype=torch.float64, generator=generator)
    colours = torch.einsum("cd,dhw->chw", mix / mix.sum(1, keepdim=True), _noise(generator, size))
    return (low + (high - low) * colours)[None]


def _noise(generator: torch.Generator, size: tuple[int, int]) -> Tensor:
    return torch.rand(3, *size, dtype=torch.float64, generator=generator)


def test_luminance_is_bt_601s() -> None:
    colours = torch.tensor([[255.0, 0, 0], [0, 255.0, 0], [0, 0, 255.0], [255, 255, 255]]).T.view(1, 3, 1, 4)
    np.testing.assert_allclose(luminance(colours).flatten(), [76.245, 149.685, 29.07, 255], rtol=1e-6)


def test_histogram_matching_gives_the_contents_mean_and_covariance() -> None:
    style, content = picture(1), picture(2, 90, 160, (33, 17))
    matched = match_histogram(style, content)
    assert matched.shape == style.shape
    flat, wanted = (p[0].flatten(1).numpy() for p in (matched, content))
    np.testing.assert_allclose(flat.mean(1), wanted.mean(1), rtol=1e-9)
    np.testing.assert_allclose(np.cov(flat, bias=True), np.cov(wanted, bias=True), rtol=1e-7)


def test_matching_with_itself_changes_nothing() -> None:
    style = picture(3)
    torch.testing.assert_close(match_histogram(style, style), style)
    torch.testing.assert_close(match_luminance(style, style), luminance(style))


def test_luminance_matching_gives_the_contents_mean_and_deviation() -> None:
    style, content = picture(4), picture(5, 100, 150)
    matched = match_luminance(style, content)
    np.testing.assert_allclose(matched.mean(), luminance(content).mean(), rtol=1e-9)
    np.testing.assert_allclose(matched.std(), luminance(content).std(), rtol=1e-2)


@pytest.mark.parametrize("gray", [True, False])
def test_flat_and_gray_pictures_have_no_colours_to_match_and_break_nothing(gray: bool) -> None:
    flat = torch.full((1, 3, 8, 8), 100.0)
    other = picture(6).float().mean(1, keepdim=True).expand(1, 3, -1, -1) if gray else picture(6).float()
    for style, content in ((flat, other), (other, flat)):
        for method in COLORS.values():
            assert method.style(style, content).isfinite().all()
    torch.testing.assert_close(match_histogram(other, flat).mean(), torch.tensor(100.0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_a_recoloured_painting_has_its_own_luminance_and_stays_in_the_box(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    content = 255 * torch.rand(1, 3, 9, 9, dtype=torch.float64, generator=generator)
    painted = 255 * torch.rand(1, 1, 9, 9, dtype=torch.float64, generator=generator)
    result = with_luminance(painted, content)
    assert result.min() >= 0 and result.max() <= 255
    torch.testing.assert_close(luminance(result), painted, rtol=0, atol=1e-6)


def test_where_there_is_room_the_photos_colours_are_kept_to_the_letter() -> None:
    content = picture(7, 100, 150)
    result = with_luminance(luminance(content) + 20, content)
    torch.testing.assert_close(result, content + 20)
