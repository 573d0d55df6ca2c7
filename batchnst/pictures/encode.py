"""Encode arrays as picture files that record their origin."""

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
"""Formats by file name ending, with Pillow's names; TIFF is written with 16 bits a channel."""

OPAQUE = ("JPEG",)
"""Formats without transparency."""

_OPTIONS: dict[str, dict[str, Any]] = {"PNG": {"compress_level": 6}, "JPEG": {"subsampling": 0}}
"""Pillow's options for saving each format."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Provenance:
    """Origin of a painted picture: the key of its ledger row, its fingerprint and the version of batchnst."""

    pair_id: str
    run_id: str
    attempt: int
    fingerprint: str
    batchnst: str


@dataclass(frozen=True)
class Finish:
    """Everything in a painted picture's file except the pixels.

    quality: 1..100, for JPEG, WebP and AVIF.
    alpha: opacity (H, W), 0..255, None if opaque.
    exif, icc: copied from the content, empty if not kept.
    provenance: origin to record in the file.
    """

    quality: int = 95
    alpha: NDArray[np.uint8] | None = None
    exif: bytes = b""
    icc: bytes = b""
    provenance: Provenance | None = None


def is_16_bit(name: str) -> bool:
    """True if the format for the file name `name` has 16 bits a channel."""
    return FORMATS.get(PurePosixPath(name).suffix.lower()) == "TIFF"


def encode_picture(pixels: NDArray[Any], name: str, finish: Finish = Finish()) -> bytes:
    """Encode `pixels` (H, W, 3), uint8 or, for TIFF, uint16, in the format of the ending of `name`.

    The file is in sRGB, with that profile; if `finish.icc` is an RGB profile, it is in those colours instead (except
    TIFF). Raises InputError if that fails for any reason, such as a format that cannot hold the picture.
    """
    kind = FORMATS[PurePosixPath(name).suffix.lower()]
    try:
        return _tiff(pixels, finish) if kind == "TIFF" else _by_pillow(pixels, kind, finish)
    except MemoryError:
        raise
    except Exception as error:  # metadata from outside raises errors of many types
        height, width = pixels.shape[:2]
        raise InputError(
            f"{name}: {width}×{height} pixels cannot be written in this format: {error}; choose .png"
        ) from None


def _by_pillow(pixels: NDArray[Any], kind: str, finish: Finish) -> bytes:
    image = Image.fromarray(pixels)
    icc = _SRGB.tobytes()
    if finish.icc and (converted := _to_profile(image, finish.icc)):
        image, icc = converted, finish.icc
    if finish.alpha is not None:
        image.putalpha(Image.fromarray(finish.alpha))
    buffer = io.BytesIO()
    options = {"quality": finish.quality, **_OPTIONS.get(kind, {})}
    image.save(buffer, kind, exif=_exif(finish), icc_profile=icc, **options)
    return buffer.getvalue()


def _to_profile(image: Image.Image, icc: bytes) -> Image.Image | None:
    """Convert an sRGB picture to the colours of an RGB profile; None if `icc` is no usable RGB profile."""
    try:
        return ImageCms.profileToProfile(image, _SRGB, io.BytesIO(icc), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def _tiff(pixels: NDArray[Any], finish: Finish) -> bytes:
    """Encode with 16 bits a channel, which Pillow cannot do; always in sRGB."""
    channels = pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257
    if finish.alpha is not None:
        channels = np.dstack([channels, finish.alpha.astype(np.uint16) * 257])
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        channels,
        photometric="rgb",
        compression="zlib",
        metadata=None,
        iccprofile=_SRGB.tobytes(),
        software=_software(finish.provenance),
        description=_text(finish.provenance),
        extrasamples=None if finish.alpha is None else ["unassalpha"],
    )
    return buffer.getvalue()


def read_provenance(data: bytes, name: str) -> Provenance:
    """Read the provenance that `encode_picture` stored in the file `data`.

    Raises InputError, with `name` in its message, if there is none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=[*FORMATS.values()]) as image:
            exif = image.getexif()
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")[len(_ASCII) :]
        return Provenance(**json.loads(comment or exif[ExifTags.Base.ImageDescription]))
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture that Pillow can read") from None
    except Exception:  # so does metadata that is not ours
        raise InputError(f"{name}: nothing in it says that batchnst painted it") from None


_ASCII = b"ASCII\0\0\0"
"""Prefix of an ASCII comment in EXIF."""


def _exif(finish: Finish) -> Image.Exif:
    """The content's EXIF, if kept, without its orientation and thumbnail, plus the provenance."""
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
