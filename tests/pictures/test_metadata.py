"""What a photo says of itself is kept where that is asked for, and made true of the picture that is written."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import ExifTags, Image, PngImagePlugin

from batchnst.pictures import metadata
from batchnst.pictures.decode import Decoded, open_picture
from batchnst.pictures.encode import Finish, Provenance, encode_picture, read_provenance, unkept
from batchnst.pictures.metadata import Metadata
from tests.helpers import as_bytes, photo_exif, scene
from tests.pictures.profiles import gray_profile, rgb_profile
from tests.pictures.runs import ledger, run

XMP = b"""<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation="6" exif:PixelXDimension='4032'
 xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"><dc:title>a caption</dc:title>
 <exif:PixelYDimension>3024</exif:PixelYDimension><xmp:Thumbnails><rdf:Alt>/9j/4AAQ</rdf:Alt></xmp:Thumbnails>
 </rdf:Description></x:xmpmeta>"""
IPTC = b"\x1c\x02\x78\x00\x09a caption\x1c\x02\x19\x00\x08keywords"
ENDINGS = ["png", "jpg", "webp", "avif", "tif"]


def exif() -> Image.Exif:
    """A photo's: camera, date, place, size, and a small picture."""
    found = photo_exif()
    camera = found.get_ifd(ExifTags.IFD.Exif)
    camera |= {ExifTags.Base.ExifImageWidth: 4032, ExifTags.Base.ExifImageHeight: 3024, 0x9214: (9, 9, 5, 5)}
    found[ExifTags.Base.ImageWidth] = 4032
    return found


def iptc_block() -> bytes:
    block = b"Photoshop 3.0\0" + metadata.as_resource(b"") + metadata.as_resource(IPTC)
    return b"\xff\xed" + struct.pack(">H", len(block) + 2) + block


def photo(kind: str) -> bytes:
    """A photo with metadata of each kind that its format holds."""
    if kind == "HEIC":
        buffer = io.BytesIO()
        pillow_heif.from_pillow(scene()).save(buffer, quality=95, exif=exif().tobytes(), xmp=XMP)
        return buffer.getvalue()
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        texts.add_text("Raw profile type iptc", metadata.as_raw_profile("iptc", metadata.as_resource(IPTC)), zip=True)
        return as_bytes(scene(), pnginfo=texts, exif=exif())
    if kind == "TIFF":
        return tiff_photo()
    extra: dict[str, Any] = {"extra": iptc_block()} if kind == "JPEG" else {}
    return as_bytes(scene(), kind, exif=exif(), xmp=XMP, **extra)


def tiff_photo() -> bytes:
    """A TIFF with EXIF, XMP and IPTC in its tags."""
    tags = Image.Exif()
    tags.load(exif().tobytes())
    tags[700], tags[33723] = XMP, IPTC
    return as_bytes(scene(), "TIFF", exif=tags)


def opened(data: bytes) -> Decoded:
    return open_picture(data, "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIC"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_metadata_goes_from_every_format_to_every_other(kind: str, ending: str) -> None:
    source = opened(photo(kind))
    assert source.notes == ()
    said = Provenance("a", "r1", 1, "f", "0.1.0")
    finish = Finish(metadata=source.metadata, provenance=said)
    data = encode_picture(np.asarray(source.image), f"x.{ending}", finish)
    assert read_provenance(data, "x") == said
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
        image.load()
        kept = image.getexif()
        assert kept[ExifTags.Base.Make] == "Camera Works"
        assert ExifTags.Base.Orientation not in kept or kept[ExifTags.Base.Orientation] == 1
        camera = kept.get_ifd(ExifTags.IFD.Exif)
        assert camera[ExifTags.Base.DateTimeOriginal] == "2026:11:20 21:04:00"
        assert (camera[ExifTags.Base.ExifImageWidth], camera[ExifTags.Base.ExifImageHeight]) == size
        assert 0x9214 not in camera
        assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (48.0, 31.0, 12.0)
    again = opened(data)
    plain = opened(encode_picture(np.asarray(source.image), f"x.{ending}"))
    assert (np.asarray(again.image) == np.asarray(plain.image)).all()
    xmp = again.metadata.xmp
    assert b"a caption" in xmp
    numbers = [b"1", b"%d" % size[0], b"%d" % size[1]]
    # Of a HEIC the decoder has dropped the orientation.
    assert re.findall(rb"(?:Orientation|Dimension)\W+(\d+)", xmp) == numbers[kind == "HEIC" :]
    assert b"Thumbnails" not in xmp
    assert b"hdrgm:Version" not in xmp
    if kind in ("JPEG", "PNG", "TIFF"):
        assert again.metadata.iptc == (b"" if ending in ("webp", "avif") else IPTC)
        lost = f"its IPTC is not kept, since a {ending.upper()} cannot hold it"
        assert unkept(finish, f"x.{ending}") == (() if again.metadata.iptc else (lost,))


def test_exif_behind_the_pixels_of_a_png_is_read() -> None:
    data = as_bytes(scene(), exif=exif())
    at = data.find(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4])
    behind = data[:at] + data[end:-12] + data[at:end] + data[-12:]
    assert opened(behind).metadata == opened(data).metadata
    assert b"Camera Works" in opened(behind).metadata.exif
    assert opened(behind).image.size == (40, 60)


