"""Read tables as spreadsheets write them: CSV with any usual separator, and with empty columns and rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import TextIO

from batchnst.manifest.columns import KNOWN_COLUMNS, LIST_COLUMNS, Row, Unreadable, check_columns

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
"""Separators of columns, and their names."""

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\s,;]*', re.IGNORECASE | re.DOTALL)
"""The line by which a spreadsheet tells its separator."""


def read_table(text: TextIO) -> Iterator[tuple[int, Row | str]]:
    """Yield the line number of each row with its values, or with a problem; `text` keeps its line ends."""
    skipped, separator, first = _begin(text)
    reader = csv.reader(chain([first], text), strict=True, delimiter=separator or _separator(first))
    try:
        header = _names(next(reader, []))
        _check(header, first)
        end = reader.line_num
        for cells in reader:
            line, end = skipped + end + 1, reader.line_num
            cells = [cell.strip() for cell in cells]
            while len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if len(cells) > len(header):
                yield line, f"has {len(cells)} cells; expected {len(header)}, one for each column of the header"
            elif any(cells):
                yield line, _row(header, cells)
    except csv.Error as error:
        raise Unreadable(f"line {skipped + reader.line_num}: not valid CSV: {error}") from None


def _begin(text: TextIO) -> tuple[int, str | None, str]:
    """Skip empty lines and a line that tells the separator; return their number, that separator, and the next line."""
    separator = None
    for skipped, line in enumerate(text):
        if told := _SEPARATOR_LINE.fullmatch(line):
            separator = told[1]
        elif line.strip(' \t\r\n,;"'):
            return skipped, separator, line
    return 0, separator, ""


def _separator(header: str) -> str:
    """The separator of the columns in the line `header`: one that gives `content` and `style`, else most columns."""
    cells = {separator: _names(next(csv.reader([header], delimiter=separator), [])) for separator in SEPARATORS}
    return max(SEPARATORS, key=lambda separator: ({"content", "style"} <= {*cells[separator]}, len(cells[separator])))


def _names(cells: list[str]) -> list[str]:
    """Names of columns; without empty ones at the end, which spreadsheets add, and with numbers for others."""
    names = [cell.strip() for cell in cells]
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


def _row(header: list[str], cells: list[str]) -> Row:
    row: Row = dict(zip(header, cells, strict=False))
    for column in LIST_COLUMNS:
        if "|" in row.get(column, ""):
            row[column] = [part.strip() for part in row[column].split("|")]
    return row
