"""Pictures: bytes to RGB arrays at their working size, and back."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from batchnst.collection.storage import open_file
from batchnst.errors import InputError
from batchnst.recipe import fit

Pixels = NDArray[np.uint8]
"""A picture as (H, W, 3), RGB, 0..255."""

ENCODERS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG", "compress_level": 6},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "quality": 95},
}
"""What an output's ending asks of Pillow."""

RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

_TURNED = range(5, 9)  # EXIF orientations that swap width and height


def decode(data: bytes, name: str) -> Image.Image:
    """The picture in `data`, upright, RGB, transparent parts over white; raises InputError naming it as `name`."""
    try:
        image = Image.open(io.BytesIO(data))
        return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        what = "an empty file" if not data else "not a picture that Pillow can read"
        raise InputError(f"{name}: {what}") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: cannot be decoded: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB copy; transparent parts are shown over white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def at_size(image: Image.Image, size: float, resample: str) -> Pixels:
    """The picture with its longest side at `size` pixels, no cropping, as (H, W, 3)."""
    wanted = fit(*image.size, size)
    if image.size != wanted:
        image = image.resize(wanted, RESAMPLING[resample])
    return np.asarray(image)


def exactly(image: Image.Image, width: int, height: int) -> Pixels:
    """The picture stretched to that size, smoothly; (H, W, 3), or (H, W) for a gray one."""
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def probe(address: str) -> tuple[int, int] | None:
    """(width, height) of a picture, upright, from its header alone; None if that cannot be had."""
    try:
        with open_file(address, buffer=1 << 14) as file, Image.open(file) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            return (image.height, image.width) if turned else image.size
    except Exception:
        # Whatever is wrong, the worker that decodes the picture finds it again and writes it in a row.
        return None


@dataclass(frozen=True)
class Provenance:
    """Where a painted picture comes from; the ledger has the row."""

    pair_id: str
    run_id: str
    attempt: int
    fingerprint: str
    batchnst: str


def encode(pixels: Pixels, name: str, provenance: Provenance | None = None) -> bytes:
    """The picture as the ending of `name` asks, its provenance in the EXIF, the one place that every format has.

    Raises InputError for a picture that the format cannot hold.
    """
    buffer = io.BytesIO()
    exif = _to_exif(provenance) if provenance else Image.Exif()
    try:
        Image.fromarray(pixels).save(buffer, exif=exif, **ENCODERS[PurePosixPath(name).suffix.lower()])
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise InputError(f"{name}: {width}×{height} pixels cannot be written so: {error}; choose .png") from None
    return buffer.getvalue()


def provenance(data: bytes, name: str) -> Provenance:
    """What `encode` has put into a picture; raises InputError, naming it, for one without."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        return Provenance(**json.loads(comment[len(_ASCII) :]))
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture that Pillow can read") from None
    except (KeyError, ValueError, TypeError, OSError, SyntaxError):
        raise InputError(f"{name}: nothing in it says that batchnst painted it") from None


_ASCII = b"ASCII\0\0\0"
"""How a comment in EXIF begins."""


def _to_exif(provenance: Provenance) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = f"batchnst {provenance.batchnst}"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + json.dumps(asdict(provenance)).encode()
    return exif