def test_a_thumbnail_in_the_exif_is_dropped() -> None:
    small = as_bytes(scene(16, 12), "JPEG")
    whole = exif()
    whole.get_ifd(ExifTags.IFD.IFD1).update({513: 0, 514: len(small)})
    kept = opened(as_bytes(scene(), "JPEG", exif=whole)).metadata.exif
    found = Image.Exif()
    found.load(kept)
    assert dict(found.get_ifd(ExifTags.IFD.IFD1)) == {}
    assert b"JFIF" not in kept


def test_metadata_of_a_raw_tiff_is_that_of_its_first_page() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        small = np.full((48, 64, 3), 200, np.uint8)
        camera = [(271, "s", 0, "Camera Works", True)]
        writer.write(small, photometric="rgb", subfiletype=1, subifds=1, extratags=camera)
        writer.write(np.full((48, 640, 3), 50, np.float32), photometric="rgb", subfiletype=0)
    assert b"Camera Works" in opened(buffer.getvalue()).metadata.exif


def test_no_tag_of_how_a_tiff_was_stored_is_kept() -> None:
    kept = Image.Exif()
    kept.load(opened(tiff_photo()).metadata.exif)
    assert set(kept) <= {271, int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo)} | {282, 283, 296}


def test_colours_are_told_as_they_are_written() -> None:
    camera = {ExifTags.Base.ColorSpace: 0xFFFF, int(ExifTags.IFD.Interop): {1: "R03"}}
    wide = Image.Exif()
    wide.get_ifd(ExifTags.IFD.Exif).update(camera)
    source = opened(as_bytes(scene(), "JPEG", exif=wide))
    data = encode_picture(np.asarray(source.image), "x.png", Finish(metadata=source.metadata))
    assert np.abs(np.asarray(opened(data).image).astype(int) - np.asarray(source.image)).max() <= 1
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] == 1


def test_what_a_format_cannot_hold_is_told() -> None:
    long = Image.Exif()
    long[ExifTags.Base.ImageDescription] = "x" * 70_000
    much = Finish(metadata=Metadata(long.tobytes(), b"x" * 70_000, b"x" * 70_000), icc=rgb_profile())
    parts = [f"its {part} is not kept, since a JPEG cannot hold it" for part in ("EXIF", "XMP", "IPTC")]
    assert unkept(much, "x.jpg") == tuple(parts)
    assert unkept(much, "x.png") == ()
    assert unkept(much, "x.tif") == ("its colour profile is not kept: a TIFF is written in sRGB",)
    gray = Finish(icc=gray_profile(1.8))
    assert unkept(gray, "x.png") == ("its colour profile is not kept: a PNG is written in sRGB",)
    source = opened(as_bytes(scene(), "PNG", exif=long))
    for ending in ENDINGS:
        data = encode_picture(np.asarray(source.image), f"x.{ending}", Finish(metadata=source.metadata))
        assert (b"x" * 1000 in opened(data).metadata.exif) == (ending != "jpg")


@pytest.mark.parametrize(
    ("comment", "says"),
    [(b"ASCII\0\0\0 \0\0", False), (b"\0" * 8, False), (b"UNICODE\0\0k", True), (b"ASCII\0\0\0my trip", True)],
)
def test_a_comment_that_gives_way_to_the_record_of_the_painting_is_told(comment: bytes, says: bool) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    source = opened(as_bytes(scene(), "JPEG", exif=exif))
    told = ("its EXIF comment is not kept: batchnst's record of the painting is there",)
    assert unkept(Finish(metadata=source.metadata), "x.png") == (told if says else ())


@pytest.mark.parametrize("broken", [b"nonsense", b"8BIM", b"8BIM\4\4\0\0\0\0\xff\xff"])
def test_broken_xmp_and_iptc_harm_nothing(broken: bytes) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Raw profile type iptc", f"\niptc\n8\n{broken.hex()}zz\n")
    assert opened(as_bytes(scene(), pnginfo=texts)).notes == ("its IPTC is broken and was left out",)
    source = opened(as_bytes(scene(), "JPEG", xmp=b"\xff\xfe" + broken))
    for ending in ENDINGS:
        assert encode_picture(np.asarray(scene()), f"x.{ending}", Finish(metadata=source.metadata))


def test_a_run_keeps_metadata_where_that_is_asked_for(folder: Path) -> None:
    (folder / "told.jpg").write_bytes(photo("JPEG"))
    formats = ("jpg", "tif", "webp")
    rows: list[dict[str, Any]] = [{"content": "told.jpg", "metadata": "keep", "format": kind} for kind in formats]
    rows.append({"content": "told.jpg"})
    assert run(folder, *rows).exit_code == 0
    images = folder / "out" / "images"
    for name in ("n0.jpg", "n1.tif", "n2.webp"):
        kept = opened((images / name).read_bytes()).metadata
        assert b"Camera Works" in kept.exif
        assert b"a caption" in kept.xmp
    assert opened((images / "n3.png").read_bytes()).metadata.xmp == b""
    rows_written = ledger(folder)
    assert rows_written["n0"]["notes"] == rows_written["n3"]["notes"] == []
    assert rows_written["n2"]["notes"] == ["content: its IPTC is not kept, since a WEBP cannot hold it"]
