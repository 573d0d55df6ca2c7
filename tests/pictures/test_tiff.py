"""TIFFs of every depth, range and kind of colours look as their tags say; previews in them are passed over."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image

from batchnst.errors import InputError
from batchnst.pictures import decode, isolated
from tests.helpers import as_bytes, decode_rgb, scene
from tests.pictures.profiles import gray_profile, rgb_profile, srgb_curve

RAMP = np.tile(np.linspace(0, 1, 64), (16, 1))
COLOURS = np.asarray(scene())
DNG = [(50706, "B", 4, (1, 4, 0, 0), True)]


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def looks(data: bytes) -> NDArray[np.int64]:
    return np.asarray(decode_rgb(data, "x")).astype(int)


def gray(data: bytes) -> NDArray[np.int64]:
    return looks(data)[..., 1]


def packed(values: NDArray[Any], bits: int, photometric: int = 1, **extra: int) -> bytes:
    """A TIFF by hand: `values` (H, W, S), each in `bits`; `extra` are tags, called `tag_…`."""
    height, width, samples = values.shape
    if bits in (16, 32):
        data = values.astype(f"<u{bits // 8}").tobytes()
    else:
        rows = ["".join(format(value, f"0{bits}b") for value in row.reshape(-1)) for row in values]
        data = b"".join(int(row + "0" * (-len(row) % 8), 2).to_bytes(-(-len(row) // 8)) for row in rows)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: samples, 278: height}
    tags |= {279: len(data), **{int(name.removeprefix("tag_")): value for name, value in extra.items()}}
    depths = struct.pack(f"<{samples}H", *[bits] * samples)
    at = 8 + 2 + 12 * len(tags) + 4
    tags[273] = at + len(depths)
    page = struct.pack("<H", len(tags))
    for tag, value in sorted(tags.items()):
        many = tag == 258 and samples == 3
        page += struct.pack("<HHII", tag, 3 if many else 4, 3 if many else 1, at if many else value)
    return b"II*\0\x08\0\0\0" + page + bytes(4) + depths + data


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 24, 32])
def test_integers_of_any_depth_are_as_bright_as_their_share_of_the_most(bits: int) -> None:
    most = (1 << bits) - 1
    values = (RAMP * most).round().astype(np.int64)[..., None]
    assert np.abs(gray(packed(values, bits)) - 255 * values[..., 0] / most).max() <= 1
    inverted = gray(packed(values, bits, photometric=0))
    assert np.abs(inverted - 255 * (1 - values[..., 0] / most)).max() <= 1
    colours = looks(packed(np.repeat(values, 3, axis=2), bits, photometric=2))
    assert np.abs(colours - 255 * values / most).max() <= 1


def test_the_range_that_a_file_names_is_its_range() -> None:
    twelve = (RAMP * 4095).astype(np.uint16)
    for tag in (281, 341):  # MaxSampleValue, SMaxSampleValue
        assert np.abs(gray(tiff(twelve, extratags=[(tag, "H", 1, 4095, True)])) - 255 * RAMP).max() <= 1
    temperatures = (RAMP * 40 - 10).astype(np.float32)
    named = [(340, "f", 1, -10.0, True), (341, "f", 1, 30.0, True)]
    assert np.abs(gray(tiff(temperatures, extratags=named)) - 255 * RAMP).max() <= 1
    occurs = tiff((RAMP * 20000).astype(np.uint16), extratags=[(281, "H", 1, 20000, True)])
    assert np.abs(gray(occurs) - 255 * RAMP * 20000 / 65535).max() <= 1
    nonsense = tiff(twelve * 16, extratags=[(340, "H", 1, 7, True), (341, "H", 1, 7, True)])
    assert np.abs(gray(nonsense) - 255 * RAMP).max() <= 1


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("predictor", [None, "lzw"])
def test_floats_are_known_by_typical_values(kind: str, predictor: str | None) -> None:
    for scale in (1, 255, 65535):
        if kind == "float16" and scale > 255:
            continue
        values = (RAMP * scale).astype(kind)
        assert np.abs(gray(tiff(values)) - 255 * RAMP).max() <= 1
        values[0, 0], values[0, 1], values[0, 2], values[0, 3] = 1.5 * scale, np.nan, np.inf, -np.inf
        found = gray(tiff(values))
        assert np.abs(found[1:] - 255 * RAMP[1:]).max() <= 1
        assert found[0, :4].tolist() == [255, 0, 255, 0]


def test_floats_beyond_white_keep_what_is_below_and_say_so() -> None:
    bright = (RAMP * 4 + 0.001).astype(np.float32)
    decoded = decode.open_picture(tiff(bright), "x")
    assert decoded.notes == ("its highlights, which are brighter than white, were compressed",)
    found = np.asarray(decoded.image)[0, :, 0].astype(int)
    assert np.abs(found - 255 * bright[0])[bright[0] < 0.7].max() <= 1
    assert (np.diff(found) >= 0).all()
    assert found[32] < 255


def test_signed_values_are_stretched_and_say_so() -> None:
    for values in ((RAMP * 3000 - 1000).astype(np.int16), (RAMP * 2 - 1).astype(np.float32)):
        decoded = decode.open_picture(tiff(values), "x")
        assert "were stretched from black to white" in decoded.notes[0]
        assert np.abs(np.asarray(decoded.image)[..., 0] - 255 * RAMP).max() <= 2
    assert np.abs(gray(tiff((RAMP * 32767).astype(np.int16))) - 255 * RAMP).max() <= 1
    assert np.abs(gray(tiff((RAMP * 255 - 128).round().astype(np.int8))) - 255 * RAMP).max() <= 1


@pytest.mark.parametrize("kind", [np.uint32, np.int32])
def test_long_integers_of_a_short_range_are_not_black(kind: type) -> None:
    for most in (255, 65535, int(np.iinfo(kind).max)):
        assert np.abs(gray(tiff((RAMP * most).astype(kind))) - 255 * RAMP).max() <= 1


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_colours_in_planes_tiles_and_floats(planar: str, tile: tuple[int, int] | None, kind: str) -> None:
    scale = {"uint8": 1, "uint16": 257, "float32": 1 / 255}[kind]
    values = (COLOURS.astype(float) * scale).astype(kind)
    stored = np.moveaxis(values, 2, 0) if planar == "separate" else values
    for options in ({}, {"compression": "zlib", "predictor": kind != "float32"}, {"byteorder": ">"}, {"bigtiff": True}):
        data = tiff(stored, photometric="rgb", planarconfig=planar, tile=tile, **options)
        assert np.abs(looks(data) - COLOURS).max() <= 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "zstd", "tiff_deflate", "lzma"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "F"])
def test_what_libtiff_unpacks_looks_as_pillow_shows_it(mode: str, compression: str) -> None:
    image = Image.fromarray(RAMP.astype(np.float32)) if mode == "F" else scene().convert(mode)
    data = as_bytes(image, "TIFF", compression=compression)
    expected = 255 * np.dstack([RAMP] * 3) if mode == "F" else np.asarray(image.convert("RGB"))
    assert np.abs(looks(data) - expected).max() <= 1


def test_the_float_predictor_is_undone() -> None:
    values = COLOURS.astype(np.float32) / 255
    in_bytes = values.astype(">f4").view(np.uint8).reshape(40, 180, 4)
    planes = in_bytes.transpose(0, 2, 1).reshape(40, 240, 3)  # the first bytes of all numbers, then the second, …
    differences = np.diff(planes, axis=1, prepend=np.zeros((40, 1, 3), np.uint8))
    plain = packed(values.view(np.uint32), 32, photometric=2, tag_317=3, tag_339=3)
    assert np.abs(looks(plain[: -differences.size] + differences.tobytes()) - COLOURS).max() <= 1


@pytest.mark.parametrize("most", [1, 257])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_palettes_of_any_depth(bits: int, most: int) -> None:
    count = 1 << min(bits, 8)
    indices = np.tile(np.arange(count), (4, 1))
    reds = np.linspace(0, 255, count).astype(np.uint16)
    colours = np.zeros((3, 1 << bits), np.uint16)
    colours[0, :count] = reds * most
    if bits == 4:
        data = bytearray(packed(indices[..., None], 4, photometric=3, tag_320=0))
        at = data.find(struct.pack("<HH", 320, 4))
        data[at : at + 12] = struct.pack("<HHII", 320, 3, 3 * 16, len(data))
        data += colours.astype("<u2").tobytes()
    else:
        data = bytearray(tiff(indices.astype(f"u{bits // 8}"), photometric="palette", colormap=colours))
    assert (looks(bytes(data))[0, :, 0] == reds).all()
    assert looks(bytes(data))[..., 1:].max() == 0


def lab_of(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """L*a*b* (D50) of gray of a linear brightness."""
    y = np.where(linear > 216 / 24389, np.cbrt(linear), (24389 / 27 * linear + 16) / 116)
    return np.stack([116 * y - 16, 0 * y, 0 * y], axis=-1)


@pytest.mark.parametrize("kind", ["cielab8", "cielab16", "icclab8", "icclab16", "float"])
def test_lab_of_any_depth(kind: str) -> None:
    lab = lab_of(RAMP)
    lab[8:, :, 1] = 20
    if kind == "float":
        data = tiff(lab.astype(np.float32), photometric="cielab")
    else:
        deep = kind.endswith("16")
        unit, icc = (256 if deep else 1), kind.startswith("icc")
        white = 255 * unit if icc or not deep else 65535
        stored = np.concatenate([lab[..., :1] * white / 100, lab[..., 1:] * unit + (128 * unit if icc else 0)], axis=-1)
        values = (stored.round().astype(np.int64) & (0xFFFF if deep else 0xFF)).astype(np.uint16 if deep else np.uint8)
        data = tiff(values, photometric="icclab" if icc else "cielab")
    found = looks(data)
    within = 1 if kind in ("float", "cielab16", "icclab16") else 4
    assert np.abs(found[:8] - 255 * srgb_curve(RAMP[:8])[..., None]).max() <= within
    assert (found[8:, 20:50, 0] - found[8:, 20:50, 1]).min() > 15  # reddish


def test_cmyk_of_sixteen_bits_is_that_of_eight() -> None:
    cmyk = np.asarray(scene().convert("CMYK"))
    expected = np.asarray(scene().convert("CMYK").convert("RGB"))
    data = tiff(cmyk.astype(np.uint16) * 257, photometric="separated")
    assert np.abs(looks(data) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha", "unspecified"])
def test_opacity_is_told_from_other_samples(extra: str, kind: str) -> None:
    share = np.linspace(0.2, 1, 60)[None, :, None] * np.ones((40, 1, 1))
    stored = COLOURS / 255 * (share if extra == "assocalpha" else 1)
    values = np.concatenate([stored, share], axis=2)
    scale = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    data = tiff((values * scale).round(8 if scale == 1 else 0).astype(kind), photometric="rgb", extrasamples=[extra])
    expected = COLOURS if extra == "unspecified" else COLOURS * share + 255 * (1 - share)
    assert np.abs(looks(data) - expected).max() <= (4 if extra == "assocalpha" else 2)
    assert (decode.open_picture(data, "x").alpha is None) == (extra == "unspecified")


def test_a_deep_picture_is_converted_by_its_profile() -> None:
    data = tiff((RAMP * 65535).astype(np.uint16), iccprofile=gray_profile(1.0))
    assert np.abs(gray(data) - 255 * srgb_curve(RAMP)).max() <= 9  # Pillow converts 8 bits
    assert decode.open_picture(tiff(COLOURS, photometric="rgb", iccprofile=rgb_profile()), "x").icc == rgb_profile()


def with_preview(nested: bool, flags: tuple[int | None, int | None] = (1, 0), **options: Any) -> bytes:
    """A small bright picture, then a large dark one, in the order of a camera's files."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        small = np.full((48, 64, 3), 200, np.uint8)
        writer.write(
            small, photometric="rgb", subfiletype=flags[0], subifds=1 if nested else 0, metadata=None, **options
        )
        writer.write(np.full((48, 640, 3), 50, np.uint8), photometric="rgb", subfiletype=flags[1], metadata=None)
    return buffer.getvalue()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("extra", [[], DNG, [(274, "H", 1, 6, True)]])
