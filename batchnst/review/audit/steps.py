"""Checks that the losses of each attempt are complete and finite, fall, and agree with its row in `pairs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.ledger.out import Out
from batchnst.ledger.schema import ATTEMPT, SCHEMAS, TERMS
from batchnst.progress import Progress
from batchnst.review.audit.findings import Audit, Finding
from batchnst.review.audit.ledger_files import tables

COLUMNS = [*ATTEMPT, "step", "scale", *TERMS]
"""Columns of `losses` that `summarize` needs."""


def losses(out: Out, rows: pa.Table, damaged: pa.Table, result: Audit, progress: Progress) -> Iterator[Finding]:
    """The worst problem of each ok attempt in `rows` whose losses are not as they should be.

    Counts of attempts and steps go to `result`. An attempt with a `damaged` row was not cut off.
    """
    known = merge([part.sound for part in tables(out, "losses", COLUMNS, result, progress, summarize)])
    result.attempts, result.steps = len(known), pc.sum(known["rows"]).as_py() or 0
    ended = pa.concat_tables([damaged.select(ATTEMPT), rows.select(ATTEMPT)], promote_options="default")
    result.unfinished = len(known.join(ended, ATTEMPT, join_type="left anti"))
    ok = rows.filter(pc.equal(rows["status"], "ok")).select([*ATTEMPT, *_OUTCOME])
    attempts = ok.join(known, ATTEMPT)
    kinds = _kinds(attempts)
    wrong = attempts.append_column("kind", pa.array(kinds)).filter(pa.array(kinds != ""))
    for row in wrong.sort_by([(name, "ascending") for name in ("pair_id", "attempt", "run_id")]).to_pylist():
        text = _LOSS_TEXTS[row["kind"]].format_map(row)
        yield Finding(row["kind"], row["pair_id"], f"attempt {row['attempt']} of run {row['run_id']}: {text}")


_FINAL = {term: f"{term}_loss" for term in TERMS} | {"initial": "initial_total"}
"""Columns of `summarize` that `pairs` has too, with their names there."""

_OUTCOME = ["steps", "stopped", *_FINAL.values()]

_LOSS_TEXTS = {
    "losses-missing": "none of its {steps} steps is in the ledger",
    "losses-gap": "the ledger has {rows} rows for its {steps} steps; expected each step once",
    "not-finite": "some of its losses are NaN or infinite",
    "losses-differ": "its row says {initial_total:.6g} to {total_loss:.6g}, its steps say {initial:.6g} to {total:.6g}",
    "rescued": "it diverged and was painted again from its best picture, in fp32 by L-BFGS",
    "rose": "its loss is higher at the end of the finest scale than at the beginning",
}


def _kinds(attempts: pa.Table) -> NDArray[np.str_]:
    """Kind of the worst finding on each attempt (N,); "" if there is none."""

    def column(name: str, default: Any) -> NDArray[Any]:
        return np.asarray(pc.fill_null(attempts[name], default).to_numpy())

    rows, stopped = column("rows", 0), column("stopped", "")
    differs = [column(term, np.nan) != column(name, np.nan) for term, name in _FINAL.items()]
    finite = column("finite", True) & np.isfinite(column("total_loss", np.nan))
    conditions = {
        "losses-missing": rows == 0,
        "losses-gap": ~column("whole", True) | (rows != column("steps", 0)),
        "not-finite": ~finite & (stopped != "diverged"),
        "losses-differ": np.any(differs, axis=0),
        "rescued": stopped == "diverged",
        "rose": column("rose", False),
    }
    return np.select(list(conditions.values()), list(conditions), "")


def summarize(losses: pa.Table) -> pa.Table:
    """A row for each attempt in `losses`, which must hold all steps of its attempts.

    `rows`: number of steps. `whole`: true if they are 0, 1, 2 … each once. `finite`: true if no loss is NaN or
    infinite. `initial`: the first total. `rose`: true if the last total of the finest scale is higher than its first.
    `total`, `content`, `style`, `tv`: the losses of the finest scale's step with the lowest total.
    """
    losses = losses.combine_chunks()
    starts = _starts(losses)
    if not _are_in_order(losses, starts):
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
    """The summaries of several files as one; the `rows` of an attempt in several files are added."""
    rows = pa.concat_tables([summarize(SCHEMAS["losses"].empty_table()), *summaries])
    functions = {"rows": "sum", "whole": "all", "finite": "all", "initial": "max", "rose": "any"} | dict.fromkeys(
        TERMS, "min"
    )
    return rows.group_by(ATTEMPT).aggregate(list(functions.items())).rename_columns([*ATTEMPT, *functions])


def _starts(losses: pa.Table) -> NDArray[np.int64]:
    """Position of the first row of each attempt in rows in which those of an attempt are together."""
    begins = np.zeros(len(losses), bool)
    begins[:1] = True
    for name in ATTEMPT:
        column = losses[name]
        begins[1:] |= pc.not_equal(column.slice(1), column.slice(0, max(0, len(column) - 1))).to_numpy()
    return np.flatnonzero(begins)


def _are_in_order(losses: pa.Table, starts: NDArray[np.int64]) -> bool:
    """True if the rows of each attempt, which begin at `starts`, are together and its steps ascend."""
    falls = np.flatnonzero(np.diff(losses["step"].to_numpy()) < 0) + 1
    attempts = losses.select(ATTEMPT).take(pa.array(starts))
    return bool(np.isin(falls, starts).all()) and len(attempts.group_by(ATTEMPT).aggregate([])) == len(starts)


def _reduce(function: np.ufunc, values: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    """`function` reduced over the values of each attempt, which begins at one of `starts`."""
    return np.asarray(function.reduceat(values, starts)) if len(starts) else values


def _first(starts: NDArray[np.int64], where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Position of each attempt's first row where `where` is True; its first row if there is none."""
    rows = np.where(where, np.arange(len(where)), len(where))
    first = _reduce(np.minimum, rows, starts)
    return np.where(first < len(where), first, starts)
