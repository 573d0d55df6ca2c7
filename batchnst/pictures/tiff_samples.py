"""The samples of a TIFF's page: unpacked, of any depth, in strips or tiles, as they are in the file (TIFF 6.0)."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import TiffPage

NONE, DEFLATE, BY_LIBTIFF = 1, (8, 32946), (5, 32773, 34925, 50000)
COMPRESSIONS = (NONE, *DEFLATE, *BY_LIBTIFF)
"""Compressions that are read here, by their tag's value: none, deflate; LZW, PackBits, LZMA and Zstandard."""

BLOCK_VALUES = 1 << 20
"""Values of unusual depths that are unpacked at once."""

_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
"""NumPy's kinds of numbers by the tag SampleFormat."""

_BYTE_SIZES = (8, 16, 32, 64)

_BITS_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Storage of the samples of a page: the kind of numbers, their bits, and the shape of a strip or tile.

    rows, columns: of a tile, or of a strip that is not the last. samples: of a pixel in one strip or tile.
    planes: 1, or one for each sample.
    """

    kind: str
    bits: int
    order: Literal["<", ">"]
    rows: int
    columns: int
    samples: int
    planes: int
    tiled: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numbers that samples become."""
        size = next(size for size in _BYTE_SIZES if size >= self.bits)
        return np.dtype(f"{self.kind}{size // 8}")


def layout(page: TiffPage) -> Layout:
    """The layout of the samples of `page`; raises ValueError for one that is not read."""
    depths = page.bitspersample if isinstance(page.bitspersample, tuple) else (page.bitspersample,)
    kind, bits = _KINDS.get(int(page.sampleformat or 1), ""), depths[0]
    odd = len(set(depths)) > 1 or not 1 <= bits <= 64
    if odd or not kind or (kind == "f" and bits not in (16, 32, 64)) or (bits > 32 and bits != 64):
        raise ValueError(f"samples of {'+'.join(map(str, depths))} bits of this kind are not read")
    planes = page.samplesperpixel if int(page.planarconfig or 1) == 2 else 1
    tiled = bool(page.is_tiled)
    return Layout(
        kind=kind,
        bits=bits,
        order=page.parent.byteorder,
        rows=page.tilelength if tiled else min(page.rowsperstrip or page.imagelength, page.imagelength),
        columns=page.tilewidth if tiled else page.imagewidth,
        samples=page.samplesperpixel // planes,
        planes=planes,
        tiled=tiled,
    )


def segments(data: bytes, page: TiffPage) -> Iterator[bytes]:
    """Yield the packed strips or tiles of `page`; empty where the file leaves one out, which it may."""
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        yield data[offset : offset + count] if offset else b""


