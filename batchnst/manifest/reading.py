"""Read a manifest: check all rows, report all errors together, and make pairs of the rows."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.errors import InputError, ManifestError, RecipeError, StorageError
from batchnst.manifest.manifest import SCHEMA, Manifest
from batchnst.manifest.pair import derive_id, mask_problems, style_shares, to_json, to_texts
from batchnst.manifest.readers import (
    BLOCK_ROWS,
    KNOWN_COLUMNS,
    LIST_COLUMNS,
    READERS,
    RECIPE_KEYS,
    Row,
    Unreadable,
    first_bad_line,
)
from batchnst.pictures.encode import FORMATS, OPAQUE
from batchnst.recipe import Recipe, is_start_picture, is_weights_file
from batchnst.redaction import public, redact
from batchnst.storage.addresses import address_problem
from batchnst.storage.files import is_uri, open_file, parent, resolve

_ID = re.compile(r"[A-Za-z0-9._-]{1,200}")

_NAMES_SCHEMA = pa.schema({"line": pa.int64(), "id": pa.string(), "output": pa.string(), "folded": pa.string()})
"""Columns to find duplicates in; `folded` is the output without differences of case and Unicode form."""

MAX_NAME = 255
"""Longest name of a file or folder that Linux file systems take, in bytes."""

MAX_PATH = 4095
"""Longest path of a file on Linux, in bytes."""

MAX_KEY = 1024
"""Longest name of a file that S3, Google's and Azure's stores take, in bytes, folders and all."""


def read_manifest(address: str, settings: Mapping[str, Any], out: str | None = None) -> Manifest:
    """Read the pairs of the manifest at `address`; a row's recipe keys override `settings` (from file and options).

    `out` is the folder or URI to paint into, if known: it limits the length of an `output`. Raises ManifestError with
    all errors of all rows, each with its line.
    """
    place = public(address)
    reader = READERS.get(PurePosixPath(place).suffix.lower())
    if reader is None:
        raise ManifestError(address, [f"expected a manifest that ends in {', '.join(READERS)}"])
    builder, unreadable = _Builder(parent(place), settings, _longest_output(out)), None
    try:
        with open_file(address) as file:
            for line, row in reader(file):
                builder.add(line, row)
    except (InputError, StorageError) as error:
        raise ManifestError(address, [str(error).removeprefix(f"{redact(address)}: ")]) from None
    except Unreadable as error:
        unreadable = str(error)
    except UnicodeDecodeError:
        unreadable = first_bad_line(address)
    return builder.finish(address, unreadable)


def resolve_settings(settings: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Copy recipe settings, with addresses in `init` and `weights` resolved against the folder `base`."""
    resolved = dict(settings)
    for key, is_address in (("init", is_start_picture), ("weights", is_weights_file)):
        value = settings.get(key)
        if isinstance(value, str) and is_address(value):
            resolved[key] = resolve(value, base)
    return resolved


class _Table:
    """A table that is built row by row, and stored in columns."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._blocks: list[pa.RecordBatch] = []
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        """Add a row, with its values in the schema's order."""
        self._rows.append(row)
        if len(self._rows) == BLOCK_ROWS:
            self._pack()

    def finish(self) -> list[pa.RecordBatch]:
        """The whole table, in blocks of BLOCK_ROWS rows; the last one may have fewer."""
        self._pack()
        return self._blocks

    def _pack(self) -> None:
        """Convert the latest rows to a block of columns."""
        if self._rows:
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._blocks.append(pa.record_batch(columns, self._schema))
            self._rows = []


