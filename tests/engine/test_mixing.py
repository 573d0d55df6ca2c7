from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from batchnst.engine.mixing import Size, mix
from batchnst.recipe import Recipe
from batchnst.sizes import fit
from batchnst.transfer.memory import GPU_BATCH
from batchnst.transfer.pyramid import scales

RATIOS = {1.5: 30, 4 / 3: 25, 16 / 9: 15, 1: 8, 1.25: 4, 1.6: 3, 1.4: 2, 2: 2, 21 / 9: 1, 1.29: 2, 1.41: 2, 1.85: 1}
"""Shares of the ratios of sides in a collection of photos, in percent; and a few odd ones."""

ODD = (3.0, 1.2, 1.1, 1.52)


def photos(seed: int, count: int, size: int) -> list[Size]:
    """Working sizes of photos of 30 shapes, two thirds of them landscape."""
    ratios = RATIOS | dict.fromkeys(ODD, 0.5)
    shapes = {fit(round(1000 * ratio), 1000, size): 0.65 * share for ratio, share in ratios.items()}
    shapes |= {(height, width): 0.35 / 0.65 * share for (width, height), share in shapes.items() if width > height}
    assert len(shapes) >= 30
    drawn = random.Random(seed).choices(list(shapes), list(shapes.values()), k=count - len(shapes))
    return [*shapes, *drawn]


def full_batch(canvas: Size) -> int:
    """The batch size of a large GPU."""
    return GPU_BATCH // math.prod(canvas)


@pytest.mark.parametrize("size", [512, 500, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_photos_of_thirty_shapes_make_a_dozen(seed: int, size: int) -> None:
    sizes = photos(seed, 1000, size)
    batches = list(mix(sizes, size, full_batch))
    assert sorted(index for indices, _ in batches for index in indices) == list(range(1000))
    shapes = Counter((len(indices), canvas) for indices, canvas in batches)
    assert len(shapes) <= 12
    assert sum(len(indices) for indices, _ in batches) >= 0.9 * sum(full_batch(canvas) for _, canvas in batches)
    inside = sum(map(math.prod, sizes))
    assert inside >= 0.9 * sum(len(indices) * math.prod(canvas) for indices, canvas in batches)
    for indices, (width, height) in batches:
        assert all(sizes[i][0] <= width and sizes[i][1] <= height for i in indices)


def test_the_coarser_scales_have_no_other_batches() -> None:
    # A shape a scale: (batch, height, width) at each of the three scales of a picture of 512 pixels.
    recipe = Recipe(size=512)
    batches = list(mix(photos(0, 1000, 512), 512, full_batch))
    shapes = {
        (len(indices), *(round(side * scale.size / 512) for side in canvas))
        for indices, canvas in batches
        for scale in scales(recipe, 512, 256)
    }
    assert len(shapes) <= 36


@pytest.mark.parametrize(
    ("count", "most", "even", "expected"),
    [(5, 4, True, [3, 2]), (5, 4, False, [4, 1]), (8, 4, True, [4, 4]), (3, 1, True, [1, 1, 1])],
)
def test_pictures_of_one_size_need_no_canvas(count: int, most: int, even: bool, expected: list[int]) -> None:
    batches = list(mix([(100, 70)] * count, 100, lambda _: most, even=even))
    assert [len(indices) for indices, _ in batches] == expected
    assert {canvas for _, canvas in batches} == {(100, 70)}


def test_the_rest_of_a_canvas_joins_a_wider_one_if_it_fills_enough_of_it() -> None:
    narrow, wide, tall = (512, 341), (512, 400), (256, 512)
    batches = {canvas: indices for indices, canvas in mix([narrow] * 5 + [wide] * 2 + [tall], 512, lambda _: 4)}
    assert batches == {(512, 341): [0, 1, 2, 3], (512, 400): [4, 5, 6], (256, 512): [7]}


def test_a_picture_that_is_alone_has_no_canvas() -> None:
    batches = mix([(512, 341), (512, 384)], 512, lambda _: 1)
    assert [canvas for _, canvas in batches] == [(512, 341), (512, 384)]
