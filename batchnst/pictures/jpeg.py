"""Whether a JPEG's data is whole: libjpeg paints a shortened one, with gray in place of what is missing (ITU-T T.81).

A decoder that needs more data than there is takes what is inserted before the end; one that has all ignores it. So a
JPEG whose picture changes with FILLER inserted is short.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

FILLER = np.random.default_rng(0).integers(0, 255, 4096, np.uint8).tobytes()
"""Data to insert: random, without a marker."""

ZEROS = 512
"""A file that ends with this many zero bytes, and without an end marker, was written only in part."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that ends the data of a scan."""

_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}
"""Markers without a segment."""

_RESTART = re.compile(rb"\xff[\xd0-\xd7]")

_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_PROGRESSIVE = (0xC2, 0xCA)
_ANY_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


@dataclass
class Layout:
    """The frame and scans of a JPEG.

    missing: bits that no scan has sent, by component and coefficient; -1 for all of them.
    scans: where the data of each scan begins. end: where the last one ends. ends: True if the end marker follows.
    units: coded units (MCUs) of a scan of all components. interval: units between two restart markers, 0 for none.
    """

    progressive: bool = False
    missing: dict[tuple[int, int], int] = field(default_factory=dict)
    scans: list[int] = field(default_factory=list)
    end: int = 0
    ends: bool = False
    units: int = 0
    interval: int = 0


def layout(data: bytes) -> Layout:
    """Read the frame and scans of the first picture in the file `data`."""
    found = Layout(end=len(data))
    for marker, start, stop in _segments(data):
        if marker == 0xD9:
            found.end, found.ends = start, True
            break
        body = data[start:stop]
        if marker in _FRAMES and len(body) >= 9:
            _read_frame(body, marker in _PROGRESSIVE, found)
        elif marker == 0xDD:
            found.interval = int.from_bytes(body[:2])
        elif marker == 0xDA:
            _read_scan(body, found)
            found.scans.append(stop)
    return found


def refusal(data: bytes) -> str:
    """The reason why libjpeg does not read a JPEG; empty if it does, or if the JPEG has no frame."""
    frames = ((marker, data[start:stop].ljust(3, b"\0")) for marker, start, stop in _segments(data))
    for marker, frame in frames:
        if marker in _ANY_FRAME:
            if marker not in _FRAMES:
                return "a JPEG of a rare kind, such as without loss; save it as PNG or TIFF"
            if frame[0] not in (0, 8):
                return f"a JPEG of {frame[0]} bits a sample; save it with 8"
            return "" if any(frame[1:3]) else "a JPEG that does not tell its height"
    return ""


def has_profile(image: Image.Image) -> bool:
    """True if an opened picture is a JPEG with parts of a colour profile, whole or not."""
    return any(data.startswith(b"ICC_PROFILE\0") for _, data in getattr(image, "applist", ()))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The markers of a JPEG, and where each one's segment starts and stops; the data of scans is passed over."""
    at = 2
    while match := _MARKER.search(data, at):
        marker, at = data[match.start() + 1], match.end()
        if marker == 0xD9:
            yield marker, match.start(), match.end()
            return
        if marker in _NO_LENGTH:
            continue
        stop = at + int.from_bytes(data[at : at + 2])
        yield marker, at + 2, stop
        at = max(stop, at + 2)


def _read_frame(body: bytes, progressive: bool, found: Layout) -> None:
    """Note the components, and the number of units."""
    _, height, width, _ = struct.unpack_from(">BHHB", body)
    sampling = [divmod(factors, 16) for factors in body[7::3]]
    across, down = (8 * max(factors) if len(sampling) > 1 else 8 for factors in zip(*sampling, strict=True))
    found.progressive, found.units = progressive, -(-width // (across or 8)) * -(-height // (down or 8))
    coefficients = range(64) if progressive else (0,)
    found.missing = {(component, k): -1 for component in body[6::3] for k in coefficients}


def _read_scan(body: bytes, found: Layout) -> None:
    """Note what a scan sends of each coefficient."""
    count = body[0] if body else 0
    components, (first, last, bits) = body[1 : 1 + 2 * count : 2], body[1 + 2 * count : 4 + 2 * count].ljust(3, b"\0")
    for component in components:
        for k in range(first, last + 1) if found.progressive else (0,):
            found.missing[component, k] = bits & 15 if found.progressive else 0


def damage(data: bytes, image: Image.Image) -> str:
    """Why the JPEG `data`, decoded to `image`, is not whole; empty if it is."""
    found = layout(data)
    if any(found.missing.values()):
        return "parts of the picture are missing"
    if not found.ends and data.endswith(bytes(ZEROS)):
        return "the picture ends early, in zeros"
    if len(found.scans) == 1:
        if found.interval and _restarts(data, found) < -(-found.units // found.interval) - 1:
            return "parts of the picture are missing"
        if not _ends_gray(image):
            return ""
    return "the picture ends early" if _takes_more(data, found, image) else ""


def _restarts(data: bytes, found: Layout) -> int:
    """Number of restart markers in the only scan."""
    return sum(1 for _ in _RESTART.finditer(data, found.scans[0], found.end))


def _ends_gray(image: Image.Image) -> bool:
    """True if the last corner is gray, as that of a single scan which ends early."""
    corner = np.asarray(image.crop((image.width - 1, image.height - 1, image.width, image.height))).astype(int)
    return bool((abs(corner - 128) <= 1).all())


def _takes_more(data: bytes, found: Layout, image: Image.Image) -> bool:
    """True if the picture changes with more data at the end of its last scan."""
    if len(found.scans) > 1:  # the last one may hold fine details only, which a reduced picture does not have
        image = decode(data)
    longer = decode(data[: found.end] + FILLER + data[found.end :], image.width)
    return longer.size == image.size and longer.tobytes() != image.tobytes()


def decode(data: bytes, width: int = 0) -> Image.Image:
    """Decode a JPEG, reduced to `width` pixels if that is one of the widths that it can be decoded at."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if width:
            scale = round(image.width / width)
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        return image
