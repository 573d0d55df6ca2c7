"""From values of any depth to 0..255: which of them are black and white."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnst.pictures.srgb import tone_mapped

BLOCK_VALUES = 1 << 21
"""Values that are converted at once."""

GUESSED_FROM = 1 << 20
"""Values that a range is guessed from, at most."""

TYPICAL = 99
"""The range of floats and long integers is guessed from this percentile: single brighter values are clipped."""

TOLERANCE = 1.25
"""Typical values of floats may be above white by this factor; they are clipped."""

FEW_BITS = (8, 10, 12)
"""Depths that integers of 16 bits may have by their values, where the file does not tell."""

MOST_HDR = 16.0
"""Brightest typical value of pictures in which 1 is white; those with more are on another scale."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Range:
    """The values for black and white; `peak` is the brightest that is not clipped, `note` a remark for the user."""

    black: float
    white: float
    peak: float = 0
    note: str = ""

    def scaled(self, values: Array) -> Array:
        """Scale `values` (H, W, S) to 0..1, or beyond where they are clipped; what is no number is black."""
        with np.errstate(over="ignore", invalid="ignore"):
            shares = (values.astype(np.float64) - self.black) / (self.white - self.black)
        shares = np.nan_to_num(shares, nan=0.0, posinf=MOST_HDR, neginf=0.0)
        return tone_mapped(shares, self.peak) if self.peak else shares


def guess_range(values: Array, bits: int) -> Range:
    """Guess the range of `values`, floats or integers of `bits`."""
    if values.dtype.kind == "f":
        return _range_of_floats(values)
    if values.dtype.kind == "u" and bits < 16:
        return Range(0, (1 << bits) - 1)
    if bits == 16 and values.min() >= 0:
        return _range_of_short_integers(values)
    return _range_of_integers(values, bits)


def _range_of_short_integers(values: Array) -> Range:
    """The range of integers of 16 bits, none below 0: of fewer bits if no value is above a sixteenth of the range."""
    highest = int(values.max())
    if depth := next((depth for depth in FEW_BITS if 0 < highest < 1 << depth), 0):
        note = f"no value is above {highest} of {np.iinfo(values.dtype).max}; taken as {depth} bits"
        return Range(0, (1 << depth) - 1, note=note)
    return Range(0, np.iinfo(values.dtype).max)


def _range_of_floats(values: Array) -> Range:
    """0..1, with or without highlights above 1; 0..255 or 0..65535; else from the lowest to the highest value."""
    some = _some(values)
    if not some.size:
        raise ValueError("none of its values is a number")
    low, high = (float(value) for value in np.percentile(some, (100 - TYPICAL, TYPICAL)))
    if low < -0.05 * max(high, 0):
        return _stretched(some)
    whole = bool(np.mean(some == some.round()) > 0.99)
    if TOLERANCE < high <= MOST_HDR and not whole:
        return Range(0, 1, high, note="its highlights, which are brighter than white, were compressed")
    white = next((float(white) for white in (1, 255, 65535) if white / MOST_HDR < high <= TOLERANCE * white), 0.0)
    return Range(0, white or 1) if white or 0 <= high <= TOLERANCE else _stretched(some)


def _range_of_integers(values: Array, bits: int) -> Range:
    """The range of signed or long integers: of 8 or 16 bits if typical values are within that, else of all `bits`."""
    some = _some(values)
    if some.min() < 0:
        return Range(-128, 127) if bits == 8 else _stretched(some)
    most = bits - (values.dtype.kind == "i")
    typical = float(np.percentile(some, TYPICAL))
    sizes = (8, 16, most) if bits > 16 else (most,)
    return Range(0, next((1 << size) - 1 for size in sizes if typical < 1 << size or size == most))


def _stretched(some: Array) -> Range:
    low, high = float(some.min()), float(some.max())
    note = f"values of {low:.4g} to {high:.4g} were stretched from black to white"
    return Range(low, high if high > low else low + 1, note=note)


def _some(values: Array) -> Array:
    """A part of all values, without those that are no numbers; as floats."""
    some = values.reshape(-1)[:: max(1, values.size // GUESSED_FROM)].astype(np.float64)
    return some[np.isfinite(some)]


def to_bytes(convert: Callable[[Array], Array], values: Array, channels: int) -> NDArray[np.uint8]:
    """Apply `convert`, to 0..1, to some rows of `values` (H, W, S) at a time; (H, W, channels), 0..255."""
    pixels = np.empty((*values.shape[:2], channels), np.uint8)
    step = max(1, BLOCK_VALUES // max(1, values.shape[1] * channels))
    for start in range(0, len(values), step):
        block = np.ascontiguousarray(values[start : start + step])
        pixels[start : start + step] = (255 * convert(block)).clip(0, 255).round()
    return pixels
