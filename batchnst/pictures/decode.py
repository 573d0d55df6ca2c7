"""Decode pictures of any format, orientation, colour space and transparency to upright sRGB arrays.

Files from outside are opened in a process apart only, see `isolated`; pictures in memory are converted anywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from batchnst.errors import InputError
from batchnst.recipe import fit

Pixels = NDArray[np.uint8]
"""A picture as an array: (H, W, 3), RGB, 0..255, or (H, W) for gray and opacity."""

RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""Pillow's resize filters, by the names that recipes use."""

DRAFT = 4
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the result is at least this many times the working size."""

MOST_EXIF_BYTES = 60_000
"""Longest EXIF that is kept, in bytes: a JPEG holds 64 kB, with the note on the picture's origin."""

_SIDEWAYS = range(5, 9)
"""EXIF orientations that swap width and height."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Decoded:
    """A decoded picture at the size in its file (or a fraction of it, for a large JPEG).

    image: RGB, upright, in sRGB, transparent parts over the background.
    alpha: opacity in mode "L", None if opaque.
    exif: without orientation and thumbnail, empty if missing or unusable.
    icc: as in the file, empty if missing.
    notes: remarks for the user, such as an ignored colour profile.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    exif: bytes = b""
    icc: bytes = b""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A decoded picture at its working size.

    pixels: (H, W, 3).
    alpha: opacity (H, W), None if opaque.
    exif: without orientation and thumbnail, empty if missing or unusable.
    icc: as in the file, empty if missing.
    notes: remarks for the user, such as an ignored colour profile.
    sha256: hash of the file, empty for a picture from memory.
    """

    pixels: Pixels
    alpha: Pixels | None
    exif: bytes
    icc: bytes
    notes: tuple[str, ...]
    sha256: str = ""


@dataclass(frozen=True)
class DecodeOptions:
    """Settings for decoding a picture.

    background: colour behind transparent parts, as Pillow names it.
    size: longest side in pixels, None to keep the picture's size.
    megapixels: size limit in 10⁶ pixels. Also refused: a longest side over 2·√pixels, a file over 4 bytes a pixel.
    resample: resize filter, a key of RESAMPLING.
    """

    background: str = "white"
    size: float | None = None
    megapixels: float = 250.0
    resample: str = "lanczos"

    @property
    def max_pixels(self) -> float:
        """Most pixels to decode."""
        return 1e6 * self.megapixels

    @property
    def max_file_bytes(self) -> int:
        """Largest file to read, in bytes."""
        return round(4e6 * self.megapixels)

    @property
    def max_side(self) -> int:
        """Longest side to decode, in pixels."""
        return int(2e3 * self.megapixels**0.5)


def open_picture(
    data: bytes,
    name: str,
    options: DecodeOptions = DecodeOptions(),
    before_decoding: Callable[[Image.Image], None] = lambda image: None,
) -> Decoded:
    """Decode the picture in the file `data`. `before_decoding` is called once its header is read.

    Raises InputError, with `name` in its message, if `data` is not a picture, damaged or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            _check_limit(image, name, options)
            before_decoding(image)
            if options.size:
                image.draft(None, fit(*image.size, DRAFT * options.size))
            if image.format == "JPEG2000" and b"\xff\xd9" not in data[-4096:]:
                # Pillow's decoder accepts a truncated file.
                raise InputError(f"{name}: cannot be decoded: image file is truncated")
            return _decode(image, options)
    except UnidentifiedImageError:
        reason = "an empty file" if not data else "not a picture that Pillow can read"
        raise InputError(f"{name}: {reason}") from None
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: cannot be decoded: {error}") from None


