from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchnst.errors import InputError
from batchnst.pictures import decode, isolated
from tests.helpers import as_bytes, scene


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[isolated._Decoder]:
    """A decoder of this test's own."""
    fresh = isolated._Decoder()
    monkeypatch.setattr(isolated, "_DECODER", fresh)
    yield fresh
    fresh.close()


@pytest.fixture
def dangerous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every decoder that is started now crashes over pictures 13 pixels wide, and hangs over those of 17."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nfrom PIL import Image\nreal = Image.open\n"
        "def open(*args, **options):\n"
        "    image = real(*args, **options)\n"
        "    if image.width == 13: os.abort()\n"
        "    if image.width == 17: time.sleep(1000)\n"
        "    return image\n"
        "Image.open = open\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def load(width: int = 60, **options: object) -> decode.Picture:
    return isolated.load(as_bytes(scene(width)), "pic", decode.DecodeOptions(**options))  # type: ignore[arg-type]


def test_what_comes_back_is_what_is_decoded_here() -> None:
    image = Image.new("RGBA", (50, 30), (200, 10, 10, 100))
    data = as_bytes(image, exif=Image.Exif(), icc_profile=b"nonsense")
    options = decode.DecodeOptions(background="black", size=25, resample="bicubic")
    here = decode.fitted(decode.open_picture(data, "pic", options), options)
    there = isolated.load(data, "pic", options)
    assert (there.pixels == here.pixels).all()
    assert there.alpha is not None
    assert here.alpha is not None
    assert (there.alpha == here.alpha).all()
    assert (there.exif, there.icc, there.notes) == (here.exif, here.icc, here.notes)
    assert there.icc == b"nonsense"
    assert load().pixels.shape == (40, 60, 3)


def test_one_process_serves_many_pictures(own: isolated._Decoder) -> None:
    load()
    first = own._process
    assert load().alpha is None
    assert own._process is first


def test_a_bad_picture_is_told_as_it_would_be_here(own: isolated._Decoder) -> None:
    load()
    for data, said in ((b"", "an empty file"), (as_bytes(scene())[:100], "cannot be decoded")):
        with pytest.raises(InputError, match=f"^pic: {said}"):
            isolated.load(data, "pic", decode.DecodeOptions())
    with pytest.raises(InputError, match=r"60×40 pixels, more than max_megapixels = 0\.002 allows"):
        load(megapixels=0.002)
    assert (load().pixels == np.asarray(scene())).all()


def test_a_decoder_that_crashes_takes_only_its_picture(dangerous: None) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=r"^pic: crashed its decoder \(exit status -6\)$"):
            load(13)
        assert load().pixels.shape == (40, 60, 3)


def test_a_decoder_that_hangs_is_stopped(dangerous: None, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    monkeypatch.setattr(isolated, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"^pic: took longer than 0\.5 s to decode$"):
        load(17)
    monkeypatch.setattr(isolated, "TIMEOUT_SECONDS", 60.0)
    assert load().pixels.shape == (40, 60, 3)


def test_a_decoder_that_was_killed_meanwhile_is_replaced(own: isolated._Decoder) -> None:
    load()
    assert own._process
    os.kill(own._process.pid, signal.SIGKILL)
    own._process.wait()
    assert load().pixels.shape == (40, 60, 3)


def test_an_interrupt_leaves_no_answer_for_the_next_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolated, "_get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(30)
    assert load().pixels.shape == (40, 60, 3)


def test_the_process_ends_with_its_input(own: isolated._Decoder) -> None:
    load()
    process = own._process
    assert process
    own.close()
    assert process.poll() == 0
