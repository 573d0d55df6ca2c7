"""The scales of a picture, coarse to fine, and resizing from one to the next (Gatys et al. 2017, section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from batchnst.recipe import Recipe
from batchnst.sizes import fit

LAYOUT_SIZE = 256
"""A picture gets all its steps at the scale nearest to this one, in pixels: there the layers see whole strokes.

More steps at finer scales would lower the loss of these scales, and take the large strokes back.
"""

LEAST_SHARE = 1 / 4
"""Steps at each coarser scale, and at least at each finer one, as a share of those at the scale of the layout."""


LARGEST_RATIO = 32
"""Largest ratio of old to new length in one pass: CUDA's filter needs 260·(4·ratio + 1) bytes of the 48 kB of shared
memory that a block of threads has.
"""


@dataclass(frozen=True)
class Scale:
    """One scale: the pictures' longest side in pixels, the steps spent there, and the sizes that each step looks at."""

    size: int
    steps: int
    octaves: int = 1


def scales(recipe: Recipe, width: int, height: int) -> list[Scale]:
    """Return the scales of a picture of `width` × `height` pixels, coarse to fine, each half the size of the next.

    No scale is smaller than `recipe.min_size`, or too small for the recipe's layers. That nearest to LAYOUT_SIZE gets
    `recipe.steps` steps, each finer one half of those of the one before. With `recipe.octaves`, a step also looks at
    the picture at a half, a quarter … of the scale, down to the size nearest to LAYOUT_SIZE.
    """
    longest, shortest = max(width, height), min(width, height)
    sizes = [longest]
    while sizes[0] // 2 >= recipe.min_size and shortest * (sizes[0] // 2) >= recipe.smallest_side * longest:
        sizes.insert(0, sizes[0] // 2)
    layout = min(sizes, key=lambda size: abs(math.log2(size / LAYOUT_SIZE)))
    least = max(LAYOUT_SIZE / math.sqrt(2), recipe.smallest_side * longest / shortest)
    octaves = [1 + int(math.log2(max(1, size / least))) if recipe.octaves else 1 for size in sizes]
    steps = [math.ceil(recipe.steps * _share(size, layout)) for size in sizes]
    return list(map(Scale, sizes, steps, octaves))


def _share(size: int, layout: int) -> float:
    """The steps at a scale, as a share of those at the scale of the layout."""
    return max(LEAST_SHARE, layout / size) if size >= layout else LEAST_SHARE


def work(recipe: Recipe, width: int, height: int) -> int:
    """Return the pixel-steps of one picture through all its scales; its painting time is proportional to them."""
    return sum(
        scale.steps * math.prod(fit(width, height, scale.size / 2**octave))
        for scale in scales(recipe, width, height)
        for octave in range(scale.octaves)
    )


def resize(pictures: Tensor, width: int, height: int) -> Tensor:
    """Resize `pictures` (B, C, H, W), 0..255, by an antialiased bicubic filter; returns floats in 0..255."""
    pictures = pictures if pictures.is_floating_point() else pictures.float()
    if pictures.shape[-2:] == (height, width):
        return pictures
    shape = tuple(min(old, LARGEST_RATIO * new) for old, new in zip(pictures.shape[-2:], (height, width), strict=True))
    if shape != pictures.shape[-2:]:
        pictures = F.interpolate(pictures, shape, mode="bicubic", antialias=True).clamp_(0, 255)
    return F.interpolate(pictures, (height, width), mode="bicubic", antialias=True).clamp_(0, 255)
