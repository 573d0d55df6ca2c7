"""Read a manifest: check all rows, report all errors together, and make pairs of the rows."""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchnst.errors import InputError, ManifestError, RecipeError, StorageError
from batchnst.manifest.blocks import BLOCK_ROWS, Blocks, to_batch
from batchnst.manifest.checking import Checks, check, in_columns
from batchnst.manifest.columns import ID_PATTERN, KNOWN_COLUMNS, LIST_COLUMNS, RECIPE_KEYS, Row, Unreadable
from batchnst.manifest.manifest import SCHEMA, Manifest
from batchnst.manifest.outputs import Clash, Names, clashes, format_problem, longest_output, output_problem
from batchnst.manifest.pair import HASH_DIGITS, derive_id, mask_problems, style_shares, to_json, to_texts
from batchnst.manifest.readers import find_files, read_rows
from batchnst.manifest.row_columns import Cells
from batchnst.recipe import ADDRESSES, Recipe
from batchnst.redaction import public, redact
from batchnst.storage.addresses import address_problem
from batchnst.storage.files import is_uri, parent, resolve
from batchnst.storage.walk import is_utf8

_DERIVED_ID = re.compile(rf"--[0-9a-f]{{{HASH_DIGITS}}}$")

_ID = re.compile(ID_PATTERN)


def read_manifest(address: str, settings: Mapping[str, Any], out: str | None = None) -> Manifest:
    """Read the pairs of the manifest at `address`; a row's recipe keys override `settings` (from file and options).

    It is one file, or a folder of Parquet files, which are read as one. `out` is the folder or URI to paint into, if
    known: it limits the length of an `output`. Raises ManifestError with all errors of all rows, each with its line.
    """
    builder, unreadable = _Builder(settings, longest_output(out)), None
    try:
        _check_name(address)
        files = find_files(address)
        builder.base = parent(public(files[0])) if files == [address] else resolve(address, ".")
        for file in files:
            builder.begin("" if file == address else PurePosixPath(file).name)
            for part in read_rows(file, name_in(file, builder.base), builder.note):
                builder.add(part)
    except (InputError, StorageError) as error:
        raise ManifestError(address, [str(error).removeprefix(f"{redact(address)}: ")]) from None
    except Unreadable as error:
        unreadable = builder.placed(str(error))
    return builder.finish(address, unreadable)


def name_in(file: str, base: str) -> str:
    """The address of `file` relative to the folder `base`, if that leads to it; it is a part of its pictures' ids."""
    whole = resolve(file, ".")
    name = whole.removeprefix(f"{base.rstrip('/')}/")
    return name if resolve(name, base) == whole == public(whole) else whole


def _check_name(address: str) -> None:
    """Raise Unreadable if `address`, in whose folder relative addresses are, cannot be kept as text."""
    if not is_utf8(os.path.abspath(address)):
        raise Unreadable("has a name, or lies in a folder with a name, that is not UTF-8; rename it")


