"""Open a picture's file by its format: the picture, and what the format tells of its colours, frames and metadata."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from tifffile import TiffFile

from batchnst.pictures import boxes, jpeg, jxl, metadata, png, raw, srgb, tiff, tiff_colors
from batchnst.pictures.metadata import Metadata

Check = Callable[[tuple[int, int]], None]
"""Called with the width and height of a picture, as stored, before it is decoded."""

_SIDEWAYS = range(5, 9)
"""EXIF orientations that swap width and height."""


@dataclass(frozen=True)
class Opened:
    """A picture as it is in its file: `image` is decoded, but not upright, nor in sRGB.

    space: its colours if they are told without a profile. metadata: what can be kept. notes: remarks for the user.
    """

    image: Image.Image
    space: srgb.Space | None = None
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()


ACCEPT = 'damaged = "accept" paints what there is'
"""Advice for pictures of which a part can be decoded."""


class Damaged(ValueError):
    """A picture is not whole, although it can be decoded."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; {ACCEPT}")


_NOT_READ = ("EPS", "BUFR", "GRIB", "HDF5", "WMF")
"""Formats that Pillow recognises and that are not read: EPS files are programs, which Ghostscript would run; for the
others Pillow has no decoder.
"""


@cache
def formats() -> list[str]:
    """Formats that are read, by Pillow's names."""
    Image.init()
    return [name for name in Image.OPEN if name not in _NOT_READ]


def open_file(data: bytes, check: Check, draft: Callable[[tuple[int, int]], tuple[int, int]], lenient: bool) -> Opened:
    """Open and decode the picture in the file `data`.

    `draft` is the size that is needed of a picture of a size; a JPEG is decoded near it. Missing parts of a damaged
    picture are left blank if `lenient`; otherwise Damaged, or an error of the decoder, is raised.
    """
    with _truncated_too(lenient):
        if tiff.is_tiff(data):
            with TiffFile(io.BytesIO(data)) as file:
                return _open_tiff(tiff.structure(file, data), check, lenient)
        if raw.is_camera_raw(data):
            return Opened(raw.develop(data, check))
        readable, notes = png.readable(data)
        opened = _open_by_pillow(readable, check, draft, lenient)
        return replace(opened, notes=(*notes, *opened.notes))


@contextmanager
def _truncated_too(lenient: bool) -> Iterator[None]:
    """While this is open, Pillow decodes truncated files, if `lenient`."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, lenient
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _open_tiff(structure: tiff.Tiff, check: Check, lenient: bool) -> Opened:
    kept, notes = metadata.read_page(structure.data, structure.first)
    if structure.is_camera_raw or raw.is_camera_raw(structure.data):
        return Opened(raw.develop(structure.data, check), None, kept, notes)
    check(structure.size)
    with structure.open(lenient) as image:
        image.load()
        if not lenient and (reason := structure.damage):
            raise Damaged(reason)
        frames = _frames_note(structure.pictures)
        return Opened(image, None, kept, (*frames, *image.info.get(tiff_colors.NOTES, ()), *notes))


def _open_by_pillow(
    data: bytes, check: Check, draft: Callable[[tuple[int, int]], tuple[int, int]], lenient: bool
) -> Opened:
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        check(image.size)
        if image.format in ("JPEG", "MPO") and jpeg.refusal(data):
            raise UnidentifiedImageError
        frames = _frames_note(_frames(image))
        image.draft(None, draft(image.size))
        image.load()
        if not lenient and (reason := _damage(data, image)):
            raise Damaged(reason)
        kept, notes = metadata.read(image)
        space, colour_notes = _space(data, image)
        if not image.info.get("icc_profile") and jpeg.has_profile(image):
            colour_notes = (*colour_notes, "a part of its colour profile is missing; taken as sRGB")
        return Opened(image, space, kept, (*frames, *colour_notes, *notes))


def _damage(data: bytes, image: Image.Image) -> str:
    """Why a picture that Pillow decodes is not whole; empty if it seems to be."""
    if image.format in ("JPEG", "MPO"):
        return jpeg.damage(data, image)
    if image.format == "PNG":
        last_row = image.crop((0, image.height - 1, image.width, image.height))
        return png.damage(data, not np.asarray(last_row).any())
    if image.format == "JPEG2000" and b"\xff\xd9" not in data[-4096:]:
        return "the picture ends early"
    return boxes.damage(data)


def _frames(image: Image.Image) -> int:
    """The number of frames of an animation, or pictures of a scene; previews, gain maps and layers do not count."""
    if image.format == "PSD":
        return 1
    if image.format == "MPO":
        entries = getattr(image, "mpinfo", {}).get(0xB002, [])
        return sum("Multi-Frame" in str(entry["Attribute"]["MPType"]) for entry in entries)
    return int(getattr(image, "n_frames", 1))


def _frames_note(frames: int) -> tuple[str, ...]:
    return (f"the first of {frames} frames",) if frames > 1 else ()


def _space(data: bytes, image: Image.Image) -> tuple[srgb.Space | None, tuple[str, ...]]:
    """The colours that the file tells without a profile, None if they are sRGB or not told; and remarks."""
    try:
        space = _told_space(data, image)
        if space is not None and not np.isfinite(space.matrix()).all():
            raise ValueError
    except (KeyError, ValueError, ZeroDivisionError):  # impossible ones: LinAlgError is a ValueError
        return None, ("its colours are of an unknown kind; taken as sRGB",)
    return space, (f"HDR ({space.name}): its highlights were compressed",) if space and space.hdr else ()


def _told_space(data: bytes, image: Image.Image) -> srgb.Space | None:
    """The colours by code points, which go before a profile in a PNG; else by its gamma; by a camera's EXIF."""
    profile = image.info.get("icc_profile")
    if image.format == "PNG":
        if points := png.cicp(data):
            return srgb.coded_space(points[0], points[1], narrow=points[3] == 0)
        if not profile and not png.says_srgb(data):
            return srgb.power_space(png.chromaticities(data), png.gamma(data))
    if profile:
        return srgb.profile_space(profile)
    if codes := boxes.nclx(data):
        return srgb.coded_space(*codes)
    return srgb.power_space(srgb.ADOBE_RGB, srgb.ADOBE_GAMMA) if metadata.is_adobe_rgb(image) else None


def upright_size(file: io.BufferedReader[Any]) -> tuple[int, int]:
    """The upright size (width, height) of the picture in `file`; reads no more of it than needed."""
    head = file.peek(16)[:16]
    if tiff.is_tiff(head):
        with TiffFile(file) as structure_file:
            structure = tiff.structure(structure_file, b"")
            return structure.size[::-1] if structure.orientation in _SIDEWAYS else structure.size
    if jxl.is_jxl(head):
        return jxl.upright_size(file.read(jxl.HEAD_BYTES))
    with Image.open(file, formats=formats()) as image:
        # A PNG's EXIF can follow its pixels: reading it would fetch the file.
        read_exif = image.format != "PNG" or "exif" in image.info
        sideways = read_exif and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        return (image.height, image.width) if sideways else image.size