@cache
def formats() -> list[str]:
    """Formats that are read, by Pillow's names: all but EPS, whose files are programs that Ghostscript would run."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _check_limit(image: Image.Image, name: str, options: DecodeOptions) -> None:
    width, height = image.size
    if width * height > options.max_pixels or max(image.size) > options.max_side:
        raise InputError(
            f"{name}: {width}×{height} pixels, more than max_megapixels = {options.megapixels:g} allows "
            f"({options.max_side} on a side); raise it to accept this picture"
        )


def _decode(image: Image.Image, options: DecodeOptions) -> Decoded:
    notes: list[str] = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"the first of {frames} frames")
    upright = _upright(image, notes)
    exif, icc = _kept_exif(image.info.get("exif") or b"", notes), image.info.get("icc_profile") or b""
    alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    picture = _in_srgb(upright, icc, notes)
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, options.background), alpha)
    return Decoded(picture, alpha, exif, icc, tuple(notes))


def _kept_exif(data: bytes, notes: list[str]) -> bytes:
    """The EXIF of a file, written anew without orientation and thumbnail; empty, with a note, if that fails."""
    exif = Image.Exif()
    try:
        exif.load(data)
        exif.pop(ExifTags.Base.Orientation, None)
        exif.get_ifd(ExifTags.IFD.IFD1).clear()
        kept = exif.tobytes() if len(exif) else b""
    except Exception:  # broken EXIF raises errors of many types
        notes.append("its EXIF is broken and was left out")
        return b""
    if len(kept) > MOST_EXIF_BYTES:
        notes.append(f"its EXIF is longer than {MOST_EXIF_BYTES / 1e3:g} kB and was left out")
        return b""
    return kept


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF raises errors of many types
        notes.append("its EXIF cannot be read; taken as upright")
        return image


def _in_srgb(image: Image.Image, icc: bytes, notes: list[str]) -> Image.Image:
    """Convert `image` to RGB in sRGB, without its opacity."""
    opaque = _eight_bits(image)
    profile = _profile(icc, opaque.mode, notes)
    if profile is None:
        return opaque.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(opaque, profile, _SRGB, outputMode="RGB")
    except ImageCms.PyCMSError:
        notes.append("its colour profile does not fit its colours and was ignored")
        return opaque.convert("RGB")
    assert converted is not None  # it is None only for a conversion in place
    return converted


def _profile(icc: bytes, mode: str, notes: list[str]) -> ImageCms.ImageCmsProfile | None:
    """The colour profile to convert from; None if the colours are sRGB, or assumed to be."""
    if mode == "LAB":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    if not icc:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        return None if "srgb" in ImageCms.getProfileDescription(profile).lower() else profile
    except (ImageCms.PyCMSError, OSError):
        notes.append("its colour profile cannot be read; taken as sRGB")
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert `image` to 8 bits, in a mode that a colour profile can be applied to: L, RGB, CMYK or LAB."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image)))
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _to_bytes(values: NDArray[Any]) -> Pixels:
    """Scale gray values to 0..255, from 16 bits or from floats in 0..1; keep values that are within 0..255 already."""
    highest = float(np.nanmax(values, initial=0))
    if values.dtype.kind == "f" and highest <= 1:
        scale = 255.0
    else:
        scale = 1 / 257 if highest > 255 or values.itemsize == 2 else 1.0
    return np.nan_to_num(values * scale).round().clip(0, 255).astype(np.uint8)


def from_image(image: Image.Image, options: DecodeOptions = DecodeOptions()) -> Decoded:
    """Decode a picture that is already in memory, in the same way as one from a file."""
    return _decode(image, options)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert `image` to an upright RGB picture in sRGB, transparent parts over white."""
    return from_image(image).image


def fitted(decoded: Decoded, options: DecodeOptions) -> Picture:
    """Resize a decoded picture so that its longest side is `options.size`; keep its size if that is None."""
    size = options.size or max(decoded.image.size)
    alpha = at_size(decoded.alpha, size, options.resample) if decoded.alpha else None
    return Picture(at_size(decoded.image, size, options.resample), alpha, decoded.exif, decoded.icc, decoded.notes)


def at_size(image: Image.Image, size: float, resample: str) -> Pixels:
    """Resize `image` so that its longest side is `size` pixels, without cropping; (H, W, 3), or (H, W) for gray."""
    working_size = fit(*image.size, size)
    if image.size != working_size:
        image = image.resize(working_size, RESAMPLING[resample])
    return np.asarray(image)


def stretched(image: Image.Image, width: int, height: int) -> Pixels:
    """Stretch `image` to exactly `width` × `height` pixels; (H, W, 3), or (H, W) for gray."""
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def header_size(image: Image.Image) -> tuple[int, int]:
    """The upright size (width, height) of an opened picture; reads no more of its file than needed."""
    # Pillow reports a TIFF's upright size. A PNG's EXIF can follow its pixels: reading it would fetch the file.
    read_exif = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    sideways = read_exif and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (image.height, image.width) if sideways else image.size
