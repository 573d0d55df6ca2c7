"""Pictures as they come from twenty cameras, phones, scanners and the web: files, and how each should look."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from tests.helpers import TURNS, png, scene
from tests.pictures.profiles import adobe_to_srgb, gray_profile, lab_to_srgb, rgb_profile, srgb_curve

SIZES = [(60, 40), (40, 60), (33, 48), (120, 34), (64, 64), (20, 25), (7, 5), (150, 91)]
LOSSLESS = {
    "PNG": "png",
    "TIFF": "tif",
    "BMP": "bmp",
    "PPM": "ppm",
    "TGA": "tga",
    "PCX": "pcx",
    "SGI": "sgi",
}
LOSSY = {"JPEG": "jpg", "WEBP": "webp", "AVIF": "avif", "JPEG2000": "jp2"}

BACK = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
"""What undoes a turn; the others undo themselves."""


@dataclass
class Animal:
    """A file's name and bytes; how it should look, (H, W, 3), 0..255, and how nearly, or why it cannot be painted."""

    name: str
    data: bytes
    looks: NDArray[Any] | None = None
    within: float = 1.0
    fails: str = ""
    settings: dict[str, object] = field(default_factory=dict)


def animals() -> Iterator[Animal]:
    """All files whose bytes alone matter."""
    yield from sizes_and_formats()
    yield from orientations()
    yield from modes()
    yield from profiles()
    yield from opacities()
    yield from frames()
    yield from names()
    yield from broken()


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIC":
        pillow_heif.from_pillow(image).save(buffer, quality=-1, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def opened(data: bytes) -> NDArray[np.uint8]:
    """As Pillow alone decodes it."""
    with Image.open(io.BytesIO(data)) as image:
        return rgb(image)


def sizes_and_formats() -> Iterator[Animal]:
    for (kind, ending), size in itertools.product(LOSSLESS.items(), SIZES):
        image = scene(*size)
        yield Animal(f"{kind}-{size[0]}x{size[1]}.{ending}", file(image, kind), rgb(image))
    for (kind, ending), size in itertools.product(LOSSY.items(), SIZES):
        image = scene(*size)
        data = file(image, kind, **({} if kind == "JPEG2000" else {"quality": 100}))
        yield Animal(f"{kind}-{size[0]}x{size[1]}.{ending}", data, opened(data))
    for quality, progressive, sampling in itertools.product((60, 90), (False, True), (0, 1, 2)):
        data = file(scene(), "JPEG", quality=quality, progressive=progressive, subsampling=sampling)
        yield Animal(f"jpeg-{quality}-{progressive}-{sampling}.jpg", data, opened(data))
    for size in SIZES:
        data = file(scene(*size), "HEIC")
        yield Animal(f"heic-{size[0]}.heic", data, opened(data))
    for kind, other in itertools.product(("PNG", "JPEG", "WEBP", "TIFF"), ("png", "jpg", "gif", "heic", "")):
        data = file(scene(), kind)
        yield Animal(f"{kind}-called.{other}", data, opened(data))


def orientations() -> Iterator[Animal]:
    exif = Image.Exif()
    for kind, orientation in itertools.product(("JPEG", "PNG", "WEBP", "TIFF", "AVIF"), range(1, 9)):
        exif[ExifTags.Base.Orientation] = orientation
        stored = scene().transpose(TURNS[orientation]) if orientation in TURNS else scene()
        looks = Image.fromarray(opened(file(stored, kind)))
        if orientation in TURNS:
            looks = looks.transpose(BACK.get(TURNS[orientation], TURNS[orientation]))
        yield Animal(f"turned-{orientation}.{kind.lower()}", file(stored, kind, exif=exif), np.asarray(looks))
    for orientation in (0, 9, 77):
        exif[ExifTags.Base.Orientation] = orientation
        data = file(scene(), "JPEG", exif=exif)
        yield Animal(f"turned-{orientation}.jpg", data, opened(data))


def modes() -> Iterator[Animal]:
    gray = scene().convert("L")
    for mode, kinds in {"L": ("PNG", "JPEG", "TIFF", "BMP", "WEBP"), "1": ("PNG", "TIFF"), "P": ("PNG", "GIF")}.items():
        for kind in kinds:
            image = scene().quantize(64) if mode == "P" else gray.convert(mode)
            data = file(image, kind)
            yield Animal(f"mode-{mode}.{kind.lower()}", data, opened(data))
    for colours in (2, 16, 200):
        image = scene().quantize(colours)
        yield Animal(f"palette-{colours}.png", file(image, "PNG"), rgb(image))
    for kind in ("TIFF", "JPEG"):
        data = file(scene().convert("CMYK"), kind)
        with Image.open(io.BytesIO(data)) as image:
            yield Animal(f"cmyk.{kind.lower()}", data, rgb(image))
    yield Animal("ycc.tif", file(scene().convert("YCbCr"), "TIFF"), rgb(scene()), 3)
    lab, srgb = (ImageCms.ImageCmsProfile(ImageCms.createProfile(space)) for space in ("LAB", "sRGB"))
    in_lab = ImageCms.profileToProfile(scene(), srgb, lab, outputMode="LAB")
    assert in_lab
    yield Animal("lab.tif", file(in_lab, "TIFF"), lab_to_srgb(np.asarray(in_lab)), 32)
    deep = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    looks = np.repeat((deep / 257)[..., None], 3, axis=2)
    for kind in ("PNG", "TIFF"):
        yield Animal(f"sixteen.{kind.lower()}", file(Image.fromarray(deep.astype(np.uint16)), kind), looks)
    yield Animal("float.tif", file(Image.fromarray((deep / 65535).astype(np.float32)), "TIFF"), looks)
    colours_deep = (np.asarray(scene()).astype(np.uint16)) * 257
    for compression in (None, "zlib"):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, colours_deep, photometric="rgb", compression=compression)
        yield Animal(f"sixteen-{compression}.tif", buffer.getvalue(), rgb(scene()))


