"""What each layer contributes to the style losses of painted pairs, before and after, from their ledger."""

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


@dataclass(frozen=True)
class Contribution:
    """A layer's share of the style loss at the first step and at the last, 0..1, and what is left of its own loss.

    Of several pairs these are the means.
    """

    before: float
    after: float
    left: float


def contributions(out: Out, pair_id: str | None, backbone: str) -> dict[str, Contribution]:
    """What each style layer of a backbone contributes to the style loss of a pair, or of all that were painted with it.

    Each pair counts by its newest row. Raises LedgerError where there is no such pair.
    """
    found: defaultdict[str, list[Contribution]] = defaultdict(list)
    for weights, first, last in _ends(out, _painted(out, pair_id, backbone)):
        before, after = (sum(weights[name] * loss[name] for name in weights) for loss in (first, last))
        for name, weight in weights.items():
            shares = weight * first[name] / before, weight * last[name] / after
            found[name].append(Contribution(*shares, last[name] / first[name]))
    if not found:
        what = f"{pair_id}: the ledger of {out.address} knows no such pair" if pair_id else f"{out.address}: no pair"
        raise LedgerError(f"{what} that was painted by {backbone} and had a style loss")
    return {name: Contribution(*map(fmean, zip(*map(astuple, own), strict=True))) for name, own in found.items()}


def percent(share: float) -> str:
    """A share as it is shown."""
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def _painted(out: Out, pair_id: str | None, backbone: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The newest rows of pairs painted with a backbone, by their attempt."""
    columns = [*ATTEMPT, "status", "finished_at", "recipe", "steps"]
    only = None if pair_id is None else pc.field("pair_id") == pair_id
    rows = newest_rows(out.rows("pairs", columns, matching=only)).to_pylist()
    painted = (row | {"recipe": json.loads(row["recipe"])} for row in rows if row["status"] == "ok")
    return {_key(row): row for row in painted if row["recipe"]["backbone"] == backbone}


def _ends(
    out: Out, pairs: dict[tuple[Any, ...], dict[str, Any]]
) -> Iterator[tuple[dict[str, float], dict[str, float], dict[str, float]]]:
    """Of each pair the weights of its style layers, and their unweighted losses at its first step and at its last."""
    ids = pa.array((row["pair_id"] for row in pairs.values()), pa.string())
    steps = {0, *(row["steps"] - 1 for row in pairs.values())}
    wanted = pc.field("pair_id").isin(ids) & pc.field("step").isin(sorted(steps))
    losses = out.rows("losses", [*ATTEMPT, "step", "style_layers"], matching=wanted).to_pylist()
    by_step = {(_key(row), row["step"]): dict(row["style_layers"]) for row in losses}
    for key, row in pairs.items():
        first, last = by_step.get((key, 0)), by_step.get((key, row["steps"] - 1))
        if first and last and all(first.values()) and all(last.values()):  # not one in its own style
            yield row["recipe"]["style_layers"], first, last


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ATTEMPT)
