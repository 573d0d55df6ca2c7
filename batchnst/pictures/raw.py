"""Develop the raw files of cameras by rawpy (LibRaw), which is an extra of this package."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec

from PIL import Image

ADVICE = "a camera's raw file: pip install rawpy to have it developed, or convert it to JPEG or TIFF"
"""Advice where rawpy is not installed."""

ENDINGS = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw")
"""Endings of the usual cameras' raw files."""

_BEGINNINGS = {
    0: (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM"),
    4: (b"ftypcrx ",),
    6: (b"HEAPCCDR",),
    8: (b"CR\2",),
}
"""Beginnings of raw files, by their place: Fuji, Panasonic, Olympus, Sigma, Minolta; Canon's of three kinds."""


def is_installed() -> bool:
    """True if rawpy is there."""
    return find_spec("rawpy") is not None


def is_camera_raw(data: bytes) -> bool:
    """True if `data` begins as only raw files do; those that are TIFFs tell by their main picture."""
    return any(data.startswith(beginnings, at) for at, beginnings in _BEGINNINGS.items())


def develop(data: bytes, check: Callable[[tuple[int, int]], None]) -> Image.Image:
    """The picture in the raw file `data`, upright, in sRGB, by the camera's white balance.

    `check` is called with its size before it is developed. Raises ValueError with ADVICE if rawpy is not installed.
    """
    if not is_installed():
        raise ValueError(ADVICE)
    import rawpy

    with rawpy.imread(io.BytesIO(data)) as raw:
        check((raw.sizes.width, raw.sizes.height))
        return Image.fromarray(raw.postprocess(use_camera_wb=True))
