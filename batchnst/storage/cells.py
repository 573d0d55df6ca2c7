"""Read pictures from the cells of Parquet files: a row group once, not once for each of its pictures.

A picture is binary, or `struct<bytes, path>` as Hugging Face's datasets have it; a cell may hold a list of the latter.
"""

from __future__ import annotations

import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batchnst.chains import Cell
from batchnst.storage.guarded import Guarded
from batchnst.storage.seekable import Seekable

BUFFER = 1 << 23
"""Bytes of a row group that are fetched at once, at most."""

WHOLE_GROUP = 256 << 20
"""Row groups of up to this many bytes are read whole, and kept; of others, only the part before a row."""

READ_AHEAD = 64 << 20
"""Bytes of pictures behind a row that are read with it, of larger row groups."""

MOST_ROWS = 256
"""Most rows that are decoded at once."""

MOST_KEPT = 512 << 20
"""Most bytes of pictures that this process keeps, for the pairs that follow."""

BATCH_BYTES = 16 << 20
"""Bytes of pictures that are decoded at once, about."""

MOST_READ = 1 << 31
"""Most bytes that are read at once: a page of Parquet is no longer."""

Key = tuple[str, object]
"""A Parquet file: its address, and its stamp, which changes with the file."""


def is_picture(kind: pa.DataType) -> bool:
    """True for the type of a picture: binary, or a struct that has it as `bytes`."""
    if pa.types.is_struct(kind):
        places = [kind.get_field_index(name) for name in ("bytes", "path")]
        return places[0] >= 0 and _is_binary(kind[places[0]].type)
    return _is_binary(kind)


def is_picture_list(kind: pa.DataType) -> bool:
    """True for the type of a list of pictures, of any kind."""
    return _is_list(kind) and is_picture(kind.value_type)


def _is_binary(kind: pa.DataType) -> bool:
    """True for binary values, also if each is kept once in a dictionary, as pandas does with its categories."""
    types = pa.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(check(kind) for check in (types.is_binary, types.is_large_binary, types.is_binary_view))


