"""Open files inside other files; what those other files say of their contents is read once by a process, and kept."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from batchnst.chains import Cell, Chain
from batchnst.redaction import public
from batchnst.storage import archives, cells
from batchnst.storage.archives import Members
from batchnst.storage.cells import Footer

MOST_KEPT = 500_000
"""Most members of all archives whose lists this process keeps, about 200 MB; one list is kept in any case."""

SLACK = 1 << 10
"""Bytes that the header of a member takes, about: they are fetched with it."""

Contents = Members | Footer
"""A list of the contents of an archive or Parquet file."""


@dataclass(frozen=True)
class Outer:
    """A file that holds others. `open(n)` opens it for reading n bytes at a time.

    stamp: its size, and the time of its last change if its store tells it. A changed file has another stamp.
    """

    address: str
    stamp: tuple[int, int | None]
    open: Callable[[int], AbstractContextManager[BinaryIO]]

    @property
    def key(self) -> cells.Key:
        """The file as it is now."""
        return public(self.address), self.stamp


class _Kept:
    """The contents of the files that were used last; several threads that need those of one file read them once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], tuple[object, Contents]] = OrderedDict()
        self._readers: dict[str, threading.Lock] = {}

    @contextmanager
    def alone(self, outer: Outer) -> Iterator[None]:
        """Let no other thread of this process into this block for the same file."""
        with self._lock:
            lock = self._readers.setdefault(outer.key[0], threading.Lock())
        with lock:
            yield

    def of(self, scheme: str, outer: Outer) -> Contents:
        """The contents of a file, read anew if it has changed."""
        with self.alone(outer):
            name = scheme, outer.key[0]
            with self._lock:
                stamp, contents = self._kept.get(name, (None, None))
                if contents and stamp == outer.stamp:
                    self._kept.move_to_end(name)
                    return contents
            contents = _read_contents(scheme, outer)
            with self._lock:
                self._kept[name] = outer.stamp, contents
                while len(self._kept) > 1 and sum(kept.weight for _, kept in self._kept.values()) > MOST_KEPT:
                    self._kept.popitem(last=False)
            return contents


_KEPT = _Kept()


def _read_contents(scheme: str, outer: Outer) -> Contents:
    with outer.open(archives.LIST_BUFFER) as file:
        return cells.read_footer(file) if scheme == "parquet" else archives.LISTERS[scheme](file)


def members(scheme: str, outer: Outer) -> Members:
    """The list of an archive; raises OSError if it is damaged."""
    contents = _KEPT.of(scheme, outer)
    assert isinstance(contents, Members)
    return contents


@contextmanager
def open_inside(chain: Chain, outer: Outer, buffer: int) -> Iterator[BinaryIO]:
    """Open the file that `chain` names in `outer` for reading and seeking; it is fetched `buffer` bytes at a time.

    Raises OSError if it is missing, damaged or of a kind that is not read.
    """
    if chain.scheme == "parquet":
        yield io.BytesIO(_read_cell(chain, outer))
        return
    member = members(chain.scheme, outer).find(chain.inside)
    with (
        outer.open(min(buffer, member.stored + SLACK)) as file,
        io.BufferedReader(archives.OPENERS[chain.scheme](file, member), buffer) as opened,
    ):
        yield opened


def _read_cell(chain: Chain, outer: Outer) -> bytes:
    cell = Cell.of(chain.inside)
    if cell is None:
        raise OSError("is no cell")
    if not (found := cells.PICTURES.get(outer.key, cell)):
        footer = _KEPT.of(chain.scheme, outer)
        assert isinstance(footer, Footer)
        with _KEPT.alone(outer):
            found = cells.PICTURES.get(outer.key, cell)
            if not found:
                with outer.open(archives.LIST_BUFFER) as file:
                    found = cells.read_row(file, outer.key, footer, cell)
    return cells.picture_in(found, cell)
