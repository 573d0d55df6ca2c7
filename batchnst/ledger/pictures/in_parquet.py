"""Pictures as rows of Parquet files, by the convention of Hugging Face's datasets: `image` is struct<bytes, path>."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnst.errors import LedgerError
from batchnst.ledger.parquet import check_version, readable
from batchnst.ledger.pictures.form import INDEX, KEY, Entry, Picture
from batchnst.ledger.schema import ATTEMPT, VERSION, VERSION_KEY

GROUP_BYTES = 1 << 20
"""Size from which a row group is complete, in bytes: to read one picture, a reader fetches its row group."""

INDEX_KEY = b"batchnst.index"
"""Key in the footer of the pictures' keys in the order of rows, as compressed JSON: one read lists a file."""

LONGEST_KEY = 4096
"""Longest JSON of a picture's key in the footer, in bytes, on average."""

_FEATURES = {
    "pair_id": {"dtype": "string", "_type": "Value"},
    "run_id": {"dtype": "string", "_type": "Value"},
    "attempt": {"dtype": "int64", "_type": "Value"},
    "image": {"_type": "Image"},
    "width": {"dtype": "int64", "_type": "Value"},
    "height": {"dtype": "int64", "_type": "Value"},
    "sha256": {"dtype": "string", "_type": "Value"},
}
"""Types of the columns for Hugging Face's datasets, so that they show pictures."""

SCHEMA = pa.schema(
    [
        *KEY,
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("sha256", pa.string()),
    ],
    metadata={
        VERSION_KEY: str(VERSION).encode(),
        b"huggingface": json.dumps({"info": {"features": _FEATURES}}).encode(),
    },
)
"""Columns of the files. sha256: of the bytes, in hexadecimal."""

_LEAVES = [name for name in SCHEMA.names if name != "image"]
_COMPRESSION = dict.fromkeys([*_LEAVES, "image.path"], "zstd") | {"image.bytes": "none"}


class InParquet:
    """The form `parquet`."""

    ending = ".parquet"

    def writer(self, sink: BinaryIO) -> _Writer:
        """A writer to an empty file."""
        return _Writer(sink)

    def index(self, file: BinaryIO, name: str, *, claims: bool = False) -> pa.Table:
        """The pictures in a file, with the columns of INDEX: from its footer, if it has them there.

        claims: from the rows, with all that they say.
        """
        with readable(name):
            source = _open(file, name)
            if not claims and (kept := _kept_keys(source.metadata)):
                return _located_keys(source.metadata, kept)
            names = [*_LEAVES, "image.path"]
            parts = [_located(source.read_row_group(i, names), i) for i in range(source.num_row_groups)]
            return pa.concat_tables([INDEX.empty_table(), *parts])

    def read(self, file: BinaryIO, name: str, entries: Sequence[Entry]) -> Iterator[bytes]:
        """The bytes of the pictures at `entries`; a row group is read once for neighbours in it.

        Raises LedgerError also if other pictures are there.
        """
        source = None
        for group, members in groupby(entries, itemgetter("group")):
            with readable(name):
                source = source or _open(file, name)
                rows = source.read_row_group(group, [*ATTEMPT, "image.bytes"])
                found = [(entry, rows.slice(entry["place"], 1).to_pylist()[0]) for entry in members]
            if any(row[column] != entry[column] for entry, row in found for column in ATTEMPT):
                raise LedgerError(f"{name}: its footer and its rows name other pictures: another program changed it")
            yield from ((row["image"] or {}).get("bytes") or b"" for _, row in found)


def _open(file: BinaryIO, name: str) -> pq.ParquetFile:
    source = pq.ParquetFile(file, pre_buffer=True)
    check_version(name, source.schema_arrow)
    return source


def _located(rows: pa.Table, group: int) -> pa.Table:
    """The index of a row group without its bytes."""
    columns: dict[str, Any] = {name: rows[name] for name in _LEAVES}
    columns["path"] = pc.struct_field(rows["image"], "path")
    columns["group"], columns["place"] = pa.repeat(group, len(rows)), pa.array(range(len(rows)), pa.int64())
    columns["size"] = pa.nulls(len(rows), pa.int64())
    return pa.table({name: columns[name] for name in INDEX.names}).cast(INDEX)


def _kept_keys(metadata: pq.FileMetaData) -> dict[str, Any] | None:
    """The key columns in a footer; None if there are none, or not those of all rows."""
    try:
        data = base64.b64decode((metadata.metadata or {})[INDEX_KEY])
        most = LONGEST_KEY * (metadata.num_rows + 1)
        columns: dict[str, Any] = json.loads(zlib.decompressobj().decompress(data, most))
        return columns if all(len(columns[name]) == metadata.num_rows for name in ATTEMPT) else None
    except (KeyError, TypeError, ValueError, RecursionError, zlib.error):
        return None


def _located_keys(metadata: pq.FileMetaData, columns: dict[str, Any]) -> pa.Table:
    """The index of a file whose key columns are known."""
    counts = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], int)
    groups = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = {field.name: pa.nulls(len(groups), field.type) for field in INDEX}
    known = {name: pa.array(columns[name], INDEX.field(name).type) for name in ATTEMPT}
    return pa.table(values | known | {"group": pa.array(groups), "place": pa.array(places)}, INDEX)


class _Writer:
    """Collects rows until they are a row group."""

    def __init__(self, sink: BinaryIO) -> None:
        self._file = pq.ParquetWriter(
            sink, SCHEMA, compression=_COMPRESSION, use_dictionary=["run_id"], write_statistics=ATTEMPT
        )
        self._rows, self._bytes, self.size = list[dict[str, Any]](), 0, 0
        self._keys: dict[str, list[Any]] = {name: [] for name in ATTEMPT}

    def add(self, picture: Picture) -> None:
        """Append a picture."""
        row, data = picture.row, picture.data
        self._append(
            {
                **{name: row[name] for name in (*ATTEMPT, "width", "height")},
                "image": {"bytes": data, "path": row["output"]},
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )

    def copy(self, file: BinaryIO, name: str, entries: Sequence[Entry]) -> None:
        """Append the rows at `entries`, one row group in memory at a time."""
        source = _open(file, name)
        for group, members in groupby(entries, itemgetter("group")):
            with readable(name):
                rows = source.read_row_group(group, SCHEMA.names)
            for entry in members:
                self._append(rows.slice(entry["place"], 1).to_pylist()[0])

    def _append(self, row: dict[str, Any]) -> None:
        for name, column in self._keys.items():
            column.append(row[name])
        self._rows.append(row)
        self._bytes += len((row["image"] or {}).get("bytes") or b"") + 256
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self.size += self._bytes
        self._rows, self._bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
                keys = zlib.compress(json.dumps(self._keys).encode())
                self._file.add_key_value_metadata({INDEX_KEY: base64.b64encode(keys)})
                self._file.close()
        finally:
            self._file.is_open = False  # else it is closed once more when it is collected
