"""The metadata of photos, EXIF (camera, date, place), XMP and IPTC (captions, keywords): read, and fit to be kept."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD
from PIL.Image import Exif
from tifffile import TiffPage

_STRUCTURE = {
    *range(254, 260), *range(262, 267), 273, 274, *range(277, 282), 284, *range(288, 294), 297, 301, *range(317, 326),
    *range(330, 348), *range(512, 522), *range(529, 533), 700, 33421, 33422, 33723, 34377, 34675, *range(50706, 51200),
}  # fmt: skip
"""Tags of how a picture is stored, of raw files, and of what is kept otherwise: XMP, IPTC, colour profile."""

_GROUPS, _TEXTS = {34665, 34853}, (270, 271, 272, 305, 306, 315, 33432)
"""Tags of a TIFF that have groups of others, EXIF's and GPS's; and those that are texts."""

_OF_PIXELS = {0x9214, 0xA214, 0xA005}
"""Tags of the EXIF that hold for the photo's own pixels: subject areas, and the interoperability of its colours."""

_WIDTH, _HEIGHT, _COLOUR_SPACE = 0xA002, 0xA003, 0xA001

_IPTC_RESOURCE = 0x0404

XMP_TAG, IPTC_TAG = 700, 33723
_TIFF_TAGS = {"xmp": XMP_TAG, "iptc": IPTC_TAG, "photoshop": 34377}

_PREVIEWS = re.compile(rb"<(xmp:Thumbnails|Container:Directory|GContainer:Directory)\b.*?</\1\s*>", re.DOTALL)
_GAIN_MAP = re.compile(rb"""\s(?:hdrgm|HDRGainMap|GCamera):\w+\s*=\s*("[^"]*"|'[^']*')""")


@dataclass(frozen=True)
class Metadata:
    """Metadata of a photo, each part empty if missing or unusable.

    exif: without orientation, thumbnail and everything about how the photo was stored. xmp: as in the file.
    iptc: the records of IPTC's Information Interchange Model, as in the file.
    """

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""


def read(image: Image.Image) -> tuple[Metadata, tuple[str, ...]]:
    """Read the metadata of an opened picture; and remarks on what cannot be used."""
    return _read(lambda: _exif(image), image.info)


def _exif(image: Image.Image) -> Exif:
    data = image.info.get("exif")
    if not data:
        return image.getexif()
    exif = Exif()  # an error when Pillow read it would be forgotten
    exif.load(data)
    return exif


def read_page(data: bytes, page: TiffPage) -> tuple[Metadata, tuple[str, ...]]:
    """Read the metadata in a page of the TIFF `data`; and remarks on what cannot be used."""

    def exif() -> Exif:
        found = Exif()
        if page.parent.is_bigtiff and page.parent.byteorder == ">" and not _GROUPS & {tag.code for tag in page.tags}:
            found.update({tag: text for tag in _TEXTS if (text := page.tags.valueof(tag))})
            return found  # Pillow cannot read such tags
        found.endian, found.bigtiff = page.parent.byteorder, page.parent.is_bigtiff
        found.load_from_fp(io.BytesIO(data), page.offset)
        return found

    return _read(exif, {name: page.tags.valueof(tag, b"") for name, tag in _TIFF_TAGS.items()})


