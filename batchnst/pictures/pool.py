"""The processes apart that open pictures: started when needed, with limits and without secrets, and replaced when lost.

A process opens one picture at a time. It inherits no environment but what Python needs to start, works in the folder
`/`, and imports batchnst from its own folder and everything else from where Python is installed: no file in the user's
folder is ever executed. Its limits are in `server`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from batchnst.errors import InputError
from batchnst.pictures import messages

TIMEOUT_SECONDS = 60.0
"""Longest time for one request, in seconds."""

TICK_SECONDS = 0.2
"""Precision with which the time is kept, in seconds."""

ATTEMPTS = 3
"""Attempts at a request whose process is killed by somebody else, such as the kernel when memory is short."""

KILLED = (-signal.SIGKILL, -signal.SIGTERM)
"""Exit statuses of a process that was killed from outside; a decoder that crashes has others."""

PROCESSES = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Most processes at once."""

MOST_SERVED = 4 << 20
"""Most bytes of a file that are read to find its header."""

BOOT = """
import importlib.util, sys
package, *folders = sys.argv[1:]
sys.path += folders
spec = importlib.util.spec_from_file_location(
    "batchnst", package + "/__init__.py", submodule_search_locations=[package]
)
sys.modules["batchnst"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["batchnst"])
from batchnst.pictures.server import main
main()
"""
"""Program of a process: imports batchnst from the folder that is its first argument, without a search."""

_NEEDED = ("numpy", "PIL", "pillow_heif", "tifffile", "rawpy", "pillow_jxl", "packaging")
"""Packages that a process imports; `-I` alone does not find those of a user's folder or of PYTHONPATH."""

_PASSED_ON = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH")
"""Variables that a process inherits: text encoding, and shared libraries of Pythons that are not the system's."""

_SET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Variables that a process gets: its memory is limited, and idle threads would take some."""


class Pool:
    """Processes that open pictures, at most `most` at once; each is started when it is first needed."""

    def __init__(self, most: int = PROCESSES) -> None:
        self._slots = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[Process] = []

    def ask(
        self,
        name: str,
        request: dict[str, Any],
        *parts: bytes,
        file: BinaryIO | None = None,
        most_bytes: float = messages.LONGEST_LINE,
        seconds: float | None = None,
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Send `request` with its `parts`, of which the first is the picture's file; return an answer in the same form.

        `name` is the picture's name in messages.

        `file` is read wherever the process asks. `most_bytes` limits the answer, `seconds` the time, by default to
        TIMEOUT_SECONDS. Raises InputError if the file cannot be used, whatever becomes of the process; it is transient
        if the process was killed from outside ATTEMPTS times.
        """
        for attempt in range(1, ATTEMPTS + 1):
            with self._process(name) as process:
                try:
                    return process.ask(name, request, parts, file, most_bytes, seconds or TIMEOUT_SECONDS)
                except Killed:
                    if attempt == ATTEMPTS:
                        raise InputError(
                            f"{name}: the process that decodes it was killed {ATTEMPTS} times, perhaps "
                            "because this machine is short of memory",
                            transient=True,
                        ) from None
        raise AssertionError  # every attempt returns or raises

    @contextmanager
    def _process(self, name: str) -> Iterator[Process]:
        """A process that nobody else uses; it is kept for later if it still runs afterwards."""
        with self._slots:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process and not process.running:
                process.end()
                process = None
            process = process or Process(name)
            try:
                yield process
            finally:
                if process.running:
                    with self._lock:
                        self._idle.append(process)

    def trim(self, keep: int = 0) -> None:
        """End all idle processes but `keep`."""
        with self._lock:
            ended, self._idle = self._idle[keep:], self._idle[:keep]
        for process in ended:
            process.end()


class Killed(Exception):
    """A process was killed from outside while it worked."""