def profiles() -> Iterator[Animal]:
    for kind, size in itertools.product(("PNG", "TIFF", "JPEG", "WEBP"), SIZES):
        image = scene(*size)
        data = file(image, kind, icc_profile=rgb_profile())
        yield Animal(f"wide-{size[0]}.{kind.lower()}", data, adobe_to_srgb(opened(data)), 1.5)
    gray = scene().convert("L")
    for gamma in (1.8, 2.2, 2.6):
        looks = np.repeat(255 * srgb_curve((np.asarray(gray) / 255) ** gamma)[..., None], 3, axis=2)
        yield Animal(f"gray-{gamma}.png", file(gray, "PNG", icc_profile=gray_profile(gamma)), looks, 4)
    for icc in (b"nonsense", gray_profile(1.8), rgb_profile()[:90]):
        yield Animal(f"unusable-profile-{len(icc)}.png", file(scene(), "PNG", icc_profile=icc), rgb(scene()))


def opacities() -> Iterator[Animal]:
    opacity = np.linspace(0, 255, 60 * 40).reshape(40, 60).astype(np.uint8)
    image = scene()
    image.putalpha(Image.fromarray(opacity))
    for kind, (ground, value) in itertools.product(
        ("PNG", "WEBP", "TIFF", "AVIF"), {"white": 255, "black": 0, "#204060": (32, 64, 96)}.items()
    ):
        data = file(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        share = opacity[..., None] / 255
        looks = rgb(scene()) * share + np.array(value) * (1 - share)
        within = 24 if kind == "AVIF" else 1.5
        yield Animal(f"over-{ground.strip('#')}.{kind.lower()}", data, looks, within, settings={"alpha": ground})
    half = Image.merge("LA", [scene().convert("L"), Image.fromarray(opacity)])
    share = opacity[..., None] / 255
    yield Animal("gray-over.png", file(half, "PNG"), rgb(scene().convert("L")) * share + 255 * (1 - share), 1.5)
    palette = scene().quantize(16)
    data = file(palette, "PNG", transparency=3)
    over_white = rgb(palette).copy()
    over_white[np.asarray(palette) == 3] = 255
    yield Animal("palette-over.png", data, over_white)


def frames() -> Iterator[Animal]:
    others = [Image.new("RGB", (60, 40), "blue"), Image.new("RGB", (60, 40), "lime")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = file(scene(), kind, save_all=True, append_images=others)
        yield Animal(f"moving.{kind.lower()}", data, opened(data))


def names() -> Iterator[Animal]:
    for name in [
        "with space.png", "new\nline.png", "tab\t.png", "quo'te\".png", "comma,.png", "pipe|.png", "🎨.png",
        "\N{RIGHT-TO-LEFT MARK}mark.png", "é-composed.png", "e\N{COMBINING ACUTE ACCENT}-decomposed.png", "%41.png",
        "-dash.png", "#hash?.png", "back\\slash.png", "*.png", "[a].png", "x" * 251 + ".png", " leading.png", "<b>.png",
    ]:  # fmt: skip
        yield Animal(name, file(scene(), "PNG"), rgb(scene()))


def broken() -> Iterator[Animal]:
    for kind, ending in {**LOSSLESS, **LOSSY, "HEIC": "heic", "GIF": "gif"}.items():
        data = file(scene(), kind)
        for share in (0.02, 0.5):
            cut = data[: max(3, int(share * len(data)))]
            yield Animal(f"cut-{kind}-{share}.{ending}", cut, fails="cannot be decoded|not a picture")
    for name, data in {
        "empty.jpg": b"",
        "text.jpg": b"Dear diary, today I went to the museum.\n" * 9,
        "page.png": b"<!doctype html><title>404</title>",
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\nshowpage\n",
        "pickle.png": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
        "noise.jpg": np.random.default_rng(0).bytes(5000),
        "zeros.png": bytes(5000),
        "zip.png": b"PK\x03\x04" + bytes(100),
    }.items():
        yield Animal(name, data, fails="an empty file|not a picture|cannot be decoded")
    yield Animal("zero-sized.png", png(0, 0, b""), fails="cannot be decoded|not a picture")
    yield Animal("bomb.png", png(20_000, 20_000, bytes(99)), fails="20000×20000 pixels, more than max_megapixels = 250")
    yield Animal("long.png", png(60_000, 4, bytes(99)), fails="60000×4 pixels, more than max_megapixels = 250")
    yield Animal("thread.png", file(scene(10_000, 1), "PNG"), fails="at this size, but relu2_1 needs 2 on each side")
    limited: dict[str, object] = {"max_megapixels": 0.001}
    yield Animal("limited.png", file(scene(), "PNG"), fails="60×40 pixels, more than max_megapixels", settings=limited)
    yield Animal("one.png", file(Image.new("RGB", (1, 1), "teal"), "PNG"), np.full((1, 1, 3), (0, 128, 128)))


def release(folder: Path) -> dict[str, Animal]:
    """Put all of them, and what is no plain file, into a folder; returns them by name."""
    found = {}
    for animal in animals():
        assert animal.name not in found
        found[animal.name] = animal
        (folder / animal.name).write_bytes(animal.data)
    (folder / "folder.png").mkdir()
    found["folder.png"] = Animal("folder.png", b"", fails="Is a directory")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    found["dangling.png"] = Animal("dangling.png", b"", fails="no such file")
    found["missing.png"] = Animal("missing.png", b"", fails="no such file")
    (folder / "linked.png").symlink_to(folder / "PNG-60x40.png")
    found["linked.png"] = Animal("linked.png", b"", rgb(scene()))
    if os.getuid() != 0:  # who may read everything
        (folder / "secret.png").write_bytes(b"")
        (folder / "secret.png").chmod(0)
        found["secret.png"] = Animal("secret.png", b"", fails="Permission denied")
    return found
