from __future__ import annotations

import io
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image

from batchnst.errors import InputError
from batchnst.pictures import decode, isolated, messages, pool
from batchnst.pictures.encode import Finish, Provenance
from batchnst.pictures.metadata import Metadata
from batchnst.storage.files import open_file
from tests.helpers import as_bytes, photo_exif, png, scene
from tests.pictures.profiles import rgb_profile

HOSTILE = """
import os, signal, time
from PIL import Image
real = Image.open
def open(*args, **options):
    image = real(*args, **options)
    if image.width == 13: os.abort()
    if image.width == 17: time.sleep(1000)
    if image.width == 19: os.kill(os.getpid(), signal.SIGKILL)
    if image.width == 21 and not os.path.exists(once):
        os.close(os.open(once, os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)
    if image.width == 23: bytearray(3 << 30)
    if image.width == 25: print("loose talk", flush=True)
    return image
Image.open = open
"""
"""Makes a process abort, hang, be killed, be killed once, take 3 GB or print, over pictures of certain widths."""


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[pool.Pool]:
    """Processes of this test's own, one at a time."""
    fresh = pool.Pool(1)
    monkeypatch.setattr(isolated, "_POOL", fresh)
    yield fresh
    fresh.trim()


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that misbehave."""
    monkeypatch.setattr(pool, "BOOT", f"once = {str(tmp_path / 'once')!r}\n{HOSTILE}{pool.BOOT}")


def load(width: int = 60, **options: object) -> decode.Picture:
    return isolated.load(as_bytes(scene(width)), "pic", decode.DecodeOptions(**options))  # type: ignore[arg-type]


def running(own: pool.Pool) -> pool.Process:
    (process,) = own._idle
    return process


def test_what_comes_back_is_what_is_decoded_here() -> None:
    image = Image.new("RGBA", (50, 30), (200, 10, 10, 100))
    data = as_bytes(image, exif=photo_exif(), icc_profile=b"nonsense")
    options = decode.DecodeOptions(background="black", size=25, resample="bicubic")
    here = decode.fitted(decode.open_picture(data, "pic", options), options)
    there = isolated.load(data, "pic", options)
    assert (there.pixels == here.pixels).all()
    assert there.alpha is not None
    assert here.alpha is not None
    assert (there.alpha == here.alpha).all()
    assert (there.metadata, there.icc, there.notes) == (here.metadata, here.icc, here.notes)
    assert there.icc == b"nonsense"
    assert b"Camera Works" in there.metadata.exif
    assert load().pixels.shape == (40, 60, 3)


def test_one_process_serves_many_pictures(own: pool.Pool) -> None:
    load()
    first = running(own)
    assert load().alpha is None
    assert running(own) is first


def test_a_bad_picture_is_told_as_it_would_be_here() -> None:
    load()
    for data, said in ((b"", "an empty file"), (as_bytes(scene())[:100], "cannot be decoded")):
        with pytest.raises(InputError, match=f"^pic: {said}") as raised:
            isolated.load(data, "pic", decode.DecodeOptions())
        assert not raised.value.transient
    with pytest.raises(InputError, match=r"60×40 pixels, more than max_megapixels = 0\.002 allows"):
        load(megapixels=0.002)
    assert (load().pixels == np.asarray(scene())).all()


# The process ---------------------------------------------------------------------------------------------------------


def test_a_process_has_no_secrets_and_no_place_to_write_to(own: pool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN", "HTTPS_PROXY", "PYTHONPATH", "LC_ALL"):
        monkeypatch.setenv(name, "C.UTF-8" if name == "LC_ALL" else "secret")
    load()
    folder = Path(f"/proc/{running(own)._process.pid}")
    environment = dict(entry.split("=", 1) for entry in (folder / "environ").read_text().split("\0") if entry)
    assert environment.keys() <= {*pool._PASSED_ON, *pool._SET}
    assert environment["LC_ALL"] == "C.UTF-8"
    assert (folder / "cwd").readlink() == Path("/")
    limits = {line[:26].strip(): line[26:].split()[0] for line in (folder / "limits").read_text().splitlines()}
    assert limits["Max core file size"] == limits["Max file size"] == "0"
    assert 1 << 28 < int(limits["Max data size"]) < 1 << 30
    assert int(limits["Max cpu time"]) < 1000


def test_nothing_in_the_users_folder_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "PIL", "sitecustomize", "usercustomize", "defusedxml", "json", "batchnst", "olefile"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert load().pixels.shape == (40, 60, 3)
    assert not (tmp_path / "executed").exists()


def test_a_process_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BOOT", "import nothing_of_that_name")
    message = "^pic: the process that decodes pictures does not start: .*No module named 'nothing_of_that_name'$"
    with pytest.raises(InputError, match=message) as raised:
        load()
    assert raised.value.transient


def test_a_decoder_that_crashes_takes_only_its_picture(hostile: None) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=r"^pic: crashed its decoder \(exit status -6\)$") as raised:
            load(13)
        assert not raised.value.transient
        assert load().pixels.shape == (40, 60, 3)


def test_a_decoder_that_hangs_is_stopped(hostile: None, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    monkeypatch.setattr(pool, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"^pic: took longer than 0\.5 s to decode$"):
        load(17)
    monkeypatch.setattr(pool, "TIMEOUT_SECONDS", 60.0)
    assert load().pixels.shape == (40, 60, 3)


def test_a_decoder_that_is_killed_once_costs_nothing(hostile: None) -> None:
    assert load(21).pixels.shape == (40, 21, 3)


def test_a_decoder_that_is_killed_each_time_fails_for_now(hostile: None) -> None:
    with pytest.raises(InputError, match=r"^pic: the process that decodes it was killed 3 times") as raised:
        load(19)
    assert raised.value.transient


def test_a_decoder_that_was_killed_meanwhile_is_replaced(own: pool.Pool) -> None:
    load()
    process = running(own)._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert load().pixels.shape == (40, 60, 3)


def test_a_decoder_gets_no_more_memory_than_its_picture_explains(hostile: None) -> None:
    with pytest.raises(InputError, match=r"^pic: takes more memory to decode than its size explains$") as raised:
        load(23)
    assert not raised.value.transient
    assert load().pixels.shape == (40, 60, 3)


def test_a_library_that_prints_does_not_break_an_answer(hostile: None) -> None:
    assert load(25).pixels.shape == (40, 25, 3)


@pytest.mark.parametrize("answer", ["garbage", '{"sizes": [99999999999]}', '{"sizes": [-1]}', "[]"])
def test_a_process_that_answers_nonsense_fails_its_picture(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = f"import sys\nprint('{{\"sizes\": []}}')\nprint({answer!r}, flush=True)\nsys.stdin.read()"
    monkeypatch.setattr(pool, "BOOT", reply)
    with pytest.raises(InputError, match=r"^pic: crashed its decoder"):
        load()


def test_an_interrupt_leaves_no_answer_for_the_next_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    load(30)
    with monkeypatch.context() as patch:
        patch.setattr(messages, "get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(30)
    assert load().pixels.shape == (40, 60, 3)


def test_the_process_ends_with_its_input(own: pool.Pool) -> None:
    load()
    process = running(own)._process
    own.trim()
    assert process.poll() == 0


# Headers -------------------------------------------------------------------------------------------------------------


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of bytes that are read to probe a file."""
    sizes = list[int]()

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            sizes.append(count := super().readinto(buffer) or 0)
            return count

    @contextmanager
    def counting(address: str, buffer: int) -> Iterator[BinaryIO]:
        with open_file(address, buffer), io.BufferedReader(Counting(address), buffer) as file:
            yield file

    with monkeypatch.context() as patch:
        patch.setattr(isolated, "open_file", counting)
        yield sizes


