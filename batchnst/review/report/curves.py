"""The report's loss curves: of each pair's newest attempt, thinned where there are many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.ledger.out import Out
from batchnst.ledger.schema import ATTEMPT, TERMS
from batchnst.progress import Progress

POINTS, FEWEST, MOST = 600_000, 60, 400
"""Of all curves together, and at least and at most of one."""

SPARK_POINTS = 32
SPARK_LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

Key = tuple[str, str, int]
"""run_id, pair_id, attempt."""

Numbers = list[float | None]


@dataclass(frozen=True)
class Curve:
    """Losses by step: terms as weighted in the total, style layers unweighted; four digits of each.

    scales are (first step, longest side in pixels); spark is the total's shape, on a log scale, one of SPARK_LEVELS a
    point, from the least to the most.
    """

    step: list[int]
    scales: list[tuple[int, int]]
    terms: dict[str, Numbers]
    layers: dict[str, Numbers]
    spark: str


def read(out: Out, attempts: set[Key], progress: Progress) -> dict[Key, Curve]:
    """The curves of some attempts, those that have any."""
    most = min(MOST, max(FEWEST, POINTS // max(1, len(attempts))))
    files, found = out.files("losses"), dict[Key, Curve]()
    for i, info in enumerate(files, 1):
        found.update(_in_file(out.rows_of([info], "losses"), attempts, most))
        progress(f"curves: {i} of {len(files)} files", i, len(files))
    return found


def _in_file(rows: pa.Table, attempts: set[Key], most: int) -> Iterator[tuple[Key, Curve]]:
    """An attempt's steps lie in one file, together or not."""
    rows = rows.combine_chunks()
    keys = rows.select(ATTEMPT)
    codes = _codes(keys)
    order = np.lexsort((rows["step"].to_numpy(), codes))
    for places in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(places):
            key = tuple(column[int(places[0])].as_py() for column in keys.columns)
            if key in attempts:
                yield key, _curve(rows, places, most)


def _codes(keys: pa.Table) -> NDArray[np.int64]:
    """A number for each row, the same for rows of the same attempt."""
    text = pc.binary_join_element_wise(keys["run_id"], keys["pair_id"], keys["attempt"].cast(pa.string()), "\n")
    return np.asarray(text.combine_chunks().dictionary_encode().indices, np.int64)


def _curve(rows: pa.Table, places: NDArray[np.int64], most: int) -> Curve:
    total, scale = (rows[name].to_numpy()[places] for name in ("total", "scale"))
    changes = [0, *(np.flatnonzero(np.diff(scale)) + 1).tolist()]
    kept = _thin(total, changes, most)
    step = rows["step"].to_numpy()[places]
    return Curve(
        step=step[kept].tolist(),
        scales=[(int(step[i]), int(scale[i])) for i in changes],
        terms={name: _round(rows[name].to_numpy()[places[kept]]) for name in TERMS},
        layers={name: _round(values) for name, values in _layers(rows, places[kept])},
        spark=_spark(total),
    )


def _thin(total: NDArray[np.float64], changes: list[int], most: int) -> NDArray[np.int64]:
    """Which steps to keep: the first, the last, the least, both sides of a change of scale, and evenly others."""
    last = len(total) - 1
    least = int(np.argmin(np.nan_to_num(total, nan=math.inf)))
    even = np.linspace(0, last, min(most, last + 1)).round().astype(np.int64)
    sides = [i - d for i in changes for d in (0, 1) if i >= d]
    return np.unique(np.concatenate([even, [0, last, least], sides]).astype(np.int64))


def _layers(rows: pa.Table, places: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    maps = rows["style_layers"].combine_chunks()
    offsets, values = maps.offsets.to_numpy(), maps.items.to_numpy(zero_copy_only=False)
    names = maps.keys.slice(offsets[places[0]], offsets[places[0] + 1] - offsets[places[0]]).to_pylist()
    for k, name in enumerate(names):
        yield name, values[offsets[places] + k]


def _round(values: NDArray[np.float64]) -> Numbers:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]


def _spark(total: NDArray[np.float64]) -> str:
    finite = total[np.isfinite(total) & (total > 0)]
    if len(finite) < 2:
        return ""
    points = np.log(finite[np.linspace(0, len(finite) - 1, SPARK_POINTS).round().astype(int)])
    share = (points - points.min()) / max(points.max() - points.min(), 1e-9)
    return "".join(SPARK_LEVELS[i] for i in (share * (len(SPARK_LEVELS) - 1)).round().astype(int))
