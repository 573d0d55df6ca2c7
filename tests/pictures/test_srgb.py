"""Colours are converted by what they are: by curves and primaries, with a profile or without."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from batchnst.pictures import srgb
from batchnst.pictures.decode import Decoded, open_picture
from tests.helpers import as_bytes, scene
from tests.pictures import profiles
from tests.pictures.profiles import adobe_to_srgb, rgb_profile, srgb_curve

COLOURS = np.asarray(scene())
MUTED = (COLOURS // 2 + 64).astype(np.uint8)  # within every gamut
TO_P3 = np.linalg.inv([[1.2249, -0.2249, 0], [-0.0421, 1.0421, 0], [-0.0196, -0.0786, 1.0983]])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: tuple[bytes, bytes], pixels: NDArray[np.uint8] = COLOURS, **options: Any) -> bytes:
    """A PNG with chunks before its pixels."""
    data = as_bytes(Image.fromarray(pixels), **options)
    return data[:33] + b"".join(chunk(kind, value) for kind, value in chunks) + data[33:]


def nclx(kind: str, primaries: int, curve: int, pixels: NDArray[np.uint8] = COLOURS) -> bytes:
    """A HEIC or AVIF that tells its colours by code points."""
    buffer = io.BytesIO()
    if kind == "HEIC":
        codes = {"color_primaries": primaries, "transfer_characteristics": curve, "matrix_coefficients": 0}
        heif = pillow_heif.from_pillow(Image.fromarray(pixels))
        heif.save(buffer, quality=-1, chroma=444, save_nclx_profile=True, full_range_flag=1, **codes)
        return buffer.getvalue()
    data = as_bytes(Image.fromarray(pixels), "AVIF", quality=100, subsampling="4:4:4", icc_profile=b"")
    at = data.find(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, curve) + data[at + 4 :]


def decoded(data: bytes) -> Decoded:
    return open_picture(data, "x")


def pixels(data: bytes) -> NDArray[np.int64]:
    return np.asarray(decoded(data).image).astype(int)


def named(name: str, gamma: float, primaries: NDArray[np.float64] = profiles.SRGB) -> bytes:
    """A profile of a name that need not be true."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"desc": profiles._text(name), b"wtpt": profiles._xyz(0.9642, 1.0, 0.8249)}
    tags |= {b"cprt": b"text" + bytes(4) + b"none\0"} | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    columns = ((b"rXYZ", 0), (b"gXYZ", 1), (b"bXYZ", 2))
    return profiles._profile(b"RGB ", tags | {tag: profiles._xyz(*primaries[:, i]) for tag, i in columns})


@pytest.mark.parametrize("name", ["sRGB IEC61966-2.1", "GIMP built-in Linear sRGB", "Something"])
def test_a_profile_is_known_by_its_curves_and_primaries(name: str) -> None:
    linear = pixels(png(icc_profile=named(name, 1.0)))
    assert np.abs(linear - 255 * srgb_curve(COLOURS / 255)).max() <= 2
    wide = pixels(png(icc_profile=named(name, profiles.GAMMA, profiles.ADOBE_RGB)))
    assert np.abs(wide - adobe_to_srgb(COLOURS)).max() <= 2
    assert not srgb.is_srgb(named(name, 1.8))


def test_a_profile_of_srgb_changes_nothing_whatever_its_name() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert srgb.is_srgb(own)
    assert (pixels(png(icc_profile=own)) == COLOURS).all()
    assert decoded(png(icc_profile=own)).notes == ()


@pytest.mark.parametrize("kind", ["PNG", "HEIC", "AVIF"])
@pytest.mark.parametrize(("curve", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_mapped_to_srgb_and_said(kind: str, curve: int, name: str) -> None:
    gray = np.repeat(np.tile(np.arange(0, 250, 4, dtype=np.uint8), (16, 1))[..., None], 3, axis=2)
    codes = bytes([9, curve, 0, 1])
    found = decoded(png((b"cICP", codes), pixels=gray) if kind == "PNG" else nclx(kind, 9, curve, gray))
    assert found.notes == (f"HDR ({name}): its highlights were compressed",)
    levels = np.asarray(found.image)[8].astype(int)
    assert np.abs(levels - levels[:, :1]).max() <= 6  # gray stays gray
    assert (np.diff(levels[:, 1]) >= -3).all()
    assert levels[-1, 1] > 240
    signal = gray[8, :, 1] / 255
    if curve == 16:  # SMPTE ST 2084, in the form of its definition
        root = signal ** (1 / 78.84375)
        nits = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        expected = 255 * srgb_curve(nits / 203)
        dark = nits / 203 < 0.7
        assert np.abs(levels[:, 1] - expected)[dark].max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "HEIC", "AVIF"])