def test_a_preview_is_passed_over(nested: bool, extra: list[Any], tmp_path: Path) -> None:
    data = with_preview(nested, extratags=extra)
    decoded = decode.open_picture(data, "x")
    turned = bool(extra and extra[0][0] == 274)
    assert decoded.image.size == ((48, 640) if turned else (640, 48))
    assert decoded.image.getpixel((0, 0)) == (50, 50, 50)
    assert decoded.notes == ()
    (tmp_path / "x.tif").write_bytes(data)
    assert isolated.probe(str(tmp_path / "x.tif")) == decoded.image.size


def test_a_page_of_its_own_is_no_preview() -> None:
    pages = with_preview(False, flags=(0, 0))
    assert decode.open_picture(pages, "x").notes == ("the first of 2 frames",)
    assert decode.open_picture(pages, "x").image.size == (64, 48)
    unmarked = decode.open_picture(with_preview(True, flags=(None, None)), "x")
    assert unmarked.image.size == (640, 48)
    pyramid = io.BytesIO()
    with tifffile.TiffWriter(pyramid) as writer:
        writer.write(np.full((96, 640, 3), 50, np.uint8), photometric="rgb", subifds=1)
        writer.write(np.full((48, 64, 3), 200, np.uint8), photometric="rgb", subfiletype=1)
    assert decode.open_picture(pyramid.getvalue(), "x").image.size == (640, 96)


