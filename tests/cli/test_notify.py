"""`run --notify` against a real web server that answers, refuses, hangs, or is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from batchnst.cli import notify
from tests.helpers import batchnst, scene
from tests.storage.servers import free_port

SECRET = "/services/T0123/B4567/x9Y8z7W6v5"
OPTIONS = ["--size", "40", "--steps", "1", "--backbone", "alexnet", "--weights", "random", "--engine", "inline"]


class Hook(ThreadingHTTPServer):
    """A hook that answers with `statuses` in turn, then with 200; 0 is no answer at all."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses, self.bodies = statuses, list[dict[str, Any]]()
        self.asked, self.over = Event(), Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}{SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.server.asked.set()
        if status == 0:
            self.server.over.wait(20)
            return
        if 200 <= status < 300:
            assert self.path == SECRET
            assert self.headers["Content-Type"] == "application/json"
            self.server.bodies.append(json.loads(body))
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hook(*statuses: int) -> Iterator[Hook]:
    with Hook(list(statuses)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A folder with a manifest of two pairs."""
    for name in ("a", "b", "style"):
        scene(40, 40).save(tmp_path / f"{name}.png")
    (tmp_path / "m.csv").write_text("content,style\na.png,style.png\nb.png,style.png\n")
    return tmp_path


def command(night: Path, url: str) -> list[str]:
    return ["run", str(night / "m.csv"), "--out", str(night / "out"), "--notify", url, *OPTIONS]


def test_the_end_of_a_run_is_told_with_its_counts_and_the_address_is_nowhere(night: Path) -> None:
    with hook() as server:
        result = batchnst(*command(night, server.url))
        again = batchnst(*command(night, server.url))
    assert result.exit_code == 0, result.output
    assert again.exit_code == 0, again.output
    body, second = server.bodies
    out = str(night / "out")
    expected = {"event": "end", "status": "done", "out": out, "pairs": 2, "done": 2, "failed": 0, "left": 0}
    assert {key: body[key] for key in expected} == expected
    assert body["text"].startswith(f"batchnst, done: {out}: 2 of 2 pairs done (2 now, in 0:00:")
    assert body["run_id"] in {path.stem for path in (night / "out" / "ledger" / "runs").iterdir()}
    assert 0 < body["seconds"] < 60
    assert {key: second[key] for key in expected} == expected
    stored = b"".join(path.read_bytes() for path in (night / "out").rglob("*") if path.is_file())
    assert SECRET.encode() not in stored
    assert SECRET not in result.output


def test_the_first_burst_of_failures_is_told_at_once_and_names_do_no_harm(night: Path) -> None:
    names = [f"<!channel> {i}.png" for i in range(7)]
    (night / "m.csv").write_text("\n".join(["content,style", "a.png,style.png", *(f"{n},style.png" for n in names)]))
    with hook() as server:
        result = batchnst(*command(night, server.url), "--batch-size", "1")
    assert result.exit_code == 1
    first, last = server.bodies
    assert (first["event"], first["status"], last["event"], last["status"]) == ("failures", "running", "end", "failed")
    assert " of the last " in first["message"]
    assert "no such file" in first["message"]
    assert "<" not in first["text"]
    assert (last["done"], last["failed"]) == (1, 7)


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([500, 429], ""),
        ([500, 502, 503], "HTTP status 503"),
        ([404], "HTTP status 404"),
        ([302], "HTTP status 302"),
        ([0, 0, 0], "no answer in time"),
        (None, "it cannot be reached"),
    ],
)
def test_a_hook_that_fails_or_hangs_fails_no_run(
    night: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[int] | None, said: str
) -> None:
    if statuses == [0, 0, 0]:
        monkeypatch.setattr(notify, "TRY_SECONDS", 0.3)
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.01)
    with hook(*(statuses or [])) as server:
        url = server.url if statuses else f"http://127.0.0.1:{free_port()}{SECRET}"
        result = batchnst(*command(night, url), "--limit", "1")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "--notify" in line]
    assert lines == ([f"batchnst: --notify: the hook did not take a message: {said}"] if said else [])
    assert len(server.bodies) == (not said)
    assert SECRET not in result.output


@pytest.mark.slow
def test_an_interrupted_run_tells_so_and_the_last_line_hides_the_address(night: Path) -> None:
    endless = ("--steps", "100000", "--set", "tolerance=0")
    arguments = [sys.executable, "-m", "batchnst", *command(night, "URL"), *endless]
    with hook() as server:
        arguments[arguments.index("URL")] = server.url
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=os.environ)
        try:
            end = time.monotonic() + 60
            while not list(night.glob("out/ledger/runs/*")):
                assert time.monotonic() < end
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    (body,) = server.bodies
    assert (body["status"], body["pairs"], body["done"], body["left"]) == ("interrupted", 2, 0, 2)
    assert SECRET not in said
    assert " --notify *** " in said.splitlines()[-1]


@pytest.mark.parametrize("signals", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_while_the_last_message_is_sent_changes_nothing_and_a_second_one_ends_at_once(
    night: Path, signals: int
) -> None:
    with hook(0) as server:
        arguments = [sys.executable, "-m", "batchnst", *command(night, server.url)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        try:
            assert server.asked.wait(60)
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
            sent = time.monotonic()
            summary, said = process.communicate(timeout=30)
        finally:
            process.kill()
    if signals == 2:
        assert (process.returncode, server.bodies) == (130, []), said
        assert time.monotonic() - sent < notify.TRY_SECONDS
        return
    assert process.returncode == 0, said
    assert [body["status"] for body in server.bodies] == ["done"]
    assert "2 of 2 pairs done" in summary
    assert "interrupted" not in said


def test_a_run_that_stops_tells_why(night: Path) -> None:
    (night / "out").write_text("in the way")
    with hook() as server:
        result = batchnst(*command(night, server.url))
    assert result.exit_code in (1, 2)
    (body,) = server.bodies
    assert body["status"] == "stopped"
    assert "out" in body["message"]


@pytest.mark.parametrize("url", ["ftp://x/y", "hooks.example/services", "https://", "https://x/ y", "***"])
def test_what_is_no_address_is_refused_and_not_shown(night: Path, url: str) -> None:
    result = batchnst(*command(night, url))
    expected = "batchnst: --notify: expected the address of a hook, which begins with https:// or http://"
    assert (result.exit_code, result.stderr.strip()) == (2, expected)
