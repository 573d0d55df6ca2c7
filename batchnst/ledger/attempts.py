"""Each attempt's losses in a row: how many steps, whether any is missing, where the curve began and ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchnst.ledger.schema import SCHEMAS

ATTEMPT = ["run_id", "pair_id", "attempt"]
"""What names an attempt, in `pairs` and in `losses`."""

TERMS = ["total", "content", "style", "tv"]

COLUMNS = [*ATTEMPT, "step", "scale", *TERMS]
"""What `summarize` wants of `losses`."""


def summarize(losses: pa.Table) -> pa.Table:
    """A row for each attempt in `losses`; all its steps must be there.

    `rows`: its steps. `whole`: whether they are 0, 1, 2 … each once. `finite`: whether all its losses are numbers.
    `initial`: its first total. `rose`: whether the finest scale ended higher than it began. `total`, `content`,
    `style`, `tv`: of the finest scale's lowest total.
    """
    losses = losses.sort_by([(name, "ascending") for name in [*ATTEMPT, "step"]])
    starts = _starts(losses)
    sizes = np.diff(np.append(starts, len(losses)))
    step, scale = (losses[name].to_numpy() for name in ("step", "scale"))
    terms = {name: losses[name].to_numpy() for name in TERMS}
    total = terms["total"]
    finest = scale == np.repeat(_reduce(np.maximum, scale, starts), sizes)
    lowest = np.repeat(_reduce(np.fmin, np.where(finest, total, np.inf), starts), sizes)
    begin, end, best = _first(starts, finest), starts + sizes - 1, _first(starts, finest & (total == lowest))
    in_order = step == np.arange(len(step)) - np.repeat(starts, sizes)
    finite = np.all([np.isfinite(term) for term in terms.values()], axis=0)
    return pa.table(
        {
            **{name: losses[name].take(pa.array(starts)) for name in ATTEMPT},
            "rows": sizes,
            "whole": _reduce(np.logical_and, in_order, starts),
            "finite": _reduce(np.logical_and, finite, starts),
            "initial": total[starts],
            "rose": total[end] > total[begin],
            **{name: term[best] for name, term in terms.items()},
        }
    )


def merge(summaries: Sequence[pa.Table]) -> pa.Table:
    """Summaries of several files as one; an attempt that is in two of them has the rows of both."""
    rows = pa.concat_tables([summarize(SCHEMAS["losses"].empty_table()), *summaries])
    how = {"rows": "sum", "whole": "all", "finite": "all", "initial": "max", "rose": "any"} | dict.fromkeys(
        TERMS, "min"
    )
    return rows.group_by(ATTEMPT).aggregate(list(how.items())).rename_columns([*ATTEMPT, *how])


def _starts(losses: pa.Table) -> NDArray[np.int64]:
    """Where, in sorted rows, each attempt begins."""
    begins = np.zeros(len(losses), bool)
    begins[:1] = True
    for name in ATTEMPT:
        number = losses[name].combine_chunks().dictionary_encode().indices.to_numpy()
        begins[1:] |= number[1:] != number[:-1]
    return np.flatnonzero(begins)


def _reduce(function: np.ufunc, values: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    """The function over each attempt's values."""
    return np.asarray(function.reduceat(values, starts)) if len(starts) else values


def _first(starts: NDArray[np.int64], where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each attempt the first row where something holds; its first of all where nothing does."""
    rows = np.where(where, np.arange(len(where)), len(where))
    first = _reduce(np.minimum, rows, starts)
    return np.where(first < len(where), first, starts)
