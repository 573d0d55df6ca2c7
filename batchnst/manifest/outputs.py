"""Check where pictures are written: inside OUT, in a format that can hold them, and each to a file of its own."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.manifest.row_columns import by_value, contain, mask
from batchnst.pictures.encode import FORMATS, OPAQUE
from batchnst.recipe import Recipe
from batchnst.storage.files import is_uri, local_path
from batchnst.text_hashes import Hashes, hashes, repeated

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Control characters, which no output may have."""

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
        return MAX_KEY - len(os.fsencode(f"{out.partition('://')[2].partition('/')[2].strip('/')}/images/"))
    return MAX_PATH - len(os.fsencode(f"{local_path(out)}/images/"))


def output_problem(output: str, longest: int) -> str | None:
    """Explain why `output` is not allowed; None if it is. `longest` is that of a path, in bytes."""
    path = PurePosixPath(output)
    if path.is_absolute() or ".." in path.parts or "\\" in output:
        return f"{output!r} leaves OUT; expected a path inside its images/ folder"
    if CONTROL.search(output):  # the ledger's readers take a row with such a name for a damaged one
        return f"{output!r} has a control character, such as the end of a line; expected a name without"
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


_SIMPLE_NAME = r"\.{0,2}[ -\-0-\[\]-~][ -.0-\[\]-~]*"
SIMPLE_OUTPUT = rf"^(?:{_SIMPLE_NAME}/)*{_SIMPLE_NAME}\.(?i:{'|'.join(ending[1:] for ending in FORMATS)})$"
"""Regular expression of outputs that are allowed, if they are not too long, and already normal. Others may be, too."""


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
    """The ids and outputs of many rows, of which only hashes are kept."""

    def __init__(self) -> None:
        self._ids, self._outputs, self._folders = list[Hashes](), list[Hashes](), list[Hashes]()
        self._nested = list[NDArray[np.bool_]]()

    def add(self, ids: pa.Array, outputs: pa.Array) -> None:
        """Add rows; `outputs` are normalised paths."""
        folded = _fold(outputs)
        nested = mask(contain(folded, "/"))
        parents = _parents(folded.filter(pa.array(nested))) if nested.any() else []
        self._ids.append(hashes(ids))
        self._outputs.append(hashes(folded))
        self._folders.append(np.array([*{hash(folder) for parent in parents for folder in _with_parents(parent)}], int))
        self._nested.append(nested)

    def suspects(self) -> NDArray[np.int64]:
        """The numbers of all rows that may collide with others, from 0, in ascending order."""
        if not self._ids:
            return np.array([], int)
        outputs = np.concatenate(self._outputs)
        suspect = repeated(np.concatenate(self._ids)) | repeated(outputs)
        folders = np.isin(outputs, np.unique(np.concatenate(self._folders)))
        if folders.any():
            suspect |= folders | np.concatenate(self._nested)
        return np.flatnonzero(suspect)


def clashes(lines: Sequence[int], ids: pa.Array, outputs: pa.Array) -> Iterator[Clash]:
    """Find each row whose id an earlier row has.

    Of the other rows, find each whose output an earlier row has, or is a folder of another row's output. `outputs` are
    normalised paths.
    """
    columns = {"line": pa.array(lines, pa.int64()), "id": ids, "output": outputs, "folded": _fold(outputs)}
    names = pa.table(columns)
    repeated_ids = [Clash(line, "id", pair_id, first) for line, pair_id, first in _duplicates(names, "id", "id")]
    yield from repeated_ids
    taken = pa.array([clash.line for clash in repeated_ids], pa.int64())
    others = names.filter(pc.invert(pc.is_in(names["line"], taken)))
    for line, output, first in _duplicates(others, "folded", "output"):
        yield Clash(line, "output", output, first)
    for line, output, other in _folders(others):
        yield Clash(line, "output", output, other, is_folder=True)


def _fold(outputs: pa.Array) -> pa.Array:
    """The outputs without what some stores ignore, case and Unicode form: those that are equal could be one file."""
    return by_value(
        outputs,
        pc.string_is_ascii(outputs),
        pc.ascii_lower,
        lambda output: unicodedata.normalize("NFC", output).casefold(),
    )


def _parents(outputs: pa.Array) -> list[str]:
    """The folders of outputs, each once."""
    return list(pc.unique(pc.replace_substring_regex(outputs, "/[^/]*$", "")).to_pylist())


def _with_parents(folder: str) -> list[str]:
    return [folder, *map(str, PurePosixPath(folder).parents)]


def _folders(names: pa.Table) -> Iterator[tuple[int, str, int]]:
    """Find outputs that are folders of other outputs: their line, the output, and the first line of such another."""
    nested = names.filter(pc.match_substring(names["folded"], "/"))
    parents = pa.table({"line": nested["line"], "parent": pc.replace_substring_regex(nested["folded"], "/[^/]*$", "")})
    lines: dict[str, int] = {}
    for row in parents.group_by("parent").aggregate([("line", "min")]).to_pylist():
        for folder in _with_parents(row["parent"]):
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
