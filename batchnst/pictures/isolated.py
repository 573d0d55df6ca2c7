"""Pictures are decoded in a process of their own, so that a decoder that crashes or hangs takes nothing else with it.

The process is started when it is first needed, and serves one picture after the other. It is told of each in a line of
JSON and the file's bytes, and answers with a line of JSON and arrays: nothing that comes back from it is executed.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from batchnst.errors import InputError
from batchnst.pictures.decode import DecodeOptions, Picture, fitted, open_picture

SECONDS = 60.0
"""What a picture may take."""


def load(data: bytes, name: str, options: DecodeOptions) -> Picture:
    """Decode a picture and fit its longest side to the wish's size, if it has one; raises InputError, naming it."""
    return _DECODER.load(data, name, options)


class _Decoder:
    """The other process, seen from here."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def load(self, data: bytes, name: str, options: DecodeOptions) -> Picture:
        question = {"name": name, "options": asdict(options), "bytes": len(data)}
        with self._lock:
            process = self._running()
            late = threading.Event()
            timer = threading.Timer(SECONDS, self._stop, (process, late))
            timer.start()
            try:
                return _ask(process, question, data)
            except InputError:
                raise
            except (EOFError, OSError):
                raise InputError(f"{name}: {self._epitaph(late.is_set())}") from None
            except BaseException:
                self._epitaph(late=False)  # or its answer would be taken for the next picture's
                raise
            finally:
                timer.cancel()

    @staticmethod
    def _stop(process: subprocess.Popen[bytes], late: threading.Event) -> None:
        late.set()
        process.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process and self._process.poll() is not None:
            self.close()
        if self._process is None:
            command = [sys.executable, "-m", "batchnst.pictures.isolated"]
            # In a session of its own: Ctrl-C is for the run, and ends this process by the end of its input.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self._process

    def _epitaph(self, late: bool) -> str:
        """What became of the process."""
        process, self._process = self._process, None
        assert process
        process.kill()
        with process:
            status = process.wait()
        return f"took longer than {SECONDS:g} s to decode" if late else f"crashed its decoder (exit status {status})"

    def close(self) -> None:
        """Let the other process end."""
        process, self._process = self._process, None
        if process:
            process.communicate()  # closes its input, and waits


_DECODER = _Decoder()
atexit.register(_DECODER.close)


def _ask(process: subprocess.Popen[bytes], question: dict[str, Any], data: bytes) -> Picture:
    assert process.stdin and process.stdout
    _put(process.stdin, question, data)
    answer = _get(process.stdout)
    if "error" in answer:
        raise InputError(answer["error"])
    pixels, alpha, exif, icc = (_read(process.stdout, size) for size in answer["sizes"])
    height, width = answer["shape"]
    return Picture(
        np.frombuffer(pixels, np.uint8).reshape(height, width, 3),
        np.frombuffer(alpha, np.uint8).reshape(height, width) if alpha else None,
        exif,
        icc,
        tuple(answer["notes"]),
    )


def _serve(source: IO[bytes], target: IO[bytes]) -> None:
    """The life of the other process, until nobody asks any more."""
    with suppress(EOFError):
        while True:
            question = _get(source)
            data = _read(source, question["bytes"])
            try:
                answer, parts = _answer(data, question)
            except InputError as error:
                answer, parts = {"error": str(error)}, []
            except Exception as error:  # whatever a decoder does with a file from outside
                answer, parts = {"error": f"{question['name']}: cannot be decoded: {error!r}"}, []
            _put(target, answer, *parts)


def _answer(data: bytes, question: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    options = DecodeOptions(**question["options"])
    picture = fitted(open_picture(data, question["name"], options), options)
    alpha = b"" if picture.alpha is None else picture.alpha.tobytes()
    parts = [picture.pixels.tobytes(), alpha, picture.exif, picture.icc]
    return {"shape": picture.pixels.shape[:2], "notes": picture.notes, "sizes": [len(part) for part in parts]}, parts


def _put(target: IO[bytes], head: dict[str, Any], *parts: bytes) -> None:
    target.write(json.dumps(head).encode() + b"\n")
    for part in parts:
        target.write(part)
    target.flush()


def _get(source: IO[bytes]) -> dict[str, Any]:
    line = source.readline()
    if not line:
        raise EOFError
    head: dict[str, Any] = json.loads(line)
    return head


def _read(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
