"""Addresses of files inside other files: members of archives, and pictures in the cells of Parquet files.

| address | names |
| --- | --- |
| `zip://PATH::ARCHIVE`, `tar://PATH::ARCHIVE` | the member PATH of an archive, in fsspec's chained form |
| `parquet://COLUMN/ROW::FILE` | the picture in a row of a Parquet file; rows count from 0 |
| `parquet://COLUMN/ROW.PLACE/NAME::FILE` | the picture at PLACE, from 0, of a list; its name, as the cell has it |

COLUMN and NAME are percent-encoded, PATH is literal. What follows the last `::` is a path or URI of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

SCHEMES = ("zip", "tar", "parquet")
"""Schemes of addresses inside other files."""

_BEGINNINGS = tuple(f"{scheme}://" for scheme in SCHEMES)

_CELL = re.compile(r"(?P<column>[^/]+)/(?P<row>\d{1,18})(?:\.(?P<place>\d{1,9}))?(?:/(?P<name>[^/]+))?")

_FORMS = {
    "zip": "zip://PATH::ARCHIVE, such as zip://a/b.jpg::photos.zip",
    "tar": "tar://PATH::ARCHIVE, such as tar://a/b.jpg::photos.tar",
    "parquet": "parquet://COLUMN/ROW::FILE, such as parquet://image/17::photos.parquet",
}


@dataclass(frozen=True, slots=True)
class Chain:
    """An address in two parts: the path `inside` the file at the address `outer`; `scheme` is the kind of that file."""

    scheme: str
    inside: str
    outer: str

    @classmethod
    def of(cls, address: str) -> Self | None:
        """The parts of `address`; None if it is not inside another file."""
        if not address.startswith(_BEGINNINGS) or "::" not in address:
            return None
        inner, _, outer = address.rpartition("::")
        scheme, _, inside = inner.partition("://")
        return cls(scheme, inside, outer)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.inside}::{self.outer}"


@dataclass(frozen=True, slots=True)
class Cell:
    """The place of a picture in a Parquet file: a `column`, a `row`, and a `place` in its list, None if it has none.

    `row` and `place` count from 0. `name` is the picture's name in the cell, empty if it has none.
    """

    column: str
    row: int
    place: int | None = None
    name: str = ""

    @classmethod
    def of(cls, inside: str) -> Self | None:
        """The cell that the first part of a `parquet://` address names; None if it names none."""
        match = _CELL.fullmatch(inside)
        if match is None:
            return None
        place = match["place"]
        name = unquote(match["name"] or "")
        return cls(unquote(match["column"]), int(match["row"]), None if place is None else int(place), name)

    def address(self, file: str) -> str:
        """The address of this cell in the Parquet file at the address `file`."""
        place = "" if self.place is None else f".{self.place}"
        name = f"/{quote(self.name, safe='')}" if self.name else ""
        return f"parquet://{quote(self.column, safe='')}/{self.row}{place}{name}::{file}"


def outer_of(address: str) -> str:
    """The address of the file that holds `address`: an archive or Parquet file, or `address` itself."""
    chain = Chain.of(address)
    return chain.outer if chain else address


def is_cell(address: str) -> bool:
    """True if `address` is a cell of a Parquet file."""
    return address.startswith("parquet://")


def path_of(address: str) -> str:
    """`address` as a path whose last names tell the picture: of one inside an archive, the archive is a folder."""
    chain = Chain.of(address)
    if chain is None:
        return address
    cell = Cell.of(chain.inside) if chain.scheme == "parquet" else None
    return f"{chain.outer}/{(cell.name or f'{cell.column}-{cell.row}') if cell else chain.inside}"


def reading_order(address: str) -> tuple[str, int]:
    """Sort key that puts the cells of one file together, in the order of rows, behind all other addresses."""
    chain = Chain.of(address)
    cell = Cell.of(chain.inside) if chain and chain.scheme == "parquet" else None
    return (chain.outer, cell.row) if chain and cell else ("", 0)


def problem(address: str) -> str | None:
    """Why `address` is no address inside another file, although it begins like one; None if it is, or does not."""
    if not address.startswith(_BEGINNINGS):
        return None
    form = f"expected {_FORMS[address.partition(':')[0]]}"
    chain = Chain.of(address)
    if chain is None or not chain.inside or not chain.outer:
        return f"{address}: {form}"
    if re.search(r"::\w+://", chain.inside) or chain.outer.startswith(_BEGINNINGS):
        return f"{address}: a file inside a file inside another one cannot be read; extract the inner one"
    if chain.scheme == "parquet":
        return None if Cell.of(chain.inside) else f"{address}: {form}"
    if chain.inside.startswith("/") or ".." in chain.inside.split("/"):
        return f"{address}: leads out of its archive; {form}"
    return None