def raw(turned: int = 1) -> bytes:
    """A DNG as a camera writes it: a preview, then what a colour filter let through."""
    filtered = np.zeros((120, 160), np.uint16)
    filtered[0::2, 0::2], filtered[1::2, 1::2] = 1000, 500
    filtered[0::2, 1::2] = filtered[1::2, 0::2] = 3000
    matrix = [value for entry in (1, 0, 0, 0, 1, 0, 0, 0, 1) for value in (entry, 1)]
    camera: list[Any] = [
        (50708, "s", 0, "Made up", True),
        (271, "s", 0, "Camera Works", True),
        (272, "s", 0, "One", True),
    ]
    camera += [(50707, "B", 4, (1, 1, 0, 0), True), (50721, "2i", 9, matrix, True), (274, "H", 1, turned, True)]
    camera += [(50728, "2I", 3, [1] * 6, True), (50778, "H", 1, 21, True)]
    pattern: list[Any] = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]
    pattern += [(50714, "H", 1, 0, True), (50717, "H", 1, 4095, True)]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder="<") as writer:
        preview, options = np.full((12, 16, 3), 200, np.uint8), dict[str, Any](metadata=None)
        writer.write(preview, photometric="rgb", subifds=1, subfiletype=1, extratags=DNG + camera, **options)
        writer.write(filtered, photometric=32803, subfiletype=0, extratags=pattern, **options)
    return buffer.getvalue()


