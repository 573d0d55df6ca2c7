"""Encodes and reads the ledger's Parquet files, and checks their schema version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from batchnst.errors import LedgerError, StorageError
from batchnst.ledger.schema import SCHEMAS, VERSION, VERSION_KEY
from batchnst.storage.files import Folder
from batchnst.storage.retries import is_of_store, is_transient

SMALL = 1 << 20
"""Files smaller than this, in bytes, are fetched in one request instead of one for each column."""

ROW_GROUP = 1 << 16
"""Rows in a Parquet row group, which is read or skipped as a whole."""

_KEYS = ("run_id", "pair_id", "attempt", "status", "error_type", "step", "scale", "run_number")
"""Columns that rows are searched by. Large files have statistics of them, so that row groups can be skipped."""

_ENCODINGS: dict[str, dict[str, Any]] = {
    # Dictionaries save nothing of a curve's floats. Byte stream split would save a sixth of the bytes, but fastparquet
    # and older readers do not know it.
    "losses": {"use_dictionary": ["run_id", "pair_id", "attempt", "step", "scale", "style_layers.key_value.key"]},
}


def encode(rows: pa.Table, table: str, *, statistics: bool) -> bytes:
    """`rows` of `table` as the bytes of a Parquet file. `statistics` pay off only in large, sorted files."""
    keys = [name for name in rows.column_names if name in _KEYS]
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        row_group_size=ROW_GROUP,
        compression="zstd",
        write_statistics=keys if statistics else False,
        **_ENCODINGS.get(table, {}),
    )
    return bytes(sink.getvalue())


def read(
    folder: Folder,
    info: pafs.FileInfo,
    columns: Sequence[str] | None = None,
    matching: pc.Expression | None = None,
) -> pa.Table:
    """The rows of a file; only `columns` if given, and only the rows that satisfy `matching`.

    Raises FileNotFoundError if the file is gone, LedgerError if this version cannot read it, and StorageError if its
    storage does not answer.
    """
    with readable(info.path), folder.open(info.path, SMALL) as source:
        data = pa.BufferReader(source.read(info.size)) if info.size < SMALL else source
        file = pq.ParquetFile(data)
        check_version(info.path, file.schema_arrow)
        if matching is None:
            return file.read(columns=columns, use_threads=False)
        return pq.read_table(data, columns=columns and list(columns), filters=matching, use_threads=False)


def conform(path: str, rows: pa.Table, table: str) -> pa.Table:
    """Return `rows` of the file at `path` with the column types of `table`; raises LedgerError if that is impossible.

    Other programs may write them again with types of their own, such as long texts. Columns of later versions stay.
    """
    known = {field.name: field.type for field in SCHEMAS[table]}
    with readable(path):
        rows.validate(full=True)  # else texts that are not UTF-8 are found by whoever reads them
        fields = [field.with_type(known.get(field.name, field.type)) for field in rows.schema]
        return rows.cast(pa.schema(fields, rows.schema.metadata))


def with_gaps(schema: pa.Schema) -> pa.Schema:
    """The schema with null allowed in every column: a damaged row may have it anywhere."""
    return pa.schema([field.with_nullable(True) for field in schema], schema.metadata)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Context in which the file at `path` is read.

    Raises LedgerError if the file is damaged, not Parquet or refused, StorageError if its storage does not answer, and
    FileNotFoundError if it is gone.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names and numbers in its metadata
        if is_transient(error):
            raise StorageError(f"{path}: its storage does not answer: {error}") from None
        raise LedgerError(f"{path}: {why_unreadable(error, 'Parquet file')}") from None


def why_unreadable(error: Exception, what: str) -> str:
    """Why a file that should be a `what` cannot be read: its store or disk refuses it, or it is damaged."""
    if is_of_store(error):
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return f"not a readable {what}: {error}"


def check_version(path: str, schema: pa.Schema) -> None:
    """Raise LedgerError if the file at `path` was written by another program or a newer version of batchnst."""
    version = int((schema.metadata or {}).get(VERSION_KEY, b"0"))
    if version == 0:
        raise LedgerError(f"{path}: not a file of a batchnst ledger; move it out of OUT/ledger", "foreign")
    if version > VERSION:
        raise LedgerError(f"{path}: written by a newer batchnst (schema {version}); this one reads {VERSION}", "schema")


def empty(table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """An empty `table`, with only `columns` if given."""
    names = set(columns or SCHEMAS[table].names)
    fields = [field for field in SCHEMAS[table] if field.name in names]
    return pa.schema(fields, SCHEMAS[table].metadata).empty_table().select(columns or SCHEMAS[table].names)
