"""The pictures of OUT for a live page: only those that a row names, and only if they are what their row says."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePosixPath

from batchnst.errors import BatchNSTError
from batchnst.pictures import isolated
from batchnst.pictures.encode import FORMATS
from batchnst.review.report.cards import Row
from batchnst.review.report.previews import Originals
from batchnst.review.serve.night import Night

SIDE = 640
"""Longest side of a preview, in pixels."""

CACHE_BYTES = 128 << 20
"""Most bytes of previews that are kept in memory."""


class Gallery:
    """The pictures of a Night; their previews are made in a process apart and kept in memory."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._originals = Originals()
        self._lock = threading.Lock()
        self._previews = OrderedDict[str, isolated.Preview]()  # by SHA-256 of the picture, the last used last
        self._bytes = 0

    def picture(self, path: str) -> tuple[bytes, str] | None:
        """The picture at `path` in OUT and its media type; None if it is not there, or is not that of its row."""
        kind = FORMATS.get(PurePosixPath(path).suffix.lower())
        data = self._read(path) if kind else None
        return None if data is None or kind is None else (data, f"image/{kind.lower()}")

    def preview(self, path: str) -> bytes | None:
        """A preview of the picture at `path` in OUT, as WebP; None as of `picture`, or if it cannot be decoded."""
        small = self.small(path)
        return None if small is None else small.data

    def small(self, path: str) -> isolated.Preview | None:
        """`preview` with its brightness."""
        sha256 = (self._night.picture(path) or {}).get("output_sha256") or ""
        return self._kept(sha256) or self._make(sha256, path, lambda: self._read(path))

    def photo(self, row: Row) -> isolated.Preview | None:
        """The photograph of a row, which is measured and never served; None if it is gone or another than was painted.

        A store that keeps failing is not asked again.
        """
        address, sha256 = row["content"], row["content_sha256"] or ""

        def read() -> bytes | None:
            data = self._originals.read(address)
            return data if hashlib.sha256(data).hexdigest() == sha256 else None

        return self._kept(sha256) or self._make(sha256, address, read)

    def _kept(self, sha256: str) -> isolated.Preview | None:
        with self._lock:
            if sha256 in self._previews:
                self._previews.move_to_end(sha256)
            return self._previews.get(sha256)

    def _make(self, sha256: str, name: str, read: Callable[[], bytes | None]) -> isolated.Preview | None:
        try:
            data = read()
            small = None if data is None else isolated.preview(data, name, SIDE)
        except BatchNSTError:
            return None
        if small:
            self._keep(sha256, small)
        return small

    def _keep(self, sha256: str, small: isolated.Preview) -> None:
        with self._lock:
            if before := self._previews.pop(sha256, None):
                self._bytes -= _size(before)
            self._previews[sha256] = small
            self._bytes += _size(small)
            while self._bytes > CACHE_BYTES:
                self._bytes -= _size(self._previews.popitem(last=False)[1])

    def _read(self, path: str) -> bytes | None:
        """The picture at `path` in OUT, or in a file with others, if a row names it and it has the hash of that row.

        The hash alone keeps other files from being served. In a ledger that cannot be trusted, a row may name any file:
        so links and paths that lead out of OUT are refused too.
        """
        row = self._night.picture(path)
        if not row or not row["output_sha256"]:
            return None
        try:
            data = self._apart(path) or self._together(row)
        except BatchNSTError:
            return None
        return data if data is not None and hashlib.sha256(data).hexdigest() == row["output_sha256"] else None

    def _apart(self, path: str) -> bytes | None:
        """The file at `path` in OUT; None if it is not there or leads out of OUT."""
        folder = self._night.out.folder
        if not folder.exists(path) or (folder.local and not _is_inside(folder.path(path), folder.root)):
            return None
        return folder.read(path)

    def _together(self, row: Row) -> bytes | None:
        """The picture of a row in a file with others; None if it is in none."""
        places = self._night.places()
        if not places.stored.holds(row):
            places = self._night.places(fresh=True)
        return places.stored.find(row).data if places.stored.holds(row) else None


def _size(small: isolated.Preview) -> int:
    """The bytes that a preview takes in memory."""
    return len(small.data) + small.gray.nbytes


def _is_inside(path: str, root: str) -> bool:
    """True if `path` leads to a file below the folder `root`, whatever links are on the way."""
    return os.path.realpath(path).startswith(f"{os.path.realpath(root).rstrip('/')}/")