def test_a_wide_gamut_without_a_profile_is_converted(kind: str) -> None:
    linear = ((MUTED / 255 + 0.055) / 1.055) ** 2.4
    in_p3 = (255 * srgb_curve(linear @ TO_P3.T)).round().astype(np.uint8)
    assert np.abs(in_p3.astype(int) - MUTED).max() > 8
    data = png((b"cICP", bytes([12, 13, 0, 1])), pixels=in_p3) if kind == "PNG" else nclx(kind, 12, 13, in_p3)
    assert np.abs(pixels(data) - MUTED).mean() < 2
    assert decoded(data).notes == ()


def test_code_points_of_srgb_unknown_ones_and_none_change_nothing() -> None:
    for primaries, curve in ((1, 13), (2, 2), (1, 1), (1, 6)):
        assert (pixels(png((b"cICP", bytes([primaries, curve, 0, 1])))) == COLOURS).all()
    unknown = decoded(png((b"cICP", bytes([9, 99, 0, 1]))))
    assert unknown.notes == ("its colours are of an unknown kind; taken as sRGB",)
    assert (np.asarray(unknown.image) == COLOURS).all()
    narrow = pixels(png((b"cICP", bytes([1, 13, 0, 0])), pixels=(COLOURS * (219 / 255) + 16).round().astype(np.uint8)))
    assert np.abs(narrow - COLOURS).max() <= 2


def test_code_points_of_a_png_go_before_its_profile_and_in_a_profile_before_its_curves() -> None:
    codes = (b"cICP", bytes([9, 16, 0, 1]))
    assert decoded(png(codes, icc_profile=rgb_profile())).notes[0].startswith("HDR (PQ)")
    cicp = b"cicp" + bytes(4) + bytes([9, 16, 0, 1])
    profile = rgb_profile()
    count = struct.unpack(">I", profile[128:132])[0]
    table = bytearray(profile[132 : 132 + 12 * count])
    for at in range(4, len(table), 12):
        struct.pack_into(">I", table, at, struct.unpack_from(">I", table, at)[0] + 12)
    start = len(profile) + 12
    entry = struct.pack(">4sII", b"cicp", start, len(cicp))
    body = profile[4:128] + struct.pack(">I", count + 1) + table + entry + profile[132 + 12 * count :] + cicp
    with_codes = struct.pack(">I", len(body) + 4) + body
    assert decoded(png(icc_profile=with_codes)).notes[0].startswith("HDR (PQ)")


def test_gamma_and_chromaticities_of_a_png() -> None:
    linear = pixels(png((b"gAMA", struct.pack(">I", 100_000))))
    assert np.abs(linear - 255 * srgb_curve(COLOURS / 255)).max() <= 1
    usual = (b"gAMA", struct.pack(">I", 45_455))
    srgb = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    adobe = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000))
    assert (pixels(png(usual, srgb)) == COLOURS).all()
    assert (pixels(png((b"sRGB", b"\0"), usual, adobe)) == COLOURS).all()
    muted = pixels(png((b"gAMA", struct.pack(">I", 45_470)), adobe, pixels=MUTED))
    assert np.abs(muted - adobe_to_srgb(MUTED)).max() <= 2
    for nonsense in (bytes(32), struct.pack(">8I", *[33_333] * 8)):
        found = decoded(png((b"cHRM", nonsense)))
        assert (np.asarray(found.image) == COLOURS).all()
        assert found.notes == ("its colours are of an unknown kind; taken as sRGB",)
    assert (pixels(png((b"gAMA", bytes(4)))) == COLOURS).all()


def test_adobe_rgb_by_a_cameras_exif() -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = 0xFFFF
    exif.get_ifd(ExifTags.IFD.Exif)[int(ExifTags.IFD.Interop)] = {1: "R03"}
    data = as_bytes(Image.fromarray(MUTED), "JPEG", quality=100, subsampling=0, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image)
    assert np.abs(pixels(data) - adobe_to_srgb(stored)).max() <= 2


def test_tone_mapping_keeps_dark_colours_and_order() -> None:
    linear = np.linspace(0, 20, 500)[:, None] * np.ones(3)
    mapped = srgb.tone_mapped(linear, 20.0)
    assert (mapped[linear < srgb.KNEE] == linear[linear < srgb.KNEE]).all()
    assert (np.diff(mapped[:, 0]) > 0).all()
    assert mapped.max() == pytest.approx(1)
    assert (srgb.tone_mapped(linear, 1.0) == linear).all()
