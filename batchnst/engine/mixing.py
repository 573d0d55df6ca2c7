"""Batches of pictures of different sizes on canvases of few shapes: a GPU searches and records anew for each shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

Size = tuple[int, int]
"""(width, height), in pixels."""

RUNGS = 8
"""Pictures share a canvas if their sides, as multiples of 1/RUNGS of the longest side, round up to the same."""

LEAST_SHARE = 0.6
"""Smallest share of a wider canvas that pictures may fill; else they are in a batch of their own, however small."""


def mix(
    sizes: Sequence[Size], longest: int, most: Callable[[Size], int], *, even: bool = True
) -> Iterator[tuple[list[int], Size]]:
    """Yield batches of pictures of these `sizes`, with longest side `longest`: their indices, and their canvas.

    Pictures with sides of about the same length share a canvas, the smallest that holds them. Its batches are full,
    with `most(canvas)` pictures; the rest, the largest of its pictures, joins those of a wider canvas. If none is
    wider, no batch need be full: if `even`, all have about the same number of pictures.
    """
    buckets: dict[Size, list[int]] = {}
    for index, (width, height) in enumerate(sizes):
        rungs = math.ceil(RUNGS * width / longest), math.ceil(RUNGS * height / longest)
        buckets.setdefault(rungs, []).append(index)
    waiting = [(_canvas([sizes[i] for i in indices]), indices) for indices in buckets.values()]
    waiting.sort(key=lambda bucket: math.prod(bucket[0]))
    while waiting:
        canvas, indices = waiting.pop(0)
        indices.sort(key=lambda i: math.prod(sizes[i]))
        count, wider = most(canvas), [bucket for larger, bucket in waiting if _holds(larger, canvas)]
        if wider:
            full = len(indices) // count * count
            wider[0] += indices[full:]
            del indices[full:]
        elif even:
            count = even_batch_size(len(indices), count)
        for start in range(0, len(indices), count):
            batch = indices[start : start + count]
            yield batch, canvas if len(batch) > 1 else sizes[batch[0]]


def even_batch_size(count: int, max_count: int) -> int:
    """Batch size, at most `max_count`, that divides `count` pairs into batches of about the same size."""
    return math.ceil(count / math.ceil(count / max_count))


def _canvas(sizes: Sequence[Size]) -> Size:
    """The smallest canvas that holds pictures of these sizes."""
    width, height = (max(lengths) for lengths in zip(*sizes, strict=True))
    return width, height


def _holds(wider: Size, canvas: Size) -> bool:
    """True if pictures of one canvas can be on a `wider` one, and fill enough of it."""
    inside = wider[0] >= canvas[0] and wider[1] >= canvas[1]
    return inside and math.prod(canvas) >= LEAST_SHARE * math.prod(wider)
