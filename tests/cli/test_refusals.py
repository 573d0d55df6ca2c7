"""What a machine or its terminal refuses ends no command in a traceback, whatever a library makes of it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import typer

from batchnst.cli.app import FAILED, handle_errors

REFUSALS = [
    ImportError("libparquet.so.2600: failed to map segment from shared object"),
    RuntimeError("can't start new thread"),
    pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    OSError(24, "Too many open files"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: str(error)[:20])
def test_a_refusal_is_a_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        handle_errors(_raise)(error)
    assert ended.value.exit_code == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"batchnst: this machine refused: {str(error) or 'memory'}"


def test_another_error_keeps_its_traceback() -> None:
    with pytest.raises(ImportError, match="cannot import name"):
        handle_errors(_raise)(ImportError("cannot import name 'x' from 'batchnst'"))


def _raise(error: Exception) -> None:
    raise error


def test_a_process_without_memory_says_so_in_a_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "batchnst", "status", tmp_path],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (150 << 20, 150 << 20)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (FAILED, 1), done.stderr
    assert "batchnst: this machine refused: " in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1:strict"])
def test_a_terminal_that_lacks_a_character_shows_its_number(tmp_path: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    program = [sys.executable, "-c", "from batchnst.cli.streams import make_lasting; make_lasting(); print('…')"]
    done = subprocess.run(program, env=environment, capture_output=True, check=True)
    assert done.stdout == b"\\u2026\n"
    with open(tmp_path / "log", "wb") as log:
        subprocess.run(program, env=environment, stdout=log, check=True)
    assert (tmp_path / "log").read_bytes() == b"\\u2026\n"


@pytest.mark.parametrize("stdout", ["/dev/full", "a file"])
def test_a_result_that_finds_no_room_is_told(tmp_path: Path, stdout: str) -> None:
    with open(tmp_path / "result" if stdout == "a file" else stdout, "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "batchnst", "--help"],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, "Traceback" in done.stderr) == (FAILED, False), done.stderr
    assert done.stderr.startswith("batchnst: ")
