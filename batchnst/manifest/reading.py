"""Reading a manifest: rows become pairs, and the errors of all rows are reported together."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.errors import InputError, ManifestError, RecipeError, StorageError
from batchnst.manifest.manifest import COLUMNS, Manifest
from batchnst.manifest.pair import derive_id, mask_problems, style_shares, to_json, to_texts
from batchnst.manifest.readers import BLOCK, KNOWN, LISTS, READERS, RECIPE_KEYS, Row, Unreadable, first_bad_line
from batchnst.pictures.encode import FORMATS, OPAQUE
from batchnst.recipe import Recipe, is_start_picture, is_weights_file
from batchnst.storage.files import open_file, parent, resolve

_ID = re.compile(r"[A-Za-z0-9._-]{1,200}")

_NAMES = pa.schema({"line": pa.int64(), "id": pa.string(), "output": pa.string(), "folded": pa.string()})


def read_manifest(address: str, settings: Mapping[str, Any]) -> Manifest:
    """The pairs of a manifest; each row's recipe keys go over `settings` (recipe file and options).

    Raises ManifestError with every error of every row, each with its line.
    """
    reader = READERS.get(PurePosixPath(address).suffix.lower())
    if reader is None:
        raise ManifestError(address, [f"expected a manifest that ends in {', '.join(READERS)}"])
    builder, unreadable = _Builder(parent(address), settings), None
    try:
        with open_file(address) as file:
            for line, row in reader(file):
                builder.add(line, row)
    except (InputError, StorageError) as error:
        raise ManifestError(address, [str(error).removeprefix(f"{address}: ")]) from None
    except Unreadable as error:
        unreadable = str(error)
    except UnicodeDecodeError:
        unreadable = first_bad_line(address)
    return builder.finish(address, unreadable)


def resolve_settings(settings: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Recipe settings with the addresses among them resolved against the folder they were written in."""
    resolved = dict(settings)
    for key, is_address in (("init", is_start_picture), ("weights", is_weights_file)):
        value = settings.get(key)
        if isinstance(value, str) and is_address(value):
            resolved[key] = resolve(value, base)
    return resolved


class _Table:
    """Rows of a table on their way into columns."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._blocks: list[pa.RecordBatch] = []
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        """One more row, its values in the schema's order."""
        self._rows.append(row)
        if len(self._rows) == BLOCK:
            self._pack()

    def finish(self) -> list[pa.RecordBatch]:
        """The table, in blocks of BLOCK rows."""
        self._pack()
        return self._blocks

    def _pack(self) -> None:
        if self._rows:
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._blocks.append(pa.record_batch(columns, self._schema))
            self._rows = []


