"""Read the rows of a manifest, each with its line number, from CSV, JSON Lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batchnst.recipe import recipe_keys
from batchnst.storage.files import open_file

Row = dict[str, Any]
"""A row's values, by column."""

LIST_COLUMNS = ("style", "style_weights", "content_mask", "style_mask")
"""Columns that may hold several values."""

RECIPE_KEYS = frozenset(recipe_keys())

KNOWN_COLUMNS = frozenset(("content", "id", "output", *LIST_COLUMNS)) | RECIPE_KEYS
"""Columns with a meaning; all others are copied to the ledger's `extra`."""

BLOCK_ROWS = 1 << 14
"""Rows per block: only one block at a time is held as Python objects, the others as Arrow columns."""


class Unreadable(Exception):
    """The manifest as a whole cannot be read; the message says why."""


def _read_csv(file: BinaryIO) -> Iterator[tuple[int, Row | str]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            header = [name.lower() if name.lower() in KNOWN_COLUMNS else name for name in header]
            _check_columns(header)
            end = reader.line_num
            for cells in reader:
                line, end = end + 1, reader.line_num
                if len(cells) > len(header):
                    yield line, f"has {len(cells)} cells; expected {len(header)}, one for each column of the header"
                elif cells:
                    row: Row = dict(zip(header, map(str.strip, cells), strict=False))
                    for column in LIST_COLUMNS:
                        if "|" in row.get(column, ""):
                            row[column] = [part.strip() for part in row[column].split("|")]
                    yield line, row
        except csv.Error as error:
            raise Unreadable(f"line {reader.line_num}: not valid CSV: {error}") from None


def _read_json_lines(file: BinaryIO) -> Iterator[tuple[int, Row | str]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="\n") as text:
        for line, data in enumerate(text, 1):
            if not data.strip():
                continue
            try:
                row = json.loads(data)
                if "\\u" in data:
                    json.dumps(row, ensure_ascii=False).encode()
            except json.JSONDecodeError as error:
                yield line, f"not valid JSON: {error.msg} at column {error.colno}"
                continue
            except UnicodeEncodeError as error:
                yield line, f"has half of a character, \\u{ord(error.object[error.start]):04x}; expected both halves"
                continue
            yield line, row if isinstance(row, dict) else f"expected a JSON object; found {data.strip()[:40]}"


def _read_parquet(file: BinaryIO) -> Iterator[tuple[int, Row | str]]:
    try:
        parquet = pq.ParquetFile(file)
        _check_columns(parquet.schema_arrow.names)
        line = 0
        for batch in parquet.iter_batches(batch_size=BLOCK_ROWS):
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                line += 1
                yield line, row
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(f"not a readable Parquet file: {error}") from None


READERS = {".csv": _read_csv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".parquet": _read_parquet}
"""Readers by file name ending. Each yields (line number, row), or (line number, problem) for a broken line."""


def _check_columns(names: list[str]) -> None:
    missing = [column for column in ("content", "style") if column not in names]
    if missing:
        raise Unreadable(f"has no column {' and no column '.join(missing)}; it has: {', '.join(names) or 'none'}")
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise Unreadable(f"has the column {', '.join(sorted(repeated))} twice")


def first_bad_line(address: str) -> str:
    """Find the first line of a text file that is not UTF-8; the message for the user."""
    with open_file(address) as file:
        for line, data in enumerate(file, 1):
            try:
                data.decode()
            except UnicodeDecodeError as error:
                return f"line {line}: not UTF-8 (byte {data[error.start]:#04x})"
    raise AssertionError("the file changed while it was read")
