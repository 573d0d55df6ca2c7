"""The scales of a picture, coarse to fine, and resizing from one to the next (Gatys et al. 2017, section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from batchnst.recipe import Recipe, fit

COARSE_STEPS = 1 / 4
"""Steps at each coarser scale, as a share of those at the finest: enough to lay out the large shapes."""


LARGEST_RATIO = 32
"""Largest ratio of old to new length in one pass: CUDA's filter needs 260·(4·ratio + 1) bytes of the 48 kB of shared
memory that a block of threads has.
"""


@dataclass(frozen=True)
class Scale:
    """One scale: the pictures' longest side in pixels, and the steps spent there."""

    size: int
    steps: int


def scales(recipe: Recipe, width: int, height: int) -> list[Scale]:
    """Return the scales of a picture of `width` × `height` pixels, coarse to fine, each half the size of the next.

    No scale is smaller than `recipe.min_size`, or too small for the recipe's layers.
    """
    longest, shortest = max(width, height), min(width, height)
    sizes = [longest]
    while sizes[0] // 2 >= recipe.min_size and shortest * (sizes[0] // 2) >= recipe.smallest_side * longest:
        sizes.insert(0, sizes[0] // 2)
    coarse = math.ceil(recipe.steps * COARSE_STEPS)
    return [Scale(size, recipe.steps if size == longest else coarse) for size in sizes]


def work(recipe: Recipe, width: int, height: int) -> int:
    """Return the pixel-steps of one picture through all its scales; its painting time is proportional to them."""
    return sum(scale.steps * math.prod(fit(width, height, scale.size)) for scale in scales(recipe, width, height))


def resize(pictures: Tensor, width: int, height: int) -> Tensor:
    """Resize `pictures` (B, C, H, W), 0..255, by an antialiased bicubic filter; returns floats in 0..255."""
    pictures = pictures if pictures.is_floating_point() else pictures.float()
    if pictures.shape[-2:] == (height, width):
        return pictures
    shape = tuple(min(old, LARGEST_RATIO * new) for old, new in zip(pictures.shape[-2:], (height, width), strict=True))
    if shape != pictures.shape[-2:]:
        pictures = F.interpolate(pictures, shape, mode="bicubic", antialias=True).clamp_(0, 255)
    return F.interpolate(pictures, (height, width), mode="bicubic", antialias=True).clamp_(0, 255)