class _Builder:
    """Turns rows into pairs, and keeps the problems of those it cannot turn."""

    def __init__(self, base: str, settings: Mapping[str, Any]) -> None:
        self.base, self.settings = base, dict(settings)
        self._pairs, self._names = _Table(COLUMNS), _Table(_NAMES)
        self._problems: list[tuple[int, str]] = []
        self._line = 0
        self._recipe = lru_cache(maxsize=1024)(self._read_recipe)
        self._resolved = lru_cache(maxsize=1024)(self._resolve_all)
        self._shares = lru_cache(maxsize=1024)(style_shares)

    def add(self, line: int, row: Row | str) -> None:
        """Take a row, or what makes it unreadable."""
        self._line, before = line, len(self._problems)
        if isinstance(row, str):
            self.complain(row)
            return
        row = {key: value for key, value in row.items() if value not in (None, "", [])}
        for column in ("content", "style"):
            if column not in row:
                self.complain("is missing; expected a path or URI", column)
        self._check_texts(row)
        styles = to_texts(row.get("style"))
        weights = self._style_weights(row, styles)
        masks = to_texts(row.get("content_mask")), to_texts(row.get("style_mask"))
        for column, problem in mask_problems(len(styles), *map(len, masks)):
            self.complain(problem, column)
        settings = self._own_settings(row)
        recipe, problems = self._recipe(settings)
        for problem in problems:
            self.complain(problem)
        pair_id = str(row["id"]) if "id" in row else derive_id(row)
        self._check_id(pair_id)
        output = self._check_output(str(row.get("output", f"{pair_id}.{recipe.format}")), recipe)
        # One file on a store that folds case or Unicode forms is one output everywhere.
        self._names.add(line, pair_id, output, unicodedata.normalize("NFC", output).casefold())
        if len(self._problems) == before:
            extra = {key: value for key, value in row.items() if key not in KNOWN}
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

    def complain(self, text: str, column: str = "") -> None:
        """Keep a problem of the row in hand."""
        where = f"line {self._line}, {column}" if column else f"line {self._line}"
        self._problems.append((self._line, f"{where}: {text}"))

    def finish(self, address: str, unreadable: str | None) -> Manifest:
        """All pairs, or ManifestError with all problems in the order of their lines, the file's own at the end."""
        self._find_doubles(pa.Table.from_batches(self._names.finish(), _NAMES))
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

    def _own_settings(self, row: Row) -> str:
        own = {key: value for key, value in row.items() if key in RECIPE_KEYS}
        return to_json(resolve_settings(own, self.base)) if own else "{}"

    def _read_recipe(self, own: str) -> tuple[Recipe, tuple[str, ...]]:
        """A row's recipe, or the default one and what is wrong with its own."""
        try:
            return Recipe.from_settings({**self.settings, **json.loads(own)}), ()
        except RecipeError as error:
            return Recipe(), error.problems

    def _style_weights(self, row: Row, styles: tuple[str, ...]) -> tuple[float, ...]:
        """Weights of the styles, summing to 1; equal ones where none are given."""
        try:
            return self._shares(to_texts(row.get("style_weights")), len(styles))
        except ValueError as error:
            if styles:
                self.complain(str(error), "style_weights")
            return ()

    def _check_texts(self, row: Row) -> None:
        """Complain of columns that hold neither text nor, where it is allowed, a list of texts."""
        for column in ("content", "output", "style", "content_mask", "style_mask"):
            value = row.get(column, "")
            parts = value if column in LISTS and isinstance(value, list | tuple) else [value]
            if not all(isinstance(part, str) for part in parts):
                self.complain(f"expected text, found {to_json(value)[:40]}", column)

    def _check_id(self, pair_id: str) -> None:
        if not _ID.fullmatch(pair_id) or not pair_id.strip("."):
            self.complain(f"{pair_id!r} is not allowed; expected up to 200 letters, digits, '.', '_' or '-'", "id")

    def _check_output(self, output: str, recipe: Recipe) -> str:
        """The path as written out."""
        path = PurePosixPath(output)
        if path.is_absolute() or ".." in path.parts or "\\" in output or "\0" in output:
            self.complain(f"{output!r} leaves OUT; expected a path inside its images/ folder", "output")
        elif path.suffix.lower() not in FORMATS:
            self.complain(f"{output!r} cannot be written; expected a name that ends in {', '.join(FORMATS)}", "output")
        elif recipe.alpha == "keep" and FORMATS[path.suffix.lower()] in OPAQUE:
            self.complain(
                f"{output!r} holds no transparency, but alpha is keep; expected .png, .webp, .avif or .tif", "output"
            )
        return str(path)

    def _find_doubles(self, names: pa.Table) -> None:
        """Complain of every row but the first of those that share an id, then of those that share an output."""
        doubles = []
        for line, pair_id, first in _doubles(names, "id", "id"):
            self._line = line
            self.complain(f"{pair_id!r} is already the id of line {first}; expected a unique one", "id")
            doubles.append(line)
        others = names.filter(pc.invert(pc.is_in(names["line"], pa.array(doubles, pa.int64()))))
        for line, output, first in _doubles(others, "folded", "output"):
            self._line = line
            self.complain(f"{output!r} is already the output of line {first}; expected one of its own", "output")


def _doubles(names: pa.Table, key: str, shown: str) -> Iterator[tuple[int, str, int]]:
    """Line, name and the first one's line of every row whose `key` an earlier row has."""
    counted = names.group_by(key).aggregate([("line", "min"), ("line", "count")])
    shared = counted.filter(pc.greater(counted["line_count"], 1))
    first = dict(zip(shared[key].to_pylist(), shared["line_min"].to_pylist(), strict=True))
    for row in names.filter(pc.is_in(names[key], shared[key])).to_pylist():
        if row["line"] != first[row[key]]:
            yield row["line"], row[shown], first[row[key]]
