from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms

from batchnst.errors import InputError
from batchnst.pictures import decode as im
from batchnst.pictures.isolated import probe
from tests.helpers import TURNS, as_bytes, decode_rgb, png, scene
from tests.pictures.profiles import adobe_to_srgb, gray_profile, rgb_profile, srgb_curve

BROKEN_EXIF = [
    b"Exif\0\0nonsense",
    b"Exif\0\0MM",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHLf", ExifTags.Base.ImageDescription, 11, 1, 8.0) + bytes(4),
]
"""EXIF that raises SyntaxError and AttributeError when it is written into another file."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_shown_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    stored = scene().transpose(TURNS[orientation]) if orientation in TURNS else scene()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = as_bytes(stored, kind, exif=exif, **({"quality": 100} if kind in ("JPEG", "WEBP", "AVIF") else {}))
    decoded = decode_rgb(data, "x")
    assert decoded.size == (60, 40)
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(scene())).max() < 16
    (tmp_path / "x").write_bytes(data)
    assert probe(str(tmp_path / "x")) == (60, 40)


def test_heic_is_read_and_shown_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pillow_heif.from_pillow(scene().transpose(Image.Transpose.ROTATE_90)).save(
        tmp_path / "x.heic", quality=95, exif=exif.tobytes()
    )
    decoded = decode_rgb((tmp_path / "x.heic").read_bytes(), "x")
    assert decoded.size == (60, 40)
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(scene())).mean() < 4
    assert probe(str(tmp_path / "x.heic")) == (60, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("exif", BROKEN_EXIF)
def test_a_broken_exif_is_no_broken_picture_and_is_not_kept(exif: bytes) -> None:
    decoded = im.open_picture(as_bytes(scene(), "JPEG", exif=exif), "x")
    assert decoded.image.size == (60, 40)
    assert decoded.metadata.exif == b""
    assert "its EXIF is broken and was left out" in decoded.notes


def test_a_picture_of_the_callers_stays_as_it_was() -> None:
    with Image.open(io.BytesIO(as_bytes(scene(2400, 1600), "JPEG"))) as image:
        options = im.DecodeOptions(size=64)
        assert im.fitted(im.from_image(image, options), options).pixels.shape == (43, 64, 3)
        assert image.size == (2400, 1600)


def test_a_wide_gamut_becomes_srgb_by_the_formulas() -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    data = as_bytes(Image.fromarray(values), icc_profile=rgb_profile())
    expected = adobe_to_srgb(values)
    assert np.abs(np.asarray(decode_rgb(data, "x")) - expected).max() < 1
    assert np.abs(values - expected).mean() > 10
    alpha = Image.fromarray(np.full((40, 50), 255, np.uint8))
    see_through = Image.merge("RGBA", [*Image.fromarray(values).split(), alpha])
    assert np.abs(np.asarray(decode_rgb(as_bytes(see_through, icc_profile=rgb_profile()), "x")) - expected).max() < 1


def test_a_gray_profile_becomes_srgb_by_the_formulas() -> None:
    values = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    for image in (Image.fromarray(values), Image.fromarray(values).convert("LA")):
        found = np.asarray(decode_rgb(as_bytes(image, icc_profile=gray_profile(1.8)), "x"))
        assert np.abs(found[..., 1] - 255 * srgb_curve((values / 255) ** 1.8)).max() < 2


def test_lab_and_cmyk_are_those_of_littlecms_and_pillow() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = ImageCms.profileToProfile(scene(), srgb, lab, outputMode="LAB")
    assert image
    found = decode_rgb(as_bytes(image, "TIFF"), "x")
    assert np.abs(np.asarray(found).astype(int) - np.asarray(scene())).mean() < 2
    for kind in ("TIFF", "JPEG"):
        data = as_bytes(scene().convert("CMYK"), kind)
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert (np.asarray(decode_rgb(data, "x")) == np.asarray(expected)).all()


@pytest.mark.parametrize(
    ("icc", "note"),
    [
        (b"nonsense", "its colour profile cannot be read; taken as sRGB"),
        (gray_profile(1.8), "its colour profile does not fit its colours and was ignored"),
    ],
)
def test_a_profile_that_is_of_no_use_is_left_aside_and_told(icc: bytes, note: str) -> None:
    decoded = im.open_picture(as_bytes(scene(), icc_profile=icc), "x")
    assert (np.asarray(decoded.image) == np.asarray(scene())).all()
    assert decoded.notes == (note,)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_brightness(kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = np.asarray(decode_rgb(as_bytes(Image.fromarray(values), kind), "x"))[..., 0]
    assert np.abs(found - values / 257).max() <= 0.5


def test_floats_keep_their_brightness() -> None:
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    for scale in (1, 255):
        found = np.asarray(decode_rgb(as_bytes(Image.fromarray(values * scale), "TIFF"), "x"))[..., 2]
        assert np.abs(found - values * 255).max() <= 0.51


def test_sixteen_bit_colours_keep_their_brightness() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (30, 20, 3), np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb")
    assert np.abs(np.asarray(decode_rgb(buffer.getvalue(), "x")) - values / 257).max() <= 1


def test_of_an_animation_the_first_frame_is_taken_and_that_is_told() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = as_bytes(frames[0], kind, save_all=True, append_images=frames[1:])
        decoded = im.open_picture(data, "x")
        assert decoded.notes == ("the first of 3 frames",), kind
        assert np.abs(np.asarray(decoded.image)[4, 4].astype(int) - [255, 0, 0]).max() < 8


def test_the_ground_shows_through_and_the_opacity_is_kept() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    decoded = im.open_picture(as_bytes(image), "x", im.DecodeOptions(background="#0000ff"))
    assert np.asarray(decoded.image)[0, 0].tolist() == [128, 0, 127]
    assert decoded.alpha
    assert decoded.alpha.getextrema() == (128, 128)
    assert im.open_picture(as_bytes(scene()), "x").alpha is None


def test_a_large_jpeg_is_decoded_no_larger_than_is_of_use() -> None:
    data = as_bytes(scene(2400, 1600), "JPEG", quality=95)
    options = im.DecodeOptions(size=64)
    decoded = im.open_picture(data, "x", options)
    assert decoded.image.size == (300, 200)
    whole = im.fitted(im.open_picture(data, "x"), options).pixels.astype(int)
    assert np.abs(im.fitted(decoded, options).pixels - whole).max() <= 3
    assert im.open_picture(data, "x", im.DecodeOptions(size=512)).image.size == (2400, 1600)


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", None)  # decoding would fail otherwise
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as in the process apart
    bomb = zlib.compress(bytes(3 * 60_000 + 1) * 10)
    for width, height in ((60_000, 10), (20_000, 20_000)):
        with pytest.raises(InputError, match=rf"^x: {width}×{height} pixels, more than max_megapixels = 250 allows"):
            im.open_picture(png(width, height, bomb), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        b"GRIB\0\0\0\1" + bytes(40),
        b"BUFR\0\0\0\3" + bytes(40),
        b"\x89HDF\r\n\x1a\n" + bytes(40),
        b"\xd7\xcd\xc6\x9a\0\0"
        + bytes([0, 0, 0, 0, 9, 0, 9, 0, 72, 0, 0, 0, 0, 0, 0, 0, 1, 0, 9, 0, 0, 3])
        + bytes(40),
    ],
    ids=["EPS", "GRIB", "BUFR", "HDF5", "WMF"],
)
def test_what_would_be_run_or_has_no_decoder_is_no_picture(data: bytes) -> None:
    with pytest.raises(InputError, match="not a picture that Pillow can read"):
        decode_rgb(data, "x")


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    pixels = np.asarray(decode_rgb(as_bytes(image), "x"))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.new(mode, (5, 3))
    assert decode_rgb(as_bytes(image, kind), "x").mode == "RGB"


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "an empty file"), (b"not a picture", "not a picture"), (None, "cannot be decoded")],
)
def test_what_is_no_picture_says_so(data: bytes | None, message: str) -> None:
    if data is None:
        data = as_bytes(Image.effect_noise((64, 64), 50).convert("RGB"))[:900]
    with pytest.raises(InputError, match=f"pic: {message}"):
        decode_rgb(data, "pic")


def test_a_header_that_cannot_be_read_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    assert probe(str(tmp_path / "x.png")) is None
    assert probe(str(tmp_path / "none.png")) is None


def test_resizing_is_pillows(images: Path) -> None:
    image = Image.open(images / "coffee.png").convert("RGB")
    expected = image.resize((128, 85), Image.Resampling.LANCZOS)
    assert (im.at_size(image, 128, "lanczos") == np.asarray(expected)).all()
    assert (im.at_size(image, 128, "bilinear") != np.asarray(expected)).any()
    assert (im.at_size(image, 600, "lanczos") == np.asarray(image)).all()
