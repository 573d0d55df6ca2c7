"""Files that foreign libraries read: within limits, and with errors that keep their meaning."""

from __future__ import annotations

import io
from typing import BinaryIO

from batchnst.storage.seekable import Seekable


class Guarded(Seekable):
    """A file of which at most `most` bytes are read at once, for a library that believes what the file says.

    error: the first error of the file itself. Some libraries replace it by one that says the file is damaged.
    """

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most = file, most
        self.error: OSError | None = None

    def tell(self) -> int:
        """The position of the next byte."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        return self._file.seek(offset, whence)

    def read(self, count: int = -1) -> bytes:
        """Read `count` bytes, or all that is left."""
        if count is None or count < 0:
            here = self._file.tell()
            count = self._file.seek(0, io.SEEK_END) - here
            self._file.seek(here)
        try:
            if count > self._most:
                raise OSError(f"is damaged: a part of it claims to have {count / 1e6:.0f} MB")
            return self._file.read(count)
        except OSError as error:
            self.error = self.error or error
            raise

    def _take(self, count: int) -> bytes:
        return self.read(count)


class Window(Seekable):
    """The `size` bytes of `file` from `start`: what is stored there as it is."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def tell(self) -> int:
        """The position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def _take(self, count: int) -> bytes:
        return self._read(min(count, self._size - self._position))

    def readall(self) -> bytes:
        """Read all that is left."""
        return self._read(self._size - self._position)

    def _read(self, count: int) -> bytes:
        """Read the next `count` bytes; raises OSError if there are fewer."""
        if count <= 0:
            return b""
        data = self._fetch(count)
        if len(data) < count:
            raise OSError("its archive ends before it does")
        self._position += count
        return data

    def _fetch(self, count: int) -> bytes:
        self._file.seek(self._start + self._position)
        return self._file.read(count)