def _is_list(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def open_parquet(file: Guarded) -> pq.ParquetFile:
    """Open a Parquet file; raises OSError if it contradicts itself on how many rows it has."""
    parquet = pq.ParquetFile(file)
    rows, found = parquet.metadata.num_rows, sum(_rows_of_groups(parquet.metadata))
    if rows != found:
        raise OSError(f"says that it has {rows:,} rows, and {found:,} in its row groups")
    return parquet


def _rows_of_groups(metadata: pq.FileMetaData) -> list[int]:
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def leaves(parquet: pq.ParquetFile | pq.FileMetaData, column: str) -> list[int]:
    """Numbers of the physical columns that hold `column`."""
    paths = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
    return [number for number, path in enumerate(paths) if path == column or path.startswith(f"{column}.")]


@dataclass(frozen=True)
class Footer:
    """The footer of a Parquet file; `starts` are the first rows of its row groups, and their end."""

    metadata: pq.FileMetaData
    starts: list[int]

    @property
    def weight(self) -> int:
        """Its size in memory, in members of an archive."""
        return 4 * (len(self.starts) - 1) * len(self.metadata.schema)

    def group_of(self, row: int) -> int:
        """The row group that holds `row`; raises OSError if there is no such row."""
        if row >= self.starts[-1]:
            raise OSError(f"the file has {self.starts[-1]} rows, and rows count from 0")
        return bisect_right(self.starts, row) - 1


def read_footer(file: BinaryIO) -> Footer:
    """Read the end of a Parquet file; raises OSError if it is damaged."""
    guarded = Guarded(file, MOST_READ)
    try:
        metadata = open_parquet(guarded).metadata
        groups = _rows_of_groups(metadata)
    except Exception as error:
        raise _as_os_error(guarded, error) from None
    return Footer(metadata, list(accumulate(groups, initial=0)))


class _NotRead(Seekable):
    """A very long file that refuses to be read; `asked` is True after an attempt."""

    asked = False

    def tell(self) -> int:
        return 1 << 62

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return 1 << 62

    def read(self, count: int = -1) -> bytes:
        self.asked = True
        raise OSError("is not read")


def empty_values(metadata: pq.FileMetaData, group: int, number: int) -> int | None:
    """The number of empty values in the physical column `number` of a row group; None if the file does not tell.

    Raises OSError if the file is damaged.
    """
    statistics = _statistics(metadata, group, number)
    return statistics.null_count if statistics and statistics.has_null_count else None


def extremes(metadata: pq.FileMetaData, group: int, number: int) -> list[bytes]:
    """The least and the greatest value of the binary physical column `number` of a row group, if the file tells them.

    Raises OSError if the file is damaged.
    """
    statistics = _statistics(metadata, group, number)
    values = [statistics.min_raw, statistics.max_raw] if statistics and statistics.has_min_max else []
    return [value for value in values if isinstance(value, bytes)]


def _statistics(metadata: pq.FileMetaData, group: int, number: int) -> pq.Statistics | None:
    """The statistics of the physical column `number` of a row group; None if the file has none.

    Raises OSError if the file is damaged. pyarrow ends the process if it is asked for damaged metadata of a column, but
    not if it is to read that column: then it looks at the same metadata before it reads. It also ends the process if
    it is asked for the statistics of a column that is not of the type that the schema says.
    """
    file = _NotRead()
    try:
        pq.ParquetFile(file, metadata=metadata).reader.read_row_group(group, column_indices=[number], use_threads=False)
    except Exception as error:
        if not file.asked:
            raise OSError(str(error)) from None
    column, kind = metadata.row_group(group).column(number), metadata.schema.column(number).physical_type
    if column.physical_type != kind:
        raise OSError(f"a column of {kind} is said to be of {column.physical_type} in row group {group}")
    return column.statistics


def _as_os_error(guarded: Guarded, error: Exception) -> Exception:
    """The OSError that fits an error of pyarrow's: that of the file itself, or that the file is damaged."""
    if guarded.error:
        return guarded.error
    return OSError(f"not a readable Parquet file: {str(error).partition(chr(10))[0]}")


class Pictures:
    """The pictures that this process has read lately, by file, column and row, at most `most` bytes of them."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most, self._bytes = most, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Key, str, int], Any] = OrderedDict()

    def get(self, key: Key, cell: Cell) -> Any:
        """The value of a cell, in a list of one; an empty list if it is not kept."""
        with self._lock:
            found = self._kept.get((key, cell.column, cell.row))
            if found is not None:
                self._kept.move_to_end((key, cell.column, cell.row))
            return found or []

    def put(self, key: Key, column: str, row: int, value: Any) -> None:
        """Keep the value of a cell, and forget those that nobody asked for, for the longest time."""
        with self._lock:
            if (key, column, row) not in self._kept:
                self._kept[key, column, row] = [value]
                self._bytes += _length(value)
            while self._bytes > self._most and len(self._kept) > 1:
                _, (old,) = self._kept.popitem(last=False)
                self._bytes -= _length(old)


def _length(value: Any) -> int:
    """Bytes that a cell's value takes."""
    if isinstance(value, list):
        return sum(map(_length, value))
    data = value.get("bytes") if isinstance(value, dict) else value
    return len(data or b"") + 200


PICTURES = Pictures()
"""The pictures that this process keeps."""


def read_row(file: BinaryIO, key: Key, footer: Footer, cell: Cell) -> list[Any]:
    """Read the value of a cell of the Parquet `file`, and keep its neighbours; in a list, empty if there is none.

    Raises OSError if the file is damaged, or has no such row.
    """
    group, guarded = footer.group_of(cell.row), Guarded(file, MOST_READ)
    try:
        return _scan(guarded, key, footer, group, cell)
    except Exception as error:
        raise _as_os_error(guarded, error) from None


def _scan(file: Guarded, key: Key, footer: Footer, group: int, cell: Cell) -> list[Any]:
    """Read a row group, at least up to the row of `cell`, and keep its pictures; the cell's value in a list."""
    parquet = pq.ParquetFile(file, metadata=footer.metadata, buffer_size=BUFFER, pre_buffer=False)
    numbers = leaves(parquet, cell.column)
    kind = parquet.schema_arrow.field(cell.column).type if numbers else None
    if kind is None or not (is_picture(kind) or is_picture_list(kind)):
        return []
    most = READ_AHEAD if footer.metadata.row_group(group).total_byte_size > WHOLE_GROUP else WHOLE_GROUP
    row, found, after = footer.starts[group], list[Any](), 0
    for value in values(parquet, group, cell.column, cell.column):
        PICTURES.put(key, cell.column, row, value)
        if row == cell.row:
            found = [value]
        after += _length(value) if found else 0
        if after > most:
            break
        row += 1
    return found


def values(parquet: pq.ParquetFile, group: int, column: str, path: str) -> Iterator[Any]:
    """The values of `column` in a row group, as far as they are in the physical columns at `path`, some at a time."""
    info = parquet.metadata.row_group(group)
    rows = min(MOST_ROWS, info.num_rows * BATCH_BYTES // max(info.total_byte_size, 1) + 1)
    for batch in parquet.iter_batches(rows, row_groups=[group], columns=[path], use_threads=False):
        yield from (value.as_py() for value in batch.column(column))


def picture_in(found: list[Any], cell: Cell) -> bytes:
    """The picture of `cell` in its value, which `found` holds; raises OSError if there is none."""
    value = found[0] if found else None
    if not found:
        raise OSError(f"the file has no column {cell.column!r} of pictures")
    if cell.place is not None and isinstance(value, list):
        value = value[cell.place] if cell.place < len(value) else None
    name = text_of(value.get("path")) if isinstance(value, dict) else ""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise OSError("the cell has no picture")
    if cell.name and name and file_name(name) != cell.name:
        raise OSError(f"the row has another picture now, {file_name(name)}: were its rows sorted anew?")
    return data


def text_of(path: object) -> str:
    """The path that a cell gives its picture, empty if that is no text; some programs write texts as bytes of UTF-8."""
    if isinstance(path, bytes):
        try:
            return path.decode()
        except UnicodeDecodeError:
            return ""
    return path if isinstance(path, str) else ""


def file_name(path: str) -> str:
    """The last name of the path that a cell gives its picture."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]
