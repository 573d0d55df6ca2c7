from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from batchnst.errors import InputError
from batchnst.painting import inputs
from batchnst.painting.inputs import StyleCache, StyleFile, gather_pair, load_picture
from batchnst.pictures import isolated
from batchnst.pictures.decode import DecodeOptions
from batchnst.recipe import Recipe
from tests.helpers import as_bytes, pair, scene


def test_a_shared_style_is_the_same_object(images: Path) -> None:
    get_style = StyleCache()
    pairs = [
        pair(name, images / name, images / "swirls.png", Recipe(size=48)) for name in ("astronaut.png", "coffee.png")
    ]
    first, second = (gather_pair(pair, get_style) for pair in pairs)
    assert first.styles[0] is second.styles[0]


def test_only_a_lasting_error_of_a_style_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [InputError("killed", transient=True), InputError("killed", transient=True), InputError("torn")]
    left = iter(outcomes)
    monkeypatch.setattr(inputs, "load_style", lambda file: next(left))
    file = StyleFile("s.png", DecodeOptions())
    get_style = StyleCache({file: InputError("killed elsewhere", transient=True)})
    assert [str(get_style(file)) for _ in range(4)] == ["killed", "killed", "torn", "torn"]
    assert str(StyleCache({file: outcomes[2]})(file)) == "torn"


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "folder", "device"])
def test_only_a_regular_file_is_a_picture(kind: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    if kind == "folder":
        picture.mkdir()
    elif kind == "device":
        picture = Path("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        picture.symlink_to("pipe") if "link" in kind else (tmp_path / "pipe").rename(picture)
    with pytest.raises(InputError, match="is not a regular file") as raised:
        load_picture(str(picture), DecodeOptions())
    assert not raised.value.transient


class _Endless(BaseHTTPRequestHandler):
    """Sends a PNG's header, and then zeros without end."""

    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(as_bytes(scene())[:100])
            while True:
                self.wfile.write(bytes(1 << 16))
                _Endless.sent += 1 << 16

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the test."""


@pytest.fixture
def endless() -> Iterator[str]:
    with _Server(("127.0.0.1", 0), _Endless) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/picture.png"
        server.shutdown()


def test_a_body_without_end_is_read_no_further_than_allowed(endless: str) -> None:
    _Endless.sent = 0
    assert isolated.probe(endless) == (60, 40)
    with pytest.raises(InputError, match="more than the 4 MB that max_megapixels = 1 allows"):
        load_picture(endless, DecodeOptions(megapixels=1))
    time.sleep(0.2)
    assert _Endless.sent < 64e6  # what is on its way in buffers, beside 4 MB


def test_transparent_parts_of_a_mask_are_none_of_its_part(tmp_path: Path) -> None:
    mask = Image.new("LA", (60, 40), (255, 0))
    mask.paste((255, 255), (0, 0, 30, 40))
    for name, image in {"mask.png": mask, "a.png": scene(), "s.png": scene(64, 64)}.items():
        image.save(tmp_path / name)
    plain = pair("a", tmp_path / "a.png", tmp_path / "s.png", Recipe(size=60))
    found = gather_pair(replace(plain, content_masks=(str(tmp_path / "mask.png"),)))
    assert (found.content_masks[0][:, :30] == 255).all()
    assert (found.content_masks[0][:, 30:] == 0).all()
