"""Pictures as they go: arrays to the bytes of a file that says where it comes from."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from batchnst.errors import InputError

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""What an output's ending asks for, as Pillow calls it; TIFF has 16 bits a channel."""

OPAQUE = ("JPEG",)
"""Formats without transparency."""

_OPTIONS: dict[str, dict[str, Any]] = {"PNG": {"compress_level": 6}, "JPEG": {"subsampling": 0}}

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Provenance:
    """Where a painted picture comes from; the ledger has the row."""

    pair_id: str
    run_id: str
    attempt: int
    fingerprint: str
    batchnst: str


@dataclass(frozen=True)
class Finish:
    """How a painted picture is written, beside its pixels.

    quality: 1..100, of JPEG, WebP and AVIF. alpha: opacity (H, W), 0..255. exif, icc: the photo's own, to be kept.
    """

    quality: int = 95
    alpha: NDArray[np.uint8] | None = None
    exif: bytes = b""
    icc: bytes = b""
    provenance: Provenance | None = None


def is_deep(name: str) -> bool:
    """Whether the format that a name asks for has 16 bits a channel."""
    return FORMATS.get(PurePosixPath(name).suffix.lower()) == "TIFF"


def encode_picture(pixels: NDArray[Any], name: str, finish: Finish = Finish()) -> bytes:
    """The picture (H, W, 3), uint8 or, for TIFF, uint16, as the ending of `name` asks; in sRGB, and tagged so.

    With an ICC profile of the photo it is in those colours instead. Raises InputError for a picture that the format
    cannot hold.
    """
    kind = FORMATS[PurePosixPath(name).suffix.lower()]
    try:
        return _tiff(pixels, finish) if kind == "TIFF" else _by_pillow(pixels, kind, finish)
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise InputError(f"{name}: {width}×{height} pixels cannot be written so: {error}; choose .png") from None


def _by_pillow(pixels: NDArray[Any], kind: str, finish: Finish) -> bytes:
    image = Image.fromarray(pixels)
    icc = _SRGB.tobytes()
    if finish.icc and (converted := _in_colours_of(image, finish.icc)):
        image, icc = converted, finish.icc
    if finish.alpha is not None:
        image.putalpha(Image.fromarray(finish.alpha))
    buffer = io.BytesIO()
    options = {"quality": finish.quality, **_OPTIONS.get(kind, {})}
    image.save(buffer, kind, exif=_exif(finish), icc_profile=icc, **options)
    return buffer.getvalue()


def _in_colours_of(image: Image.Image, icc: bytes) -> Image.Image | None:
    """An sRGB picture in the colours of an RGB profile; None for a profile of another kind."""
    try:
        return ImageCms.profileToProfile(image, _SRGB, io.BytesIO(icc), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def _tiff(pixels: NDArray[Any], finish: Finish) -> bytes:
    """16 bits a channel, which Pillow cannot write; in sRGB always."""
    deep = pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257
    if finish.alpha is not None:
        deep = np.dstack([deep, finish.alpha.astype(np.uint16) * 257])
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        deep,
        photometric="rgb",
        compression="zlib",
        metadata=None,
        iccprofile=_SRGB.tobytes(),
        software=_software(finish.provenance),
        description=_text(finish.provenance),
        extrasamples=None if finish.alpha is None else ["unassalpha"],
    )
    return buffer.getvalue()


def provenance(data: bytes, name: str) -> Provenance:
    """What `encode` has put into a picture; raises InputError, naming it, for one without."""
    try:
        with Image.open(io.BytesIO(data), formats=[*FORMATS.values()]) as image:
            exif = image.getexif()
        said = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")[len(_ASCII) :]
        return Provenance(**json.loads(said or exif[ExifTags.Base.ImageDescription]))
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture that Pillow can read") from None
    except (KeyError, ValueError, TypeError, OSError, SyntaxError):
        raise InputError(f"{name}: nothing in it says that batchnst painted it") from None


_ASCII = b"ASCII\0\0\0"
"""How a comment in EXIF begins."""


def _exif(finish: Finish) -> Image.Exif:
    """The photo's EXIF, if it is kept, upright and without its thumbnail, and the provenance."""
    exif = Image.Exif()
    if finish.exif:
        exif.load(finish.exif)
        exif.pop(ExifTags.Base.Orientation, None)
        exif.get_ifd(ExifTags.IFD.IFD1).clear()
    if finish.provenance:
        exif[ExifTags.Base.Software] = _software(finish.provenance)
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + _text(finish.provenance).encode()
    return exif


def _software(provenance: Provenance | None) -> str:
    return f"batchnst {provenance.batchnst}" if provenance else "batchnst"


def _text(provenance: Provenance | None) -> str:
    return json.dumps(asdict(provenance)) if provenance else ""
