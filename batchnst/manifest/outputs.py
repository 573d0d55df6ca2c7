"""Check where pictures are written: inside OUT, in a format that can hold them, and each to a file of its own."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.manifest.blocks import Table
from batchnst.pictures.encode import FORMATS, OPAQUE
from batchnst.recipe import Recipe
from batchnst.storage.files import is_uri, local_path

_SCHEMA = pa.schema({"line": pa.int64(), "id": pa.string(), "output": pa.string(), "folded": pa.string()})
"""Columns to find duplicates in; `folded` is the output without differences of case and Unicode form."""

MAX_NAME = 255
"""Longest name of a file or folder that Linux file systems take, in bytes."""

MAX_PATH = 4095
"""Longest path of a file on Linux, in bytes."""

MAX_KEY = 1024
"""Longest name of a file that S3, Google's and Azure's stores take, in bytes, folders and all."""

MAX_SIDES = {"WEBP": 16_383, "JPEG": 65_500, "AVIF": 32_768}
"""Longest side of a picture that can be written and read again, in pixels; other formats take all that recipes paint.

JPEG's and AVIF's are those of the libraries libjpeg and libavif.
"""

LONGEST_OUTPUT = MAX_PATH - len("images/")
"""Longest `output` if OUT is not known, in bytes."""


def longest_output(out: str | None) -> int:
    """Longest `output` for pictures in the folder or URI `out`, in bytes."""
    if out is None:
        return LONGEST_OUTPUT
    if is_uri(out) and not out.startswith("file://"):
        return MAX_KEY - len(os.fsencode(f"{urlsplit(out).path.strip('/')}/images/"))
    return MAX_PATH - len(os.fsencode(f"{local_path(out)}/images/"))


def output_problem(output: str, longest: int) -> str | None:
    """Explain why `output` is not allowed; None if it is. `longest` is that of a path, in bytes."""
    path = PurePosixPath(output)
    if path.is_absolute() or ".." in path.parts or "\\" in output or "\0" in output:
        return f"{output!r} leaves OUT; expected a path inside its images/ folder"
    if path.suffix.lower() not in FORMATS:
        return f"{output!r} cannot be written; expected a name that ends in {', '.join(FORMATS)}"
    if problem := _length_problem(path, longest):
        return f"{output[:40]!r}… {problem}"
    return None


def _length_problem(path: PurePosixPath, longest: int) -> str | None:
    """Explain why a path is longer than a file system takes; None if it is not."""
    name = max(len(os.fsencode(name)) for name in path.parts)
    if name > MAX_NAME:
        return f"has a name of {name} bytes; expected at most {MAX_NAME}"
    length = len(os.fsencode(path))
    if length > longest:
        return f"is {length} bytes long; expected at most {longest}, so that it fits into OUT"
    return None


def format_problem(output: str, recipe: Recipe) -> str | None:
    """Explain why the format of `output` cannot hold what `recipe` paints; None if it can."""
    kind = FORMATS[PurePosixPath(output).suffix.lower()]
    if recipe.alpha == "keep" and kind in OPAQUE:
        return f"{output!r} holds no transparency, but alpha is keep; expected .png, .webp, .avif or .tif"
    if recipe.has_one_size and recipe.pixels > (most := MAX_SIDES.get(kind, recipe.pixels)):
        return f"{output!r} holds at most {most:,} pixels on a side, size is {recipe.pixels:,}; expected .png or .tif"
    return None


@dataclass(frozen=True)
class Clash:
    """A row whose id or output collides with that of the row at the line `other`.

    column: `id` or `output`. value: that of this row. is_folder: the output is a folder of the other's.
    """

    line: int
    column: str
    value: str
    other: int
    is_folder: bool = False


class Names:
    """The ids and outputs of many rows, in columns."""

    def __init__(self) -> None:
        self._table = Table(_SCHEMA)

    def add(self, line: int, pair_id: str, output: str) -> None:
        """Add the row at `line`; `output` is a normalised path."""
        # Some stores ignore case or Unicode forms: outputs that differ only there could be one file.
        self._table.add(line, pair_id, output, unicodedata.normalize("NFC", output).casefold())

    def clashes(self) -> Iterator[Clash]:
        """Find each row whose id an earlier row has.

        Of the other rows, find each whose output an earlier row has, or is a folder of another row's output.
        """
        names = pa.Table.from_batches(self._table.finish(), _SCHEMA)
        repeated = [Clash(line, "id", pair_id, first) for line, pair_id, first in _duplicates(names, "id", "id")]
        yield from repeated
        lines = pa.array([clash.line for clash in repeated], pa.int64())
        others = names.filter(pc.invert(pc.is_in(names["line"], lines)))
        for line, output, first in _duplicates(others, "folded", "output"):
            yield Clash(line, "output", output, first)
        for line, output, other in _folders(others):
            yield Clash(line, "output", output, other, is_folder=True)


def _folders(names: pa.Table) -> Iterator[tuple[int, str, int]]:
    """Find outputs that are folders of other outputs: their line, the output, and the first line of such another."""
    nested = names.filter(pc.match_substring(names["folded"], "/"))
    parents = pa.table({"line": nested["line"], "parent": pc.replace_substring_regex(nested["folded"], "/[^/]*$", "")})
    lines: dict[str, int] = {}
    for row in parents.group_by("parent").aggregate([("line", "min")]).to_pylist():
        for folder in [row["parent"], *map(str, PurePosixPath(row["parent"]).parents)]:
            lines[folder] = min(row["line_min"], lines.get(folder, row["line_min"]))
    for row in names.filter(pc.is_in(names["folded"], pa.array(list(lines), pa.string()))).to_pylist():
        yield row["line"], row["output"], lines[row["folded"]]


def _duplicates(names: pa.Table, key: str, label: str) -> Iterator[tuple[int, str, int]]:
    """Find rows whose value of `key` an earlier row has: their line, their `label`, and that row's line."""
    counted = names.group_by(key).aggregate([("line", "min"), ("line", "count")])
    shared = counted.filter(pc.greater(counted["line_count"], 1))
    first = dict(zip(shared[key].to_pylist(), shared["line_min"].to_pylist(), strict=True))
    for row in names.filter(pc.is_in(names[key], shared[key])).to_pylist():
        if row["line"] != first[row[key]]:
            yield row["line"], row[label], first[row[key]]
