"""Decode pictures in a separate process, so that a decoder that crashes or hangs harms nothing else.

The process starts when it is first needed, and decodes one picture at a time. A request is a line of JSON and the bytes
of a file, a response is a line of JSON and the bytes of arrays: nothing that the process sends back is executed.
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

TIMEOUT_SECONDS = 60.0
"""Longest time to decode one picture, in seconds."""


def load(data: bytes, name: str, options: DecodeOptions) -> Picture:
    """Decode the file `data` in the separate process, and resize it to `options.size`.

    Raises InputError, with `name` in its message, if the picture cannot be decoded, or not in TIMEOUT_SECONDS.
    """
    return _DECODER.load(data, name, options)


class _Decoder:
    """The client of the separate process; starts it when needed, and replaces it after a failure."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def load(self, data: bytes, name: str, options: DecodeOptions) -> Picture:
        """Decode one picture, as the function `load` describes."""
        request = {"name": name, "options": asdict(options), "bytes": len(data)}
        with self._lock:
            process = self._running()
            timed_out = threading.Event()
            timer = threading.Timer(TIMEOUT_SECONDS, self._stop, (process, timed_out))
            timer.start()
            try:
                return _ask(process, request, data)
            except InputError:
                raise
            except (EOFError, OSError):
                raise InputError(f"{name}: {self._end(timed_out.is_set())}") from None
            except BaseException:
                self._end(timed_out=False)  # else its response would be taken for the next picture's
                raise
            finally:
                timer.cancel()

    @staticmethod
    def _stop(process: subprocess.Popen[bytes], timed_out: threading.Event) -> None:
        timed_out.set()
        process.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, started if none is running."""
        if self._process and self._process.poll() is not None:
            self.close()
        if self._process is None:
            command = [sys.executable, "-m", "batchnst.pictures.isolated"]
            # In a new session, so that Ctrl-C reaches only the run; this process exits when its input ends.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self._process

    def _end(self, timed_out: bool) -> str:
        """Kill the process if it still runs, and say why it ended."""
        process, self._process = self._process, None
        assert process
        process.kill()
        with process:
            status = process.wait()
        if timed_out:
            return f"took longer than {TIMEOUT_SECONDS:g} s to decode"
        return f"crashed its decoder (exit status {status})"

    def close(self) -> None:
        """End the process, if one is running."""
        process, self._process = self._process, None
        if process:
            process.communicate()  # closes its input, which ends it, and waits


_DECODER = _Decoder()
atexit.register(_DECODER.close)


def _ask(process: subprocess.Popen[bytes], request: dict[str, Any], data: bytes) -> Picture:
    """Send a request and read the response.

    Raises InputError if the picture cannot be decoded, EOFError or OSError if the process ends before it has answered.
    """
    assert process.stdin and process.stdout
    _put(process.stdin, request, data)
    response = _get(process.stdout)
    if "error" in response:
        raise InputError(response["error"])
    pixels, alpha, exif, icc = (_read(process.stdout, size) for size in response["sizes"])
    height, width = response["shape"]
    return Picture(
        np.frombuffer(pixels, np.uint8).reshape(height, width, 3),
        np.frombuffer(alpha, np.uint8).reshape(height, width) if alpha else None,
        exif,
        icc,
        tuple(response["notes"]),
    )


def _serve(source: IO[bytes], target: IO[bytes]) -> None:
    """Answer requests from `source` on `target` until the input ends; runs in the separate process."""
    with suppress(EOFError):
        while True:
            request = _get(source)
            data = _read(source, request["bytes"])
            try:
                response, parts = _answer(data, request)
            except InputError as error:
                response, parts = {"error": str(error)}, []
            except Exception as error:  # a decoder can raise anything for a damaged file
                response, parts = {"error": f"{request['name']}: cannot be decoded: {error!r}"}, []
            _put(target, response, *parts)


def _answer(data: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Decode the picture of a request; the response's header and the bytes that follow it."""
    options = DecodeOptions(**request["options"])
    picture = fitted(open_picture(data, request["name"], options), options)
    alpha = b"" if picture.alpha is None else picture.alpha.tobytes()
    parts = [picture.pixels.tobytes(), alpha, picture.exif, picture.icc]
    return {"shape": picture.pixels.shape[:2], "notes": picture.notes, "sizes": [len(part) for part in parts]}, parts


def _put(target: IO[bytes], header: dict[str, Any], *parts: bytes) -> None:
    """Write a request or response: `header` as a line of JSON, then `parts`."""
    target.write(json.dumps(header).encode() + b"\n")
    for part in parts:
        target.write(part)
    target.flush()


def _get(source: IO[bytes]) -> dict[str, Any]:
    """Read the header of a request or response; raises EOFError if the input has ended."""
    line = source.readline()
    if not line:
        raise EOFError
    header: dict[str, Any] = json.loads(line)
    return header


def _read(source: IO[bytes], size: int) -> bytes:
    """Read exactly `size` bytes; raises EOFError if the input ends before."""
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
