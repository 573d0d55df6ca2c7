"""The rows of a manifest as its file has them, each with its line: CSV, JSON Lines or Parquet."""

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

LISTS = ("style", "style_weights", "content_mask", "style_mask")
"""Columns that may hold several values."""

RECIPE_KEYS = frozenset(recipe_keys())

KNOWN = frozenset(("content", "id", "output", *LISTS)) | RECIPE_KEYS
"""Columns that mean something here; the others are kept as they are."""

BLOCK = 1 << 14
"""Rows that are Python objects at the same time, while a manifest is read or walked through."""


class Unreadable(Exception):
    """A manifest that makes no sense as a whole."""


def _read_csv(file: BinaryIO) -> Iterator[tuple[int, Row | str]]:
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            header = [name.lower() if name.lower() in KNOWN else name for name in header]
            _check_columns(header)
            end = reader.line_num
            for cells in reader:
                line, end = end + 1, reader.line_num
                if len(cells) > len(header):
                    yield line, f"has {len(cells)} cells; expected {len(header)}, as the header has columns"
                elif cells:
                    row: Row = dict(zip(header, map(str.strip, cells), strict=False))
                    for column in LISTS:
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
            except json.JSONDecodeError as error:
                yield line, f"not valid JSON: {error.msg} at column {error.colno}"
                continue
            yield line, row if isinstance(row, dict) else f"expected a JSON object; found {data.strip()[:40]}"


def _read_parquet(file: BinaryIO) -> Iterator[tuple[int, Row | str]]:
    try:
        parquet = pq.ParquetFile(file)
        _check_columns(parquet.schema_arrow.names)
        line = 0
        for batch in parquet.iter_batches(batch_size=BLOCK):
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                line += 1
                yield line, row
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(f"not a readable Parquet file: {error}") from None


READERS = {".csv": _read_csv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".parquet": _read_parquet}


def _check_columns(names: list[str]) -> None:
    missing = [column for column in ("content", "style") if column not in names]
    if missing:
        raise Unreadable(f"has no column {' and no column '.join(missing)}; it has: {', '.join(names) or 'none'}")
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise Unreadable(f"has the column {', '.join(sorted(doubled))} twice")


def first_bad_line(address: str) -> str:
    """Where a text stops being UTF-8."""
    with open_file(address) as file:
        for line, data in enumerate(file, 1):
            try:
                data.decode()
            except UnicodeDecodeError as error:
                return f"line {line}: not UTF-8 (byte {data[error.start]:#04x})"
    raise AssertionError("the file has changed meanwhile")
