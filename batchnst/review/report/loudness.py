"""Loudness, a measure to sort by: the detail of a painting where its photograph is flat, such as in the sky.

Strokes and patterns in flat areas are what people see first. Both pictures are compared as small previews, so the
measure says which pairs to look at first, and nothing about a pair by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.uint8]
Values = NDArray[np.float32]

FLAT_SHARE = 1 / 3
"""Part of the photograph that counts as flat: the one with the least detail."""

RADIUS = 2
"""Of the neighbourhood whose mean is taken away from a pixel to get its detail, in pixels of the preview."""


def loudness(content: Plane, painting: Plane) -> float:
    """Mean detail of the painting in the flattest third of its photograph, in grey levels 0..255.

    Both are the brightness (h, w) of previews; the photograph gets the painting's size. Detail is the difference of a
    pixel from the mean around it.
    """
    height, width = painting.shape
    photo = np.asarray(Image.fromarray(content).resize((width, height), Image.Resampling.BOX), np.float32)
    busy = _mean_around(_detail(photo))
    flat = busy <= np.quantile(busy, FLAT_SHARE)
    return float(_detail(painting.astype(np.float32))[flat].mean())


def _detail(plane: Values) -> Values:
    """Difference of each value (h, w) from the mean around it, without its sign."""
    return np.asarray(np.abs(plane - _mean_around(plane)))


def _mean_around(plane: Values) -> Values:
    """The mean of the square around each value (h, w), RADIUS to each side; the edge goes on beyond itself."""
    side = 2 * RADIUS + 1
    for axis, length in enumerate(plane.shape):
        padded = np.pad(plane, [(RADIUS, RADIUS) if k == axis else (0, 0) for k in range(2)], mode="edge")
        plane = np.mean([np.take(padded, range(k, k + length), axis) for k in range(side)], 0, np.float32)
    return plane
