"""The manifest: rows of CSV, JSON Lines or Parquet become Pairs, or all their errors at once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchnst.collection.images import ENCODERS
from batchnst.collection.storage import parent, read, resolve
from batchnst.errors import InputError, ManifestError, RecipeError
from batchnst.recipe import Recipe, is_start_picture, recipe_keys

Row = dict[str, Any]
_LISTS = ("style", "style_weights", "content_mask", "style_mask")
_OWN_COLUMNS = ("content", "id", "output", *_LISTS)
_ID = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a manifest: a content to be painted in one or several styles. Addresses are absolute.

    style_weights: one for each style, summing to 1. Masks mark parts of the content, and of the styles for them.
    """

    id: str
    content: str
    styles: tuple[str, ...]
    style_weights: tuple[float, ...]
    content_masks: tuple[str, ...]
    style_masks: tuple[str, ...]
    output: str
    recipe: Recipe
    extra: str


def read_manifest(address: str, settings: Mapping[str, Any]) -> list[Pair]:
    """The pairs of a manifest; each row's recipe keys go over `settings` (recipe file and options).

    Raises ManifestError with every error of every row, each with its line.
    """
    reader = _READERS.get(PurePosixPath(address).suffix.lower())
    if reader is None:
        raise ManifestError(address, [f"expected a manifest that ends in {', '.join(_READERS)}"])
    try:
        data = read(address)
    except InputError as error:
        raise ManifestError(address, [str(error).removeprefix(f"{address}: ")]) from None
    builder = _PairBuilder(parent(address), settings)
    try:
        for line, row in reader(data):
            builder.add(line, row)
    except _Unreadable as error:
        builder.problems.append(str(error))
    if not builder.pairs and not builder.problems:
        builder.problems.append("has no rows; expected at least one pair of content and style")
    if builder.problems:
        raise ManifestError(address, builder.problems)
    return builder.pairs


