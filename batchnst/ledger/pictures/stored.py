"""Lists, finds and reads the pictures of OUT, whatever their form.

A picture in a file with others is found by its key, the run, the pair and the attempt that painted it; every other
picture is the file under `images/` that its row names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from batchnst.errors import LedgerError
from batchnst.ledger.compaction import current_files
from batchnst.ledger.parquet import readable
from batchnst.ledger.pictures.form import INDEX, Form, keys
from batchnst.ledger.pictures.in_parquet import InParquet
from batchnst.ledger.pictures.in_tar import InTar
from batchnst.ledger.schema import ATTEMPT
from batchnst.storage.files import Folder, in_parallel

FORMS: dict[str, Form] = {"parquet": InParquet(), "tar": InTar()}
"""The forms of files with many pictures, by their names and the endings of the files."""

LISTED = INDEX.append(pa.field("file", pa.string(), nullable=False))
"""Columns of a listing: those of an index, and the path in OUT of the file."""

BUFFER = 1 << 13
"""Bytes that are fetched at once while a file is indexed: a row of an archive and the headers around it."""

PIECE = 4
"""Most pictures of a file that a thread reads one after the other."""

BLOCK = 1 << 12
"""Rows converted to Python objects at a time."""

T = TypeVar("T")

Row: TypeAlias = dict[str, Any]

_Piece: TypeAlias = tuple[str, list[tuple[Row, Row]]]
"""A file, and some rows of `pairs`, each with the entry of its picture there."""

_APART = ""
"""In a piece: a picture that is a file of its own."""


@dataclass(frozen=True)
class Found:
    """A picture of OUT: the `name` of its place, which ends as its output does, and its bytes; None if not there.

    problem: why it cannot be read, if it is there.
    """

    name: str
    data: bytes | None
    problem: str = ""


class Pictures:
    """The pictures of OUT at one moment.

    `entries` lists those that are in files with others, with the columns of LISTED.
    `unread` has a text for each such file that could not be read, in any order.
    """

    def __init__(
        self,
        folder: Folder,
        pair_ids: Collection[str] | None = None,
        tables: Sequence[str] = ("pictures",),
        unreadable: Callable[[str, LedgerError], None] | None = None,
        *,
        claims: bool = False,
        known: dict[tuple[str, int], pa.Table] | None = None,
    ) -> None:
        """List only pictures of `pair_ids`, if given. tables: folders to look into. claims: as of `Form.index`.

        known: the entries of files by path and size, as far as an earlier listing has read them; it is brought up to
        date. A file with many pictures never changes.

        Raises LedgerError if a file cannot be read; or calls `unreadable` with its path in OUT and the error.
        """
        self.folder, self._pair_ids, self._tables = folder, pair_ids, tables
        self._lock, self._next = threading.Lock(), list[Pictures]()
        wanted = None if pair_ids is None else pa.array(pair_ids, pa.string())
        self.unread = list[str]()

        def refused(file: str, error: LedgerError) -> None:
            if unreadable is None:
                raise error
            self.unread.append(str(error).replace(folder.path(file), file))
            unreadable(file, error)

        files = [info for table in tables for info in current_files(folder, table)]
        parts = {(info.path, info.size): (known or {}).get((info.path, info.size)) for info in files}
        new = [info for info in files if parts[info.path, info.size] is None]
        read = in_parallel(lambda info: _listed(folder, info, wanted, refused, claims=claims), new, folder.streams)
        parts |= {(info.path, info.size): part for info, part in zip(new, read, strict=True)}
        if known is not None:
            known.clear()
            known.update((name, part) for name, part in parts.items() if part)  # none of a file that was not read
        self.entries = pa.concat_tables([LISTED.empty_table(), *parts.values()]).combine_chunks()
        self._keys = keys(self.entries)

    def places(self, rows: pa.Table) -> pa.Array:
        """For each of `rows`, which have the columns of ATTEMPT, the position of its picture in `entries`, or null."""
        return pc.index_in(keys(rows), self._keys)

    def holds(self, row: Mapping[str, Any]) -> bool:
        """True if the picture of a row is in a file with others."""
        return _key(row) in self._positions

    def name(self, row: Mapping[str, Any]) -> str:
        """The name of the place of a row's picture, see Found, whether it is there or not."""
        place = self._positions.get(_key(row))
        return f"{'images' if place is None else self.entries['file'][place]}/{row['output']}"

    def absence(self, name: str) -> str:
        """The text for a picture that is not at `name`; it names a file that cannot be read, in which it may be."""
        return f"{name} is not there" + (f"; {min(self.unread)}" if self.unread else "")

    def find(self, row: Mapping[str, Any]) -> Found:
        """The picture of a row of `pairs`, by its columns of ATTEMPT and `output`; raises StorageError."""
        place = self._positions.get(_key(row))
        entry = {} if place is None else self.entries.slice(place, 1).to_pylist()[0]
        (found,) = self._read((entry.get("file", _APART), [(dict(row), entry)]), lambda _, found: found)
        return found

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Positions in `entries` by key; of doubles, the first."""
        return {key: place for place, key in reversed(list(enumerate(self._keys.to_pylist())))}

    def each(self, rows: pa.Table, use: Callable[[Row, Found], T]) -> Iterator[T]:
        """Call `use` with each row of `pairs` and its picture, in threads, and yield what it returns, in any order.

        `rows` have at least the columns of ATTEMPT and `output`. Few pictures are in memory at a time. `use` may be
        called twice with the same row. Raises StorageError.
        """
        places = self.places(rows)
        others = _dicts(rows.filter(pc.is_null(places)))
        yield from self._in_threads(((_APART, [(row, Row())]) for row in others), use)
        yield from self.each_at(places.drop_null(), rows.filter(pc.is_valid(places)), use)

    def each_at(self, places: pa.Array, rows: pa.Table, use: Callable[[Row, Found], T]) -> Iterator[T]:
        """`each` for the pictures at `places` in `entries`, one for each of `rows`."""
        entries = self.entries.take(places).append_column("number", pa.array(range(len(places)), pa.int64()))
        entries = entries.sort_by([(name, "ascending") for name in ("file", "group", "place")])
        both = zip(_dicts(rows.take(entries["number"])), _dicts(entries), strict=True)
        yield from self._in_threads(_pieces(both), use)

    def _in_threads(self, pieces: Iterator[_Piece], use: Callable[[Row, Found], T]) -> Iterator[T]:
        with ThreadPoolExecutor(self.folder.streams) as pool:
            while block := list(islice(pieces, 2 * self.folder.streams)):
                for results in pool.map(lambda piece: self._read(piece, use), block):
                    yield from results

    def _read(self, piece: _Piece, use: Callable[[Row, Found], T]) -> list[T]:
        """Read the pictures of one file, or one picture that is a file of its own."""
        file, members = piece
        if file == _APART:
            return [use(row, self._read_apart(f"images/{row['output']}")) for row, _ in members]
        try:
            return self._together(file, members, use)
        except FileNotFoundError:  # it was merged with others meanwhile
            fresh = self._listed_again()
            return [use(row, fresh.find(row)) for row, _ in members]
        except LedgerError as error:
            if len(members) > 1:
                return [result for member in members for result in self._read((file, [member]), use)]
            ((row, _),) = members
            return [use(row, Found(f"{file}/{row['output']}", None, str(error)))]

    def _listed_again(self) -> Pictures:
        """The pictures as they are now, or were when a first file had vanished."""
        with self._lock:
            if not self._next:
                self._next.append(Pictures(self.folder, self._pair_ids, self._tables, unreadable=lambda *_: None))
            return self._next[0]

    def _read_apart(self, name: str) -> Found:
        """Read a picture that is a file of its own; what leads out of OUT, in a row that was tampered with, is none."""
        return Found(name, None if ".." in name.split("/") else self.folder.read(name))

    def _together(self, file: str, members: list[tuple[Row, Row]], use: Callable[[Row, Found], T]) -> list[T]:
        with open_file(self.folder, file) as source:
            pictures = form_of(file).read(source, file, [entry for _, entry in members])
            return [
                use(row, Found(f"{file}/{row['output']}", data))
                for (row, _), data in zip(members, pictures, strict=True)
            ]


def form_of(file: str) -> Form:
    """The form of a file with many pictures, by its ending."""
    return FORMS[PurePosixPath(file).suffix.removeprefix(".")]


def open_file(folder: Folder, file: str) -> BinaryIO:
    """Open a file with many pictures in OUT; raises as `ledger.parquet.readable` does."""
    with readable(file):
        return folder.open(folder.path(file), BUFFER)


def read_index(folder: Folder, file: str, *, claims: bool = False) -> pa.Table:
    """The index of a file in OUT; raises LedgerError if it cannot be read, FileNotFoundError if it is gone.

    claims: as of `Form.index`.
    """
    with open_file(folder, file) as source:
        return form_of(file).index(source, file, claims=claims)


def _listed(
    folder: Folder,
    info: pafs.FileInfo,
    wanted: pa.Array | None,
    refused: Callable[[str, LedgerError], None],
    *,
    claims: bool,
) -> pa.Table:
    """The entries of a file; none after a call of `refused`, if it cannot be read."""
    file = folder.relative(info.path)
    try:
        index = read_index(folder, file, claims=claims)
    except LedgerError as error:
        refused(file, error)
        return LISTED.empty_table()
    if wanted is not None:
        index = index.filter(pc.is_in(index["pair_id"], wanted))
    return index.append_column(LISTED.field("file"), pa.repeat(file, len(index)))


def _key(row: Mapping[str, Any]) -> str:
    """The key of a row, as `form.keys` has it."""
    return "\n".join(str(row[name]) for name in ATTEMPT)


def _dicts(rows: pa.Table) -> Iterator[Row]:
    """The rows as Python values, a block in memory at a time."""
    return (row for batch in rows.to_batches(max_chunksize=BLOCK) for row in batch.to_pylist())


def _pieces(members: Iterable[tuple[Row, Row]]) -> Iterator[_Piece]:
    """Neighbours in a file, in groups of at most PIECE."""
    for file, together in groupby(members, lambda member: member[1]["file"]):
        while piece := list(islice(together, PIECE)):
            yield file, piece
