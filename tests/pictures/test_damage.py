"""Pictures that end early, although their files end as whole ones do."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pyarrow.compute as pc
import pytest
import tifffile
from PIL import Image

from batchnst import read_ledger
from batchnst.errors import InputError
from batchnst.pictures import isolated, png
from batchnst.pictures.decode import Decoded, DecodeOptions, open_picture
from tests.helpers import as_bytes, scene
from tests.pictures.runs import ledger, run

JPEGS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"subsampling": 0},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 3},
    {"progressive": True, "restart_marker_rows": 2},
]


def photo(mode: str = "RGB") -> Image.Image:
    """A picture with detail everywhere."""
    return Image.effect_noise((320, 240), 60).convert(mode)


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    return as_bytes(photo(mode), "JPEG", quality=90, **options)


def shortened(jpeg: bytes, share: float) -> bytes:
    """The first part of a JPEG, and an end marker."""
    return jpeg[: int(len(jpeg) * share)].rstrip(b"\xff") + b"\xff\xd9"


def half_zeros(data: bytes) -> bytes:
    """A file of which the second half was never written."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def opened(data: bytes, **options: Any) -> Decoded:
    return open_picture(data, "x", DecodeOptions(**options))


def refused(data: bytes, **options: Any) -> str:
    with pytest.raises(InputError, match=r"^x: cannot be decoded: ") as error:
        opened(data, **options)
    return str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_shortened_jpeg_is_refused_and_a_whole_one_is_not(options: dict[str, Any], mode: str) -> None:
    whole = jpeg(mode, **options)
    for size in (None, 16):
        assert opened(whole, size=size).notes == ()
        for share in (0.98, 0.9, 0.5, 0.2):
            assert 'damaged = "accept" paints what there is' in refused(shortened(whole, share), size=size)


@pytest.mark.parametrize("colour", ["#808080", "#7f7f7f", "#818181", "black", "teal"])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}], ids=str)
def test_a_gray_jpeg_is_not_damaged(options: dict[str, Any], colour: str) -> None:
    for size in (None, 16):
        data = as_bytes(Image.new("RGB", (333, 251), colour), "JPEG", **options)
        assert opened(data, size=size).notes == ()
    assert opened(data + bytes(5000)).notes == ()  # as some phones pad it


def test_an_accepted_picture_is_painted_with_a_note() -> None:
    decoded = opened(shortened(jpeg(), 0.5), damaged="accept")
    (note,) = decoded.notes
    assert note == "damaged: the picture ends early; painted as far as it can be read"
    pixels, before = np.asarray(decoded.image).astype(int), np.asarray(photo()).astype(int)
    assert np.abs(pixels[:80] - before[:80]).mean() < 12 or pixels[:80].std() > 20
    assert (pixels[-8:] == 128).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "PNG"])
def test_a_file_that_was_written_only_in_part_is_refused(kind: str) -> None:
    assert refused(half_zeros(as_bytes(photo(), kind)))


def test_a_heic_that_was_written_only_in_part_is_refused() -> None:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo()).save(buffer, quality=90)
    assert opened(buffer.getvalue()).notes == ()
    assert refused(half_zeros(buffer.getvalue()))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(pixels: bytes, interlaced: bool = False, size: tuple[int, int] = (320, 240)) -> bytes:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_png_with_too_few_rows_is_refused() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(photo()))
    assert opened(png_with(zlib.compress(rows))).notes == ()
    for share in (0.5, 0.99):
        assert refused(png_with(zlib.compress(rows[: int(share * len(rows))])))
    assert refused(png_with(zlib.compress(rows)[:-5000]))
    black = bytes(240 * 961)
    assert opened(png_with(zlib.compress(black))).notes == ()


def test_an_interlaced_png_is_counted_pass_by_pass() -> None:
    size = (5, 3)
    sizes = [
        (1, 1),
        (1, 1),
        (1, 1),
        (3, 1),
        (2, 2),
        (5, 1),
    ]  # columns, rows of each pass but the third
    passes = b"".join((b"\0" + b"\x50" * 3 * columns) * rows for columns, rows in sizes)
    assert opened(png_with(zlib.compress(passes), True, size)).notes == ()
    short = png_with(zlib.compress(passes[:-20]), True, size)
    assert refused(short)
    assert png.damage(short, last_row_is_zero=False) == "the pixels end early"


