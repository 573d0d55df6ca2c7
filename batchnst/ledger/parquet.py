"""The ledger's Parquet files: how they are encoded, and which of them this version reads."""

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
from batchnst.storage.retries import may_pass
from batchnst.storage.stores import reader

SMALL = 1 << 20
"""Files of fewer bytes than this are fetched in one request, not one a column."""

ROW_GROUP = 1 << 16
"""Rows that are skipped or read together."""

_KEYS = ("run_id", "pair_id", "attempt", "status", "error_type", "step", "scale", "finished_at")
"""Columns by which rows are looked for: these have statistics in files large enough to skip parts of."""


_ENCODINGS: dict[str, dict[str, Any]] = {
    "losses": {
        # The bytes of a curve's numbers, split by their place, take a third less; dictionaries are of no use for them.
        "use_byte_stream_split": ["total", "content", "style", "tv", "style_layers.key_value.value", "seconds"],
        "use_dictionary": ["run_id", "pair_id", "attempt", "step", "scale", "style_layers.key_value.key"],
    }
}


def encode(rows: pa.Table, table: str, *, statistics: bool) -> bytes:
    """Rows of a table as a file. Statistics are worth their bytes in large, sorted files alone."""
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
    filesystem: pafs.FileSystem,
    info: pafs.FileInfo,
    columns: Sequence[str] | None = None,
    matching: pc.Expression | None = None,
) -> pa.Table:
    """A file's rows, or some of their columns, or those rows alone for which something holds.

    Raises LedgerError for a file that this version cannot read.
    """
    with readable(info.path), reader(filesystem, info.path, SMALL) as source:
        held = pa.BufferReader(source.read(info.size)) if info.size < SMALL else source
        file = pq.ParquetFile(held)
        check_version(info.path, file.schema_arrow)
        if matching is None:
            return file.read(columns=columns, use_threads=False)
        return pq.read_table(held, columns=columns, filters=matching, use_threads=False)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Tell of a file that is no Parquet, or torn, by LedgerError, of a store that is away by StorageError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        if may_pass(error):
            raise StorageError(f"{path}: its storage does not answer: {error}") from None
        raise LedgerError(f"{path}: not a readable Parquet file: {error}") from None


def check_version(path: str, schema: pa.Schema) -> None:
    """Raise LedgerError for a file of another program, or of a later version of this one."""
    version = int((schema.metadata or {}).get(VERSION_KEY, b"0"))
    if version == 0:
        raise LedgerError(f"{path}: not a file of a batchnst ledger; move it out of OUT/ledger", "foreign")
    if version > VERSION:
        raise LedgerError(f"{path}: written by a newer batchnst (schema {version}); this one reads {VERSION}", "schema")


def empty(table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """No rows, of a table's columns or some of them."""
    rows = SCHEMAS[table].empty_table()
    return rows.select(columns) if columns else rows
