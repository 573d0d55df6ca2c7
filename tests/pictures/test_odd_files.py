"""Odd files of cameras, scanners and programs look right, or a note or a line tells what is odd about them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from batchnst.errors import InputError
from batchnst.pictures.decode import Decoded, DecodeOptions, open_picture
from batchnst.pictures.encode import Finish, encode_picture
from tests.helpers import as_bytes, scene

COLOURS = np.asarray(scene())
GRAY = np.asarray(scene().convert("L"))


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(pixels: NDArray[Any], colours: int, *chunks: bytes) -> bytes:
    """A PNG with `chunks` before its pixels, of 8 or 16 bits."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colours, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def opened(data: bytes, **options: Any) -> Decoded:
    return open_picture(data, "x", DecodeOptions(**options))


def refused(data: bytes, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        opened(data, **options)
    return str(error.value)


def gray(decoded: Decoded) -> NDArray[np.int64]:
    return np.asarray(decoded.image)[..., 1].astype(int)


def test_a_gray_of_16_bits_that_stands_for_transparent_is_so() -> None:
    values = GRAY.copy()
    values[:, :20] = 7
    data = png((values.astype(np.uint16) * 257).astype(">u2"), 0, chunk(b"tRNS", struct.pack(">H", 7 * 257)))
    decoded = opened(data)
    assert np.abs(gray(decoded) - np.where(values == 7, 255, values)).max() <= 1
    assert decoded.alpha is not None
    assert decoded.alpha.getextrema() == (0, 255)


def test_a_damaged_part_that_no_pixel_needs_is_left_out_and_told() -> None:
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000), checksum=1)
    decoded = opened(png(COLOURS, 2, gamma, chunk(b"pHYs", bytes(9), checksum=1)))
    assert (np.asarray(decoded.image) == COLOURS).all()
    assert decoded.notes == ("damaged parts of its file were left out: gAMA, pHYs",)


@pytest.mark.parametrize("value", [1, 5_000, 700_000, 0xFFFFFFFF])
def test_a_gamma_that_no_picture_has_is_ignored_and_told(value: int) -> None:
    decoded = opened(png(COLOURS, 2, chunk(b"gAMA", struct.pack(">I", value))))
    assert (np.asarray(decoded.image) == COLOURS).all()
    assert decoded.notes == ("its colours are of an unknown kind; taken as sRGB",)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (GRAY.astype(np.uint16), "taken as 8 bits"),
        (GRAY.astype(np.int16), "taken as 8 bits"),
        (GRAY.astype(np.uint16) * 16, "taken as 12 bits"),
        (GRAY.astype(np.uint16) * 4, "taken as 10 bits"),
        ((GRAY - GRAY.min()).astype(np.float32) * 12, "were stretched from black to white"),
    ],
)
def test_values_of_a_small_part_of_their_range_are_not_black(values: NDArray[Any], note: str) -> None:
    decoded = opened(tiff(values))
    assert note in decoded.notes[0]
    expected = GRAY if values.dtype.kind != "f" else 255 * values / values.max()
    assert np.abs(gray(decoded) - expected).max() <= 2


def test_sixteen_bits_in_a_png_are_ranged_as_in_a_tiff() -> None:
    decoded = opened(png((GRAY.astype(np.uint16) * 16).astype(">u2"), 0))
    assert np.abs(gray(decoded) - GRAY).max() <= 1
    assert decoded.notes == (f"no value is above {16 * int(GRAY.max())} of 65535; taken as 12 bits",)


def test_a_dark_picture_and_a_black_one_stay_so() -> None:
    dark = np.where(GRAY < 250, 300, 30_000).astype(np.uint16)
    dark[0, 0] = 30_000
    assert gray(opened(tiff(dark))).min() == 1
    assert opened(tiff(np.zeros_like(dark))).notes == ()
    assert gray(opened(tiff(np.zeros_like(dark)))).max() == 0
    assert gray(opened(tiff((GRAY / 255 / 100).astype(np.float32)))).max() <= 3


def test_floats_of_which_none_is_a_number_are_refused() -> None:
    assert "none of its values is a number" in refused(tiff(np.full((16, 16), np.nan, np.float32)))