def noise(kind: str, **options: object) -> bytes:
    """A picture of a megabyte that is upright at 600 × 900."""
    values = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ImageDescription] = "x" * 50_000
    if kind == "HEIF":
        buffer = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(values)).save(buffer, exif=exif.tobytes(), **options)
        return buffer.getvalue()
    return as_bytes(Image.fromarray(values), kind, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", pytest.param("HEIF", marks=pytest.mark.slow)])
def test_a_size_is_read_without_the_whole_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "noise"
    options: dict[str, Any] = {"PNG": {}, "AVIF": {"quality": 95, "speed": 10}}.get(kind, {"quality": 95})
    file.write_bytes(noise(kind, **options))
    assert file.stat().st_size > 500_000
    with counted(monkeypatch) as sizes:
        assert isolated.probe(str(file)) == (600, 900)
    assert sum(sizes) < 250_000


def lossless_webp(width: int, height: int) -> bytes:
    """The beginning of a WebP file that says that it has 2 GB."""
    bits = (width - 1) | (height - 1) << 14
    chunk = b"VP8L" + (2**31 - 32).to_bytes(4, "little") + b"\x2f" + bits.to_bytes(4, "little")
    return b"RIFF" + (2**31 - 16).to_bytes(4, "little") + b"WEBP" + chunk


@pytest.mark.parametrize(
    "head", [lossless_webp(16_000, 16_000), b"\0\0\0\x20ftypavif", b"\0\0\0\x20ftypheic", b"II*\0"]
)
def test_a_huge_file_of_holes_is_not_read(head: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.write(head)
        file.truncate(2 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with counted(monkeypatch) as sizes:
        assert isolated.probe(str(tmp_path / "huge")) is None
    assert sum(sizes) < 250_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("width", [13, 19, *(pytest.param(width, marks=pytest.mark.slow) for width in (17, 23))])
def test_a_header_that_kills_its_reader_has_no_size(
    width: int, hostile: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "TIMEOUT_SECONDS", 0.5)
    scene(width).save(tmp_path / "x.png")
    assert isolated.probe(str(tmp_path / "x.png")) is None
    monkeypatch.setattr(pool, "TIMEOUT_SECONDS", 60.0)
    scene().save(tmp_path / "x.png")
    assert isolated.probe(str(tmp_path / "x.png")) == (60, 40)


def test_a_pipe_has_no_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert isolated.probe(str(tmp_path / "pipe.png")) is None


# Others --------------------------------------------------------------------------------------------------------------


def test_a_preview_is_small_and_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    small = isolated.preview(as_bytes(scene(600, 400), "JPEG", exif=exif), "pic", 96)
    assert (small.width, small.height) == (64, 96)
    with Image.open(io.BytesIO(small.data)) as image:
        assert (image.format, image.size) == ("WEBP", (64, 96))


def test_a_bomb_has_no_preview_and_is_not_examined() -> None:
    bomb = png(40_000, 40_000, b"")
    with pytest.raises(InputError, match=r"^pic: 40000×40000 pixels, more than max_megapixels = 250 allows"):
        isolated.preview(bomb, "pic", 96)
    assert isolated.examine(bomb, "pic", (60, 40)) == ("PNG", (40_000, 40_000))


def test_examining_finds_damage() -> None:
    data = as_bytes(Image.effect_noise((64, 64), 50).convert("RGB"))
    assert isolated.examine(data, "pic", (64, 64)) == ("PNG", (64, 64))
    with pytest.raises(InputError, match=r"^pic: cannot be decoded: "):
        isolated.examine(data[:5000], "pic", (64, 64))


def test_metadata_from_outside_is_written_there(own: pool.Pool) -> None:
    origin = Provenance("a", "r1", 1, "f", "0.1.0")
    photo = isolated.load(
        as_bytes(scene(), exif=photo_exif(), icc_profile=rgb_profile()), "pic", decode.DecodeOptions()
    )
    own.trim()
    alpha = np.full((40, 60), 77, np.uint8)
    data = isolated.encode(photo.pixels, "x.png", Finish(95, alpha, photo.metadata, photo.icc, origin))
    assert running(own)
    assert isolated.read_provenance(data, "x.png") == origin
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[ExifTags.Base.Make] == "Camera Works"
        assert image.info["icc_profile"] == rgb_profile()
        assert image.getchannel("A").getextrema() == (77, 77)


def test_a_picture_without_metadata_is_written_here(own: pool.Pool) -> None:
    isolated.encode(np.zeros((4, 4, 3), np.uint8), "x.png", Finish())
    assert own._idle == []


@pytest.mark.parametrize("finish", [Finish(metadata=Metadata(b"nonsense")), Finish(icc=b"nonsense")])
def test_no_metadata_raises_anything_but_an_input_error(finish: Finish) -> None:
    encode: Callable[[str], bytes] = lambda name: isolated.encode(np.zeros((4, 4, 3), np.uint8), name, finish)  # noqa: E731
    if finish.icc:
        assert encode("x.png")
    else:
        with pytest.raises(InputError, match=r"^x.png: 4×4 pixels cannot be written"):
            encode("x.png")


def test_what_can_be_read_is_known_by_its_ending() -> None:
    endings = isolated.endings()
    assert {".jpg", ".png", ".webp", ".avif", ".heic", ".tif"} < endings
    assert ".eps" not in endings
