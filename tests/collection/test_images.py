from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from batchnst.collection import images as im
from batchnst.errors import InputError


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_a_picture_is_shown_upright(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    data = as_bytes(wide, "JPEG", exif=exif, quality=100)
    decoded = im.decode(data, "x")
    assert decoded.size == (20, 40)
    assert np.asarray(decoded)[2, 10, 2] > 200  # blue is on top now
    (tmp_path / "x.jpg").write_bytes(data)
    assert im.probe(str(tmp_path / "x.jpg")) == (20, 40)


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    pixels = np.asarray(im.decode(as_bytes(image), "x"))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.new(mode, (5, 3))
    assert im.decode(as_bytes(image, kind), "x").mode == "RGB"


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "an empty file"), (b"not a picture", "not a picture"), (None, "cannot be decoded")],
)
def test_what_is_no_picture_says_so(data: bytes | None, message: str) -> None:
    if data is None:
        data = as_bytes(Image.effect_noise((64, 64), 50).convert("RGB"))[:900]
    with pytest.raises(InputError, match=f"pic: {message}"):
        im.decode(data, "pic")


def test_a_header_that_cannot_be_read_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    assert im.probe(str(tmp_path / "x.png")) is None
    assert im.probe(str(tmp_path / "none.png")) is None


def test_resizing_is_pillows(images: Path) -> None:
    image = Image.open(images / "coffee.png").convert("RGB")
    expected = image.resize((128, 85), Image.Resampling.LANCZOS)
    assert (im.at_size(image, 128, "lanczos") == np.asarray(expected)).all()
    assert (im.at_size(image, 128, "bilinear") != np.asarray(expected)).any()
    assert (im.at_size(image, 600, "lanczos") == np.asarray(image)).all()


@pytest.mark.parametrize("name", ["x.png", "x.JPG", "x.jpeg", "x.webp"])
def test_what_is_encoded_can_be_read_back(images: Path, name: str) -> None:
    pixels = im.at_size(Image.open(images / "chelsea.png").convert("RGB"), 64, "lanczos")
    back = np.asarray(im.decode(im.encode(pixels, name), name))
    assert back.shape == pixels.shape
    assert np.abs(back.astype(int) - pixels).mean() < (0.001 if name == "x.png" else 6)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
def test_a_picture_says_where_it_comes_from(name: str) -> None:
    said = im.Provenance("pair-ü", "r1", 2, "f" * 64, "0.1.0")
    pixels = np.full((8, 9, 3), 77, np.uint8)
    data = im.encode(pixels, name, said)
    assert im.provenance(data, name) == said
    assert (np.asarray(im.decode(data, name)) == im.decode(im.encode(pixels, name), name)).all()
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[ExifTags.Base.Software] == "batchnst 0.1.0"


@pytest.mark.parametrize("data", [im.encode(np.zeros((4, 4, 3), np.uint8), "x.png"), b"no picture"])
def test_a_picture_that_does_not_say_is_named(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^x.png: n"):
        im.provenance(data, "x.png")


def test_a_picture_that_its_format_cannot_hold_is_refused_with_a_way_out() -> None:
    with pytest.raises(InputError, match=r"^wide.jpg: 70000×1 pixels cannot be written so: .*; choose .png$"):
        im.encode(np.zeros((1, 70_000, 3), np.uint8), "wide.jpg")
