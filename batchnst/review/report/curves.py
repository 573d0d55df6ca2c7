"""Loss curves for the report: those of each pair's newest attempt, with fewer points if there are many curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.ledger.out import Out
from batchnst.ledger.schema import ATTEMPT, TERMS
from batchnst.progress import Progress

POINTS, FEWEST, MOST = 600_000, 60, 400
"""Points of all curves together, and the fewest and most of one curve."""

SPARK_POINTS = 32
"""Points of a sparkline, the small curve on a pair's card."""

SPARK_LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""Characters for the heights of a sparkline, lowest first; `cards.js` has the same."""

SPARK_COLUMNS = (*ATTEMPT, "step", "total")
"""Columns of `losses` that sparklines need."""

Key = tuple[str, str, int]
"""run_id, pair_id, attempt."""

Numbers = list[float | None]


def key_of(row: Mapping[str, Any]) -> Key:
    """The key of the curve of a row of `pairs`."""
    return row["run_id"], row["pair_id"], row["attempt"]


@dataclass(frozen=True)
class Curve:
    """Losses by step, rounded to four digits: `terms` as weighted in the total, style `layers` unweighted.

    `scales` has the first step and the longest side in pixels of each scale. `spark` is a sparkline of the total on a
    log scale: a character of SPARK_LEVELS for each point, from the lowest to the highest.
    """

    step: list[int]
    scales: list[tuple[int, int]]
    terms: dict[str, Numbers]
    layers: dict[str, Numbers]
    spark: str


def read(out: Out, attempts: set[Key], progress: Progress) -> dict[Key, Curve]:
    """The curves of `attempts`, without the attempts that have no losses."""
    most = min(MOST, max(FEWEST, POINTS // max(1, len(attempts))))
    files, curves = out.files("losses"), dict[Key, Curve]()
    for i, info in enumerate(files, 1):
        curves.update(in_rows(out.rows_of([info], "losses"), attempts, most))
        progress(f"curves: {i} of {len(files)} files", i, len(files))
    return curves


def in_rows(rows: pa.Table, attempts: Collection[Key], most: int = MOST) -> Iterator[tuple[Key, Curve]]:
    """The curves of `attempts` in `rows`, which have all steps of their attempts in any order."""
    rows = rows.combine_chunks()
    return ((key, _curve(rows, positions, most)) for key, positions in _positions(rows, attempts))


def sparks(rows: pa.Table, attempts: Collection[Key]) -> Iterator[tuple[Key, str]]:
    """The sparklines of `attempts` in `rows`, see Curve, of which only the columns of SPARK_COLUMNS are needed."""
    total = rows["total"].to_numpy()
    return ((key, _spark(total[positions])) for key, positions in _positions(rows.combine_chunks(), attempts))


def _positions(rows: pa.Table, attempts: Collection[Key]) -> Iterator[tuple[Key, NDArray[np.int64]]]:
    """For each of `attempts` in `rows`, the positions of its rows in order of their steps."""
    keys = rows.select(ATTEMPT)
    codes = _codes(keys)
    order = np.lexsort((rows["step"].to_numpy(), codes))
    for positions in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(positions):
            key = tuple(column[int(positions[0])].as_py() for column in keys.columns)
            if key in attempts:
                yield key, positions


def _codes(keys: pa.Table) -> NDArray[np.int64]:
    """A number for each row (N,), equal for rows of the same attempt."""
    text = pc.binary_join_element_wise(keys["run_id"], keys["pair_id"], keys["attempt"].cast(pa.string()), "\n")
    return np.asarray(text.combine_chunks().dictionary_encode().indices, np.int64)


def _curve(rows: pa.Table, positions: NDArray[np.int64], most: int) -> Curve:
    """The curve of the attempt whose rows, in order of their steps, are at `positions`."""
    total, scale = (rows[name].to_numpy()[positions] for name in ("total", "scale"))
    changes = [0, *(np.flatnonzero(np.diff(scale)) + 1).tolist()]
    kept = _thin(total, changes, most)
    step = rows["step"].to_numpy()[positions]
    return Curve(
        step=step[kept].tolist(),
        scales=[(int(step[i]), int(scale[i])) for i in changes],
        terms={name: _round(rows[name].to_numpy()[positions[kept]]) for name in TERMS},
        layers={name: _round(values) for name, values in _layers(rows, positions[kept])},
        spark=_spark(total),
    )


def _thin(total: NDArray[np.float64], changes: list[int], most: int) -> NDArray[np.int64]:
    """Steps to keep: first, last and lowest, both sides of each change of scale, and up to `most` evenly spaced."""
    last = len(total) - 1
    lowest = int(np.argmin(np.nan_to_num(total, nan=math.inf)))
    even = np.linspace(0, last, min(most, last + 1)).round().astype(np.int64)
    sides = [i - d for i in changes for d in (0, 1) if i >= d]
    return np.unique(np.concatenate([even, [0, last, lowest], sides]).astype(np.int64))


def _layers(rows: pa.Table, positions: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Name and losses of each style layer, which every row of an attempt has in the same order."""
    maps = rows["style_layers"].combine_chunks()
    offsets, values = maps.offsets.to_numpy(), maps.items.to_numpy(zero_copy_only=False)
    names = maps.keys.slice(offsets[positions[0]], offsets[positions[0] + 1] - offsets[positions[0]]).to_pylist()
    for k, name in enumerate(names):
        yield name, values[offsets[positions] + k]


def _round(values: NDArray[np.float64]) -> Numbers:
    """`values` rounded to four digits; None for those that JSON does not have."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]


def _spark(total: NDArray[np.float64]) -> str:
    """Sparkline of `total`; empty if fewer than two losses are positive and finite."""
    finite = total[np.isfinite(total) & (total > 0)]
    if len(finite) < 2:
        return ""
    points = np.log(finite[np.linspace(0, len(finite) - 1, SPARK_POINTS).round().astype(int)])
    share = (points - points.min()) / max(points.max() - points.min(), 1e-9)
    return "".join(SPARK_LEVELS[i] for i in (share * (len(SPARK_LEVELS) - 1)).round().astype(int))