def _read(exif: Callable[[], Exif], info: Mapping[Any, Any]) -> tuple[Metadata, tuple[str, ...]]:
    """Read the metadata in `exif`, and in `info` by Pillow's names."""
    notes = list[str]()

    def part(name: str, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except Exception:  # broken metadata raises errors of many types
            notes.append(f"its {name} is broken and was left out")
            return b""

    parts = part("EXIF", lambda: kept_exif(exif())), part("XMP", lambda: _xmp(info)), part("IPTC", lambda: _iptc(info))
    return Metadata(*parts), tuple(notes)


def kept_exif(exif: Exif) -> bytes:
    """The EXIF of a picture, written anew, without what holds for its file only; empty if nothing is left."""
    kept = Exif()
    for tag, value in exif.items():
        if tag not in _STRUCTURE and tag not in (IFD.Exif, IFD.GPSInfo):
            kept[tag] = _as_stored(value)
    found = len(kept) > 0
    for group in (IFD.Exif, IFD.GPSInfo):
        values = {tag: _as_stored(value) for tag, value in exif.get_ifd(group).items() if tag not in _OF_PIXELS}
        if values:
            kept.get_ifd(group).update(values)
            found = True
    return kept.tobytes() if found else b""


class _Stored(str):
    """A text of EXIF, of which Pillow has made a letter of each byte: it is written with the same bytes.

    EXIF's texts should be ASCII, but cameras and programs write UTF-8 and Windows' encodings.
    """

    __slots__ = ()

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        return str.encode(self, "latin-1", "replace")


def _as_stored(value: Any) -> Any:
    return _Stored(value) if isinstance(value, str) else value


def is_adobe_rgb(image: Image.Image) -> bool:
    """True if the EXIF says that the colours are Adobe RGB (DCF 2.0)."""
    try:
        return image.getexif().get_ifd(IFD.Interop).get(1) == "R03"
    except Exception:  # broken EXIF raises errors of many types
        return False


def exif_for(data: bytes, width: int, height: int, is_srgb: bool) -> Exif:
    """The kept EXIF `data` for a picture of `width` × `height` pixels, in sRGB or in colours of a profile."""
    exif = Exif()
    if data:
        exif.load(data)
        for values in (exif, exif.get_ifd(IFD.Exif), exif.get_ifd(IFD.GPSInfo)):
            values.update({tag: _as_stored(value) for tag, value in values.items()})
        camera = exif.get_ifd(IFD.Exif)
        if camera:
            camera |= {_WIDTH: width, _HEIGHT: height, _COLOUR_SPACE: 1 if is_srgb else 0xFFFF}
    return exif


def has_comment(data: bytes) -> bool:
    """True if the EXIF `data` has a comment of a user that says something."""
    exif = Exif()
    if data:
        exif.load(data)
    comment = exif.get_ifd(IFD.Exif).get(0x9286, b"")
    return bool(bytes(comment)[8:].strip(b"\0 ") if isinstance(comment, bytes) else comment)


def xmp_for(data: bytes, width: int, height: int) -> bytes:
    """The XMP `data` for an upright picture of `width` × `height` pixels, without previews and gain maps."""
    names = {b"Orientation": 1, b"PixelXDimension": width, b"PixelYDimension": height}
    names |= {b"ImageWidth": width, b"ImageLength": height}
    for name, value in names.items():
        said = rb"""((?:tiff|exif):%s\s*(?:=\s*["']|>)\s*)\d+""" % name
        data = re.sub(said, rb"\g<1>%d" % value, data)
    return _GAIN_MAP.sub(b"", _PREVIEWS.sub(b"", data))


def _xmp(info: Mapping[Any, Any]) -> bytes:
    text = info.get("xmp") or info.get("XML:com.adobe.xmp") or _raw_profile(info, "xmp")
    data = text.encode() if isinstance(text, str) else bytes(text)
    return data.rstrip(b"\0")


def _iptc(info: Mapping[Any, Any]) -> bytes:
    """The IPTC records: of a JPEG, a TIFF, or a PNG in ImageMagick's way."""
    resources = info.get("photoshop", b"")
    if isinstance(resources, dict):
        return bytes(resources.get(_IPTC_RESOURCE, b""))
    data = bytes(info.get("iptc") or _raw_profile(info, "iptc") or resources)
    return _resource(data, _IPTC_RESOURCE) if data.startswith(b"8BIM") else data


def _raw_profile(info: Mapping[Any, Any], name: str) -> bytes:
    """The metadata that ImageMagick writes into a PNG as digits."""
    text = info.get(f"Raw profile type {name}", "")
    return bytes.fromhex("".join(str(text).split("\n")[3:]))


def _resource(data: bytes, wanted: int) -> bytes:
    """The data of Photoshop's resource `wanted`, empty if it is not in `data`."""
    at = 0
    while data[at : at + 4] == b"8BIM":
        name = at + 6
        start = name + 1 + data[name]
        start += (start - name) % 2
        size = int.from_bytes(data[start : start + 4])
        if int.from_bytes(data[at + 4 : at + 6]) == wanted:
            return data[start + 4 : start + 4 + size]
        at = start + 4 + size + size % 2
    return b""


def as_resource(iptc: bytes) -> bytes:
    """IPTC records as Photoshop's resource."""
    head = b"8BIM" + _IPTC_RESOURCE.to_bytes(2) + bytes(2) + len(iptc).to_bytes(4)
    return head + iptc + bytes(len(iptc) % 2)


def as_raw_profile(name: str, data: bytes) -> str:
    """Metadata as ImageMagick writes it into a PNG."""
    digits = data.hex()
    lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
    return "\n".join(["", name, f"{len(data):8}", *lines, ""])
