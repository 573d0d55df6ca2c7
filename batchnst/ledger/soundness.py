"""Finds rows that no run can have written: by a failing disk, by another program, or by hand.

They do not count. What is checked is what readers rely on; a hash that is not that of a picture, or a loss that is not
that of the steps, is for the audit to find.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.ledger.schema import ATTEMPT, SCHEMAS

OF_AN_OK_ROW = (
    *("content_sha256", "style_sha256", "output_sha256", "width", "height", "steps"),
    *("initial_total", "total_loss", "content_loss", "style_loss", "tv_loss"),
)
"""Columns of `pairs` that have a value in each row that says `ok`."""

_MOST, _MOST_PIXELS = 1 << 53, 1 << 31
"""Largest whole numbers; others grow, and must stay numbers that every reader has."""

_YEARS = (0, 32_503_680_000_000_000)
"""Bounds of a time, in microseconds since 1970: up to the year 3000. Python has no more than 9999 years."""

_SHOWN = 40
"""Characters of a damaged value that are shown."""

Mask = NDArray[np.bool_]

Damaged = Callable[[pa.Array], Any]
"""Which values of a column are damaged; the answer may be null where the value is."""


@dataclass(frozen=True)
class Damage:
    """A damaged row of `table`, at `place` among those that were checked.

    `where` names its attempt as far as it can, and says what is wrong with a column.
    """

    table: str
    pair_id: str | None
    where: str
    place: int

    def __str__(self) -> str:
        pair = f"pair {self.pair_id}: " if self.pair_id else ""
        return f"{pair}{self.where}"

    def notice(self, out: str) -> str:
        """A line for the user, if this is the first damaged row that a command has met in the folder `out`."""
        return f"{out}: damaged rows of its ledger do not count; the first: {self}; `batchnst audit {out}` names all"


def split(rows: pa.Table, table: str, *, complete: bool = False) -> tuple[pa.Table, list[Damage]]:
    """The sound rows of `rows` of `table`, which may lack columns, and the damage of the others.

    complete: ok rows also need a value in each column of OF_AN_OK_ROW.
    """
    found = dict[int, str]()
    for damaged, explain in chain(_problems(rows, table), _gaps(rows) if complete and table == "pairs" else ()):
        for place in np.flatnonzero(damaged).tolist():
            found.setdefault(place, explain(place))
    damages = [_damage(rows, table, place, text) for place, text in sorted(found.items())]
    if found:
        rows = rows.filter(pa.array(np.isin(np.arange(len(rows)), list(found), invert=True)))
    known = {field.name: field for field in SCHEMAS[table]}
    fields = [known.get(field.name, field) for field in rows.schema]
    return rows.cast(pa.schema(fields, rows.schema.metadata)), damages


def _problems(rows: pa.Table, table: str) -> Iterator[tuple[Mask, Callable[[int], str]]]:
    """Which rows are damaged (N,), and a function that says why one of them is; for each kind of damage there is."""
    for field in (field for field in SCHEMAS[table] if field.name in rows.column_names):
        column = rows[field.name].combine_chunks()
        if column.null_count and not field.nullable:
            yield _mask(column.is_null()), _saying(f"{field.name} has no value")
        for is_damaged, expected in _checks(field):
            damaged = _mask(is_damaged(column))
            if damaged.any():
                yield damaged, _showing(field.name, column, expected)
    yield from _lengths(rows)


def _gaps(rows: pa.Table) -> Iterator[tuple[Mask, Callable[[int], str]]]:
    """Ok rows that lack what an ok row has."""
    ok = pc.equal(rows["status"], "ok")
    for name in OF_AN_OK_ROW:
        yield _mask(pc.and_(ok, rows[name].is_null())), _saying(f"{name} has no value, although status is ok")


def _mask(damaged: Any) -> Mask:
    return np.asarray(pc.fill_null(damaged, False).to_numpy(zero_copy_only=False), bool)


def _saying(text: str) -> Callable[[int], str]:
    return lambda place: text


def _showing(name: str, column: pa.Array, expected: str) -> Callable[[int], str]:
    """A function that shows the value of a column, and what was expected."""

    def explain(place: int) -> str:
        value = column[place]
        shown = repr(value.value if pa.types.is_timestamp(column.type) else value.as_py())
        return f"{name} is {shown[:_SHOWN]}{'…' if len(shown) > _SHOWN else ''}; expected {expected}"

    return explain


def _damage(rows: pa.Table, table: str, place: int, text: str) -> Damage:
    """The damage of the row at `place`, which is named by what it has of its key."""
    run_id, pair_id, attempt = (rows[name][place].as_py() if name in rows.column_names else None for name in ATTEMPT)
    of_attempt = "" if attempt is None else f"attempt {attempt} of "
    of_run = f"run {run_id}" if run_id else "a run"
    return Damage(table, pair_id or None, f"the row of {of_attempt}{of_run}: {text}", place)


# Columns ------------------------------------------------------------------------------------------------------------


def _checks(field: pa.Field) -> list[tuple[Damaged, str]]:
    """The checks of the values of a column, each with what is expected."""
    if field.name in _OF_COLUMN:
        return [_OF_COLUMN[field.name]]
    if pa.types.is_timestamp(field.type):
        return [_between(*_YEARS, "a time before the year 3000")]
    if pa.types.is_int64(field.type) and field.name != "seed":
        return [_between(0, _MOST, f"a whole number from 0 to {_MOST}")]
    if pa.types.is_list(field.type):
        return [(_has_nulls, "a list without empty places")]
    return []


def _between(least: float, most: float, expected: str) -> tuple[Damaged, str]:
    """The check of a number or time. NaN is beyond all bounds."""

    def is_outside(column: pa.Array) -> Any:
        numbers = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        return pc.invert(pc.and_(pc.greater_equal(numbers, least), pc.less_equal(numbers, most)))

    return is_outside, expected


def _like(pattern: str, expected: str) -> tuple[Damaged, str]:
    """The check of a text by a regular expression of what is damaged, once for equal ones that follow one another."""

    def is_damaged(column: pa.Array) -> Any:
        runs = pc.run_end_encode(column)
        damaged = pc.match_substring_regex(runs.values, pattern)
        return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(runs.run_ends, damaged))

    return is_damaged, expected


def _has_nulls(column: pa.Array) -> Any:
    """Which lists have a value that is null; for numbers also one that is not finite or negative."""
    values, owners = column.flatten(), pc.list_parent_indices(column).to_numpy()
    wrong = values.is_null()
    if pa.types.is_floating(values.type):
        finite = pc.and_(pc.is_finite(values), pc.greater_equal(values, 0))
        wrong = pc.or_(wrong, pc.invert(pc.fill_null(finite, False)))
    damaged = np.zeros(len(column), bool)
    damaged[owners[wrong.to_numpy(zero_copy_only=False)]] = True
    return pa.array(damaged)


def _is_no_object(column: pa.Array) -> Any:
    """Which texts are no JSON object."""
    texts = column.dictionary_encode()
    known = pa.array([text is not None and not _is_object(text) for text in texts.dictionary.to_pylist()], pa.bool_())
    return known.take(texts.indices)


def _is_object(text: str) -> bool:
    """True for a JSON object whose texts are whole, and whose numbers JSON and Python have."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _lengths(rows: pa.Table) -> Iterator[tuple[Mask, Callable[[int], str]]]:
    """Lists that do not have a value for each style."""
    for name in ("style_weights", "style_sha256"):
        if {name, "styles"} <= set(rows.column_names):
            lengths = pc.list_value_length(rows[name]), pc.list_value_length(rows["styles"])
            yield _mask(pc.not_equal(*lengths)), _saying(f"{name} has not one value for each of its styles")


