"""The ledger's tables: one dataclass each, their Arrow schemas derived from it."""

from __future__ import annotations

import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

VERSION = 1
"""Raised when a column changes its meaning; new columns alone do not."""

VERSION_KEY = b"batchnst.schema"


@dataclass(frozen=True)
class Versions:
    """What painted the picture."""

    batchnst: str
    python: str
    torch: str
    pillow: str
    pyarrow: str
    cuda: str | None


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run, as it began: what it was asked for, and what of that was done already."""

    run_id: str
    started_at: datetime
    manifest: str  # its address
    settings: str  # JSON: what recipe file and options say for every row
    pairs: int  # of the manifest
    done: int  # by earlier runs
    given_up: int  # failed in earlier runs, and left alone
    to_paint: int
    engine: str  # ray, inline
    host: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """One finished attempt at a pair. Losses are those of the written picture, weighted as in the total."""

    run_id: str
    pair_id: str
    attempt: int
    status: str  # ok, failed
    error_type: str | None = None
    error_message: str | None = None
    content: str
    styles: list[str]
    style_weights: list[float]
    content_masks: list[str]
    style_masks: list[str]
    output: str  # relative to OUT/images
    content_sha256: str | None = None
    style_sha256: list[str] | None = None
    output_sha256: str | None = None
    notes: list[str] | None = None  # on how the inputs were read
    width: int | None = None  # pixels
    height: int | None = None
    fingerprint: str
    recipe: str  # JSON, the effective one
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
    seconds: float
    peak_memory_bytes: int | None = None
    versions: Versions
    extra: str  # JSON


@dataclass(frozen=True, kw_only=True)
class LossRow:
    """One step of one attempt: the losses of the picture as it stood then, weighted as in the total."""

    run_id: str
    pair_id: str
    attempt: int
    step: int  # through all scales, from 0
    scale: int  # longest side, pixels
    total: float
    content: float
    style: float
    tv: float
    style_layers: dict[str, float]  # unweighted
    seconds: float  # since the pair's start


ATTEMPT = ["run_id", "pair_id", "attempt"]
"""What names an attempt, in `pairs` and in `losses`."""

TERMS = ["total", "content", "style", "tv"]
"""The losses of a step."""

_SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), datetime: pa.timestamp("us", tz="UTC")}


def _arrow_type(annotation: Any) -> pa.DataType:
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


def to_table(rows: list[PairRow] | list[LossRow] | list[RunRow], table: str) -> pa.Table:
    """The rows as an Arrow table of that schema."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMAS[table])
