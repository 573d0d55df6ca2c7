"""Colour preservation (Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer").

A method changes content and style before the optimisation, and the picture after it. Pictures are (B, 3, H, W), RGB,
0..255.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from batchnst.transfer.device import exact_dtype

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luminance Y (ITU-R BT.601, the Y of YIQ)."""


@dataclass(frozen=True)
class ColorMethod:
    """A method to preserve colours, as three functions.

    content: contents (B, 3, H, W) → the contents to optimise with, (B, C, H, W), C 3 or 1.
    style: a style (1, 3, h, w) and its content (1, 3, H, W) → the style to optimise with, (1, C, h, w).
    finish: painted pictures (B, C, H, W) and their contents (B, 3, H, W) → the pictures to write, (B, 3, H, W).
    """

    content: Callable[[Tensor], Tensor]
    style: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor, Tensor], Tensor]


def luminance(pictures: Tensor) -> Tensor:
    """Return the luminance Y of `pictures`, (B, 1, H, W), 0..255."""
    return (pictures * pictures.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def match_luminance(style: Tensor, content: Tensor) -> Tensor:
    """Return the style's luminance with the content's mean and deviation, (1, 1, h, w) (the paper's section 3.2)."""
    style_y, content_y = luminance(style.to(content.dtype)), luminance(content)
    deviation = style_y.std(correction=0).clamp_min(1e-6)
    return ((style_y - style_y.mean()) * content_y.std(correction=0) / deviation + content_y.mean()).clamp(0, 255)


def with_luminance(luminances: Tensor, contents: Tensor) -> Tensor:
    """Return the colours of `contents` (B, 3, H, W) at the luminance `luminances` (B, 1, H, W).

    A colour that would leave 0..255 is made paler. Its luminance stays exact, because the luminance is the painting.
    """
    chroma = contents - luminance(contents)
    room = torch.where(chroma > 0, 255 - luminances, luminances)
    fits = (room / chroma.abs().clamp_min(1e-6)).amin(1, keepdim=True).clamp(0, 1)
    return (luminances + chroma * fits).clamp(0, 255)


def match_histogram(style: Tensor, content: Tensor) -> Tensor:
    """Return the style with the content's mean and covariance of colours, (1, 3, h, w) (section 3.1, eq. 3–4).

    The map is linear, by the symmetric square roots of the two covariances.
    """
    pixels, mean, covariance = _statistics(style)
    _, target_mean, target_covariance = _statistics(content)
    matched = _power(target_covariance, 0.5) @ _power(covariance, -0.5) @ (pixels - mean) + target_mean
    return matched.to(content.dtype).view_as(style).clamp(0, 255)


def _statistics(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels (3, N), their mean (3, 1) and their covariance (3, 3), in float64 if possible."""
    pixels = picture[0].flatten(1).to(exact_dtype(picture.device))
    mean = pixels.mean(1, keepdim=True)
    return pixels, mean, (pixels - mean) @ (pixels - mean).T / pixels.shape[1]


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """Raise a symmetric matrix to `exponent`.

    Directions without variance, of which a gray picture has two, stay without.
    """
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(covariance.cpu())  # not every GPU's library has it
    spread = values > 1e-6 * values.max().clamp_min(1e-12)
    powers = torch.where(spread, values.clamp_min(1e-12) ** exponent, 0)
    return ((vectors * powers) @ vectors.T).to(covariance.device)


def _unchanged(picture: Tensor, _: Tensor | None = None) -> Tensor:
    return picture


COLORS = {
    "none": ColorMethod(_unchanged, _unchanged, _unchanged),
    "luminance": ColorMethod(luminance, match_luminance, with_luminance),
    "histogram": ColorMethod(_unchanged, match_histogram, _unchanged),
}
"""Colour methods by the recipe's `preserve_color`."""
