"""Whether the rows of `pairs` agree with the manifest and with each other."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.recipe import NOT_OF_THE_PICTURE
from batchnst.review.audit.findings import Finding

FEWEST, FAR, NARROWEST = 8, 5.0, 0.05
"""Outliers: pairs that are enough to say what is usual, the robust z-score that is far, the least deviation of ln loss.

Of ten thousand pairs with log-normal losses one is named by chance in about 170 nights.
"""


def unlike_manifest(newest: pa.Table, expected: pa.Table) -> Iterator[Finding]:
    """Pairs of the manifest that are not painted, or not as it asks now."""
    known = newest.select(["pair_id", "status", "error_type", "error_message", "fingerprint"])
    known = known.rename_columns({"fingerprint": "painted"})
    both = expected.join(known, "pair_id").sort_by("pair_id")
    same = pc.and_(pc.equal(both["status"], "ok"), pc.equal(both["painted"], both["fingerprint"]))
    for row in both.filter(pc.invert(pc.fill_null(same, False))).to_pylist():
        if row["status"] is None:
            yield Finding("missing", row["pair_id"], "the ledger knows nothing of it")
        elif row["painted"] != row["fingerprint"]:
            yield Finding("outdated", row["pair_id"], "its row, recipe or weights have changed since it was painted")
        else:
            yield _failure(row)


def failed(newest: pa.Table) -> Iterator[Finding]:
    """Pairs whose newest attempt failed."""
    rows = newest.filter(pc.equal(newest["status"], "failed")).sort_by("pair_id")
    return map(_failure, rows.select(["pair_id", "error_type", "error_message"]).to_pylist())


def _failure(row: dict[str, Any]) -> Finding:
    return Finding("failed", row["pair_id"], f"{row['error_type']}: {row['error_message']}")


def doubled(rows: pa.Table) -> Iterator[Finding]:
    """Two ok rows in turn for the same thing: somebody painted what was done already."""
    rows = rows.select(["pair_id", "status", "fingerprint", "run_id", "finished_at"])
    rows = rows.sort_by([("pair_id", "ascending"), ("finished_at", "ascending")])
    if len(rows) < 2:
        return
    earlier, later = rows.slice(0, len(rows) - 1), rows.slice(1)
    same = [pc.equal(earlier[name], later[name]) for name in ("pair_id", "status", "fingerprint")]
    double = pc.and_(pc.and_(*same[:2]), pc.and_(same[2], pc.equal(later["status"], "ok")))
    runs = zip(earlier["run_id"].filter(double).to_pylist(), later.filter(double).to_pylist(), strict=True)
    for first, row in runs:
        yield Finding("doubled", row["pair_id"], f"painted by run {first}, and again by run {row['run_id']}")


def outliers(ok: pa.Table) -> Iterator[Finding]:
    """Losses far from the median of their style, size and recipe, by the robust z-score of their logarithm.

    z = 0.6745 (x − median) / MAD (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers).
    """
    loss = np.log(np.maximum(pc.fill_null(ok["total_loss"], np.nan).to_numpy(), 1e-30))
    long_side = pc.max_element_wise(ok["width"], ok["height"]).to_pylist()
    same: dict[Any, list[int]] = defaultdict(list)
    for i, (styles, size, recipe) in enumerate(zip(ok["styles"].to_pylist(), long_side, _recipes(ok), strict=True)):
        if np.isfinite(loss[i]):
            same[tuple(styles), size, recipe].append(i)
    for (styles, size, _), rows in same.items():
        if len(rows) < FEWEST:
            continue
        usual = np.median(loss[rows])
        deviation = max(float(np.median(np.abs(loss[rows] - usual))), NARROWEST)
        for i, z in zip(rows, 0.6745 * (loss[rows] - usual) / deviation, strict=True):
            if abs(z) > FAR:
                found, name = ok["total_loss"][i].as_py(), " and ".join(PurePosixPath(style).name for style in styles)
                text = f"loss {found:.4g} where {np.exp(usual):.4g} is usual for {name} at {size} pixels (z = {z:+.1f})"
                yield Finding("outlier", ok["pair_id"][i].as_py(), text)


def odd_ones(ok: pa.Table, expected: pa.Table | None) -> Iterator[Finding]:
    """Rows made otherwise than most; weights and recipe that the manifest asks for as they are, are not odd."""
    names, recipes = ok["pair_id"].to_pylist(), _recipes(ok)
    unexpected: list[int] = np.flatnonzero(~_as_expected(ok, expected)).tolist()
    by_network: dict[str, list[int]] = defaultdict(list)
    settings, hashes = ok["recipe"].to_pylist(), ok["weights_sha256"].to_pylist()
    for i in unexpected:
        by_network[_network(settings[i])].append(i)
    for network, rows in by_network.items():
        for i, usual in _odd([hashes[i] for i in rows], 0):
            text = f"{hashes[rows[i]][:12]}…, where most by the name of {network} have {usual[:12]}…"
            yield Finding("other-weights", names[rows[i]], text)
    for i, usual in _odd([recipes[i] for i in unexpected], 0.5):
        yield Finding("other-recipe", names[unexpected[i]], _difference(recipes[unexpected[i]], usual))
    versions = [json.dumps(version) for version in ok["versions"].to_pylist()]
    for i, usual in _odd(versions, 0):
        yield Finding("other-versions", names[i], _difference(versions[i], usual))


def _odd(values: Sequence[str], share: float) -> Iterator[tuple[int, str]]:
    """Where values are not the most frequent one, and that one; nothing unless it is more than a share of all."""
    for usual, count in Counter(values).most_common(1):
        if count > share * len(values):
            yield from ((i, usual) for i, value in enumerate(values) if value != usual)


def _difference(found: str, usual: str) -> str:
    """The keys in which two JSON objects differ."""
    one, other = json.loads(found), json.loads(usual)
    keys = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    return ", ".join(f"{key} {one.get(key)}, not {other.get(key)}" for key in keys)


def _recipes(ok: pa.Table) -> list[str]:
    """The recipes, as JSON, but for what does not change the picture, and the seed: that is each pair's own."""
    return list(map(cache(_shared), ok["recipe"].to_pylist()))


def _shared(recipe: str) -> str:
    return json.dumps({k: v for k, v in json.loads(recipe).items() if k not in {"seed", *NOT_OF_THE_PICTURE}})


@lru_cache(maxsize=1024)
def _network(recipe: str) -> str:
    keys = json.loads(recipe)
    return f"{keys.get('backbone')} {keys.get('weights')}"


def _as_expected(ok: pa.Table, expected: pa.Table | None) -> NDArray[np.bool_]:
    """Whether each row is what the manifest, if there is one, asks for now."""
    if expected is None:
        return np.zeros(len(ok), bool)
    places = pc.index_in(ok["pair_id"], expected["pair_id"].combine_chunks())
    same = pc.equal(expected["fingerprint"].take(places), ok["fingerprint"])
    return np.asarray(pc.fill_null(same, False).to_numpy())
