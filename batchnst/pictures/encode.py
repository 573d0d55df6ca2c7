"""Encode arrays as picture files that record their origin."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from batchnst.errors import InputError
from batchnst.pictures.metadata import (
    IPTC_TAG,
    XMP_TAG,
    Metadata,
    as_raw_profile,
    as_resource,
    exif_for,
    has_comment,
    xmp_for,
)

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

MOST_OF_A_JPEG = {"exif": 60_000, "xmp": 65_000, "iptc": 65_000}
"""Longest metadata that a JPEG holds, in bytes, with the note on the picture's origin in its EXIF."""

WITHOUT_IPTC = ("WEBP", "AVIF")
"""Formats without a place for IPTC's records."""

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
    metadata, icc: copied from the content, empty if not kept.
    provenance: origin to record in the file.
    """

    quality: int = 95
    alpha: NDArray[np.uint8] | None = None
    metadata: Metadata = field(default_factory=Metadata)
    icc: bytes = b""
    provenance: Provenance | None = None


def is_16_bit(name: str) -> bool:
    """True if the format for the file name `name` has 16 bits a channel."""
    return FORMATS.get(PurePosixPath(name).suffix.lower()) == "TIFF"


def unkept(finish: Finish, name: str) -> tuple[str, ...]:
    """Remarks on the content's metadata that a file `name` of ours, in its format, does not hold."""
    kind = FORMATS[PurePosixPath(name).suffix.lower()]
    kept, notes = _fitting(finish.metadata, kind), list[str]()
    for part, held in asdict(kept).items():
        if getattr(finish.metadata, part) and not held:
            notes.append(f"its {part.upper()} is not kept, since a {kind} cannot hold it")
    if finish.icc and not _keeps_profile(finish.icc, kind):
        notes.append(f"its colour profile is not kept: a {kind} is written in sRGB")
    if has_comment(kept.exif):
        notes.append("its EXIF comment is not kept: batchnst's record of the painting is there")
    return tuple(notes)


def _fitting(metadata: Metadata, kind: str) -> Metadata:
    """The parts of `metadata` that a file of the format `kind` holds."""
    most = MOST_OF_A_JPEG if kind == "JPEG" else {"iptc": 0} if kind in WITHOUT_IPTC else {}
    parts = asdict(metadata).items()
    return Metadata(**{part: data if len(data) <= most.get(part, len(data)) else b"" for part, data in parts})


def _keeps_profile(icc: bytes, kind: str) -> bool:
    """True if the profile `icc` is for RGB, and pictures of the format `kind` are written in its colours."""
    return icc[16:20] == b"RGB " and kind != "TIFF"


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
    kept = _fitting(finish.metadata, kind)
    exif = _exif(kept, finish.provenance, *image.size, is_srgb=icc != finish.icc)
    xmp = xmp_for(kept.xmp, *image.size)
    buffer = io.BytesIO()
    options = {"quality": finish.quality, **_OPTIONS.get(kind, {}), **_metadata_options(kind, xmp, kept.iptc)}
    image.save(buffer, kind, exif=exif, icc_profile=icc, **options)
    return buffer.getvalue()


def _metadata_options(kind: str, xmp: bytes, iptc: bytes) -> dict[str, Any]:
    """Pillow's options for saving XMP and IPTC in a file of the format `kind`."""
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo  # registers a format: not for everybody who imports batchnst

        texts = PngInfo()
        if xmp:
            texts.add_itxt("XML:com.adobe.xmp", xmp.decode(errors="replace"))
        if iptc:
            texts.add_text("Raw profile type iptc", as_raw_profile("iptc", as_resource(iptc)), zip=True)
        return {"pnginfo": texts}
    options: dict[str, Any] = {"xmp": xmp} if xmp else {}
    if iptc:
        block = b"Photoshop 3.0\0" + as_resource(iptc)
        options["extra"] = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
    return options


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
        byteorder="<",
        metadata=None,
        software=False,
        iccprofile=_SRGB.tobytes(),
        extrasamples=None if finish.alpha is None else ["unassalpha"],
    )
    kept, (height, width) = finish.metadata, pixels.shape[:2]
    exif = _exif(kept, finish.provenance, width, height, is_srgb=True)
    return _with_tags(buffer.getvalue(), exif, xmp_for(kept.xmp, width, height), kept.iptc)


def _with_tags(tiff: bytes, exif: Image.Exif, xmp: bytes, iptc: bytes) -> bytes:
    """The little-endian TIFF `tiff`, of one page, with metadata: tifffile writes no EXIF."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2  # registers a format: not for all who import batchnst

    page, file = ImageFileDirectory_v2(tiff[:8]), io.BytesIO(tiff)
    file.seek(page.next)
    page.load(file)
    for tag, value in {**page, **exif}.items():  # a page writes only tags that were set, or looked at
        page[tag] = value
    for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if values := exif.get_ifd(group):
            page[group] = dict(values)
    for tag, data in ((XMP_TAG, xmp), (IPTC_TAG, iptc)):
        if data:
            page.tagtype[tag] = _UNDEFINED
            page[tag] = data
    pixels = min(page[_STRIPS])
    page[_STRIPS] = tuple(start - pixels for start in page[_STRIPS])  # Pillow counts from the end of the page
    return tiff[:4] + struct.pack("<I", 8) + page.tobytes(8) + tiff[pixels:]


_STRIPS = 273
"""TIFF's tag for where its strips begin."""


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


_UNDEFINED = 7
"""TIFF's type of bytes without a meaning."""

_ASCII = b"ASCII\0\0\0"
"""Prefix of an ASCII comment in EXIF."""


def _exif(kept: Metadata, provenance: Provenance | None, width: int, height: int, is_srgb: bool) -> Image.Exif:
    """The content's EXIF, if kept, for a picture of `width` × `height` pixels, plus the provenance."""
    exif = exif_for(kept.exif, width, height, is_srgb)
    if provenance:
        exif[ExifTags.Base.Software] = f"batchnst {provenance.batchnst}"
        text = json.dumps(asdict(provenance))
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + text.encode()
    return exif