_CONTROL = r"[\\\x00-\x1f\x7f]"
_LEADING_OUT = rf"(?:^|/)\.\.(?:/|$)|^/|/$|^$|{_CONTROL}"
_NAME = _like(rf"{_LEADING_OUT}|^\.$|^.{{256}}", "a name")
_STATUSES = pa.array(["ok", "failed"])
_OBJECT = (_is_no_object, "a JSON object")
_SIZE = _between(1, _MOST_PIXELS, f"a whole number from 1 to {_MOST_PIXELS}")
_TIME = _between(-1e12, 1e12, "a number of seconds")  # below 0 if a clock was put back meanwhile

_OF_COLUMN: dict[str, tuple[Damaged, str]] = {
    "run_id": _NAME,
    "pair_id": _NAME,
    "attempt": _SIZE,
    "status": (lambda column: pc.invert(pc.is_in(column, _STATUSES)), "ok or failed"),
    "output": _like(_LEADING_OUT, "a path in OUT's folder of pictures"),
    "width": _SIZE,
    "height": _SIZE,
    "styles": (lambda column: pc.or_(pc.equal(pc.list_value_length(column), 0), _has_nulls(column)), "some addresses"),
    "seconds": _TIME,
    "batch_seconds": _TIME,
    "recipe": _OBJECT,
    "settings": _OBJECT,
    "extra": _OBJECT,
}
"""Checks of columns by their names."""
