"""Frames, texts and formats that need more than Pillow alone."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from batchnst.errors import InputError
from batchnst.pictures import decode, isolated
from batchnst.pictures.decode import DecodeOptions, open_picture
from tests.helpers import as_bytes, photo_exif, scene

MPO_TYPES = {"gain map": 0x000000, "preview": 0x010002, "other view": 0x020002, "panorama": 0x020001}


def mpo(kind: int) -> bytes:
    """A JPEG of two pictures, of which the second is of a `kind`."""
    data = as_bytes(scene(), "MPO", save_all=True, append_images=[scene(30, 20)])
    entries = data.find(b"MPF\0") + 4 + 50  # behind the tags; the first picture is the main one
    at = entries + 16
    first = b"\x02\x00\x02\x00" if kind >> 16 == 2 else data[entries : entries + 4]
    return data[:entries] + first + data[entries + 4 : at] + kind.to_bytes(4, "little") + data[at + 4 :]


@pytest.mark.parametrize("name", MPO_TYPES)
def test_gain_maps_and_previews_of_a_phone_are_no_frames(name: str) -> None:
    decoded = open_picture(mpo(MPO_TYPES[name]), "x")
    assert decoded.image.size == (60, 40)
    is_scene = MPO_TYPES[name] >> 16 == 2
    assert decoded.notes == (("the first of 2 frames",) if is_scene else ())


def test_a_long_text_in_a_png_is_passed_over() -> None:
    for zipped in (False, True):
        info = PngImagePlugin.PngInfo()
        info.add_text("prompt", "x" * (3 << 20), zip=zipped)
        info.add_itxt("workflow", "é" * (3 << 20), zip=zipped)
        data = as_bytes(scene(), pnginfo=info)
        decoded = isolated.load(data, "x", DecodeOptions())
        assert (decoded.pixels == np.asarray(scene())).all()
        assert decoded.notes == ()


def test_texts_that_unpack_to_gigabytes_take_no_memory() -> None:
    bomb = b"prompt\0\0" + zlib.compress(bytes(200 << 20))
    data = as_bytes(scene())
    chunk = len(bomb).to_bytes(4) + b"zTXt" + bomb + zlib.crc32(b"zTXt" + bomb).to_bytes(4)
    for place in (33, len(data) - 12):  # before and behind the pixels
        many = data[:place] + chunk * 20 + data[place:]
        assert isolated.load(many, "x", DecodeOptions()).pixels.shape == (40, 60, 3)


def test_a_long_profile_in_a_png_is_read() -> None:
    icc = bytes(np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8))
    decoded = isolated.load(as_bytes(scene(), icc_profile=icc), "x", DecodeOptions())
    assert decoded.notes == ("its colour profile cannot be read; taken as sRGB",)


def test_jpeg_xl_by_the_extra() -> None:
    pillow_jxl = pytest.importorskip("pillow_jxl")
    assert pillow_jxl
    assert ".jxl" in isolated.endings()
    exif = photo_exif()
    for image in (scene(), scene().convert("L")):
        buffer = io.BytesIO()
        image.save(buffer, "JXL", lossless=True, exif=exif.tobytes())
        found = isolated.load(buffer.getvalue(), "x", DecodeOptions())
        assert (found.pixels == np.asarray(image.convert("RGB"))).all()  # it is upright, whatever the EXIF says
        assert b"Camera Works" in found.metadata.exif
        with pytest.raises(InputError, match="cannot be decoded"):
            isolated.load(buffer.getvalue()[:-200], "x", DecodeOptions())
        with pytest.raises(InputError, match="more than max_megapixels"):
            isolated.load(buffer.getvalue(), "x", DecodeOptions(megapixels=0.001))


@pytest.mark.parametrize(
    "size", [(8, 8), (64, 40), (300, 400), (400, 300), (1, 900), (777, 512), (1024, 512), (600, 500)]
)
def test_the_size_of_a_jpeg_xl_is_read_from_its_header(size: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    for options in ({}, {"use_container": True}, {"exif": photo_exif().tobytes()}):
        scene(*size).save(tmp_path / "x.jxl", effort=1, **options)
        assert isolated.probe(str(tmp_path / "x.jxl")) == size
    noise = Image.effect_noise((500, 400), 60)
    noise.save(tmp_path / "x.jxl", lossless=True)
    assert (tmp_path / "x.jxl").stat().st_size > 140_000
    assert isolated.probe(str(tmp_path / "x.jxl")) == (500, 400)


def test_values_of_other_formats_keep_their_range() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64), (16, 1)).astype(np.uint16)
    plain = b"P5\n64 16\n65535\n" + ramp.astype(">u2").tobytes()
    assert np.abs(np.asarray(open_picture(plain, "x").image)[..., 0] - ramp / 257).max() <= 1
    floats = (np.tile(np.linspace(0, 1, 64), (16, 1))).astype("<f4")
    floats[0, 0] = 1.5
    pfm = b"Pf\n64 16\n-1.0\n" + floats[::-1].tobytes()
    assert np.abs(np.asarray(open_picture(pfm, "x").image)[1:, :, 0] - 255 * floats[1:]).max() <= 1


def test_a_picture_in_memory_is_decoded_as_its_file() -> None:
    with Image.open(io.BytesIO(as_bytes(scene(), "JPEG", exif=photo_exif(), xmp=b"<x>a caption</x>"))) as image:
        decoded = decode.from_image(image)
    assert b"Camera Works" in decoded.metadata.exif
    assert decoded.metadata.xmp == b"<x>a caption</x>"
