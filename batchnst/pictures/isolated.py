"""Open pictures from outside in a process apart, so that one that crashes, hangs or takes all memory harms no other.

Everything that decodes foreign bytes is here; `server` is the program of the process, `pool` starts it.
"""

from __future__ import annotations

import atexit
from dataclasses import asdict, astuple, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnst.pictures.decode import DecodeOptions, Picture
from batchnst.pictures.encode import Finish, Provenance, encode_picture
from batchnst.pictures.metadata import Metadata
from batchnst.pictures.pool import Pool
from batchnst.storage.files import open_file, size_of

HEAD_BYTES = 1 << 14
"""Bytes at the beginning of a file that are read at once to find the picture's size."""

GRAY = 96
"""Longest side of the brightness of a preview, in pixels."""

ENCODE_SECONDS = 600.0
"""Longest time to encode one picture, in seconds."""

QUALITY = 78
"""WebP quality of previews, 0..100, unless told otherwise."""

METADATA_BYTES = 64 << 20
"""Longest answer beside the pixels, in bytes: a colour profile, EXIF, or a preview."""

_POOL = Pool()
atexit.register(_POOL.trim)


def load(data: bytes, name: str, options: DecodeOptions) -> Picture:
    """Decode the file `data` and resize it to `options.size`.

    Raises InputError, with `name` in its message, if the picture cannot be decoded.
    """
    request = {"do": "load", "options": asdict(options)}
    pixels_at_most = max(options.max_pixels, (options.size or 0) ** 2)
    header, (pixels, alpha, icc, *kept) = _POOL.ask(name, request, data, most_bytes=4 * pixels_at_most + METADATA_BYTES)
    height, width = header["shape"]
    return Picture(
        np.frombuffer(pixels, np.uint8).reshape(height, width, 3),
        np.frombuffer(alpha, np.uint8).reshape(height, width) if alpha else None,
        Metadata(*kept),
        icc,
        tuple(header["notes"]),
    )


def probe(address: str) -> tuple[int, int] | None:
    """Read the upright size (width, height) of a picture from its header; None if the header cannot be read.

    Whoever decodes the picture meets the same error and reports it.
    """
    try:
        with open_file(address, buffer=HEAD_BYTES) as file:
            head = file.read(HEAD_BYTES)
            size = len(head) if len(head) < HEAD_BYTES else size_of(file)
            header, _ = _POOL.ask(address, {"do": "probe", "size": size}, head, file=file)
            width, height = header["size"]
            return width, height
    except Exception:
        return None


@dataclass(frozen=True)
class Preview:
    """A small picture: `data` is a WebP file, `gray` its brightness (h, w), 0..255, at most GRAY on a side."""

    data: bytes
    width: int
    height: int
    gray: NDArray[np.uint8]


def preview(data: bytes, name: str, side: int, quality: int = QUALITY) -> Preview:
    """Make a preview of the picture in the file `data`, upright, its longest side at most `side` pixels.

    `quality` is that of WebP, 0..100. Raises InputError, with `name` in its message, if the picture cannot be decoded.
    """
    request = {"do": "preview", "side": side, "quality": quality, "gray": GRAY}
    header, (small, gray) = _POOL.ask(name, request, data, most_bytes=METADATA_BYTES)
    (width, height), (columns, rows) = header["size"], header["gray"]
    return Preview(small, width, height, np.frombuffer(gray, np.uint8).reshape(rows, columns))


def examine(data: bytes, name: str, size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Read the format, by Pillow's name, and the size (width, height) of the picture in the file `data`.

    Raises InputError, with `name` in its message, if it cannot be opened, or has the expected `size` but is damaged.
    """
    header, _ = _POOL.ask(name, {"do": "examine", "size": size}, data)
    width, height = header["size"]
    return header["format"], (width, height)


def read_provenance(data: bytes, name: str) -> Provenance:
    """Read the provenance that a painted picture has in its file `data`; raises InputError if there is none."""
    header, _ = _POOL.ask(name, {"do": "provenance"}, data)
    return Provenance(**header["provenance"])


def encode(pixels: NDArray[Any], name: str, finish: Finish) -> bytes:
    """Encode `pixels` as `encode_picture` does; in the process apart if `finish` has metadata from outside."""
    if not (finish.icc or any(astuple(finish.metadata))):
        return encode_picture(pixels, name, finish)
    request = {
        "do": "encode",
        "name": name,
        "shape": pixels.shape[:2],
        "dtype": pixels.dtype.name,
        "quality": finish.quality,
        "provenance": finish.provenance and asdict(finish.provenance),
    }
    alpha = b"" if finish.alpha is None else finish.alpha.tobytes()
    parts = (alpha, finish.icc, *astuple(finish.metadata))
    most_bytes = 16 * pixels.size + METADATA_BYTES
    _, (data,) = _POOL.ask(name, request, pixels.tobytes(), *parts, most_bytes=most_bytes, seconds=ENCODE_SECONDS)
    return data


@cache
def endings() -> frozenset[str]:
    """The endings of files that can be decoded, in lower case, with their dot."""
    header, _ = _POOL.ask("picture formats", {"do": "endings"})
    return frozenset(header["endings"])


def release() -> None:
    """End the processes that are idle, but one: after many pictures at once, when few will follow."""
    _POOL.trim(keep=1)