def without_tag(data: bytes, tag: int) -> bytes:
    """The TIFF `data`, in which an entry has a number that no program knows."""
    at = data.index(struct.pack("<HH", tag, 3))
    return data[:at] + struct.pack("<H", 60_000) + data[at + 2 :]


def test_colours_of_an_unnamed_kind_follow_from_their_number() -> None:
    assert (np.asarray(opened(without_tag(tiff(COLOURS, photometric="rgb"), 262)).image) == COLOURS).all()
    assert (gray(opened(without_tag(tiff(GRAY, photometric="minisblack"), 262))) == GRAY).all()


def test_samples_that_are_left_out_are_told() -> None:
    inks = np.dstack([255 - COLOURS, np.zeros_like(GRAY), np.full_like(GRAY, 128)])
    decoded = opened(tiff(inks, photometric="separated", extrasamples=["unassalpha"]))
    assert decoded.notes == ("its opacity was left out, since its colours are CMYK",)
    bands = tiff(np.dstack([GRAY] * 3), photometric="minisblack", planarconfig="contig")
    assert opened(bands).notes == ("the first of 3 samples, as gray",)


def test_pages_that_lead_back_to_the_first_are_counted_once() -> None:
    data = bytearray(tiff(COLOURS, photometric="rgb"))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * count, at)
    assert opened(bytes(data)).notes == ()


def test_a_big_endian_bigtiff_has_no_broken_exif() -> None:
    decoded = opened(tiff(COLOURS, photometric="rgb", bigtiff=True, byteorder=">", software="Scanner 3"))
    assert decoded.notes == ()
    assert b"Scanner 3" in decoded.metadata.exif


def subsampled() -> bytes:
    """A TIFF of YCbCr whose colours have half the resolution, not compressed."""
    luma = np.asarray(scene().convert("YCbCr"))[..., 0]
    blocks = luma.reshape(20, 2, 30, 2).swapaxes(1, 2).reshape(-1, 4)
    pixels = np.hstack([blocks, np.full((len(blocks), 2), 128, np.uint8)]).tobytes()
    tags = {256: 60, 257: 40, 258: 8, 259: 1, 262: 6, 273: 0, 277: 3, 278: 40, 279: len(pixels), 530: 2 | 2 << 16}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    kinds = {258: (3, 1), 530: (3, 2)}
    entries = b"".join(struct.pack("<HHII", tag, *kinds.get(tag, (4, 1)), value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + pixels


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"\n<html>", "a web page"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "an SVG; export it as PNG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; `git lfs pull` fetches the picture"),
        (b"%PDF-1.4", "a PDF"),
        (bytes(5000), "only zeros; fetch it again"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (as_bytes(scene())[:40], "a PNG that is damaged, or ends early"),
        (as_bytes(scene(), "AVIF")[:200], "a HEIC, AVIF or WebP that is damaged, or of a rare kind"),
        (b"8BPS\0\1" + bytes(20), "a Photoshop file of a kind that is not read; save it as TIFF or PNG"),
        ("photos/Zoë.jpg".encode(), "text that begins with 'photos/Zoë.jpg'"),
        (as_bytes(scene(), "JPEG")[:20], "a JPEG that is damaged, or ends early"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, said: str) -> None:
    assert refused(data) == f"x: not a picture that Pillow can read: {said}"


def test_jpegs_that_are_not_read_are_named() -> None:
    data = bytearray(as_bytes(scene(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 4] = 12
    assert refused(bytes(data)).endswith(": a JPEG of 12 bits a sample; save it with 8")
    data[frame + 4 : frame + 7] = b"\x08\0\0"
    assert refused(bytes(data)).endswith(": a JPEG that does not tell its height")
    lossless = as_bytes(scene(), "JPEG").replace(b"\xff\xc0", b"\xff\xc3")
    assert refused(lossless).endswith(": a JPEG of a rare kind, such as without loss; save it as PNG or TIFF")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (as_bytes(scene(), "JPEG")[:-200], 'the picture ends early; damaged = "accept" paints what there is'),
        (as_bytes(scene(), "JPEG")[:200], "the file ends before the picture begins"),
        (as_bytes(scene(), "WEBP")[:-200], "its data is damaged, or ends early"),
        (tiff(COLOURS)[:8], "it has no page; its structure is damaged, or it ends early"),
        (tiff(COLOURS, compression="zlib", metadata=None)[:-900] + b"\xff" * 900, "the pixels cannot be unpacked"),
        (subsampled(), "YCbCr colours of a lower resolution are read in JPEG compression only; save it as RGB"),
    ],
)
def test_what_is_wrong_with_a_picture_is_said_in_plain_words(data: bytes, said: str) -> None:
    assert refused(data) == f"x: cannot be decoded: {said}"


def test_a_picture_of_which_nothing_is_left_is_no_picture() -> None:
    whole = tiff(np.full((64, 64), 200, np.uint8), rowsperstrip=64)
    with pytest.raises(InputError, match="nothing of it can be read: the picture ends early"):
        opened(whole[:-4096], damaged="accept")


def exif_of(texts: dict[int, bytes]) -> bytes:
    """EXIF with texts in any encoding, which Pillow would not write."""
    start, entries, data = 8 + 2 + 12 * len(texts) + 4, b"", b""
    for tag, text in sorted(texts.items()):
        entries += struct.pack("<HHII", tag, 2, len(text) + 1, start + len(data))
        data += text + b"\0"
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(texts)) + entries + bytes(4) + data


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "avif", "tif"])
def test_texts_of_exif_keep_their_bytes_whatever_their_encoding(ending: str) -> None:
    texts = {0x10E: "caption é 写真".encode(), 0x13B: "Zoë".encode(), 0x8298: "© Ünal".encode("latin1")}
    decoded = opened(as_bytes(scene(), "JPEG", exif=exif_of(texts)))
    written = encode_picture(COLOURS, f"x.{ending}", Finish(metadata=decoded.metadata))
    assert all(text + b"\0" in written for text in texts.values())