def test_a_cameras_raw_file_is_developed(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    decoded = isolated.load(raw(), "x", decode.DecodeOptions())
    assert decoded.pixels.shape == (120, 160, 3)
    assert decoded.pixels.reshape(-1, 3).mean(0).argmax() == 1
    assert b"Camera Works" in decoded.metadata.exif
    assert isolated.load(raw(turned=6), "x", decode.DecodeOptions()).pixels.shape == (160, 120, 3)
    (tmp_path / "x.dng").write_bytes(raw(turned=6))
    assert isolated.probe(str(tmp_path / "x.dng")) == (120, 160)
    with pytest.raises(InputError, match="160×120 pixels, more than max_megapixels"):
        decode.open_picture(raw(), "x", decode.DecodeOptions(megapixels=0.01))


@pytest.mark.parametrize(
    "data", [raw(), b"FUJIFILMCCD-RAW 0201", b"II*\0\x10\0\0\0CR\2\0" + bytes(99), b"\0\0\0\x18ftypcrx " + bytes(99)]
)
def test_a_raw_file_is_refused_with_advice_without_the_extra(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchnst.pictures.raw.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^x: cannot be decoded: a camera's raw file: pip install rawpy"):
        decode.open_picture(data, "x")


def test_colours_and_depths_that_are_not_read_are_named() -> None:
    with pytest.raises(InputError, match="colours of the kind ITULAB are not read"):
        decode.open_picture(tiff(COLOURS, photometric="itulab"), "x")
    with pytest.raises(InputError, match=r"160×120 pixels, more than max_megapixels = 0\.01 allows"):
        decode.open_picture(tiff(np.zeros((120, 160), np.float32)), "x", decode.DecodeOptions(megapixels=0.01))


def test_a_tiff_is_turned_by_its_own_tag_or_that_of_its_first_page() -> None:
    for orientation in range(1, 9):
        data = tiff(COLOURS.astype(np.float32) / 255, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        expected = np.asarray(decode_rgb(as_bytes(scene(), exif=exif), "x")).astype(int)
        assert np.abs(looks(data) - expected).max() <= 1
