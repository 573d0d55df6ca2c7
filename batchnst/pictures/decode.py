"""Pictures as they come: bytes of any format, turned, coloured and transparent in any way, to upright sRGB arrays."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from pillow_heif import register_heif_opener

from batchnst.errors import InputError
from batchnst.recipe import fit
from batchnst.storage.files import open_file

register_heif_opener()  # AVIF is Pillow's own
Image.MAX_IMAGE_PIXELS = None  # a limit that the user can change takes its place: max_megapixels

Pixels = NDArray[np.uint8]
"""A picture as (H, W, 3), RGB, 0..255."""

RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

DRAFT = 4
"""A JPEG is decoded at a half, a quarter or an eighth of its size where that is still so many times what is wanted."""

_TURNED = range(5, 9)  # EXIF orientations that swap width and height

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Decoded:
    """A picture, RGB, upright, in sRGB, its transparent parts over the ground; and what of its file is not that.

    alpha: opacity, "L", None for a picture that is opaque. exif, icc: as in the file, empty where there is none.
    notes: what a person should know of how it was read.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    exif: bytes = b""
    icc: bytes = b""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A decoded picture at its working size.

    `pixels` (H, W, 3). `alpha`: opacity (H, W), None for an opaque picture. `exif`, `icc`: as in the file. `notes`: how
    it was read, where that is not obvious. `sha256`: of the file, empty for a picture that came from memory.
    """

    pixels: Pixels
    alpha: Pixels | None
    exif: bytes
    icc: bytes
    notes: tuple[str, ...]
    sha256: str = ""


@dataclass(frozen=True)
class DecodeOptions:
    """How a picture is decoded.

    `background`: the colour behind transparent parts, as Pillow names it. `size`: longest side in pixels, None for the
    picture's own. `megapixels`: pictures with more are refused; also refused are a longest side over 2·√pixels and a
    file of more than 4 bytes a pixel. `resample`: the resize filter, a key of RESAMPLING.
    """

    background: str = "white"
    size: float | None = None
    megapixels: float = 250.0
    resample: str = "lanczos"

    @property
    def max_file_bytes(self) -> int:
        """The largest file that is read, in bytes."""
        return round(4e6 * self.megapixels)

    @property
    def max_side(self) -> int:
        """The longest side that is decoded, in pixels."""
        return int(2e3 * self.megapixels**0.5)


def open_picture(data: bytes, name: str, options: DecodeOptions = DecodeOptions()) -> Decoded:
    """Decode the picture in `data`; raises InputError, naming it, for what is no picture or too large."""
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            _check_limit(image, name, options)
            if image.format == "JPEG2000" and b"\xff\xd9" not in data[-4096:]:
                # Its decoder would be content with what there is.
                raise InputError(f"{name}: cannot be decoded: image file is truncated")
            return _decode(image, options)
    except UnidentifiedImageError:
        what = "an empty file" if not data else "not a picture that Pillow can read"
        raise InputError(f"{name}: {what}") from None
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: cannot be decoded: {error}") from None


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """The picture in `data`, upright, sRGB, transparent parts over white; raises InputError naming it as `name`."""
    return open_picture(data, name).image


@cache
def formats() -> list[str]:
    """What is read: all that Pillow can but EPS, which is a program that Ghostscript would run."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _check_limit(image: Image.Image, name: str, options: DecodeOptions) -> None:
    width, height = image.size
    if width * height > 1e6 * options.megapixels or max(image.size) > options.max_side:
        raise InputError(
            f"{name}: {width}×{height} pixels, more than max_megapixels = {options.megapixels:g} allows "
            f"({options.max_side} on a side); raise it if this is meant"
        )


def _decode(image: Image.Image, options: DecodeOptions) -> Decoded:
    notes: list[str] = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"the first of {frames} frames")
    if options.size:
        image.draft(None, fit(*image.size, DRAFT * options.size))
    exif, icc = (image.info.get(key) or b"" for key in ("exif", "icc_profile"))
    upright = _upright(image, notes)
    alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    picture = _in_srgb(upright, icc, notes)
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, options.background), alpha)
    return Decoded(picture, alpha, exif, icc, tuple(notes))


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of many kinds, wherever the EXIF is broken
        notes.append("its EXIF cannot be read; taken as upright")
        return image


def _in_srgb(image: Image.Image, icc: bytes, notes: list[str]) -> Image.Image:
    """The colours without their opacity, as an RGB copy."""
    opaque = _eight_bits(image)
    profile = _profile(icc, opaque.mode, notes)
    if profile is None:
        return opaque.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(opaque, profile, _SRGB, outputMode="RGB")
    except ImageCms.PyCMSError:
        notes.append("its colour profile does not fit it and was left aside")
        return opaque.convert("RGB")
    assert converted is not None  # only where it is done in place
    return converted


def _profile(icc: bytes, mode: str, notes: list[str]) -> ImageCms.ImageCmsProfile | None:
    """From which colours to convert; None where they are sRGB, or taken for it."""
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
    """The colours in 8 bits, in a mode that a profile can be applied to: L, RGB, CMYK or LAB."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image)))
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _to_bytes(values: NDArray[Any]) -> Pixels:
    """Gray values of 16 bits, or floats in 0..1, as 8 bits; those that are within 0..255 as they are."""
    most = float(np.nanmax(values, initial=0))
    scale = 255.0 if values.dtype.kind == "f" and most <= 1 else 1 / 257 if most > 255 or values.itemsize == 2 else 1.0
    return np.nan_to_num(values * scale).round().clip(0, 255).astype(np.uint8)


def from_image(image: Image.Image, options: DecodeOptions = DecodeOptions()) -> Decoded:
    """A picture that is in memory already, as if it were read."""
    return _decode(image, options)


def to_rgb(image: Image.Image) -> Image.Image:
    """An RGB copy; transparent parts are shown over white."""
    return from_image(image).image


def fitted(decoded: Decoded, options: DecodeOptions) -> Picture:
    """Resize a decoded picture to `options.size`."""
    size = options.size or max(decoded.image.size)
    alpha = at_size(decoded.alpha, size, options.resample) if decoded.alpha else None
    return Picture(at_size(decoded.image, size, options.resample), alpha, decoded.exif, decoded.icc, decoded.notes)


def at_size(image: Image.Image, size: float, resample: str) -> Pixels:
    """Resize a picture so that its longest side is `size` pixels, without cropping; (H, W, 3)."""
    wanted = fit(*image.size, size)
    if image.size != wanted:
        image = image.resize(wanted, RESAMPLING[resample])
    return np.asarray(image)


def stretched(image: Image.Image, width: int, height: int) -> Pixels:
    """Stretch a picture to exactly this size; (H, W, 3), or (H, W) for a gray one."""
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def probe(address: str) -> tuple[int, int] | None:
    """(width, height) of a picture, upright, from its header alone; None if that cannot be had."""
    try:
        with open_file(address, buffer=1 << 14) as file, Image.open(file, formats=formats()) as image:
            # Of a TIFF Pillow says the upright size. A PNG's EXIF may lie behind its pixels: all would be fetched.
            told = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            turned = told and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            return (image.height, image.width) if turned else image.size
    except Exception:
        # Whatever is wrong, the worker that decodes the picture finds it again and writes it in a row.
        return None
