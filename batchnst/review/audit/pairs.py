"""Checks the rows of `pairs` against the manifest and against each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.chains import path_of
from batchnst.ledger.out import ORDERED_BY, sort_rows
from batchnst.review.audit.findings import Finding
from batchnst.review.usual import Usual, comparable, logarithms

MAX_Z = 5.0
"""Largest robust z-score of a loss that is usual.

With ten thousand pairs whose losses are log-normal, one is reported by chance in about 170 nights.
"""

_AT_ONCE = 1 << 16
"""Recipes that are held without their seeds at a time."""


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
    scores, medians = unusual_losses(ok)
    for i in np.flatnonzero(np.abs(scores) > MAX_Z).tolist():
        total, size = ok["total_loss"][i].as_py(), max(ok["width"][i].as_py(), ok["height"][i].as_py())
        name = " and ".join(PurePosixPath(path_of(style)).name for style in ok["styles"][i].as_py())
        text = f"loss {total:.4g}; {medians[i]:.4g} is usual for {name} at {size} pixels (z = {scores[i]:+.1f})"
        yield Finding("outlier", ok["pair_id"][i].as_py(), text)


def unusual_losses(ok: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Robust z-score of the logarithm of each row's loss (N,), and median loss (N,), among those that it compares with.

    Those are the rows of one style, size and recipe; both are NaN where there are too few of them.
    """
    values, styles = logarithms(ok), pc.binary_join(ok["styles"], "\0")
    long_side = pc.max_element_wise(ok["width"], ok["height"])
    groups, _ = _together(styles, long_side, _mapped(_seedless(ok["recipe"]), comparable))
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(groups[finite], kind="stable")]
    _, starts = np.unique(groups[order], return_index=True)
    scores, medians = np.full((2, len(ok)), np.nan)
    for rows in np.split(order, starts[1:]):
        if usual := Usual.of(values[rows]):
            scores[rows], medians[rows] = usual.factor * (values[rows] - usual.median), np.exp(usual.median)
    return scores, medians


def unusual_rows(ok: pa.Table, expected: pa.Table | None) -> Iterator[Finding]:
    """Rows whose weights, recipe or versions differ from those of most rows.

    Weights and recipes that the manifest asks for, by the fingerprints in `expected`, are not reported.
    """
    names, seedless = ok["pair_id"], _seedless(ok["recipe"])
    unexpected = np.flatnonzero(~_as_expected(ok, expected))
    networks, hashes = _mapped(seedless, _network), _encoded(ok["weights_sha256"])
    each = networks.indices.to_numpy()[unexpected]
    for code in pc.unique(pa.array(each)).to_pylist():
        for i, sha256, usual in _unusual(hashes, unexpected[each == code], 0):
            text = f"weights {sha256[:12]}…; most rows with {networks.dictionary[code]} have {usual[:12]}…"
            yield Finding("other-weights", names[i].as_py(), text)
    for i, recipe, usual in _unusual(_mapped(seedless, comparable), unexpected, 0.5):
        yield Finding("other-recipe", names[i].as_py(), _difference(recipe, usual))
    for i, versions, usual in _unusual(_versions(ok), np.arange(len(ok)), 0):
        yield Finding("other-versions", names[i].as_py(), _difference(versions, usual))


def _unusual(values: pa.DictionaryArray, rows: NDArray[np.int64], share: float) -> Iterator[tuple[int, str, str]]:
    """Each of `rows` whose value is not the most frequent one among them, its value, and the most frequent one.

    Nothing is reported unless more than this `share` of the rows have the most frequent value.
    """
    codes = values.indices.to_numpy()[rows]
    distinct, first, counts = np.unique(codes, return_index=True, return_counts=True)
    if not len(rows) or counts.max() <= share * len(rows):
        return
    usual = distinct[np.lexsort((first, -counts))[0]]
    for i, code in zip(rows[codes != usual].tolist(), codes[codes != usual].tolist(), strict=True):
        yield i, values.dictionary[code].as_py(), values.dictionary[usual].as_py()


def _difference(text: str, usual_text: str) -> str:
    """The keys in which two JSON objects differ, with both values."""
    actual, usual = json.loads(text), json.loads(usual_text)
    keys = [key for key in {**usual, **actual} if actual.get(key) != usual.get(key)]
    return ", ".join(f"{key} {actual.get(key)}, not {usual.get(key)}" for key in keys)


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A column as numbers of its distinct values."""
    return column.dictionary_encode("encode").combine_chunks()


def _mapped(values: pa.DictionaryArray, function: Callable[[str], str]) -> pa.DictionaryArray:
    """The `function` of each value, called once for each distinct one."""
    results = pa.array(map(function, values.dictionary.to_pylist()), pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(results.indices.take(values.indices), results.dictionary)


def _together(*columns: pa.ChunkedArray | pa.DictionaryArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of each row's combination of values (N,), and the first row of each combination."""
    codes, firsts = np.zeros(len(columns[0]), np.int64), np.zeros(min(1, len(columns[0])), np.int64)
    for column in columns:
        values = column if isinstance(column, pa.DictionaryArray) else _encoded(column)
        if len(values.dictionary) > 1:
            codes = codes * len(values.dictionary) + values.indices.to_numpy()
            _, firsts, codes = np.unique(codes, return_index=True, return_inverse=True)
    return codes, firsts


def _seedless(recipes: pa.ChunkedArray) -> pa.DictionaryArray:
    """The recipes as JSON with one seed, so that few are distinct."""
    starts = range(0, max(1, len(recipes)), _AT_ONCE)
    # A quote inside of a text has a backslash, so that only a key matches.
    parts = (pc.replace_substring_regex(recipes.slice(i, _AT_ONCE), '"seed": ?-?[0-9]+', '"seed": 0') for i in starts)
    encoded = [chunk for part in parts for chunk in part.dictionary_encode().chunks]
    kind = pa.dictionary(pa.int32(), pa.string())
    return pa.chunked_array(encoded, kind).unify_dictionaries().combine_chunks()


def _network(recipe: str) -> str:
    """Backbone and weights that a recipe names."""
    keys = json.loads(recipe)
    return f"{keys.get('backbone')} {keys.get('weights')}"


def _versions(ok: pa.Table) -> pa.DictionaryArray:
    """The versions of each row as JSON."""
    codes, firsts = _together(*ok.select(["versions"]).flatten().columns)
    texts = [json.dumps(versions) for versions in ok["versions"].take(pa.array(firsts)).to_pylist()]
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(texts, pa.string()))


def _as_expected(ok: pa.Table, expected: pa.Table | None) -> NDArray[np.bool_]:
    """For each row, True if it is as the manifest asks now (N,); all False without a manifest."""
    if expected is None:
        return np.zeros(len(ok), bool)
    positions = pc.index_in(ok["pair_id"], expected["pair_id"].combine_chunks())
    same = pc.equal(expected["fingerprint"].take(positions), ok["fingerprint"])
    return np.asarray(pc.fill_null(same, False).to_numpy())
