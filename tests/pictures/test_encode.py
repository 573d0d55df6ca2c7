from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms

from batchnst.errors import InputError
from batchnst.pictures import decode as im
from batchnst.pictures import encode as out
from tests.helpers import as_bytes, decode_rgb, photo_exif, scene
from tests.pictures.profiles import adobe_to_srgb, rgb_profile

ENDINGS = ["png", "jpg", "jpeg", "webp", "avif", "tif", "tiff"]


@pytest.mark.parametrize("name", ["x.png", "x.JPG", "x.jpeg", "x.webp", "x.avif", "x.tif"])
def test_what_is_encoded_can_be_read_back(images: Path, name: str) -> None:
    pixels = im.at_size(Image.open(images / "chelsea.png").convert("RGB"), 64, "lanczos")
    back = np.asarray(decode_rgb(out.encode_picture(pixels, name), name))
    assert back.shape == pixels.shape
    assert np.abs(back.astype(int) - pixels).mean() < (0.001 if name == "x.png" else 6)


@pytest.mark.parametrize("name", [f"x.{ending}" for ending in ENDINGS])
def test_a_picture_says_where_it_comes_from(name: str) -> None:
    said = out.Provenance("pair-ü", "r1", 2, "f" * 64, "0.1.0")
    pixels = np.full((8, 9, 3), 77, np.uint8)
    data = out.encode_picture(pixels, name, out.Finish(provenance=said))
    assert out.read_provenance(data, name) == said
    assert (np.asarray(decode_rgb(data, name)) == decode_rgb(out.encode_picture(pixels, name), name)).all()
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[ExifTags.Base.Software] == "batchnst 0.1.0"


@pytest.mark.parametrize("data", [out.encode_picture(np.zeros((4, 4, 3), np.uint8), "x.png"), b"no picture"])
def test_a_picture_that_does_not_say_is_named(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^x.png: n"):
        out.read_provenance(data, "x.png")


def test_a_picture_that_its_format_cannot_hold_is_refused_with_a_way_out() -> None:
    message = r"^wide.jpg: 70000×1 pixels cannot be written in this format: .*; choose .png$"
    with pytest.raises(InputError, match=message):
        out.encode_picture(np.zeros((1, 70_000, 3), np.uint8), "wide.jpg")


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_says_that_it_is_srgb(ending: str) -> None:
    with Image.open(io.BytesIO(out.encode_picture(np.asarray(scene()), f"x.{ending}"))) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert image.format == out.FORMATS[f".{ending}"]
    assert "sRGB" in ImageCms.getProfileDescription(profile)


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif"])
def test_quality_is_what_is_asked_for(ending: str) -> None:
    pixels = np.asarray(Image.effect_noise((64, 64), 80).convert("RGB"))
    sizes = [len(out.encode_picture(pixels, f"x.{ending}", out.Finish(quality=quality))) for quality in (30, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[2] > 1.5 * sizes[0]


def test_a_tiff_has_sixteen_bits_a_channel() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)
    assert out.is_16_bit("x.TIF")
    assert (tifffile.imread(io.BytesIO(out.encode_picture(deep, "x.tif"))) == deep).all()
    from_bytes = tifffile.imread(io.BytesIO(out.encode_picture(np.asarray(scene()), "x.tif")))
    assert (from_bytes == np.asarray(scene()).astype(int) * 257).all()


@pytest.mark.parametrize("ending", ["png", "webp", "avif", "tif"])
def test_the_opacity_is_put_back(ending: str) -> None:
    alpha = np.linspace(0, 255, 60 * 40).reshape(40, 60).astype(np.uint8)
    data = out.encode_picture(np.asarray(scene()), f"x.{ending}", out.Finish(quality=100, alpha=alpha))
    found = im.open_picture(data, "x").alpha
    assert found
    assert np.abs(np.asarray(found).astype(int) - alpha).max() <= 2


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "avif"])
def test_camera_date_and_place_are_kept_and_the_picture_stays_upright(ending: str) -> None:
    photo = im.open_picture(as_bytes(scene(), "JPEG", exif=photo_exif()), "x")
    said = out.Provenance("a", "r1", 1, "f", "0.1.0")
    data = out.encode_picture(
        np.asarray(photo.image), f"x.{ending}", out.Finish(metadata=photo.metadata, provenance=said)
    )
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        assert image.size == (40, 60)
        assert exif.get(ExifTags.Base.Orientation, 1) == 1
        assert exif[ExifTags.Base.Make] == "Camera Works"
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2026:11:20 21:04:00"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (48.0, 31.0, 12.0)
    assert decode_rgb(data, "x").size == (40, 60)
    assert out.read_provenance(data, "x") == said


def test_a_photos_colours_are_kept_where_it_has_a_profile() -> None:
    pixels = np.asarray(scene())
    data = out.encode_picture(pixels, "x.png", out.Finish(icc=rgb_profile()))
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == rgb_profile()
        stored = np.asarray(image)
    assert np.abs(adobe_to_srgb(stored) - pixels).mean() < 1
    assert np.abs(stored.astype(int) - pixels).mean() > 5
    assert np.abs(np.asarray(decode_rgb(data, "x")).astype(int) - pixels).mean() < 1
