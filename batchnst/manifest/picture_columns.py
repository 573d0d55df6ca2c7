"""Read the rows of Parquet files that hold pictures: addresses stand for the pictures, whose bytes are not read.

The address of a cell is that of `chains`. A cell whose struct has a path, but no bytes, names a file by that path, as
in Hugging Face's datasets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchnst.chains import Cell
from batchnst.manifest.columns import Unreadable
from batchnst.storage.cells import (
    WHOLE_GROUP,
    empty_values,
    extremes,
    file_name,
    is_picture,
    is_picture_list,
    leaves,
    text_of,
    values,
)

PICTURES = ("content", "style", "content_mask", "style_mask", "init")
"""Columns that name pictures: a binary value there is a picture."""

LONGEST_NAME = 255
"""Longest name of a picture that becomes a part of its address, in bytes."""


_ADDRESS = re.compile(rb"[^\x00-\x1f]{1,300}\.[A-Za-z0-9]{2,5}")
"""Names of files: no picture is one from its first to its last byte."""

MOST_ROWS = 10_000_000
"""Most rows of a row group with pictures: more are no pictures."""


@dataclass(frozen=True)
class Column:
    """A column of pictures: numbers of the physical column with their bytes and of that with their paths, if any."""

    name: str
    is_list: bool
    bytes: int
    path: int | None


def picture_columns(parquet: pq.ParquetFile, *, any_name: bool = False) -> list[Column]:
    """The columns that hold pictures: structs of bytes, and binary ones: those of PICTURES, or of `any_name`.

    Raises Unreadable for a list of binary values: its length cannot be told without reading them.
    """
    columns = []
    for field in parquet.schema_arrow:
        is_list = is_picture_list(field.type)
        kind = field.type.value_type if is_list else field.type
        if not is_picture(kind) or not (pa.types.is_struct(kind) or any_name or field.name in PICTURES):
            continue
        numbers = {parquet.schema.column(number).name: number for number in leaves(parquet, field.name)}
        path = numbers.get("path") if pa.types.is_struct(kind) else None
        if is_list and path is None:
            raise Unreadable(f"has lists of {kind} in the column {field.name}; expected a list of struct<bytes, path>")
        place = numbers["bytes"] if pa.types.is_struct(kind) else next(iter(numbers.values()))
        columns.append(Column(field.name, is_list, place, path))
    return columns


def remark(parquet: pq.ParquetFile) -> str:
    """A remark for the user if the row groups are so large that reading one picture is slow; else empty."""
    groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest <= WHOLE_GROUP or not picture_columns(parquet):
        return ""
    return (
        f"has row groups of {largest / 1e6:.0f} MB, in which a picture is slow to read; write smaller ones (100 rows)"
    )


def read_batches(parquet: pq.ParquetFile, file: str, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield all rows, `rows` at a time, with addresses in place of pictures; `file` is the address in these.

    The bytes of pictures are read only if the file does not tell which of them are missing.
    """
    columns = picture_columns(parquet)
    if not columns:
        yield from parquet.iter_batches(batch_size=rows)
        return
    if "::" in file:
        raise Unreadable("holds pictures, so that it may not have :: in its name; rename it")
    skipped = {number for column in columns for number in leaves(parquet, column.name)}
    others = [parquet.schema.column(number).path for number in range(len(parquet.schema)) if number not in skipped]
    first = 0
    for group in range(parquet.num_row_groups):
        texts = {column.name: _texts(parquet, group, column, first, file) for column in columns}
        count = parquet.metadata.row_group(group).num_rows
        for start in range(0, 0 if others else count, rows):
            yield _with_texts(None, texts, slice(start, min(start + rows, count)))
        start = 0
        for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], columns=others) if others else ():
            yield _with_texts(batch, texts, slice(start, start + batch.num_rows))
            start += batch.num_rows
        first += count


def read_column(parquet: pq.ParquetFile, column: Column, file: str) -> Iterator[tuple[str | None, str]]:
    """Yield the address of each picture in a column, None if there is none, and the path that its cell gives it."""
    first = 0
    for group in range(parquet.num_row_groups):
        paths = _present_paths(parquet, group, column)
        yield from ((_text(column, row, None, path, file), path or "") for row, path in enumerate(paths, first))
        first += len(paths)


