"""Pictures as rows of Parquet files, by the convention of Hugging Face's datasets: `image` is struct<bytes, path>."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnst.ledger.parquet import check_version, readable
from batchnst.ledger.pictures.form import INDEX, KEY, Entry, Picture
from batchnst.ledger.schema import ATTEMPT, VERSION, VERSION_KEY

GROUP_BYTES = 1 << 20
"""Size from which a row group is complete, in bytes: to read one picture, a reader fetches its row group."""

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

    def index(self, file: BinaryIO, name: str) -> pa.Table:
        """The pictures in a file, with the columns of INDEX."""
        with readable(name):
            source = _open(file, name)
            names = [*_LEAVES, "image.path"]
            parts = [_located(source.read_row_group(i, names), i) for i in range(source.num_row_groups)]
            return pa.concat_tables([INDEX.empty_table(), *parts])

    def read(self, file: BinaryIO, name: str, entries: Sequence[Entry]) -> Iterator[bytes]:
        """The bytes of the pictures at `entries`; a row group is read once for neighbours in it."""
        source = None
        for group, members in groupby(entries, itemgetter("group")):
            with readable(name):
                source = source or _open(file, name)
                column = source.read_row_group(group, ["image.bytes"])["image"].combine_chunks()
                found = [pc.struct_field(column, "bytes")[entry["place"]].as_py() or b"" for entry in members]
            yield from found


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


class _Writer:
    """Collects rows until they are a row group."""

    def __init__(self, sink: BinaryIO) -> None:
        self._file = pq.ParquetWriter(
            sink, SCHEMA, compression=_COMPRESSION, use_dictionary=["run_id"], write_statistics=ATTEMPT
        )
        self._rows, self._bytes, self.size = list[dict[str, Any]](), 0, 0

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
                self._file.close()
        finally:
            self._file.is_open = False  # else it is closed once more when it is collected