def read(data: bytes, page: TiffPage, lenient: bool = False) -> Array:
    """The samples of `page`, (H, W, S). Missing ones are 0 if `lenient`, else they raise ValueError."""
    how = layout(page)
    height, width = page.imagelength, page.imagewidth
    samples = np.zeros((height, width, page.samplesperpixel), how.dtype)
    across, down = -(-width // how.columns), -(-height // how.rows)
    packed = list(segments(data, page))
    if len(packed) < how.planes * across * down and not lenient:
        raise ValueError("the picture ends early")
    for index, segment in enumerate(packed[: how.planes * across * down]):
        if not segment and not page.dataoffsets[index]:
            continue
        plane, place = divmod(index, across * down)
        top, left = (place // across) * how.rows, (place % across) * how.columns
        rows = how.rows if how.tiled else min(how.rows, height - top)
        part = _segment(segment, page, how, rows, lenient)[: height - top, : width - left]
        target = samples[top : top + how.rows, left : left + how.columns]
        target[..., plane : plane + how.samples] = part
    return samples


def _segment(packed: bytes, page: TiffPage, how: Layout, rows: int, lenient: bool) -> Array:
    """The samples of a strip or tile, (rows, columns, S)."""
    row_bytes = -(-how.columns * how.samples * how.bits // 8)
    if int(page.fillorder or 1) == 2:
        packed = packed.translate(_BITS_REVERSED)
    try:
        data = _unpacked(packed, int(page.compression), row_bytes, rows, how.rows)
        if len(data) < row_bytes * rows:
            raise ValueError("the picture ends early")
    except (ValueError, OSError):
        if not lenient:
            raise
        data = (_unpacked_in_part(packed, int(page.compression))).ljust(row_bytes * rows, b"\0")
    in_rows = np.frombuffer(data, np.uint8, row_bytes * rows).reshape(rows, row_bytes)
    predictor = int(page.predictor or 1)
    if predictor == 3:
        return _undo_float_predictor(in_rows, how)
    values = _numbers(in_rows, how).reshape(rows, how.columns, how.samples)
    return np.cumsum(values, axis=1, dtype=how.dtype) if predictor == 2 else values


def _unpacked(packed: bytes, compression: int, row_bytes: int, rows: int, most_rows: int) -> bytes:
    """Unpack `rows`; a last strip may have `most_rows`."""
    if compression == NONE:
        return packed
    if compression in DEFLATE:
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(packed, row_bytes * most_rows + 1)
        except zlib.error as error:
            raise ValueError("the pixels cannot be unpacked") from error
        if not unpacker.eof and len(data) > row_bytes * rows:
            raise ValueError("the pixels cannot be unpacked")
        return data
    return _by_libtiff(packed, compression, row_bytes, rows)


def _unpacked_in_part(packed: bytes, compression: int) -> bytes:
    """As many bytes as can be had of damaged ones."""
    if compression == NONE:
        return packed
    unpacker, parts = zlib.decompressobj(), list[bytes]()
    try:
        for start in range(0, len(packed) if compression in DEFLATE else 0, 256):
            parts.append(unpacker.decompress(packed[start : start + 256]))
    except zlib.error:
        pass
    return b"".join(parts)


def _by_libtiff(packed: bytes, compression: int, row_bytes: int, rows: int) -> bytes:
    """Unpack by Pillow, in a TIFF that says that the bytes are gray pixels."""
    tags = [(256, row_bytes), (257, rows), (258, 8), (259, compression), (262, 1), (273, 0), (277, 1), (278, rows)]
    tags.append((279, len(packed)))
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    file = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + packed
    with Image.open(io.BytesIO(file), formats=["TIFF"]) as image:
        return image.tobytes()


def _numbers(rows: NDArray[np.uint8], how: Layout) -> Array:
    """The numbers in the bytes of `rows`, (rows, numbers in a row)."""
    if how.bits in _BYTE_SIZES:
        return rows.view(how.dtype.newbyteorder(how.order)).astype(how.dtype, copy=False)
    numbers = np.empty((len(rows), how.columns * how.samples), how.dtype)
    weights = 1 << np.arange(how.bits - 1, -1, -1, dtype=np.int64)
    step = max(1, BLOCK_VALUES // max(1, numbers.shape[1]))
    for start in range(0, len(rows), step):
        bits = np.unpackbits(rows[start : start + step], axis=1)[:, : numbers.shape[1] * how.bits]
        values = bits.reshape(len(bits), numbers.shape[1], how.bits) @ weights
        if how.kind == "i":
            values -= (values >> (how.bits - 1)) << how.bits
        numbers[start : start + step] = values
    return numbers


def _undo_float_predictor(rows: NDArray[np.uint8], how: Layout) -> Array:
    """The numbers in `rows`, whose bytes are differences, the highest bytes of all numbers first (TIFF note 3)."""
    size, numbers = how.dtype.itemsize, how.columns * how.samples
    differences = rows.reshape(len(rows), -1, how.samples)
    shuffled = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(len(rows), size, numbers)
    joined = np.ascontiguousarray(shuffled.transpose(0, 2, 1))
    values = joined.view(how.dtype.newbyteorder(">")).astype(how.dtype)
    return values.reshape(len(rows), how.columns, how.samples)