def resolve_settings(settings: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Copy recipe settings, with addresses in `init` and `weights` resolved against the folder `base`."""
    resolved = dict(settings)
    for key, is_address in ADDRESSES.items():
        value = settings.get(key)
        if isinstance(value, str) and is_address(value):
            resolved[key] = resolve(value, base)
    return resolved


class _Builder:
    """Makes pairs of rows, and collects the problems of all rows.

    Lines are numbered through all files. `base` is the folder that relative addresses are relative to.
    """

    def __init__(self, settings: Mapping[str, Any], longest: int) -> None:
        """`longest` is that of an `output`, in bytes."""
        self.base, self.settings, self._longest = ".", dict(settings), longest
        self._rows, self._names, self._lines = Blocks(SCHEMA), Names(), list[NDArray[np.int64]]()
        self._pending, self._pending_lines = list[tuple[Any, ...]](), list[int]()
        self._problems: list[tuple[int, str]] = []
        self._notes: list[str] = []
        self._starts, self._files = list[int](), list[str]()
        self._line = 0
        self._recipe = lru_cache(maxsize=1024)(self._read_recipe)
        self._resolved = lru_cache(maxsize=1024)(self._resolve_all)
        self._shares = lru_cache(maxsize=1024)(style_shares)
        self._address_problem = lru_cache(maxsize=1024)(lambda text: address_problem(text) if is_uri(text) else None)

    def begin(self, file: str) -> None:
        """Begin a file; `file` is its name, empty if it is the whole manifest."""
        self._starts.append(self._line)
        self._files.append(file)

    def note(self, remark: str) -> None:
        """Keep a remark on how the current file is read."""
        self._notes.append(self.placed(remark))

    def placed(self, text: str) -> str:
        """`text` with the name of the current file in front, unless it is the whole manifest."""
        return f"{self._files[-1]}: {text}" if self._files and self._files[-1] else text

    def _place(self, line: int) -> str:
        """The line, counted through all files, as the user finds it."""
        file = bisect_right(self._starts, line - 1) - 1
        name = self._files[file]
        return f"{name}: line {line - self._starts[file]}" if name else f"line {line}"

    def add(self, part: Cells | tuple[int, Row | str]) -> None:
        """Add rows of the current file: many, or one with its line, or the problem that makes a line unreadable."""
        if isinstance(part, Cells):
            self._add_pending()
            if len(part):
                self._store(self._check_many(part), part.lines)
            return
        line, row = part
        if isinstance(row, str):
            self._line = self._starts[-1] + line
            self._report(row)
            return
        self._pending.append(self._check(line, row))
        self._pending_lines.append(line)
        if len(self._pending) == BLOCK_ROWS:
            self._add_pending()

    def _add_pending(self) -> None:
        """Store the rows that came one by one."""
        if self._pending:
            self._store(to_batch(self._pending, SCHEMA), np.array(self._pending_lines))
            self._pending, self._pending_lines = [], []

    def _store(self, rows: pa.RecordBatch, lines: NDArray[np.int64]) -> None:
        """Keep rows of the current file."""
        self._line = max(self._line, self._starts[-1] + int(lines[-1]))
        self._names.add(rows["id"], rows["output"])
        self._lines.append(self._starts[-1] + lines)
        self._rows.add(rows)

    def _check_many(self, cells: Cells) -> pa.RecordBatch:
        """Check rows together, and those in doubt one by one; returns them in the columns of SCHEMA."""
        lines = cells.lines.tolist()
        if not in_columns(cells):
            return to_batch([self._check(line, row) for line, row in zip(lines, cells.rows(), strict=True)], SCHEMA)
        checks = Checks(self.base, self._longest, self._recipe, self._shares)
        rows, doubt = check(cells, checks)
        if not doubt.any():
            return rows
        sure, unsure = np.flatnonzero(~doubt), np.flatnonzero(doubt)
        alone = to_batch([self._check(lines[i], cells.row(i)) for i in unsure.tolist()], SCHEMA)
        order = np.argsort(np.concatenate([sure, unsure]))
        return pa.concat_batches([rows.take(pa.array(sure)), alone]).take(pa.array(order))

    def _check(self, line: int, row: Row) -> tuple[Any, ...]:
        """Report all problems of a row at `line` of the current file; returns its values of SCHEMA."""
        self._line, problems_before = self._starts[-1] + line, len(self._problems)
        row = {key: value for key, value in row.items() if not _is_absent(value)}
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
        if len(self._problems) > problems_before:
            return pair_id, "", (), (), (), (), output, "{}", None, "{}"
        extra = {key: value for key, value in row.items() if key not in KNOWN_COLUMNS}
        return (
            pair_id,
            resolve(str(row["content"]), self.base),
            self._resolved(styles),
            weights,
            self._resolved(masks[0]),
            self._resolved(masks[1]),
            output,
            settings,
            None,
            to_json(extra) if extra else "{}",
        )

    def _report(self, text: str, column: str = "") -> None:
        """Record a problem of the current row."""
        where = f"{self._place(self._line)}, {column}" if column else self._place(self._line)
        self._problems.append((self._line, f"{where}: {text}"))

    def finish(self, address: str, unreadable: str | None) -> Manifest:
        """Return all pairs; raises ManifestError if there are problems, in the order of lines, `unreadable` last."""
        self._add_pending()
        for clash in self._clashes():
            self._line = clash.line
            self._report(self._clash_text(clash), clash.column)
        del self._names, self._lines  # this object stays until the garbage collector finds it: its caches refer to it
        pa.default_memory_pool().release_unused()  # else Arrow keeps, for each thread, what it has freed
        problems = [text for _, text in sorted(self._problems, key=itemgetter(0))]
        if unreadable:
            problems.append(unreadable)
        elif not problems and not len(self._rows):
            problems.append("has no rows; expected at least one pair of content and style")
        if problems:
            raise ManifestError(address, problems)
        return Manifest(address, self._rows, self.settings, self._notes)

    def _clashes(self) -> Iterator[Clash]:
        """The collisions of ids and outputs."""
        suspects = self._names.suspects()
        if not len(suspects):
            return iter(())
        rows = pa.Table.from_batches(self._rows.take(suspects, ["id", "output"]))
        lines = np.concatenate(self._lines)[suspects]
        return clashes(lines.tolist(), rows["id"].combine_chunks(), rows["output"].combine_chunks())

    def _clash_text(self, clash: Clash) -> str:
        where = self._place(clash.other)
        if clash.is_folder:
            return f"{clash.value!r} is a folder of the output of {where}; expected a file of its own"
        if clash.column == "id" and _DERIVED_ID.search(clash.value):
            return f"the same pair as {where}; leave one out, or give both an id"
        return f"{clash.value!r} is already the {clash.column} of {where}; expected a unique one"

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
            elif column != "output" and any("\0" in part for part in parts):
                self._report("has a character with the code 0, which no name has", column)

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
        if problem := output_problem(output, self._longest) or format_problem(output, recipe):
            self._report(problem, "output")
        return str(PurePosixPath(output))


def _is_absent(value: Any) -> bool:
    """True for a cell without a value; NaN is how some programs mark one."""
    return value is None or (isinstance(value, str | list) and not value) or value != value
