"""The chunks of a PNG: what Pillow does not read of them, or reads at too high a price (PNG third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""First bytes of every PNG."""

MOST_TEXT_BYTES = 16 << 20
"""Longest text chunk, or colour profile, that is unpacked, in bytes."""

MOST_GAMMA = 5.0
"""Largest exponent that decodes the values of a picture, and 1 / the smallest."""

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")

_METADATA = (b"XML:com.adobe.xmp\0", b"Raw profile type ")
"""Beginnings of the text chunks that have metadata of photos."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by colour type."""

_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and distance of columns and rows, of each pass of an interlaced PNG."""


@dataclass(frozen=True)
class Chunk:
    """A chunk: its type, data and checksum; `start` and `end` are its place in the file."""

    kind: bytes
    data: memoryview
    checksum: int
    start: int
    end: int


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the whole chunks of the PNG `data`, none if it is not a PNG."""
    view, start = memoryview(data), len(SIGNATURE)
    while data.startswith(SIGNATURE) and start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            return
        yield Chunk(kind, view[start + 8 : end - 4], int.from_bytes(view[end - 4 : end]), start, end)
        start = end


def readable(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The PNG `data` without chunks that only harm; and a remark if damaged ones are among them.

    Those are texts, which may be of any length, except for metadata of photos; and damaged chunks of which a PNG is
    not in need, for which Pillow would refuse the whole file. Raises ValueError for Apple's own kind of PNG.
    """
    found = list(chunks(data))
    if found and found[0].kind == b"CgBI":
        raise ValueError("Apple's own kind of PNG (CgBI), which only its systems read; convert it there")
    damaged = [chunk for chunk in found if _is_ancillary(chunk) and not _is_whole(chunk)]
    texts = [chunk for chunk in found if chunk.kind in _TEXTS and not _is_metadata(chunk)]
    names = dict.fromkeys(chunk.kind.decode("ascii", "replace") for chunk in damaged if chunk.kind not in _TEXTS)
    notes = (f"damaged parts of its file were left out: {', '.join(names)}",) if names else ()
    dropped = sorted({chunk.start: chunk.end for chunk in (*damaged, *texts)}.items())
    starts, ends = [0, *(end for _, end in dropped)], [*(start for start, _ in dropped), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True)) if dropped else data, notes


def _is_ancillary(chunk: Chunk) -> bool:
    """True for a chunk that pixels can be decoded without: its type begins with a small letter."""
    return bool(chunk.kind[0] & 0x20)


def _is_whole(chunk: Chunk) -> bool:
    return zlib.crc32(chunk.data, zlib.crc32(chunk.kind)) == chunk.checksum


def _is_metadata(chunk: Chunk) -> bool:
    return len(chunk.data) <= MOST_TEXT_BYTES and bytes(chunk.data[:20]).startswith(_METADATA)


def damage(data: bytes, last_row_is_zero: bool) -> str:
    """Why the pixels of the PNG `data` are not whole; empty if they are.

    Missing rows are decoded as zeros: rows are counted only if the last one is zero, or in an interlaced PNG.
    """
    header, packed = b"", []
    for chunk in chunks(data):
        if chunk.kind == b"IHDR":
            header = bytes(chunk.data)
        elif chunk.kind == b"IDAT":
            if not _is_whole(chunk):
                return "its pixels do not match their checksum"
            packed.append(chunk.data)
    if len(header) < 13 or not (last_row_is_zero or header[12]):
        return ""
    return "" if _unpacked_bytes(packed) >= _pixel_bytes(header) else "the pixels end early"


def _pixel_bytes(header: bytes) -> int:
    """Bytes of the unpacked pixels, with the filter byte of each row."""
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    bits = depth * _CHANNELS.get(colours, 0)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _unpacked_bytes(packed: list[memoryview]) -> int:
    """Bytes that the pixels unpack to; those that cannot be unpacked do not count."""
    unpacker, count = zlib.decompressobj(), 0
    try:
        for part in packed:
            rest: bytes | memoryview = part
            while rest:
                count += len(unpacker.decompress(rest, 1 << 20))
                rest = unpacker.unconsumed_tail
    except zlib.error:
        pass
    return count + len(unpacker.flush())


def cicp(data: bytes) -> bytes:
    """The code points of the colours (ITU-T H.273) in the PNG `data`: 4 bytes, or none."""
    return _first(data, b"cICP", 4)


def says_srgb(data: bytes) -> bool:
    """True if the PNG `data` names sRGB as its colours."""
    return bool(_first(data, b"sRGB", 1))


def gamma(data: bytes) -> float | None:
    """The exponent that decodes the values of the PNG `data`, such as 2.2; None if it is not told.

    Raises ValueError for one that no picture has.
    """
    (value,) = struct.unpack(">I", _first(data, b"gAMA", 4) or bytes(4))
    exponent = 1e5 / value if value else None
    if exponent and not 1 / MOST_GAMMA <= exponent <= MOST_GAMMA:
        raise ValueError(f"a gamma of {exponent:g}")
    return exponent


def chromaticities(data: bytes) -> tuple[float, ...]:
    """The x and y of white, red, green and blue in the PNG `data`, empty if they are not told."""
    values = _first(data, b"cHRM", 32)
    return tuple(value / 1e5 for value in struct.unpack(">8I", values)) if values else ()


def _first(data: bytes, kind: bytes, length: int) -> bytes:
    """The data of the first chunk of a `kind` before the pixels, empty if it has another length."""
    for chunk in chunks(data):
        if chunk.kind == b"IDAT":
            return b""
        if chunk.kind == kind:
            return bytes(chunk.data) if len(chunk.data) == length else b""
    return b""