class _Builder:
    """Makes pairs of rows, and collects the problems of all rows."""

    def __init__(self, base: str, settings: Mapping[str, Any], longest_output: int) -> None:
        """`base` is the manifest's folder, for relative addresses; `longest_output` is in bytes."""
        self.base, self.settings, self.longest_output = base, dict(settings), longest_output
        self._pairs, self._names = _Table(SCHEMA), _Table(_NAMES_SCHEMA)
        self._problems: list[tuple[int, str]] = []
        self._line = 0
        self._recipe = lru_cache(maxsize=1024)(self._read_recipe)
        self._resolved = lru_cache(maxsize=1024)(self._resolve_all)
        self._shares = lru_cache(maxsize=1024)(style_shares)
        self._address_problem = lru_cache(maxsize=1024)(lambda text: address_problem(text) if is_uri(text) else None)

    def add(self, line: int, row: Row | str) -> None:
        """Add the row at `line`, or the problem that makes the line unreadable."""
        self._line, problems_before = line, len(self._problems)
        if isinstance(row, str):
            self._report(row)
            return
        row = {key: value for key, value in row.items() if value not in (None, "", [])}
        for column in ("content", "style"):
            if column not in row:
                self._report("is missing; expected a path or URI", column)
        self._check_texts(row)
        self._check_addresses(row)
        styles = to_texts(row.get("style"))
        weights = self._style_weights(row, styles)
        masks = to_texts(row.get("content_mask")), to_texts(row.get("style_mask"))
        for column, problem in mask_problems(len(styles), *map(len, masks)):
            self._report(problem, column)
        settings = self._row_settings(row)
        recipe, problems = self._recipe(settings)
        for problem in problems:
            self._report(problem)
        pair_id = str(row["id"]) if "id" in row else derive_id(row)
        self._check_id(pair_id)
        output = self._check_output(str(row.get("output", f"{pair_id}.{recipe.format}")), recipe)
        # Some stores ignore case or Unicode forms: outputs that differ only there could be one file.
        self._names.add(line, pair_id, output, unicodedata.normalize("NFC", output).casefold())
        if len(self._problems) == problems_before:
            extra = {key: value for key, value in row.items() if key not in KNOWN_COLUMNS}
            self._pairs.add(
                pair_id,
                resolve(str(row["content"]), self.base),
                self._resolved(styles),
                weights,
                self._resolved(masks[0]),
                self._resolved(masks[1]),
                output,
                settings,
                to_json(extra) if extra else "{}",
            )

    def _report(self, text: str, column: str = "") -> None:
        """Record a problem of the current row."""
        where = f"line {self._line}, {column}" if column else f"line {self._line}"
        self._problems.append((self._line, f"{where}: {text}"))

    def finish(self, address: str, unreadable: str | None) -> Manifest:
        """Return all pairs; raises ManifestError if there are problems, in the order of lines, `unreadable` last."""
        self._report_duplicates(pa.Table.from_batches(self._names.finish(), _NAMES_SCHEMA))
        problems = [text for _, text in sorted(self._problems, key=itemgetter(0))]
        pairs = self._pairs.finish()
        if unreadable:
            problems.append(unreadable)
        elif not problems and not pairs:
            problems.append("has no rows; expected at least one pair of content and style")
        if problems:
            raise ManifestError(address, problems)
        return Manifest(address, pairs, self.settings)

    def _resolve_all(self, addresses: tuple[str, ...]) -> list[str]:
        return [resolve(address, self.base) for address in addresses]

    def _row_settings(self, row: Row) -> str:
        """The row's recipe keys as JSON, with addresses resolved."""
        settings = {key: value for key, value in row.items() if key in RECIPE_KEYS}
        return to_json(resolve_settings(settings, self.base)) if settings else "{}"

    def _read_recipe(self, row_settings: str) -> tuple[Recipe, tuple[str, ...]]:
        """A row's recipe and its problems; the default recipe if there are problems."""
        try:
            recipe = Recipe.from_settings({**self.settings, **json.loads(row_settings)})
        except RecipeError as error:
            return Recipe(), error.problems
        addresses = {"init": recipe.init, "weights": recipe.weights}
        found = ((key, self._address_problem(address)) for key, address in addresses.items())
        return recipe, tuple(f"{key}: {problem}" for key, problem in found if problem)

    def _style_weights(self, row: Row, styles: tuple[str, ...]) -> tuple[float, ...]:
        """Weights of the styles, scaled to sum to 1; equal weights if the row has none."""
        try:
            return self._shares(to_texts(row.get("style_weights")), len(styles))
        except ValueError as error:
            if styles:
                self._report(str(error), "style_weights")
            return ()

    def _check_texts(self, row: Row) -> None:
        """Report columns that hold neither text nor, in LIST_COLUMNS, a list of texts."""
        for column in ("content", "output", "style", "content_mask", "style_mask"):
            value = row.get(column, "")
            parts = value if column in LIST_COLUMNS and isinstance(value, list | tuple) else [value]
            if not all(isinstance(part, str) for part in parts):
                self._report(f"expected text, found {to_json(value)[:40]}", column)

    def _check_addresses(self, row: Row) -> None:
        """Report addresses that carry passwords, keys or options."""
        for column in ("content", "style", "content_mask", "style_mask"):
            for address in to_texts(row.get(column)):
                if problem := self._address_problem(address):
                    self._report(problem, column)

    def _check_id(self, pair_id: str) -> None:
        if not _ID.fullmatch(pair_id) or not pair_id.strip("."):
            self._report(f"{pair_id!r} is not allowed; expected up to 200 letters, digits, '.', '_' or '-'", "id")

    def _check_output(self, output: str, recipe: Recipe) -> str:
        """Report an output that is not allowed; returns its normalised path."""
        path = PurePosixPath(output)
        if path.is_absolute() or ".." in path.parts or "\\" in output or "\0" in output:
            self._report(f"{output!r} leaves OUT; expected a path inside its images/ folder", "output")
        elif path.suffix.lower() not in FORMATS:
            self._report(f"{output!r} cannot be written; expected a name that ends in {', '.join(FORMATS)}", "output")
        elif problem := self._length_problem(path):
            self._report(f"{output[:40]!r}… {problem}", "output")
        elif recipe.alpha == "keep" and FORMATS[path.suffix.lower()] in OPAQUE:
            self._report(
                f"{output!r} holds no transparency, but alpha is keep; expected .png, .webp, .avif or .tif", "output"
            )
        return str(path)

    def _length_problem(self, path: PurePosixPath) -> str | None:
        """Explain why an output is longer than a file system takes; None if it is not."""
        longest = max(len(os.fsencode(name)) for name in path.parts)
        if longest > MAX_NAME:
            return f"has a name of {longest} bytes; expected at most {MAX_NAME}"
        length = len(os.fsencode(path))
        if length > self.longest_output:
            return f"is {length} bytes long; expected at most {self.longest_output}, so that it fits into OUT"
        return None

    def _report_duplicates(self, names: pa.Table) -> None:
        """Report each row whose id an earlier row has.

        Of the other rows, report each whose output an earlier row has, or is a folder of another row's output.
        """
        reported = []
        for line, pair_id, first in _duplicates(names, "id", "id"):
            self._line = line
            self._report(f"{pair_id!r} is already the id of line {first}; expected a unique one", "id")
            reported.append(line)
        others = names.filter(pc.invert(pc.is_in(names["line"], pa.array(reported, pa.int64()))))
        for line, output, first in _duplicates(others, "folded", "output"):
            self._line = line
            self._report(f"{output!r} is already the output of line {first}; expected a unique one", "output")
        for line, output, other in _folders(others):
            self._line = line
            self._report(f"{output!r} is a folder of the output of line {other}; expected a file of its own", "output")


def _longest_output(out: str | None) -> int:
    """Longest `output` for pictures in `out`, in bytes."""
    if out is None:
        return MAX_PATH - len("images/")
    if is_uri(out) and not out.startswith("file://"):
        return MAX_KEY - len(os.fsencode(f"{urlsplit(out).path.strip('/')}/images/"))
    return MAX_PATH - len(os.fsencode(f"{os.path.abspath(out.removeprefix('file://'))}/images/"))


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