class Process:
    """A running process that opens pictures."""

    def __init__(self, name: str) -> None:
        """Start a process; raises InputError, with the `name` of the picture it is needed for, if it does not start."""
        self._process = subprocess.Popen(
            command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={**{key: value for key, value in os.environ.items() if key in _PASSED_ON}, **_SET},
            start_new_session=True,  # so that Ctrl-C reaches only the run; the process exits when its input ends
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._input, self._output = self._process.stdin, self._process.stdout
        try:
            messages.get(self._output, 0)
        except (EOFError, ValueError):
            said = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            self.end()
            raise InputError(
                f"{name}: the process that decodes pictures does not start: {said[-1] if said else 'no message'}",
                transient=True,
            ) from None
        except BaseException:
            self.end()
            raise
        self._process.stderr.close()  # it writes there no more

    @property
    def running(self) -> bool:
        """False if the process has ended."""
        return self._process.poll() is None

    def ask(
        self,
        name: str,
        request: dict[str, Any],
        parts: Sequence[bytes],
        file: BinaryIO | None,
        most_bytes: float,
        seconds: float,
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Send a request and return the answer; see `Pool.ask`. Raises Killed if the process was killed meanwhile."""
        timed_out = threading.Event()
        try:
            with _ALARMS.after(seconds, partial(self._stop, timed_out)):
                messages.put(self._input, request, parts)
                header, answered = self._answer(file, most_bytes)
        except (EOFError, ValueError, KeyError, TypeError, OSError):
            status = self.end()
            if timed_out.is_set():
                raise InputError(f"{name}: took longer than {seconds:g} s to decode") from None
            if status in KILLED:
                raise Killed from None
            ending = "no answer" if status is None else f"exit status {status}"
            raise InputError(f"{name}: crashed its decoder ({ending})") from None
        except BaseException:
            self.end()  # else its answer would be taken for the next picture's
            raise
        if "error" in header:
            raise InputError(f"{name}: {header['error']}", transient=header.get("transient") is True)
        return header, answered

    def _answer(self, file: BinaryIO | None, most_bytes: float) -> tuple[dict[str, Any], list[bytes]]:
        """Wait for the answer; meanwhile send the parts of `file` that the process asks for, MOST_SERVED at most."""
        served = 0
        while True:
            header, parts = messages.get(self._output, most_bytes)
            if "read" not in header:
                return header, parts
            offset, count = header["read"]
            served += count
            messages.put(self._input, {}, [b"" if file is None or served > MOST_SERVED else _part(file, offset, count)])

    def _stop(self, timed_out: threading.Event) -> None:
        timed_out.set()
        self._process.kill()

    def end(self) -> int | None:
        """End the process; returns its exit status, None if it did not exit by itself soon after its input ended."""
        with suppress(OSError):  # what it had not read yet
            self._input.close()
        status = None
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(0.5)
        self._process.kill()
        with self._process:
            self._process.wait()
        return status


class _Alarms:
    """Calls that are made when their time has come, by one thread: a thread for each header would take half the time.

    The thread runs only while an alarm is set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alarms: dict[object, tuple[float, Callable[[], None]]] = {}
        self._watched = False

    @contextmanager
    def after(self, seconds: float, call: Callable[[], None]) -> Iterator[None]:
        """Call `call` after `seconds` if this block has not ended by then."""
        key = object()
        with self._lock:
            self._alarms[key] = time.monotonic() + seconds, call
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._alarms.pop(key, None)

    def _watch(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            with self._lock:
                if not self._alarms:
                    self._watched = False
                    return
                due = [key for key, (when, _) in self._alarms.items() if when <= time.monotonic()]
                for key in due:
                    self._alarms.pop(key)[1]()


_ALARMS = _Alarms()


def _part(file: BinaryIO, offset: int, count: int) -> bytes:
    """The bytes of `file` at `offset`, at most `count`; empty if they cannot be read."""
    try:
        file.seek(offset)
        return file.read(count)
    except Exception:  # of a store or of a disk; a process that waits for an answer gets one
        return b""


def command() -> list[str]:
    """The command that starts a process."""
    package = str(Path(__file__).parents[1])
    origins = [spec.origin for name in _NEEDED if (spec := importlib.util.find_spec(name)) and spec.origin]
    folders = dict.fromkeys(str(Path(origin).absolute().parents[1]) for origin in origins)
    return [sys.executable, "-I", "-B", "-c", BOOT, package, *folders]
