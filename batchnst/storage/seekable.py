"""The common base of files that are read from any position."""

from __future__ import annotations

import io
from typing import Any


class Seekable(io.RawIOBase):
    """A raw file to read from any position: a subclass has `tell`, `seek`, and `_take` or `read`."""

    def readable(self) -> bool:
        """True: it can be read."""
        return True

    def seekable(self) -> bool:
        """True: it can be read from any position."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into `buffer`; returns their number."""
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _take(self, count: int) -> bytes:
        """Read at most `count` bytes."""
        raise io.UnsupportedOperation("readinto")
