"""A table of many rows, stored in compressed columns to save memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BLOCK_ROWS = 1 << 14
"""Rows that are held as Python objects, or uncompressed, at a time."""

_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


class Blocks:
    """The rows of a table in compressed blocks, in the order in which they were added."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._blocks, self._starts = list[pa.Buffer](), [0]

    def __len__(self) -> int:
        """The number of rows."""
        return self._starts[-1]

    def add(self, rows: pa.RecordBatch) -> None:
        """Add rows as a block."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self.schema, options=_COMPRESSED) as writer:
            writer.write_batch(rows)
        self._blocks.append(pa.py_buffer(sink.getvalue().to_pybytes()))  # the stream's buffer is half as long again
        self._starts.append(self._starts[-1] + len(rows))

    def read(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All blocks; only `columns` if given."""
        for data in self._blocks:
            yield _read(data, self.schema, columns)

    def take(self, rows: NDArray[np.int64], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows with these numbers, which must be in ascending order."""
        position = 0
        while position < len(rows):
            block = bisect_right(self._starts, rows[position]) - 1
            end = int(np.searchsorted(rows, self._starts[block + 1]))
            places = rows[position:end] - self._starts[block]
            yield _read(self._blocks[block], self.schema, columns).take(pa.array(places))
            position = end


def to_batch(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows in columns."""
    columns = zip(zip(*rows, strict=True), schema, strict=True)
    return pa.record_batch([pa.array(column, field.type) for column, field in columns], schema)


def _read(data: pa.Buffer, schema: pa.Schema, columns: Sequence[str] | None) -> pa.RecordBatch:
    fields = None if columns is None else [schema.get_field_index(name) for name in columns]
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    return pa.ipc.open_file(data, options=options).get_batch(0)
