"""Each layer's contribution to the style loss of painted pairs, before and after, read from their ledger."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.errors import LedgerError
from batchnst.ledger.out import Out, newest_rows
from batchnst.ledger.schema import ATTEMPT

Attempt = tuple[Any, ...]
"""Values of the columns ATTEMPT, which identify an attempt."""


@dataclass(frozen=True)
class Contribution:
    """A layer's contribution to the style loss of one pair, or the mean over several pairs.

    before, after: the layer's share of the weighted style loss at the first and at the last step, 0..1. remaining: the
    layer's own loss at the last step, as a share of that at the first.
    """

    before: float
    after: float
    remaining: float


def contributions(out: Out, pair_id: str | None, backbone: str) -> dict[str, Contribution]:
    """Return each style layer's contribution for one pair, or for all pairs if `pair_id` is None.

    Only pairs painted by `backbone` count, each by its newest row. Raises LedgerError if none of them had a style loss.
    """
    by_layer: defaultdict[str, list[Contribution]] = defaultdict(list)
    for weights, first, last in _first_and_last(out, _painted(out, pair_id, backbone)):
        before, after = (sum(weights[name] * loss[name] for name in weights) for loss in (first, last))
        for name, weight in weights.items():
            shares = weight * first[name] / before, weight * last[name] / after
            by_layer[name].append(Contribution(*shares, last[name] / first[name]))
    if not by_layer:
        pair = f"no pair {pair_id!r}" if pair_id else "no pair"
        raise LedgerError(f"{out.address}: {pair} that {backbone} has painted with a style loss")
    return {name: Contribution(*map(fmean, zip(*map(astuple, pairs), strict=True))) for name, pairs in by_layer.items()}


def percent(share: float) -> str:
    """Format a share, 0..1, as a percentage, with one decimal if it is below 10 %."""
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def _painted(out: Out, pair_id: str | None, backbone: str) -> dict[Attempt, dict[str, Any]]:
    """Return the newest rows of the pairs painted by `backbone`, by their attempt, with the recipe parsed."""
    columns = [*ATTEMPT, "run_number", "status", "finished_at", "recipe", "steps"]
    only = None if pair_id is None else pc.field("pair_id") == pair_id
    rows = newest_rows(out.rows("pairs", columns, matching=only)).to_pylist()
    painted = (row | {"recipe": json.loads(row["recipe"])} for row in rows if row["status"] == "ok")
    return {_attempt(row): row for row in painted if row["recipe"]["backbone"] == backbone}


def _first_and_last(
    out: Out, pairs: dict[Attempt, dict[str, Any]]
) -> Iterator[tuple[dict[str, float], dict[str, float], dict[str, float]]]:
    """Yield, for each pair, the weights of its style layers and their unweighted losses at the first and last step.

    A pair without a style loss, such as a picture in its own style, is left out.
    """
    ids = pa.array((row["pair_id"] for row in pairs.values()), pa.string())
    steps = {0, *(row["steps"] - 1 for row in pairs.values())}
    wanted = pc.field("pair_id").isin(ids) & pc.field("step").isin(sorted(steps))
    losses = out.rows("losses", [*ATTEMPT, "step", "style_layers"], matching=wanted).to_pylist()
    by_step = {(_attempt(row), row["step"]): dict(row["style_layers"]) for row in losses}
    for attempt, row in pairs.items():
        first, last = by_step.get((attempt, 0)), by_step.get((attempt, row["steps"] - 1))
        if first and last and all(first.values()) and all(last.values()):
            yield row["recipe"]["style_layers"], first, last


def _attempt(row: dict[str, Any]) -> Attempt:
    return tuple(row[name] for name in ATTEMPT)
