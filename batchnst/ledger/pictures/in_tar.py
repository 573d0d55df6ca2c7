"""Pictures in tar archives, by the convention of WebDataset: members with the same name but for the ending belong
together. Of each picture there is `<id>.json`, its row of `pairs`, and then `<id>.png`, or what its real ending is.

WebDataset ends a name at its first dot, so dots of an id are written as `%2E`; the row has the id itself.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa

from batchnst.errors import LedgerError, StorageError
from batchnst.ledger.parquet import why_unreadable
from batchnst.ledger.pictures.form import INDEX, Entry, Picture
from batchnst.storage.retries import is_transient

LONGEST_ROW = 16 << 20
"""Longest JSON of a row that is read, in bytes."""

END = bytes(2 * tarfile.BLOCKSIZE)
"""End of an archive."""

PIECE = 1 << 20
"""Bytes that are copied at a time."""

_OF_DAMAGE = (
    *(tarfile.TarError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)
"""Errors of those who read a damaged archive, or a damaged row in it."""

_COLUMNS = {"path": "output", "sha256": "output_sha256"}
"""Names in a row of the columns of INDEX that have another name there."""


class InTar:
    """The form `tar`."""

    ending = ".tar"

    def writer(self, sink: BinaryIO) -> _Writer:
        """A writer to an empty archive."""
        return _Writer(sink)

    def index(self, file: BinaryIO, name: str, *, claims: bool = False) -> pa.Table:
        """The pictures in an archive: its headers and rows are read, and pictures passed over."""
        with _readable(name), tarfile.open(fileobj=file, mode="r:") as archive:
            index = pa.Table.from_pylist(list(_samples(archive, name)), INDEX)
            # tarfile takes a damaged header, and a cut at a header, for the end.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise LedgerError(f"{name}: is damaged after byte {archive.offset:,}")
            file.seek(-len(END), io.SEEK_END)
            if file.read() != END:
                raise LedgerError(f"{name}: ends early")
            return index

    def read(self, file: BinaryIO, name: str, entries: Sequence[Entry]) -> Iterator[bytes]:
        """The bytes of the pictures at `entries`."""
        for entry in entries:
            with _readable(name):
                file.seek(entry["place"])
                data = file.read(entry["size"])
            yield data


def sample_key(pair_id: str) -> str:
    """The name of a pair's members without their ending, which WebDataset calls the key."""
    return pair_id.replace(".", "%2E")


def _samples(archive: tarfile.TarFile, name: str) -> Iterator[dict[str, Any]]:
    """An entry for each picture."""
    row: tarfile.TarInfo | None = None
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them
        stem, _, ending = member.name.partition(".")
        if ending == "json":
            row, values = member, _row(archive, member, name)
            continue
        if row is None or row.name != f"{stem}.json":
            raise LedgerError(f"{name}: {member.name} does not follow its .json: not an archive of batchnst", "foreign")
        located = {"group": row.offset, "place": member.offset_data, "size": member.size}
        yield located | {field: values[_COLUMNS.get(field, field)] for field in INDEX.names[:7]}
        row = None


def _row(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> Mapping[str, Any]:
    data = archive.extractfile(member)
    if data is None or member.size > LONGEST_ROW:
        raise LedgerError(f"{name}: {member.name} is no row of a batchnst ledger", "foreign")
    values: Mapping[str, Any] = json.loads(data.read())
    return values


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Context in which the archive `name` is read; errors as of `ledger.parquet.readable`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (*_OF_DAMAGE, OSError) as error:
        if is_transient(error):
            raise StorageError(f"{name}: its storage does not answer: {error}") from None
        raise LedgerError(f"{name}: {why_unreadable(error, 'archive of pictures')}") from None


def _pieces(file: BinaryIO, name: str, begin: int, end: int) -> Iterator[bytes]:
    """The bytes of a file from `begin` to `end`, piece by piece."""
    while begin < end:
        with _readable(name):
            file.seek(begin)
            piece = file.read(min(end - begin, PIECE))
        if not piece:
            raise LedgerError(f"{name}: ends early")
        yield piece
        begin += len(piece)


class _Writer:
    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self.size = sink, 0

    def add(self, picture: Picture) -> None:
        """Append a picture, and its row before it."""
        row = picture.row
        key, ending = sample_key(row["pair_id"]), PurePosixPath(row["output"]).suffix.lower()
        self._member(f"{key}.json", json.dumps(row, default=str, sort_keys=True).encode())
        self._member(f"{key}{ending}", picture.data)

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._write(info.tobuf(tarfile.PAX_FORMAT))
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))

    def copy(self, file: BinaryIO, name: str, entries: Sequence[Entry]) -> None:
        """Append the members at `entries`, without decoding them."""
        for entry in entries:
            for piece in _pieces(file, name, entry["group"], entry["place"] + entry["size"]):
                self._write(piece)
            self._write(bytes(-entry["size"] % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self.size += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write(END)