def resolve_settings(settings: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Recipe settings with the addresses among them resolved against the folder they were written in."""
    settings = dict(settings)
    if is_start_picture(str(settings.get("init", ""))):
        settings["init"] = resolve(settings["init"], base)
    return settings


def shares(weights: Sequence[str | float], styles: int) -> tuple[float, ...]:
    """Weights of the styles as shares that sum to 1; equal ones where none are given. Raises ValueError."""
    try:
        numbers = [float(weight) for weight in weights] or [1.0] * styles
    except ValueError:
        numbers = []
    if len(numbers) != styles or min(numbers, default=0) < 0 or not 0 < sum(numbers) < float("inf"):
        raise ValueError(f"expected {styles} numbers ≥ 0, not all 0; found {list(weights)}")
    return tuple(number / sum(numbers) for number in numbers)


def part_problems(styles: int, content_masks: int, style_masks: int) -> list[tuple[str, str]]:
    """What is wrong with the numbers of styles and masks, each with its column."""
    parts, problems = max(1, content_masks), []
    if parts > 1 and styles not in (1, parts):
        problems.append(("content_mask", f"marks {parts} parts for {styles} styles; expected one style, or one each"))
    if style_masks not in (0, parts):
        problems.append(("style_mask", f"expected {parts}, one for each part of the content; found {style_masks}"))
    return problems


class _Unreadable(Exception):
    """The file makes no sense as a whole."""


class _PairBuilder:
    """Turns rows into pairs, and keeps the problems of those it cannot turn."""

    def __init__(self, base: str, settings: Mapping[str, Any]) -> None:
        self.base, self.settings = base, dict(settings)
        self.pairs: list[Pair] = []
        self.problems: list[str] = []
        self._line = 0
        self._recipes: dict[str, Recipe] = {}
        self._ids: dict[str, int] = {}
        self._outputs: dict[str, int] = {}

    def add(self, line: int, row: Row | str) -> None:
        """Take a row, or what makes it unreadable."""
        self._line, before = line, len(self.problems)
        if isinstance(row, str):
            self._complain(row)
            return
        row = {key: value for key, value in row.items() if value not in (None, "", [])}
        for column in ("content", "style"):
            if column not in row:
                self._complain("is missing; expected a path or URI", column)
        styles = _texts(row.get("style"))
        weights = self._style_weights(row, styles)
        masks = _texts(row.get("content_mask")), _texts(row.get("style_mask"))
        for column, problem in part_problems(len(styles), *map(len, masks)):
            self._complain(problem, column)
        recipe = self._recipe(row)
        pair_id = str(row["id"]) if "id" in row else _derive_id(row)
        output = str(row.get("output", f"{pair_id}.png"))
        self._check_names(pair_id, output)
        if len(self.problems) == before and recipe is not None:
            extra = {key: value for key, value in row.items() if key not in _KNOWN}
            self.pairs.append(
                Pair(
                    id=pair_id,
                    content=resolve(str(row["content"]), self.base),
                    styles=self._resolved(styles),
                    content_masks=self._resolved(masks[0]),
                    style_masks=self._resolved(masks[1]),
                    style_weights=weights,
                    output=PurePosixPath(output).as_posix(),
                    recipe=recipe,
                    extra=json.dumps(extra, sort_keys=True, default=str),
                )
            )

    def _complain(self, text: str, column: str = "") -> None:
        self.problems.append(f"line {self._line}, {column}: {text}" if column else f"line {self._line}: {text}")

    def _resolved(self, addresses: list[str]) -> tuple[str, ...]:
        return tuple(resolve(address, self.base) for address in addresses)

    def _recipe(self, row: Row) -> Recipe | None:
        own = resolve_settings({key: row[key] for key in recipe_keys() if key in row}, self.base)
        key = json.dumps(own, sort_keys=True, default=str)
        try:
            if key not in self._recipes:
                self._recipes[key] = Recipe.from_settings({**self.settings, **own})
            return self._recipes[key]
        except RecipeError as error:
            for problem in error.problems:
                self._complain(problem)
            return None

    def _style_weights(self, row: Row, styles: list[str]) -> tuple[float, ...]:
        """Weights of the styles, summing to 1; equal ones where none are given."""
        try:
            return shares(_texts(row.get("style_weights")), len(styles))
        except ValueError as error:
            if styles:
                self._complain(str(error), "style_weights")
            return ()

    def _check_names(self, pair_id: str, output: str) -> None:
        if not _ID.fullmatch(pair_id) or not pair_id.strip("."):
            self._complain(f"{pair_id!r} is not allowed; expected up to 200 letters, digits, '.', '_' or '-'", "id")
        if (first := self._ids.setdefault(pair_id, self._line)) != self._line:
            self._complain(f"{pair_id!r} is already the id of line {first}; expected a unique one", "id")
            return
        path = PurePosixPath(output)
        if path.is_absolute() or ".." in path.parts or "\\" in output or "\0" in output:
            self._complain(f"{output!r} leaves OUT; expected a path inside its images/ folder", "output")
        elif path.suffix.lower() not in ENCODERS:
            self._complain(
                f"{output!r} cannot be written; expected a name that ends in {', '.join(ENCODERS)}", "output"
            )
        # One file on a store that folds case or Unicode forms is one output everywhere.
        folded = unicodedata.normalize("NFC", str(path)).casefold()
        if (first := self._outputs.setdefault(folded, self._line)) != self._line:
            self._complain(f"{output!r} is already the output of line {first}; expected one of its own", "output")


_KNOWN = frozenset([*_OWN_COLUMNS, *recipe_keys()])


def _derive_id(row: Row) -> str:
    """An id that says what it is, and is the same in every run: names, then a hash of the whole pair."""
    own = {key: row[key] for key in sorted(_KNOWN) if key in row}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:8]
    stems = [PurePosixPath(text).stem for text in [str(row.get("content", "")), *_texts(row.get("style"))[:1]]]
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:40].strip("-.") or "picture" for stem in stems]
    return "--".join([*names, digest])


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _read_csv(data: bytes) -> Iterator[tuple[int, Row | str]]:
    reader = csv.reader(io.StringIO(_text(data), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        header = [name.lower() if name.lower() in _KNOWN else name for name in header]
        _check_columns(header)
        end = reader.line_num
        for cells in reader:
            line, end = end + 1, reader.line_num
            if len(cells) > len(header):
                yield line, f"has {len(cells)} cells; expected {len(header)}, as the header has columns"
            elif cells:
                row: Row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
                for column in _LISTS:
                    if "|" in row.get(column, ""):
                        row[column] = [part.strip() for part in row[column].split("|")]
                yield line, row
    except csv.Error as error:
        raise _Unreadable(f"line {reader.line_num}: not valid CSV: {error}") from None


def _read_json_lines(data: bytes) -> Iterator[tuple[int, Row | str]]:
    for line, text in enumerate(_text(data).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            yield line, f"not valid JSON: {error.msg} at column {error.colno}"
            continue
        yield line, row if isinstance(row, dict) else f"expected a JSON object; found {text.strip()[:40]}"


def _read_parquet(data: bytes) -> Iterator[tuple[int, Row | str]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_columns(file.schema_arrow.names)
        line = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                line += 1
                yield line, row
    except (pa.ArrowException, OSError) as error:
        raise _Unreadable(f"not a readable Parquet file: {error}") from None


_READERS = {".csv": _read_csv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".parquet": _read_parquet}


def _check_columns(names: list[str]) -> None:
    missing = [column for column in ("content", "style") if column not in names]
    if missing:
        raise _Unreadable(f"has no column {' and no column '.join(missing)}; it has: {', '.join(names) or 'none'}")
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise _Unreadable(f"has the column {', '.join(sorted(doubled))} twice")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _Unreadable(f"line {line}: not UTF-8 (byte {data[error.start]:#04x})") from None
