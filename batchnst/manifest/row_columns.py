"""The cells of many rows in columns: what they hold, as texts and as JSON.

What is simple is done by Arrow for a whole column; a function of Python is called for each other value once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.manifest.columns import LIST_COLUMNS, Row
from batchnst.manifest.pair import to_json

Texts = Callable[[pa.Array], pa.Array]
"""A function of a column of texts, whose result has as many."""

_PLAIN = r"[^ !#-\[\]-~]"
"""A character that JSON writes otherwise."""

_ZERO = pa.scalar(0, pa.int32())

_STRIPPED = r"^(?:[!-~](?:[ -~]*[!-~])?)?$"
"""A text of ASCII without space at its ends."""


@dataclass(frozen=True)
class Cells:
    """Rows of a manifest in columns. Absent values are null; a column that is always absent is missing.

    lines: the line of each row (N,). split: texts in LIST_COLUMNS may be lists joined by `|`.
    """

    lines: NDArray[np.int64]
    columns: Mapping[str, pa.Array]
    split: bool = False

    @classmethod
    def of(cls, lines: NDArray[np.int64], columns: Mapping[str, pa.Array], *, split: bool = False) -> Cells:
        """Make texts of `columns` of one type, and empty values, NaN and empty lists null."""
        cells = {name: _present(column) for name, column in columns.items()}
        return cls(lines, {name: cell for name, cell in cells.items() if cell.null_count < len(cell)}, split)

    def __len__(self) -> int:
        return len(self.lines)

    def filter(self, where: NDArray[np.bool_]) -> Cells:
        """The rows where a mask (N,) is True."""
        columns = {name: column.filter(pa.array(where)) for name, column in self.columns.items()}
        return Cells(self.lines[where], columns, self.split)

    def row(self, i: int) -> Row:
        """The values of a row, without those that are absent."""
        values = {name: self.values(name, i)[0] for name in self.columns}
        return {name: value for name, value in values.items() if value is not None}

    def rows(self) -> Iterator[Row]:
        """The values of all rows, without those that are absent."""
        for values in zip(*(self.values(name, count=None) for name in self.columns), strict=True):
            yield {name: value for name, value in zip(self.columns, values, strict=True) if value is not None}

    def values(self, name: str, start: int = 0, count: int | None = 1) -> list[Any]:
        """The values of a column from row `start` on, None where absent; `count` of them, or all if that is None."""
        values: list[Any] = self.columns[name].slice(start, count).to_pylist()
        if not self.split or name not in LIST_COLUMNS:
            return values
        return [[part.strip() for part in value.split("|")] if "|" in (value or "") else value for value in values]

    def lists(self, name: str) -> Lists:
        """The texts in each cell of a column: none, one or several."""
        return Lists.of(self.columns.get(name), len(self), split=self.split)


@dataclass(frozen=True)
class Lists:
    """A list of texts for each row: `values` of all rows, one after another, and the `offsets` where each row begins.

    listed: the rows whose cell is a list, not a text (N,). wrong: those that hold anything else (N,).
    """

    values: pa.StringArray
    offsets: NDArray[np.int32]
    listed: NDArray[np.bool_]
    wrong: NDArray[np.bool_]

    @classmethod
    def of(cls, column: pa.Array | None, rows: int, *, split: bool = False) -> Lists:
        """The texts of a column with `rows` cells; None is a column without values."""
        nothing = np.zeros(rows, bool)
        if column is None:
            return cls(pa.array([], pa.string()), np.zeros(rows + 1, np.int32), nothing, nothing)
        if is_text(column.type):
            listed = mask(contain(column, "|")) if split else nothing
            if not listed.any():
                return cls(column.drop_null(), _offsets(mask(pc.is_valid(column))), nothing, nothing)
            parts = pc.split_pattern(column, "|")
            return cls(stripped(parts.flatten()), _offsets(_lengths(parts)), listed, nothing)
        if not is_texts(column.type):
            return cls.of(None, rows)._replaced(wrong=mask(pc.is_valid(column)))
        values, lengths = column.flatten().cast(pa.string()), _lengths(column)
        holes = np.repeat(np.arange(rows), lengths)[mask(pc.is_null(values))]
        wrong = np.isin(np.arange(rows), holes) if len(holes) else nothing
        return cls(pc.fill_null(values, ""), _offsets(lengths), mask(pc.is_valid(column)), wrong)

    def _replaced(self, *, wrong: NDArray[np.bool_]) -> Lists:
        return Lists(self.values, self.offsets, self.listed, wrong)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The number of texts in each row."""
        return np.diff(self.offsets)

    def array(self, values: pa.Array) -> pa.ListArray:
        """A list for each row, with `values` in place of the texts."""
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), values)

    def any(self, where: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The rows of which a text is in `where`, a mask of all texts (N,)."""
        if not where.any():
            return np.zeros(len(self.offsets) - 1, bool)
        return np.bincount(np.repeat(np.arange(len(self.lengths)), self.lengths), where, len(self.lengths)) > 0

    def first(self) -> pa.Array:
        """The first text of each row; null if it has none."""
        places = pa.array(self.offsets[:-1], mask=self.lengths == 0)
        return self.values.take(places)


def is_text(kind: pa.DataType) -> bool:
    """True for the types of texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_texts(kind: pa.DataType) -> bool:
    """True for lists of texts."""
    return bool(pa.types.is_list(kind) and is_text(kind.value_type))


def mask(values: pa.Array) -> NDArray[np.bool_]:
    """A column of truth values as a NumPy array (N,); null is False."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)


def any_of(values: pa.Array) -> bool:
    """True if one of a column's truth values is true."""
    return bool(pc.any(values).as_py())


def all_of(values: pa.Array) -> bool:
    """True unless one of a column's truth values is false."""
    return bool(pc.all(values).as_py())


def contain(texts: pa.Array, part: str) -> pa.Array:
    """Which of the texts contain `part`, which is ASCII; the texts are searched one by one only if one of them does."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]].tolist() if data else (0, 0)
    if data and part.encode() in data[ends[0] : ends[1]].to_pybytes():
        return pc.match_substring(texts, part)
    return pa.repeat(False, len(texts))


def join(*parts: pa.Array | str) -> pa.Array:
    """The texts of several columns put together, row by row; null where one is null."""
    return pc.binary_join_element_wise(*parts, "")


def by_value(values: pa.Array, simple: pa.Array, fast: Texts, slow: Callable[[Any], Any]) -> pa.Array:
    """`fast(values)`, except that values where `simple` is false become `slow(value)`; null stays null."""
    odd = pc.and_not(pc.is_valid(values), pc.fill_null(simple, True))
    result = fast(values)
    if not any_of(odd):
        return result
    distinct = values.filter(odd).dictionary_encode()
    replaced = pa.array([slow(value) for value in distinct.dictionary.to_pylist()], result.type)
    return pc.replace_with_mask(result, odd, replaced.take(distinct.indices))


def same(values: pa.Array) -> pa.Array:
    """The values as they are."""
    return values


def stripped(texts: pa.Array) -> pa.Array:
    """The texts without white space at their ends, as Python strips it."""
    return by_value(texts, pc.match_substring_regex(texts, _STRIPPED), same, str.strip)


def quoted(texts: pa.Array) -> pa.Array:
    """Each text as JSON."""
    plain = pc.invert(pc.match_substring_regex(texts, _PLAIN))
    return by_value(texts, plain, lambda texts: join('"', texts, '"'), json.dumps)


def json_lists(lists: Lists, values: pa.Array) -> pa.Array:
    """Each row's texts as JSON: a list, or a text where they came as one; null if there are none.

    `values` are all texts as JSON.
    """
    if not lists.listed.any() and len(values) == len(lists.lengths):
        return values
    joined = pc.binary_join(lists.array(values), ", ")
    whole = pc.if_else(pa.array(lists.listed), join("[", joined, "]"), joined) if lists.listed.any() else joined
    absent = lists.lengths == 0
    return pc.if_else(pa.array(absent), pa.scalar(None, pa.string()), whole) if absent.any() else whole


def json_texts(column: pa.Array) -> pa.Array:
    """Each value as `to_json` writes it, null if it is absent."""
    types, kind = pa.types, column.type
    if is_text(kind):
        return quoted(column)
    if is_texts(kind) and not column.flatten().null_count:
        lists = Lists.of(column, len(column))
        return json_lists(lists, quoted(lists.values))
    if types.is_integer(kind):
        return column.cast(pa.string())
    if types.is_boolean(kind):
        return pc.if_else(column, "true", "false")
    if types.is_float32(kind) or types.is_float64(kind):
        distinct = column.dictionary_encode()
        return pa.array(map(to_json, distinct.dictionary.to_pylist()), pa.string()).take(distinct.indices)
    return pa.array((None if value is None else to_json(value) for value in column.to_pylist()), pa.string())


def json_objects(members: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """A JSON object with sorted keys for each row, of the JSON of its values; values that are null are left out."""
    if not members:
        return pa.repeat("{}", rows)
    if not any(member.null_count for member in members.values()):
        parts = [part for key in sorted(members) for part in (f", {json.dumps(key)}: ", members[key])]
        return join("{", parts[0].removeprefix(", "), *parts[1:], "}")
    # pyarrow's null_handling="skip" loses rows of which all values are null.
    parts = [join(f", {json.dumps(key)}: ", members[key]) for key in sorted(members)]
    joined = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="")
    return join("{", pc.utf8_slice_codeunits(joined, 2), "}")


def _present(column: pa.Array) -> pa.Array:
    """The column with null for what is absent, texts as plain strings."""
    kind = column.type
    if is_text(kind):
        column = column.cast(pa.string())
        absent = pc.equal(pc.binary_length(column), _ZERO)
    elif pa.types.is_list(kind):
        absent = pc.equal(pc.list_value_length(column), _ZERO)
    elif pa.types.is_floating(kind):
        absent = pc.is_nan(column)
    else:
        return column
    return pc.if_else(absent, pa.scalar(None, column.type), column) if any_of(absent) else column


def _lengths(lists: pa.Array) -> NDArray[np.int32]:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int32)


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
