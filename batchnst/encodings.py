"""Find the encoding of a text file: by its mark, by its zeros, else UTF-8 or Windows' encoding of western languages."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

WESTERN = "cp1252"
"""The encoding in which spreadsheets on Windows save a CSV, in western Europe and America."""

_FOREIGN = re.compile(r"[À-ÖØ-öø-þŠšŽžŒœŸ]{3}|[^\x00-\x7f\xa0À-ÖØ-öø-þŠšŽžŒœŸ€‘’“”‚„–—…«»©®™°·²½¼¿¡§ªº´]")
"""Signs that a text in another encoding was read as WESTERN: three accented letters in a row, or rare characters."""

_PIECE = 1 << 20
"""Bytes that are looked at together."""


def marked_encoding(head: bytes) -> str | None:
    """The encoding that the first four bytes of a file tell, by a mark or by UTF-16's zeros; None if they do not."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if len(head) >= 4 and not any(head[1:4:2]) and all(head[0:4:2]):
        return "utf-16-le"
    if len(head) >= 4 and not any(head[0:4:2]) and all(head[1:4:2]):
        return "utf-16-be"
    return None


def find_encoding(file: BinaryIO, *, western: bool) -> str:
    """The encoding of a `file` without a mark, which is read: UTF-8, or, if `western` may be, WESTERN.

    Raises ValueError, which names the first line that is not UTF-8, if it is neither.
    """
    problem, is_unicode, advice = "", False, f", nor {WESTERN}" if western else ""
    for number, line in _foreign_lines(file):
        try:
            line.decode()
            is_unicode = True
        except UnicodeDecodeError as error:
            problem = problem or f"line {number}: not UTF-8 (byte {line[error.start]:#04x})"
            western = western and _is_western(line)
        if problem and (is_unicode or not western):
            raise ValueError(f"{problem}{advice}; save it as UTF-8")
    return WESTERN if problem else "utf-8"


def _foreign_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not ASCII, with their numbers, from 1."""
    before = 0
    while piece := file.read(_PIECE):
        piece += file.readline()
        if not piece.isascii():
            yield from ((n, line) for n, line in enumerate(piece.split(b"\n"), before + 1) if not line.isascii())
        before += piece.count(b"\n")


def _is_western(line: bytes) -> bool:
    try:
        return not _FOREIGN.search(line.decode(WESTERN))
    except UnicodeDecodeError:
        return False


def decode(data: bytes) -> str:
    """The text in the whole file `data`; raises ValueError, with the line, if its encoding is not marked, nor UTF-8."""
    return data.decode(marked_encoding(data[:4]) or find_encoding(io.BytesIO(data), western=False))
