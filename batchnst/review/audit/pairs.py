"""Checks the rows of `pairs` against the manifest and against each other."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.chains import path_of
from batchnst.ledger.out import ORDERED_BY, sort_rows
from batchnst.review.audit.findings import Finding
from batchnst.review.usual import Usual, comparable_recipes, groups_of, logarithms

MAX_Z = 5.0
"""Largest robust z-score of a loss that is usual.

With ten thousand pairs whose losses are log-normal, one is reported by chance in about 170 nights.
"""


def manifest_differences(newest: pa.Table, expected: pa.Table, others: Mapping[str, str]) -> Iterator[Finding]:
    """Pairs of the manifest that are not painted, or not as the manifest asks now.

    `others` are the manifests of runs of other manifests, by run_id.
    """
    known = newest.select(["pair_id", "status", "error_type", "error_message", "fingerprint", "run_id"])
    known = known.rename_columns({"fingerprint": "painted"})
    both = expected.join(known, "pair_id").sort_by("pair_id")
    same = pc.and_(pc.equal(both["status"], "ok"), pc.equal(both["painted"], both["fingerprint"]))
    for row in both.filter(pc.invert(pc.fill_null(same, False))).to_pylist():
        if row["status"] is None:
            yield Finding("missing", row["pair_id"], "it has no row in the ledger")
        elif row["painted"] != row["fingerprint"]:
            yield Finding("outdated", row["pair_id"], _why_outdated(row["run_id"], others))
        else:
            yield _failure(row)


def _why_outdated(run_id: str, others: Mapping[str, str]) -> str:
    if run_id in others:
        return f"run {run_id} painted it as {others[run_id]} asks, not as its row does here"
    return "its row, recipe or weights have changed since it was painted"


def failed(newest: pa.Table) -> Iterator[Finding]:
    """Pairs whose newest attempt failed."""
    rows = newest.filter(pc.equal(newest["status"], "failed")).sort_by("pair_id")
    return map(_failure, rows.select(["pair_id", "error_type", "error_message"]).to_pylist())


def _failure(row: dict[str, Any]) -> Finding:
    return Finding("failed", row["pair_id"], f"{row['error_type']}: {row['error_message']}")


def doubled(rows: pa.Table, redone: Collection[str]) -> Iterator[Finding]:
    """Pairs with two consecutive ok rows of the same fingerprint: they were painted again although they were done.

    Consecutive among the rows of one output: after another pair has used it, painting a pair again is right. So it
    is in the runs with the ids `redone`, which were asked to paint pairs again.
    """
    columns = ["pair_id", "output", "fingerprint", "run_id", *ORDERED_BY]
    ok = sort_rows(rows.filter(pc.equal(rows["status"], "ok")).select(columns))
    ok = ok.append_column("order", pa.array(np.arange(len(ok))))
    ok = ok.sort_by([("output", "ascending"), ("order", "ascending")])
    if len(ok) < 2:
        return
    earlier, later = ok.slice(0, len(ok) - 1), ok.slice(1)
    same = [pc.equal(earlier[name], later[name]) for name in ("pair_id", "output", "fingerprint")]
    repeated = pc.and_(same[0], pc.and_(same[1], same[2]))
    runs = zip(earlier["run_id"].filter(repeated).to_pylist(), later.filter(repeated).to_pylist(), strict=True)
    for first, row in runs:
        if row["run_id"] not in redone:
            yield Finding("doubled", row["pair_id"], f"painted by run {first}, and again by run {row['run_id']}")


def outliers(ok: pa.Table) -> Iterator[Finding]:
    """Losses that are unusual for their style, size and recipe: their z-score is beyond MAX_Z."""
    for i, z, median in unusual_losses(ok):
        if abs(z) > MAX_Z:
            total, size = ok["total_loss"][i].as_py(), max(ok["width"][i].as_py(), ok["height"][i].as_py())
            name = " and ".join(PurePosixPath(path_of(style)).name for style in ok["styles"][i].as_py())
            text = f"loss {total:.4g}; {median:.4g} is usual for {name} at {size} pixels (z = {z:+.1f})"
            yield Finding("outlier", ok["pair_id"][i].as_py(), text)


def unusual_losses(ok: pa.Table) -> Iterator[tuple[int, float, float]]:
    """Row, robust z-score of the logarithm of its loss, and median loss, among rows of one style, size and recipe.

    Groups of fewer than MIN_GROUP rows are left out.
    """
    values, groups = logarithms(ok), defaultdict[Hashable, list[int]](list)
    for i, group in enumerate(groups_of(ok)):
        if np.isfinite(values[i]):
            groups[group].append(i)
    for rows in groups.values():
        if usual := Usual.of(values[rows]):
            for i in rows:
                yield i, float(usual.factor * (values[i] - usual.median)), float(np.exp(usual.median))


def unusual_rows(ok: pa.Table, expected: pa.Table | None) -> Iterator[Finding]:
    """Rows whose weights, recipe or versions differ from those of most rows.

    Weights and recipes that the manifest asks for, by the fingerprints in `expected`, are not reported.
    """
    names, recipes = ok["pair_id"].to_pylist(), comparable_recipes(ok)
    unexpected: list[int] = np.flatnonzero(~_as_expected(ok, expected)).tolist()
    by_network: dict[str, list[int]] = defaultdict(list)
    settings, hashes = ok["recipe"].to_pylist(), ok["weights_sha256"].to_pylist()
    for i in unexpected:
        by_network[_network(settings[i])].append(i)
    for network, rows in by_network.items():
        for i, usual in _unusual([hashes[i] for i in rows], 0):
            text = f"weights {hashes[rows[i]][:12]}…; most rows with {network} have {usual[:12]}…"
            yield Finding("other-weights", names[rows[i]], text)
    for i, usual in _unusual([recipes[i] for i in unexpected], 0.5):
        yield Finding("other-recipe", names[unexpected[i]], _difference(recipes[unexpected[i]], usual))
    versions = [json.dumps(version) for version in ok["versions"].to_pylist()]
    for i, usual in _unusual(versions, 0):
        yield Finding("other-versions", names[i], _difference(versions[i], usual))


def _unusual(values: Sequence[str], share: float) -> Iterator[tuple[int, str]]:
    """Position of each value that is not the most frequent one, with the most frequent one.

    Nothing is reported unless more than this `share` of the values are the most frequent one.
    """
    for usual, count in Counter(values).most_common(1):
        if count > share * len(values):
            yield from ((i, usual) for i, value in enumerate(values) if value != usual)


def _difference(text: str, usual_text: str) -> str:
    """The keys in which two JSON objects differ, with both values."""
    actual, usual = json.loads(text), json.loads(usual_text)
    keys = [key for key in {**usual, **actual} if actual.get(key) != usual.get(key)]
    return ", ".join(f"{key} {actual.get(key)}, not {usual.get(key)}" for key in keys)


@lru_cache(maxsize=1024)
def _network(recipe: str) -> str:
    """Backbone and weights that a recipe names."""
    keys = json.loads(recipe)
    return f"{keys.get('backbone')} {keys.get('weights')}"


def _as_expected(ok: pa.Table, expected: pa.Table | None) -> NDArray[np.bool_]:
    """For each row, True if it is as the manifest asks now (N,); all False without a manifest."""
    if expected is None:
        return np.zeros(len(ok), bool)
    positions = pc.index_in(ok["pair_id"], expected["pair_id"].combine_chunks())
    same = pc.equal(expected["fingerprint"].take(positions), ok["fingerprint"])
    return np.asarray(pc.fill_null(same, False).to_numpy())
