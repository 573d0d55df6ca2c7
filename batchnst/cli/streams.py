"""Standard streams that outlast their terminal or pipe, and take every text.

What nobody can read any more is dropped; a character that the terminal's encoding lacks is shown as `\\u2026`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Collection
from typing import Any, TextIO

GONE = {errno.EPIPE, errno.EIO}
"""Errors of a terminal or pipe that nobody reads any more."""


class _Lasting(io.FileIO):
    """A file that drops what cannot be written, because of one of the error numbers `dropped`, or any if None."""

    def __init__(self, descriptor: int, dropped: Collection[int] | None) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._dropped = dropped

    def write(self, data: Any, /) -> int:
        """Write `data`, or drop it; returns the number of bytes."""
        try:
            return super().write(data)
        except OSError as error:
            if self._dropped is not None and error.errno not in self._dropped:
                raise
            return len(memoryview(data).cast("B"))


def make_lasting() -> None:
    """Replace stdout and stderr, so that the end of a terminal, pipe or log file does not end this process.

    Nor does a text that their encoding cannot write.

    A result that does not fit on a disk stays an error.
    """
    sys.stderr = _lasting(sys.stderr, None)
    sys.stdout = _lasting(sys.stdout, GONE)


def finish() -> str | None:
    """Write the last of stdout; returns the reason if that fails, and Python then does not try again at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return error.strerror or str(error)
    return None


def _lasting(stream: TextIO | None, dropped: Collection[int] | None) -> TextIO:
    if stream is None:  # closed by the shell; another file may get its number
        return open(os.devnull, "w")
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors
    if dropped is not None and stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(stream.fileno(), dropped)),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=dropped is None or stream.isatty(),
    )
