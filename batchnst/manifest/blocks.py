"""A table that is built row by row, and stored in columns to save memory."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

BLOCK_ROWS = 1 << 14
"""Rows per block: only one block at a time is held as Python objects, the others as Arrow columns."""


class Table:
    """A table that is built row by row, and stored in columns."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._blocks: list[pa.RecordBatch] = []
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        """Add a row, with its values in the schema's order."""
        self._rows.append(row)
        if len(self._rows) == BLOCK_ROWS:
            self._pack()

    def finish(self) -> list[pa.RecordBatch]:
        """The whole table, in blocks of BLOCK_ROWS rows; the last one may have fewer."""
        self._pack()
        return self._blocks

    def _pack(self) -> None:
        """Convert the latest rows to a block of columns."""
        if self._rows:
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._blocks.append(pa.record_batch(columns, self._schema))
            self._rows = []
