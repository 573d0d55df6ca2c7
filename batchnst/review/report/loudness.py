"""How loud a painting is where its photograph is flat, such as in the sky: a measure to sort by.

Strokes and patterns in flat areas are what people see first. Both pictures are compared as small previews, so the
measure says which pairs to look at first, and nothing about a pair by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Plane = NDArray[np.uint8]

FLAT_SHARE = 1 / 3
"""Part of the photograph that counts as flat: the one with the least detail."""

RADIUS = 2
"""Of the neighbourhood whose mean is taken away from a pixel to get its detail, in pixels of the preview."""


def loudness(content: Plane, painting: Plane) -> float:
    """Mean detail of the painting in the flattest third of its photograph, in grey levels 0..255.

    Both are the brightness (h, w) of previews; the photograph gets the painting's size. Detail is the difference of a
    pixel from the mean around it.
    """
    painted = Image.fromarray(painting)
    photo = Image.fromarray(content).resize(painted.size, Image.Resampling.BOX)
    around = Image.fromarray(_detail(photo)).filter(ImageFilter.BoxBlur(RADIUS))
    busy = np.asarray(around)
    flat = busy <= np.quantile(busy, FLAT_SHARE)
    return float(_detail(painted)[flat].mean())


def _detail(picture: Image.Image) -> NDArray[np.float32]:
    """Difference of each pixel from the mean around it, without its sign (h, w)."""
    plane = Image.fromarray(np.asarray(picture, np.float32))
    return np.abs(np.asarray(plane) - np.asarray(plane.filter(ImageFilter.BoxBlur(RADIUS))))