def test_apples_own_png_is_named() -> None:
    data = png(COLOURS, 2)
    said = "Apple's own kind of PNG (CgBI), which only its systems read; convert it there"
    assert refused(data[:8] + chunk(b"CgBI", bytes(4)) + data[8:], damaged="accept") == f"x: cannot be decoded: {said}"


def number(value: float) -> bytes:
    return struct.pack(">i", round(65536 * value))


def profile(gamma: float, scale: float = 1.0) -> bytes:
    """A profile of sRGB's primaries, multiplied by `scale`, and a power curve (ICC.1, parametricCurveType)."""
    primaries = {b"r": (0.4361, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}
    tags = {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1, 0.8249)))}
    for letter, values in primaries.items():
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + b"".join(number(scale * value) for value in values)
        tags[letter + b"TRC"] = b"para" + bytes(8) + number(gamma)
    at, table, data = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", at + len(data), len(tag))
        data += tag
    head = struct.pack(">I4sI12s", at + len(data), b"test", 0x04200000, b"mntrRGB XYZ ")
    return head.ljust(36, b"\0") + b"acsp" + bytes(88) + struct.pack(">I", len(tags)) + table + data


@pytest.mark.parametrize(("gamma", "scale"), [(0.0, 1.0), (2.2, 0.0)])
def test_a_profile_that_makes_all_colours_one_is_ignored_and_told(gamma: float, scale: float) -> None:
    assert opened(as_bytes(scene(), icc_profile=profile(1.0))).notes == ()
    decoded = opened(as_bytes(scene(), icc_profile=profile(gamma, scale)))
    assert decoded.notes == ("its colour profile makes all colours one, and was ignored",)
    assert (np.asarray(decoded.image) == COLOURS).all()


def test_a_profile_of_which_a_part_is_missing_is_told() -> None:
    data = as_bytes(scene(), "JPEG", icc_profile=profile(1.0) + bytes(70_000))
    second = data.index(b"ICC_PROFILE\0\2") - 4
    length = int.from_bytes(data[second + 2 : second + 4])
    decoded = opened(data[:second] + data[second + 2 + length :])
    assert decoded.notes == ("a part of its colour profile is missing; taken as sRGB",)
    assert opened(data).notes == ()
