"""The boxes of HEIC and AVIF files (ISO/IEC 14496-12), and WebP's one: what Pillow and libheif do not tell of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ZEROS_SHARE = 16
"""Picture data that ends in zeros, over one part in this many of the file, was written only in part."""

FEWEST_ZEROS = 512
"""Zeros that may end any picture data."""

_NCLX = b"colrnclx"


@dataclass(frozen=True)
class Box:
    """A box: its type, and where its content starts and ends in the file."""

    kind: bytes
    start: int
    end: int


def boxes(data: bytes) -> Iterator[Box]:
    """Yield the outermost boxes of the file `data`, none if it has no `ftyp` box."""
    at = 0
    while data[4:8] == b"ftyp" and at + 8 <= len(data):
        size, start = int.from_bytes(data[at : at + 4]), at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16]), at + 16
        end = at + size if size else len(data)
        if end < start:
            return
        yield Box(data[at + 4 : at + 8], start, min(end, len(data)))
        at = end


def nclx(data: bytes) -> tuple[int, int] | None:
    """Code points of the primaries and the curve (ITU-T H.273) of the first picture in the file; None if not told."""
    for box in boxes(data):
        at = data.find(_NCLX, box.start, box.end) + len(_NCLX) if box.kind == b"meta" else 0
        if at >= len(_NCLX) and at + 4 <= box.end:
            return int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 2 : at + 4])
    return None


def damage(data: bytes) -> str:
    """Why the picture in the file `data` is not whole; empty if it seems to be."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    written = len(data) - zeros
    parts = [box for box in boxes(data) if box.kind == b"mdat"]
    if data.startswith(b"RIFF"):
        parts = [Box(b"WEBP", 12, min(8 + int.from_bytes(data[4:8], "little"), len(data)))]
    in_data = any(part.start < written < part.end - FEWEST_ZEROS for part in parts)
    return "the picture ends early, in zeros" if in_data and zeros * ZEROS_SHARE > len(data) else ""
