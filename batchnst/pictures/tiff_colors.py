"""From the samples of a TIFF's page to a picture of 8 bits, by the page's range of values and its kind of colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import TiffPage

from batchnst.pictures import srgb
from batchnst.pictures.ranges import Array, Range, guess_range, to_bytes

NOTES = "tiff notes"
"""Key of the remarks for the user in a picture's `info`."""

_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE, _CMYK, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 8, 9
_COLOURS = {_WHITE_IS_0: 1, _BLACK_IS_0: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _CIELAB: 3, _ICCLAB: 3}
"""Photometric interpretations that are read, with the samples that each one's colours have."""

_PHOTOMETRIC, _ICC, _HIGHEST, _SMALLEST_VALUE, _LARGEST_VALUE = 262, 34675, 281, 340, 341
"""Tags: the kind of colours; the colour profile; the largest value of integers; the range of values of any kind."""

_PREMULTIPLIED, _IS_OPACITY = 1, (1, 2, 999)
"""Values of the tag ExtraSamples."""

Bytes = NDArray[np.uint8]


def to_image(page: TiffPage, samples: Array) -> Image.Image:
    """The picture in `samples` (H, W, S): L, RGB or CMYK, the first two perhaps with opacity.

    `info` has the page's colour profile, unless the colours are sRGB's already, and remarks under NOTES. Raises
    ValueError for colours that are not read.
    """
    photometric = _photometric(page)
    count = _COLOURS.get(photometric)
    if count is None or samples.shape[2] < count:
        name = getattr(page.photometric, "name", photometric)
        raise ValueError(f"colours of the kind {name} are not read; save it as RGB")
    colours, notes, icc = samples[..., :count], list[str](), page.tags.valueof(_ICC)
    if photometric == _PALETTE:
        pixels = _by_palette(page, colours[..., 0])
    elif photometric in (_CIELAB, _ICCLAB):
        pixels, icc = to_bytes(_lab(page, colours), colours, 3), None
    else:
        span = value_range(page, colours)
        notes += [span.note] if span.note else []
        is_bytes = colours.dtype == np.uint8 and span == Range(0, 255)
        pixels = colours if is_bytes else to_bytes(span.scaled, colours, count)
        pixels = 255 - pixels if photometric == _WHITE_IS_0 else pixels
    image = _assembled(page, pixels, samples[..., count:], notes)
    image.info |= {NOTES: notes, **({"icc_profile": bytes(icc)} if icc else {})}
    return image


def _photometric(page: TiffPage) -> int:
    """The kind of colours; if the page lacks that tag, it follows from the number of samples, as in libtiff."""
    if _PHOTOMETRIC in page.tags:
        return int(page.photometric)
    return _RGB if page.samplesperpixel >= 3 else _BLACK_IS_0


def value_range(page: TiffPage, colours: Array) -> Range:
    """The values for black and white: those that the page names, those of its bits, or else a guess by the values."""
    lowest, highest = (_extreme(page, tag, choose) for tag, choose in ((_SMALLEST_VALUE, min), (_LARGEST_VALUE, max)))
    if highest is not None and (lowest or 0) < highest:
        return Range(lowest or 0, highest)
    bits = page.bitspersample[0] if isinstance(page.bitspersample, tuple) else page.bitspersample
    if colours.dtype.kind == "u" and (named := _named_highest(page, bits)):
        return Range(0, named)
    return guess_range(colours, bits)


def _extreme(page: TiffPage, tag: int, choose: Callable[[Any], Any]) -> float | None:
    value = page.tags.valueof(tag)
    return None if value is None else float(choose(value) if isinstance(value, tuple) else value)


def _named_highest(page: TiffPage, bits: int) -> int:
    """The highest value of unsigned integers that the page names, as of a camera with 12 bits; 0 if it names none.

    MaxSampleValue may also be the highest value that occurs, which says nothing.
    """
    said = int(_extreme(page, _HIGHEST, max) or 0)
    return said if 255 <= said < 1 << min(bits, 16) and said & (said + 1) == 0 else 0


def _lab(page: TiffPage, colours: Array) -> Callable[[Array], Array]:
    """A function from L*a*b* as stored, of D50, to 0..1 in sRGB."""
    bits = 8 * colours.dtype.itemsize
    icc = int(page.photometric) == _ICCLAB

    def convert(values: Array) -> Array:
        if colours.dtype.kind == "f":
            lab = values.astype(np.float64)
        else:
            unit, unsigned = 1 << (bits - 8), values.view(f"u{bits // 8}").astype(np.float64)
            signed = unsigned - 128 * unit if icc else values.view(f"i{bits // 8}").astype(np.float64)
            white = 255 * unit if icc else (1 << bits) - 1
            lab = np.concatenate([unsigned[..., :1] * (100 / white), signed[..., 1:] / unit], axis=-1)
        return srgb.encode_srgb(srgb.lab_to_linear(np.nan_to_num(lab)))

    return convert


def _by_palette(page: TiffPage, indices: Array) -> Bytes:
    """Colours by a palette of 16 bits, or of 8 bits, as some programs write it."""
    palette = np.asarray(page.colormap).reshape(3, -1).T
    colours = (palette if palette.max(initial=0) < 256 else palette // 256).astype(np.uint8)
    return colours[np.minimum(indices, len(colours) - 1)]


def _assembled(page: TiffPage, pixels: Bytes, extras: Array, notes: list[str]) -> Image.Image:
    """The picture, with the opacity among its extra samples, if there is one; what is left out is told in `notes`."""
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[pixels.shape[2]]
    kinds = page.extrasamples if isinstance(page.extrasamples, tuple) else (page.extrasamples or 2,)
    at = next((i for i, kind in enumerate(kinds[: extras.shape[2]]) if int(kind) in _IS_OPACITY), None)
    if at is None and mode == "L" and extras.shape[2] > 1:
        notes.append(f"the first of {1 + extras.shape[2]} samples, as gray")
    if at is not None and mode == "CMYK":
        notes.append("its opacity was left out, since its colours are CMYK")
    if at is None or mode == "CMYK":
        return _image(mode, pixels)
    opacity = extras[..., at : at + 1]
    span = Range(0, 1) if opacity.dtype.kind == "f" else value_range(page, opacity)
    whole = np.concatenate([pixels, to_bytes(span.scaled, opacity, 1)], axis=-1)
    if int(kinds[at]) == _PREMULTIPLIED:
        return _image(f"{mode}a", whole).convert(f"{mode}A")
    return _image(f"{mode}A", whole)


def _image(mode: str, pixels: Bytes) -> Image.Image:
    return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