def _with_texts(batch: pa.RecordBatch | None, texts: Mapping[str, pa.Array], part: slice) -> pa.RecordBatch:
    """`batch` with a `part` of each column of `texts`."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) if batch else {}
    columns |= {name: array.slice(part.start, part.stop - part.start) for name, array in texts.items()}
    return pa.RecordBatch.from_pydict(columns)


def _texts(parquet: pq.ParquetFile, group: int, column: Column, first: int, file: str) -> pa.Array:
    """The addresses of the pictures of a column in a row group, whose first row has the number `first`."""
    rows = enumerate(_present_paths(parquet, group, column), first)
    if column.is_list:
        lists = (
            value and [_text(column, row, place, path, file) for place, path in enumerate(value)] for row, value in rows
        )
        return pa.array(lists, pa.list_(pa.string()))
    return pa.array((_text(column, row, None, path, file) for row, path in rows), pa.string())


def _text(column: Column, row: int, place: int | None, path: str | None, file: str) -> str | None:
    """The address of a picture; None if there is none."""
    if path is None or isinstance(path, External):
        return path and str(path)
    return Cell(column.name, row, place, _name(path)).address(file)


def _present_paths(parquet: pq.ParquetFile, group: int, column: Column) -> list[Any]:
    """The path of each picture, External if it has no bytes: as `_paths`, after a look at what is missing."""
    paths = _paths(parquet, group, column, parquet.metadata.row_group(group).num_rows)
    missing = _missing(parquet, group, column)
    ends = extremes(parquet.metadata, group, column.bytes)
    if ends and all(map(_ADDRESS.fullmatch, ends)):
        shown = ends[0].decode(errors="replace")
        raise Unreadable(f"has names such as {shown!r} in the column {column.name}, as bytes; mark the column as text")
    return paths if missing == sum(map(_count_missing, paths)) else _checked(parquet, group, column, paths)


class External(str):
    """The path of a picture that is not in the file."""


def _name(path: str) -> str:
    name = file_name(path)
    return "" if name in (".", "..") or len(name.encode()) > LONGEST_NAME else name


def _paths(parquet: pq.ParquetFile, group: int, column: Column, rows: int) -> list[Any]:
    """The path of each picture, empty if it has none, None if there is no picture; for lists, a list of these."""
    if rows > MOST_ROWS:
        raise Unreadable(f"has a row group of {rows:,} rows; write smaller ones, of about 100 pictures")
    if column.path is None:
        return [""] * rows
    name = parquet.schema.column(column.path).path
    cells = parquet.read_row_group(group, columns=[name], use_threads=False)[column.name].to_pylist()
    if column.is_list:
        return [cell and [text_of(each["path"]) if each else None for each in cell] for cell in cells]
    return [text_of(cell["path"]) if cell else None for cell in cells]


def _count_missing(value: Any) -> int:
    """The empty values of a physical column in a cell with these paths."""
    if isinstance(value, list):
        return sum(each is None for each in value) or not value
    return int(value is None)


def _missing(parquet: pq.ParquetFile, group: int, column: Column) -> int | None:
    """The number of empty values in the physical column with the bytes; None if the file does not tell."""
    if parquet.schema.column(column.bytes).max_definition_level == 0:
        return 0
    return empty_values(parquet.metadata, group, column.bytes)


def _checked(parquet: pq.ParquetFile, group: int, column: Column, paths: list[Any]) -> list[Any]:
    """`paths` with None, or with an External path, for each picture whose bytes are missing: all bytes are read."""
    found = values(parquet, group, column.name, parquet.schema.column(column.bytes).path)

    def checked(path: Any, value: Any) -> Any:
        if isinstance(path, list):
            return [checked(*pair) for pair in zip(path, value, strict=True)]
        data = value.get("bytes") if isinstance(value, dict) else value
        return path if data is not None or path is None else External(path) if path else None

    return [checked(path, value) for path, value in zip(paths, found, strict=True)]
