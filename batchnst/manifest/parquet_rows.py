"""Read rows of Parquet files as plain Python values, with times and intervals as text; without pandas."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from batchnst.manifest.columns import Row, Unreadable, check_columns
from batchnst.manifest.picture_columns import read_batches, remark
from batchnst.manifest.row_columns import Cells
from batchnst.storage.cells import open_parquet
from batchnst.storage.guarded import Guarded

BATCH_ROWS = 1 << 14
"""Rows that are held as Python objects at a time."""


def read_parquet(file: BinaryIO, name: str, note: Callable[[str], None]) -> Iterator[Cells | tuple[int, Row | str]]:
    """Yield many rows at a time, or a row with its number, from 1.

    `name` is the address of the file in those of its pictures; `note` is called with a remark on how it is read.
    Raises Unreadable if the file is damaged; an error of its store is raised as it is.
    """
    number, guarded = 0, Guarded(file, sys.maxsize)
    try:
        parquet = open_parquet(guarded)
        check_columns(parquet.schema_arrow.names)
        if text := remark(parquet):
            note(text)
        for batch in read_batches(parquet, name, BATCH_ROWS):
            plain = pa.schema([(field.name, plain_type(field.type)) for field in batch.schema])
            rows = batch.cast(plain)
            if _has_maps(plain):  # a key may be there twice
                for row in rows.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield number, row
            else:
                _check_texts(rows)
                columns = dict(zip(plain.names, rows.columns, strict=True))
                yield Cells.of(np.arange(number + 1, number + 1 + len(rows)), columns)
                number += len(rows)
    except UnicodeDecodeError as error:
        raise Unreadable(f"has, in row {number + 1} or later, a text that is not UTF-8 (byte {_byte(error)})") from None
    except (pa.ArrowException, OSError, KeyError, OverflowError) as error:
        if guarded.error:
            raise guarded.error from None
        raise Unreadable(f"not a readable Parquet file: {_first_line(error)}") from None


def _has_maps(schema: pa.Schema) -> bool:
    return "map<" in str(schema.types)


def _check_texts(rows: pa.RecordBatch) -> None:
    """Raise UnicodeDecodeError for a text that is not UTF-8."""
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        rows.to_pylist()
        raise


def _byte(error: UnicodeDecodeError) -> str:
    return f"{error.object[error.start]:#04x}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The Arrow type as which a column of type `kind` is read: one that Python has in full.

    Python's times have neither nanoseconds nor all years, so that times become text; intervals become numbers.
    """
    types = pa.types
    if isinstance(kind, pa.ExtensionType):
        return plain_type(kind.storage_type)
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind):
        return pa.string()
    if types.is_duration(kind):
        return pa.int64()
    if types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type))
    return kind