def test_a_png_whose_pixels_do_not_match_their_checksum_is_refused() -> None:
    data = bytearray(as_bytes(photo()))
    at = data.find(b"IDAT") + 4
    data[at + 6 : at + 7] = bytes([data[at + 6] ^ 1])
    assert refused(bytes(data))


@pytest.mark.parametrize("compression", [None, "zlib", "packbits"])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_a_tiff_whose_last_part_is_missing_is_refused(compression: str | None, tile: tuple[int, int] | None) -> None:
    if compression == "packbits":
        whole = as_bytes(photo(), "TIFF", compression="packbits")
    else:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.asarray(photo()), photometric="rgb", compression=compression, tile=tile)
        whole = buffer.getvalue()
    assert opened(whole).notes == ()
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        tag = file.pages[0].tags[325 if tile and compression != "packbits" else 279]  # type: ignore[union-attr]
        at = tag.valueoffset if tag.count == 1 else tag.valueoffset + (tag.count - 1) * tag.valuebytecount // tag.count
        width = tag.valuebytecount // tag.count
    count = int.from_bytes(whole[at : at + width], "little")
    short = whole[:at] + (count // 2).to_bytes(width, "little") + whole[at + width :]
    assert refused(short)
    accepted = opened(short, damaged="accept")
    assert accepted.notes[0].startswith("damaged: ")
    assert accepted.image.size == (320, 240)


@pytest.mark.parametrize("compression", ["tiff_lzw", "zstd", "tiff_adobe_deflate", "jpeg"])
def test_a_compressed_tiff_of_which_half_is_zeros_is_refused(compression: str) -> None:
    data = bytearray(as_bytes(photo(), "TIFF", compression=compression))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        start, count = page.dataoffsets[-1], page.databytecounts[-1]
    assert opened(bytes(data)).notes == ()
    data[start + count // 2 : start + count] = bytes(count - count // 2)
    assert refused(bytes(data))


def test_a_shortened_jpeg_in_a_tiff_is_refused() -> None:
    data = as_bytes(photo("L"), "TIFF", compression="jpeg", quality=90)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        start, count = page.dataoffsets[-1], page.databytecounts[-1]
    short = data[start : start + count // 2].rstrip(b"\xff") + b"\xff\xd9"
    assert refused(data[:start] + short.ljust(count, b"\xff") + data[start + count :])


def test_other_formats_that_end_early_are_refused() -> None:
    for kind in ("GIF", "BMP", "PPM", "TGA", "JPEG2000", "WEBP"):
        data = as_bytes(photo(), kind)
        assert refused(data[: len(data) // 2] + b"\xff\xd9")


def test_the_recipe_says_whether_damaged_pictures_are_painted(folder: Path) -> None:
    (folder / "half.jpg").write_bytes(shortened(jpeg(), 0.5))
    (folder / "half.png").write_bytes(half_zeros(as_bytes(photo("L"))))
    rows: list[dict[str, Any]] = [{"content": "half.jpg"}, {"content": "clear.png"}, {"content": "half.png"}]
    assert run(folder, *rows).exit_code == 1
    row = ledger(folder)["n0"]
    assert row["status"] == "failed"
    reason = 'cannot be decoded: the picture ends early; damaged = "accept" paints what there is'
    assert row["error_message"] == f"{folder}/half.jpg: {reason}"
    accepted = run(folder, *(row | {"damaged": "accept"} for row in rows), options=["--retry-failed"])
    assert accepted.exit_code == 0, accepted.stderr
    assert "1 of 3 pairs are done already" in accepted.stderr
    painted = pc.field("status") == "ok", pc.field("pair_id") == "n0"
    (newest,) = read_ledger(str(folder / "out"), "pairs").to_table(filter=painted[0] & painted[1]).to_pylist()
    assert newest["notes"] == ["content: damaged: the picture ends early; painted as far as it can be read"]


def test_a_damaged_picture_has_a_preview() -> None:
    assert isolated.preview(shortened(jpeg(), 0.5), "x", 64).width == 64


def test_a_mask_that_is_damaged_is_refused_too(folder: Path) -> None:
    (folder / "mask.jpg").write_bytes(as_bytes(scene(48, 32).convert("L"), "JPEG")[:300] + b"\xff\xd9")
    row: dict[str, Any] = {"content": "clear.png", "content_mask": ["mask.jpg"], "style": ["style.png"]}
    assert run(folder, row).exit_code == 1
