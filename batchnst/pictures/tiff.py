"""Find the main picture of a TIFF, which may begin with a preview, and open it (TIFF 6.0, TIFF/EP, DNG 1.7)."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import ExifTags, Image
from tifffile import TiffFile, TiffPage

from batchnst.pictures import jpeg, tiff_colors, tiff_samples

MOST_PAGES = 64
"""Pages that are looked through for the main picture."""

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SUBFILE, _OLD_SUBFILE, _FULL_SIZED = 254, 255, (0, 2)
"""Tags for the kind of a page, and the kinds that are pictures: not previews (1, 3), masks (4) or depths (8)."""

_CAMERA_RAW = (32803, 34892)
"""Photometric interpretations of pictures that have to be developed: a colour filter's, and linear raw."""

_YCBCR, _SUBSAMPLING = 6, 530


def is_tiff(data: bytes) -> bool:
    """True if `data` begins like a TIFF."""
    return data.startswith(_MAGIC)


@dataclass(frozen=True)
class Tiff:
    """A TIFF whose structure is read: the page of its main picture, its first page, and how many pictures it has."""

    data: bytes
    page: TiffPage
    first: TiffPage
    pictures: int

    @property
    def size(self) -> tuple[int, int]:
        """The width and height of the main picture as it is stored."""
        return self.page.imagewidth, self.page.imagelength

    @property
    def is_camera_raw(self) -> bool:
        """True if the main picture has to be developed."""
        return int(self.page.photometric) in _CAMERA_RAW

    @property
    def orientation(self) -> int:
        """The EXIF orientation of the main picture."""
        tag = int(ExifTags.Base.Orientation)
        return int(self.page.tags.valueof(tag, self.first.tags.valueof(tag, 1)))

    @property
    def _jpeg(self) -> bytes:
        """The main picture's file if it is a JPEG of its own (TIFF 6.0, section 22); else empty."""
        start, length = (int(np.max(self.page.tags.valueof(tag, 0))) for tag in (513, 514))
        in_strips = 273 in self.page.tags or 324 in self.page.tags
        return b"" if in_strips else self.data[start : start + length]

    @property
    def damage(self) -> str:
        """Why the main picture is not whole, if it is in JPEGs; empty if it is, or in another compression."""
        if whole := self._jpeg:
            return jpeg.damage(whole, jpeg.decode(whole))
        if self.page.compression != 7:
            return ""
        tables = self.page.jpegtables or b""
        problems = (
            jpeg.damage(whole, jpeg.decode(whole))
            for segment in tiff_samples.segments(self.data, self.page)
            if (whole := tables[:-2] + segment[2:] if tables else segment)
        )
        return next(filter(None, problems), "")

    def open(self, lenient: bool) -> Image.Image:
        """The main picture; in Pillow's way if it is compressed like photos. `lenient`: missing parts are black."""
        if whole := self._jpeg:
            return Image.open(io.BytesIO(whole), formats=["JPEG"])
        if self._is_pillows:
            if int(self.page.photometric) == _YCBCR and self.page.compression in tiff_samples.COMPRESSIONS:
                self._check_ycbcr()
            return Image.open(io.BytesIO(self._with_page_first()), formats=["TIFF"])
        image = tiff_colors.to_image(self.page, tiff_samples.read(self.data, self.page, lenient))
        image.getexif()[ExifTags.Base.Orientation] = self.orientation
        return image

    def _check_ycbcr(self) -> None:
        """Raise ValueError for colours of a lower resolution than brightness, which Pillow reads in JPEGs only."""
        if tuple(self.page.tags.valueof(_SUBSAMPLING, (2, 2))) != (1, 1):
            raise ValueError("YCbCr colours of a lower resolution are read in JPEG compression only; save it as RGB")

    @property
    def _is_pillows(self) -> bool:
        return self.page.compression not in tiff_samples.COMPRESSIONS or int(self.page.photometric) == _YCBCR

    def _with_page_first(self) -> bytes:
        """The file with the main picture's page as its first."""
        if self.page.offset == self.first.offset:
            return self.data
        order, is_big = ("<" if self.data[:2] == b"II" else ">"), self.data[2:4] in (b"+\0", b"\0+")
        at, form = (8, "Q") if is_big else (4, "I")
        offset = struct.pack(order + form, self.page.offset)
        return self.data[:at] + offset + self.data[at + len(offset) :]


def structure(file: TiffFile, data: bytes) -> Tiff:
    """Read the structure of a TIFF of which `data` are the bytes."""
    first = next(_chain(file), None)
    if first is None:
        raise ValueError("it has no page; its structure is damaged, or it ends early")
    pictures = [page for page in _chain(file) if _is_picture(page)]
    return Tiff(data, _main_page(first, pictures), first, max(1, len(pictures)))


def _chain(file: TiffFile) -> Iterator[TiffPage]:
    """The pages of a file, each once, though a damaged one may lead back to its first."""
    seen = set[int]()
    for page in islice(file.pages, MOST_PAGES):
        if page.offset in seen:
            return
        seen.add(page.offset)
        if isinstance(page, TiffPage):
            yield page


def _main_page(first: TiffPage, pictures: list[TiffPage]) -> TiffPage:
    """The page of the main picture: the first, or the largest of its sub-pages, if the first is a preview of them."""
    within = [page for page in _sub_pages(first) if _is_picture(page)]
    if _is_picture(first):
        return max([first, *within], key=_pixels)
    return max(within or pictures or [first], key=_pixels)


def _sub_pages(page: TiffPage, depth: int = 2) -> Iterator[TiffPage]:
    for within in islice(page.pages or (), MOST_PAGES):
        if isinstance(within, TiffPage):
            yield within
            if depth > 1:
                yield from _sub_pages(within, depth - 1)


def _pixels(page: TiffPage) -> int:
    return page.imagewidth * page.imagelength


def _is_picture(page: TiffPage) -> bool:
    """True unless the page says that it is a preview, a mask or a depth map."""
    kind = page.tags.valueof(_SUBFILE)
    if kind is None:
        return bool(page.tags.valueof(_OLD_SUBFILE) != 2)
    return int(kind) in _FULL_SIZED
