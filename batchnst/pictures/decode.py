"""Decode pictures of any format, orientation, colour space and transparency to upright sRGB arrays.

Files from outside are opened in a process apart only, see `isolated`; pictures in memory are converted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from batchnst.errors import InputError
from batchnst.pictures import metadata, srgb
from batchnst.pictures.looks import looks_like
from batchnst.pictures.metadata import Metadata
from batchnst.pictures.opening import ACCEPT, Opened, open_file
from batchnst.pictures.ranges import guess_range, to_bytes
from batchnst.sizes import fit

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


_PLAINER = {
    "image file is truncated": f"the picture ends early; {ACCEPT}",
    "broken data stream": f"its data is damaged; {ACCEPT}",
    "unrecognized data stream": f"its data is damaged; {ACCEPT}",
    "Truncated File Read": "the file ends before the picture begins",
    "could not create decoder object": "its data is damaged, or ends early",
}
"""Plain words for errors of decoders, by the beginnings of these errors."""


@dataclass(frozen=True)
class Decoded:
    """A decoded picture at the size in its file (or a fraction of it, for a large JPEG).

    image: RGB, upright, in sRGB, transparent parts over the background.
    alpha: opacity in mode "L", None if opaque.
    metadata: what can be kept of the file's.
    icc: as in the file, empty if missing.
    notes: remarks for the user, such as an ignored colour profile.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    metadata: Metadata = field(default_factory=Metadata)
    icc: bytes = b""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A decoded picture at its working size.

    pixels: (H, W, 3).
    alpha: opacity (H, W), None if opaque.
    metadata: what can be kept of the file's.
    icc: as in the file, empty if missing.
    notes: remarks for the user, such as an ignored colour profile.
    sha256: hash of the file, empty for a picture from memory.
    """

    pixels: Pixels
    alpha: Pixels | None
    metadata: Metadata
    icc: bytes
    notes: tuple[str, ...]
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """Settings for decoding a picture.

    background: colour behind transparent parts, as Pillow names it.
    size: longest side in pixels, None to keep the picture's size. enlarge: False to keep that of smaller pictures.
    megapixels: size limit in 10⁶ pixels. Also refused: a longest side over 2·√pixels, a file over 4 bytes a pixel.
    resample: resize filter, a key of RESAMPLING.
    damaged: "accept" decodes what there is of a damaged picture, "refuse" does not.
    """

    background: str = "white"
    size: float | None = None
    megapixels: float = 250.0
    resample: str = "lanczos"
    damaged: str = "refuse"
    enlarge: bool = True

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

    def draft(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size at which a JPEG of `size` may be decoded at least."""
        return fit(*size, DRAFT * self.size) if self.size else size


