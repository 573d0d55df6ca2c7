"""The ledger's tables: a dataclass for each, from which its Arrow schema is derived."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Any

import pyarrow as pa

from batchnst.redaction import public, redact, redact_json, stored

VERSION = 2
"""Schema version. It goes up if a column changes its meaning, not if a column is added.

2: `seconds` of a pair are its share of the batch's time, which is in `batch_seconds`.
"""

VERSION_KEY = b"batchnst.schema"
"""Key of the version in a file's Parquet metadata."""


@dataclass(frozen=True)
class Versions:
    """Versions of the software that painted a picture."""

    batchnst: str
    python: str
    torch: str
    pillow: str
    pyarrow: str
    cuda: str | None


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run at its start: the request, and how much of it was done already."""

    run_id: str
    run_number: int | None = None  # None in ledgers of 0.1.0
    started_at: datetime
    manifest: str  # address
    settings: str  # JSON: recipe file and options, which hold for every row of the manifest
    pairs: int  # in the manifest
    done: int  # painted by earlier runs
    given_up: int  # failed in earlier runs and not tried again
    to_paint: int
    redo: list[str] | None = None  # values of --redo; None in earlier ledgers
    redo_since: int | None = None  # number of the run that began with them; None if no id was given
    engine: str  # ray, inline
    host: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A finished attempt at a pair. Its losses are those of the written picture, weighted as in the total."""

    run_id: str
    run_number: int | None = None  # higher than that of every earlier run; None in ledgers of 0.1.0
    pair_id: str
    attempt: int
    status: str  # ok, failed
    error_type: str | None = None
    error_message: str | None = None
    error_kind: str | None = None  # permanent, transient; None if ok, and in ledgers of 0.1.0
    content: str
    styles: list[str]
    style_weights: list[float]
    content_masks: list[str]
    style_masks: list[str]
    output: str  # relative to OUT/images
    content_sha256: str | None = None
    style_sha256: list[str] | None = None
    mask_sha256: list[str] | None = None  # of the content masks, then of the style masks
    start_sha256: str | None = None  # of the picture that `init` names
    output_sha256: str | None = None
    notes: list[str] | None = None  # how the inputs were read
    width: int | None = None  # pixels
    height: int | None = None
    fingerprint: str
    recipe: str  # JSON: the effective recipe
    loss_definition: str
    weights_sha256: str
    seed: int
    device: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    host: str
    pid: int
    steps: int | None = None
    stopped: str | None = None  # steps, plateau, diverged
    initial_total: float | None = None
    content_loss: float | None = None
    style_loss: float | None = None
    tv_loss: float | None = None
    total_loss: float | None = None
    started_at: datetime
    finished_at: datetime
    seconds: float  # its share of the batch's; the batch's whole time where `batch_seconds` is None
    batch_seconds: float | None = None  # of the whole batch; None in ledgers of 0.1.0
    peak_memory_bytes: int | None = None
    versions: Versions
    extra: str  # JSON: other columns of the manifest


@dataclass(frozen=True, kw_only=True)
class LossRow:
    """A step of an attempt: the losses of the picture at that step, weighted as in the total."""

    run_id: str
    pair_id: str
    attempt: int
    step: int  # from 0, counted through all scales
    scale: int  # longest side, pixels
    total: float
    content: float
    style: float
    tv: float
    style_layers: dict[str, float]  # unweighted
    seconds: float  # since the pair's start


ATTEMPT = ["run_id", "pair_id", "attempt"]
"""Columns that identify an attempt, in `pairs` and in `losses`."""

TERMS = ["total", "content", "style", "tv"]
"""Loss columns of a step."""

_SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), datetime: pa.timestamp("us", tz="UTC")}


def _arrow_type(annotation: Any) -> pa.DataType:
    """Arrow type of a field's type annotation; `X | None` has the type of X."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType:
        return _arrow_type(arguments[0])
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is dict:
        return pa.map_(_arrow_type(arguments[0]), _arrow_type(arguments[1]))
    if is_dataclass(annotation):
        return pa.struct(_arrow_fields(typing.cast(type, annotation)))
    return _SCALARS[annotation]


def _arrow_fields(row: type) -> list[pa.Field]:
    hints = typing.get_type_hints(row)
    optional = {name: type(None) in typing.get_args(hint) for name, hint in hints.items()}
    return [pa.field(f.name, _arrow_type(hints[f.name]), nullable=optional[f.name]) for f in fields(row)]


def _schema(row: type) -> pa.Schema:
    return pa.schema(_arrow_fields(row), metadata={VERSION_KEY: str(VERSION).encode()})


SCHEMAS = {"pairs": _schema(PairRow), "losses": _schema(LossRow), "runs": _schema(RunRow)}
"""Arrow schema of each table."""


_ADDRESSES = ("content", "styles", "content_masks", "style_masks", "manifest")
REDACTED: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(_ADDRESSES, stored),
    **dict.fromkeys(("error_message", "notes"), redact),
    **dict.fromkeys(("recipe", "settings", "extra"), redact_json),
}
"""Functions that remove secrets from the columns of `pairs` and `runs` that may have some."""


def to_table(rows: list[PairRow] | list[LossRow] | list[RunRow], table: str) -> pa.Table:
    """`rows` as an Arrow table with the schema of `table`, without secrets."""
    values = [asdict(row) for row in rows]
    if table != "losses":
        values = list(map(row_without_secrets, values))
    return pa.Table.from_pylist(values, schema=SCHEMAS[table])


def row_without_secrets(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `pairs` or `runs` without secrets."""
    return {name: _each(REDACTED[name], value) if name in REDACTED else value for name, value in row.items()}


def times(row: Mapping[str, Any]) -> tuple[float, float]:
    """The time that an attempt took, as its share of its batch's time, and that of the batch, in seconds.

    `row` is one of `pairs`; in schema 1 its `seconds` were those of the batch.
    """
    if row["batch_seconds"] is None:
        return row["seconds"] / (row["batch_size"] or 1), row["seconds"]
    return row["seconds"], row["batch_seconds"]


def without_secrets(rows: pa.Table) -> pa.Table:
    """`rows` of `pairs` without the secrets that ledgers of batchnst 0.1.0 may have."""
    functions = {name: cache(clean) for name, clean in (REDACTED | dict.fromkeys(_ADDRESSES, public)).items()}
    for i, field in enumerate(rows.schema):
        if clean := functions.get(field.name):
            values = rows[field.name].to_pylist()
            redacted = [_each(clean, value) for value in values]
            rows = rows.set_column(i, field, pa.array(redacted, field.type))
    return rows


def _each(clean: Callable[[str], str], value: Any) -> Any:
    """The result of `clean` for a text, or for each of a list of texts; None stays None."""
    if value is None:
        return None
    return list(map(clean, value)) if isinstance(value, list) else clean(value)
