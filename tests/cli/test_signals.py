"""Signals and lost terminals, on real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from batchnst.engine.run import Inline
from batchnst.errors import EngineError, LedgerError
from batchnst.ledger.out import Out
from tests.helpers import batchnst

LAST_LINE = "batchnst: interrupted: what was finished is kept. Go on with: batchnst plan"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python with these arguments, in a session of its own, with the usual handlers of signals."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, before: Callable[[], object] = lambda: None, **options: Any) -> subprocess.Popen[str]:
        def prepare() -> None:
            for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(kind, signal.SIG_DFL)
            before()

        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments], text=True, start_new_session=True, preexec_fn=prepare, **streams
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A manifest that takes minutes to read."""
    path = tmp_path / "m.csv"
    path.write_text("content,style\n" + "a.jpg,s.jpg\n" * 3_000_000)
    return path


def wait_until_read(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until `process` has opened the file at `path`."""
    end = time.monotonic() + 60
    while True:
        assert time.monotonic() < end and process.poll() is None
        with suppress(OSError):
            if path in [file.readlink() for file in Path(f"/proc/{process.pid}/fd").iterdir()]:
                return
        time.sleep(0.05)


@pytest.mark.parametrize(
    "kind",
    [signal.SIGTERM, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_while_a_manifest_is_read_is_an_interrupt(
    start: Callable[..., subprocess.Popen[str]], endless: Path, kind: signal.Signals
) -> None:
    process = start("-m", "batchnst", "plan", str(endless))
    wait_until_read(process, endless)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == f"{LAST_LINE} {endless}\n"


def test_a_signal_while_modules_are_imported_is_an_interrupt(start: Callable[..., subprocess.Popen[str]]) -> None:
    script = (
        "from contextlib import contextmanager\nfrom batchnst import __main__ as front\nending = front.signals.ending\n"
        "@contextmanager\ndef told():\n    with ending():\n        print(flush=True)\n        yield\n"
        "front.signals.ending = told\nfront.main()"
    )
    interrupted = 0
    for delay in (0.0, 0.0, 0.02, 0.1, 0.3):
        process = start("-c", script)
        assert process.stdout
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        shown, errors = process.communicate(timeout=30)
        if "Usage" in shown + errors:  # the process had done its work already
            continue
        assert (process.returncode, errors.splitlines()[-1][:21]) == (130, "batchnst: interrupted"), errors
        interrupted += 1
    assert interrupted


HANGS = {
    "a thread": "import concurrent.futures as f\npool = f.ThreadPoolExecutor(1)\npool.submit(time.sleep, 1e6).result()",
    "a library": (
        "import ctypes\nmutex = ctypes.create_string_buffer(64)\n"
        "for _ in range(2): ctypes.CDLL(None).pthread_mutex_lock(mutex)"
    ),
    "the end": "try: time.sleep(1e6)\nfinally: time.sleep(1e6)",
}


@pytest.mark.parametrize("code", HANGS.values(), ids=HANGS)
def test_one_signal_ends_what_hangs(start: Callable[..., subprocess.Popen[str]], code: str) -> None:
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    script = "import time\nfrom batchnst.cli import signals\nsignals.give_time(0.5)\nsignals.EXIT_SECONDS = 0.5\n"
    process = start("-c", f"{script}with signals.ending():\n    print(flush=True)\n{indented}\n")
    assert process.stdout
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors.startswith("batchnst: interrupted: ")


@pytest.mark.slow
def test_nohup_keeps_a_run_through_a_lost_terminal(start: Callable[..., subprocess.Popen[str]], endless: Path) -> None:
    process = start("-m", "batchnst", "plan", str(endless), before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_until_read(process, endless)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130


def test_a_closed_terminal_is_an_interrupt(start: Callable[..., subprocess.Popen[str]], endless: Path) -> None:
    master, terminal = os.openpty()
    process = start(
        *("-m", "batchnst", "plan", str(endless)),
        before=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
    )
    os.close(terminal)
    wait_until_read(process, endless)
    os.close(master)
    assert process.wait(30) == 130


def test_a_run_whose_messages_nobody_reads_goes_on(
    start: Callable[..., subprocess.Popen[str]], images: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text(f"content,style,id\n{images}/coffee.png,{images}/swirls.png,a\ngone.png,s.png,b\n")
    read_end, write_end = os.pipe()
    os.close(read_end)
    quick = ("--engine", "inline", "--size", "48", "--steps", "2")
    out = tmp_path / "out"
    process = start(
        *("-m", "batchnst", "run", str(tmp_path / "m.csv"), "--out", str(out), *quick),
        stdout=write_end,
        stderr=write_end,
    )
    os.close(write_end)
    assert process.wait(120) == 1  # b failed
    assert (out / "images" / "a.png").exists()


@pytest.mark.parametrize("error", [EngineError("Ray: the cluster is gone"), LedgerError("x.parquet: damaged")])
def test_an_error_after_the_first_picture_does_not_say_that_nothing_was_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    paint = Inline.paint

    def fail_in_the_end(*arguments: Any) -> Iterator[object]:
        yield from paint(*arguments)
        raise error

    monkeypatch.setattr(Inline, "paint", fail_in_the_end)
    (tmp_path / "m.csv").write_text(f"content,style,id\n{images}/coffee.png,{images}/swirls.png,a\n")
    quick = ("--engine", "inline", "--size", 48, "--steps", 2)
    result = batchnst("run", tmp_path / "m.csv", "--out", tmp_path / "out", *quick)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"batchnst: {error}; what was finished is kept. Go on with: ")
    assert len(Out(str(tmp_path / "out")).newest()) == 1