def open_picture(
    data: bytes,
    name: str,
    options: DecodeOptions = DecodeOptions(),
    before_decoding: Callable[[int, int], None] = lambda width, height: None,
) -> Decoded:
    """Decode the picture in the file `data`. `before_decoding` is called with its stored size, before it is decoded.

    Raises InputError, with `name` in its message, if `data` is not a picture, damaged or too large.
    """

    def check(size: tuple[int, int]) -> None:
        _check_limit(size, name, options)
        before_decoding(*size)

    def attempt(lenient: bool) -> Decoded:
        return _decode(open_file(data, check, options.draft, lenient), options)

    try:
        try:
            return attempt(lenient=False)
        except (InputError, MemoryError, UnidentifiedImageError):
            raise
        except Exception as error:  # a decoder can raise anything for a damaged file
            if options.damaged == "refuse":
                raise
            decoded, reason = attempt(lenient=True), _reason(error).partition(";")[0]
            if _is_blank(decoded.image):
                raise ValueError(f"nothing of it can be read: {reason}") from None
            return replace(decoded, notes=(f"damaged: {reason}; painted as far as it can be read", *decoded.notes))
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        found = looks_like(data)
        reason = "an empty file" if not data else f"not a picture that Pillow can read{found and f': {found}'}"
        raise InputError(f"{name}: {reason}") from None
    except Exception as error:
        raise InputError(f"{name}: cannot be decoded: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The first line of an error, or plainer words for it."""
    line = next(iter(str(error).strip().splitlines()), repr(error))
    return next((words for beginning, words in _PLAINER.items() if line.startswith(beginning)), line)


def _is_blank(image: Image.Image) -> bool:
    """True if a picture has one colour only, as what a decoder returns if it can read nothing."""
    return all(lowest == highest for lowest, highest in image.getextrema())  # type: ignore[misc]


def _check_limit(size: tuple[int, int], name: str, options: DecodeOptions) -> None:
    width, height = size
    if width * height > options.max_pixels or max(size) > options.max_side:
        raise InputError(
            f"{name}: {width}×{height} pixels, more than max_megapixels = {options.megapixels:g} allows "
            f"({options.max_side} on a side); raise it to accept this picture"
        )


def _decode(opened: Opened, options: DecodeOptions) -> Decoded:
    notes = list(opened.notes)
    icc = opened.image.info.get("icc_profile") or b""
    upright = _upright(opened.image, notes)
    alpha = _opacity(upright)
    picture = _in_srgb(upright, icc, opened.space, notes)
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, options.background), alpha)
    return Decoded(picture, alpha, opened.metadata, icc, tuple(notes))


def _opacity(image: Image.Image) -> Image.Image | None:
    """The opacity of `image`, in mode "L"; None if it is opaque."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16") and isinstance(transparent, int):  # Pillow would lose it
        return Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8))
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return image  # its decoder has turned it
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF raises errors of many types
        notes.append("its EXIF cannot be read; taken as upright")
        return image


def _in_srgb(image: Image.Image, icc: bytes, space: srgb.Space | None, notes: list[str]) -> Image.Image:
    """Convert `image` to RGB in sRGB, without its opacity."""
    opaque = _eight_bits(image, notes)
    if opaque.mode == "LAB":
        return srgb.from_lab(opaque)
    if space:
        return srgb.from_space(opaque.convert("RGB"), space)
    return (srgb.from_profile(opaque, icc, notes) if icc else None) or opaque.convert("RGB")


def _eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """Convert `image` to 8 bits, in a mode that a colour profile can be applied to: L, RGB, CMYK or LAB."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)[..., None]
        span = guess_range(values, 8 * values.itemsize)
        notes += [span.note] if span.note else []
        return Image.fromarray(to_bytes(span.scaled, values, 1)[..., 0])
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def from_image(image: Image.Image, options: DecodeOptions = DecodeOptions()) -> Decoded:
    """Decode a picture that is already in memory, in the same way as one from a file."""
    kept, notes = metadata.read(image)
    return _decode(Opened(image, None, kept, notes), options)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert `image` to an upright RGB picture in sRGB, transparent parts over white."""
    return from_image(image).image


def fitted(decoded: Decoded, options: DecodeOptions) -> Picture:
    """Resize a decoded picture to the size that `options` ask for."""
    own = max(decoded.image.size)
    size = own if not options.size else options.size if options.enlarge else min(options.size, own)
    alpha = at_size(decoded.alpha, size, options.resample) if decoded.alpha else None
    return Picture(at_size(decoded.image, size, options.resample), alpha, decoded.metadata, decoded.icc, decoded.notes)


def at_size(image: Image.Image, size: float, resample: str) -> Pixels:
    """Resize `image` so that its longest side is `size` pixels, without cropping; (H, W, 3), or (H, W) for gray."""
    working_size = fit(*image.size, size)
    if image.size != working_size:
        image = image.resize(working_size, RESAMPLING[resample])
    return np.asarray(image)


def stretched(image: Image.Image, width: int, height: int) -> Pixels:
    """Stretch `image` to exactly `width` × `height` pixels; (H, W, 3), or (H, W) for gray."""
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
