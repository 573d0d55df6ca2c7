"""Read tables as spreadsheets write them: CSV with any usual separator, and with empty columns and rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnst.manifest.blocks import BLOCK_ROWS
from batchnst.manifest.columns import KNOWN_COLUMNS, Row, Unreadable, check_columns
from batchnst.manifest.row_columns import Cells, mask

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
"""Separators of columns, and their names."""

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\s,;]*', re.IGNORECASE | re.DOTALL)
"""The line by which a spreadsheet tells its separator."""


def read_table(text: TextIO) -> Iterator[Cells | tuple[int, Row | str]]:
    """Yield many rows at a time, or the line number of a problem; `text` keeps its line ends."""
    skipped, separator, first = _begin(text)
    reader = csv.reader(chain([first], text), strict=True, delimiter=separator or _separator(first))
    values, lines = list[str](), list[int]()  # without a list for each row, which the garbage collector would look at
    header: list[str] = []
    end = 0
    try:
        header = _names(next(reader, []))
        _check(header, first)
        end = reader.line_num
        for cells in reader:
            line, end = skipped + end + 1, reader.line_num
            if len(cells) != len(header):
                while len(cells) > len(header) and not cells[-1].strip():
                    cells.pop()
                if len(cells) > len(header):
                    yield line, f"has {len(cells)} cells; expected {len(header)}, one for each column of the header"
                    continue
                cells += [""] * (len(header) - len(cells))
            values.extend(map(str.strip, cells))
            lines.append(line)
            if len(lines) == BLOCK_ROWS:
                yield _cells(header, values, lines)
                values, lines = [], []
    except (csv.Error, UnicodeError) as error:
        if lines:
            yield _cells(header, values, lines)
        if isinstance(error, UnicodeError):
            raise
        reason = _plainer(str(error), skipped + end + 1)
        raise Unreadable(f"line {skipped + reader.line_num}: not valid CSV: {reason}") from None
    if lines:
        yield _cells(header, values, lines)


def _plainer(error: str, line: int) -> str:
    """An error of the reader in plain words; its row begins in `line`."""
    if error.startswith("unexpected end"):
        return f"a quotation mark in line {line} or below is not closed"
    if error.startswith("field larger"):
        most = csv.field_size_limit()
        return f"a cell has more than {most:,} characters; is a quotation mark in line {line} not closed?"
    return error


def _cells(header: list[str], values: list[str], lines: list[int]) -> Cells:
    """Rows in columns, without those whose cells are all empty; `values` are those of all rows, end to end."""
    columns = {name: pa.array(values[i :: len(header)], pa.string()) for i, name in enumerate(header)}
    cells = Cells.of(np.array(lines), columns, split=True)
    content = cells.columns.get("content")
    if content is not None and not content.null_count:
        return cells
    filled = [np.zeros(len(lines), bool), *(mask(pc.is_valid(column)) for column in cells.columns.values())]
    return cells.filter(np.any(filled, axis=0))


def _begin(text: TextIO) -> tuple[int, str | None, str]:
    """Skip empty lines and a line that tells the separator; return their number, that separator, and the next line."""
    separator = None
    for skipped, line in enumerate(text):
        if told := _SEPARATOR_LINE.fullmatch(line):
            separator = told[1]
        elif line.strip(' \t\r\n,;"'):
            if "\0" in line:
                raise Unreadable("has bytes of zero in its first line, as UTF-16 without a mark; save it as UTF-8")
            return skipped, separator, line
    return 0, separator, ""


def _separator(header: str) -> str:
    """The separator of the columns in the line `header`: one that gives `content` and `style`, else most columns."""
    cells = {separator: _names(next(csv.reader([header], delimiter=separator), [])) for separator in SEPARATORS}
    return max(SEPARATORS, key=lambda separator: ({"content", "style"} <= {*cells[separator]}, len(cells[separator])))


def _names(cells: list[str]) -> list[str]:
    """Names of columns; without empty ones at the end, which spreadsheets add, and with numbers for others."""
    names = [cell.strip().strip("\ufeff") for cell in cells]  # files that were joined have a mark of each
    while names and not names[-1]:
        names.pop()
    names = [name or f"column {number}" for number, name in enumerate(names, 1)]
    return [name.lower() if name.lower() in KNOWN_COLUMNS else name for name in names]


def _check(header: list[str], first: str) -> None:
    """Raise Unreadable if a column is missing or there twice; `first` is the line of the header."""
    try:
        check_columns(header)
    except Unreadable as error:
        known = {name.strip().lower() for name in re.split(r"[|:^~]", first)} & {"content", "style"}
        if len(header) > 1 or len(known) < 2:
            raise
        names = ", ".join(SEPARATORS.values())
        raise Unreadable(f"{error}; its columns are not separated by one of: {names}") from None
