"""Read the rows of a manifest's files, each with its line number: CSV, JSON Lines and Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, TextIO

from batchnst.encodings import WESTERN, find_encoding, marked_encoding
from batchnst.errors import RequestError
from batchnst.manifest.columns import Row, Unreadable
from batchnst.manifest.parquet_rows import read_parquet
from batchnst.manifest.row_columns import Cells
from batchnst.manifest.spreadsheet import read_table
from batchnst.redaction import public
from batchnst.storage.files import list_files, open_file
from batchnst.storage.s3 import canonical

Rows = Iterator[Cells | tuple[int, Row | str]]
"""Many rows at a time; or the line number of a row, with its values or with the problem that makes it unreadable."""


def _read_json_lines(text: TextIO) -> Rows:
    begun = False
    for line, data in enumerate(text, 1):
        if not data.strip():
            continue
        if not begun:
            data, begun = data.lstrip("\ufeff"), True
            _check_is_lines(data.strip())
        try:
            row = _DECODER.decode(data)
            if data.count("[") + data.count("{") > MOST_LEVELS and _depth(row) > MOST_LEVELS:
                raise ValueError(f"nested in more than {MOST_LEVELS} levels")
            if "\\u" in data:
                json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            zeros = "bytes of zero; was the file written to its end?" if "\0" in data else ""
            yield line, f"not valid JSON: {zeros or f'{error.msg} at column {error.colno}'}"
        except UnicodeEncodeError as error:
            yield line, f"has half of a character, \\u{ord(error.object[error.start]):04x}; expected both halves"
        except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
            yield line, f"not usable JSON: {error}"
        else:
            yield line, row if isinstance(row, dict) else f"expected a JSON object; found {data.strip()[:40]}"


def _check_is_lines(first: str) -> None:
    """Raise Unreadable if the first line of a file begins a JSON document of several lines."""
    if first.startswith("["):
        raise Unreadable("is a JSON array; expected an object in each line, as `jq -c '.[]'` writes")
    if first == "{":
        raise Unreadable("has objects of several lines; expected one in each line, as `jq -c .` writes")


def _object(members: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; raises ValueError if a name is there twice, of which `json` takes the last without a word."""
    row = dict(members)
    if len(row) < len(members):
        names = [name for name, _ in members]
        raise ValueError(f"has {next(name for name in row if names.count(name) > 1)!r} twice")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _depth(value: object) -> int:
    """The number of levels of lists and objects in `value`."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth


_TEXT_READERS: dict[str, tuple[Callable[[TextIO], Rows], str]] = {
    ".csv": (read_table, ""),
    ".jsonl": (_read_json_lines, "\n"),
    ".ndjson": (_read_json_lines, "\n"),
    ".tsv": (read_table, ""),
}
"""Readers of texts by file name ending, with the end of their lines; empty for any."""

MOST_LEVELS = 100
"""Most levels of lists and objects in a row of JSON: each reader of the ledger must be able to follow them."""

_NO_TEXT = {
    b"\x1f\x8b": "is compressed by gzip; expand it",
    b"PK\3\4": "is a workbook of a spreadsheet, or another zip; save it as CSV",
    b"\xd0\xcf\x11\xe0": "is a workbook of an old spreadsheet; save it as CSV",
    b"PAR1": "is a Parquet file; let its name end in .parquet",
}
"""Messages on files that are no text, by the beginnings of these files."""

CHUNK = 1 << 20
"""Bytes of a text that are read at a time."""

ENDINGS = [".csv", ".jsonl", ".ndjson", ".parquet", ".tsv"]
"""File name endings of manifests."""


PARQUET_BUFFER = 1 << 16
"""Bytes of a Parquet file that are fetched at once, at least: little, beside the pictures that it may hold."""


def ending(address: str) -> str:
    """The file name ending of an address, in lower case."""
    return PurePosixPath(canonical(public(address))).suffix.lower()


def find_files(address: str) -> list[str]:
    """The files of the manifest at `address`: itself, or the Parquet files in a folder and its subfolders, sorted.

    A folder's name may end in `.parquet`, as of those that Spark writes. Names that begin with `_` are passed over.
    Raises Unreadable if there are none, StorageError if the store does not answer.
    """
    known = ending(address) in ENDINGS
    if known and ending(address) != ".parquet":
        return [address]
    try:
        listed = list_files(address)
    except RequestError:  # a web server, which lists nothing
        listed = []
    files = [file for file in listed if ending(file) == ".parquet" and is_counted(file.removeprefix(address))]
    if not (files or known):
        raise Unreadable(f"expected a manifest that ends in {', '.join(ENDINGS)}, or a folder of Parquet files")
    return files or [address]


def is_counted(path: str) -> bool:
    """False if a folder or file of the relative `path` begins with `_`: other programs write those."""
    return not any(part.startswith("_") for part in path.split("/"))


def read_rows(address: str, name: str, note: Callable[[str], None]) -> Rows:
    """Yield the rows of the file at `address`; `note` is called with a remark on how it is read.

    `name` is its address in those of the pictures that it holds.

    Raises Unreadable if it cannot be read as a whole, and InputError as `open_file` does.
    """
    if ending(address) == ".parquet":
        with open_file(address, PARQUET_BUFFER) as file:
            yield from read_parquet(file, name, note)
        return
    with open_file(address) as file:
        reader, line_end = _TEXT_READERS[ending(address)]
        encoding = _encoding(file, western=reader is read_table)
        if encoding == WESTERN:
            note(f"is not UTF-8, and was read as {WESTERN}")
        with io.TextIOWrapper(file, encoding, newline=line_end) as text:
            text._CHUNK_SIZE = CHUNK  # type: ignore[attr-defined]  # each read has a deadline, and so a thread of its own
            try:
                yield from reader(text)
            except UnicodeError as error:
                raise Unreadable(f"is not {encoding}, though its first bytes say so: {error}") from None


def _encoding(file: BinaryIO, *, western: bool) -> str:
    """The encoding of a text file, which is at its beginning before and after."""
    head = file.read(4)
    file.seek(0)
    if found := next((found for beginning, found in _NO_TEXT.items() if head.startswith(beginning)), ""):
        raise Unreadable(found)
    encoding = marked_encoding(head)
    if encoding is None:
        try:
            encoding = find_encoding(file, western=western)
        except ValueError as error:
            raise Unreadable(str(error)) from None
        file.seek(0)
    return encoding
