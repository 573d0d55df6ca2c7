"""Unusual rows that are found in columns are those that a look at one row after another finds."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnst.ledger.schema import to_table
from batchnst.recipe import NOT_IN_FINGERPRINT
from batchnst.review.audit import pairs
from batchnst.review.usual import MIN_DEVIATION, MIN_GROUP
from tests.helpers import row

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_AT_ONCE", 7)


def made_up(seed: int, count: int) -> pa.Table:
    """Rows of a few styles, sizes, recipes, weights and versions, some of which are rare, and some equal in number."""
    random = np.random.default_rng(seed)
    rows = to_table([row(f"pair-{i}") for i in range(count)], "pairs").to_pylist()
    for each in rows:
        keys = {
            "steps": int(random.choice([5, 5, 5, 6])),
            "weights": str(random.choice(["bundled", 'my"seed": 4'])),
            "size": 64,
        }
        recipe = keys | {"seed": int(random.integers(-2, 9)), "backbone": "vgg19"}
        each["recipe"] = json.dumps(recipe, separators=random.choice([(",", ":"), (", ", ": ")]).tolist())
        each["styles"] = random.choice(["a", "b", "a|b"], p=[0.6, 0.2, 0.2]).split("|")
        each["width"], each["height"] = random.choice([[64, 48], [48, 64], [96, 64]]).tolist()
        losses = np.array([float(np.exp(random.normal())), 1e9, 0.0, np.nan, None], object)
        each["total_loss"] = random.choice(losses, p=[0.8, *[0.05] * 4])
        each["weights_sha256"] = str(random.choice(["a" * 64, "b" * 64]))
        each["versions"] = {
            **each["versions"],
            "torch": random.choice(["1", "2"]),
            "cuda": random.choice(np.array(["13", None], object)),
        }
    return pa.Table.from_pylist(rows, to_table([], "pairs").schema)


def comparable(each: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in json.loads(each["recipe"]).items() if k not in {"seed", *NOT_IN_FINGERPRINT}})


def odd(rows: Rows, values: list[Any], share: float) -> Iterator[tuple[str, Any, Any]]:
    """The pair, value and usual value of each row that differs from most of `rows`."""
    for usual, count in Counter(values).most_common(1):
        if count > share * len(rows):
            yield from ((each["pair_id"], v, usual) for each, v in zip(rows, values, strict=True) if v != usual)


def scores_alone(rows: Rows) -> dict[str, float]:
    groups: dict[Any, Rows] = defaultdict(list)
    for each in rows:
        if each["total_loss"] is not None and not np.isnan(each["total_loss"]):
            groups[tuple(each["styles"]), max(each["width"], each["height"]), comparable(each)].append(each)
    scores = dict[str, float]()
    for group in groups.values():
        if len(group) >= MIN_GROUP:
            loss = np.log(np.maximum([each["total_loss"] for each in group], 1e-30))
            distance = loss - np.median(loss)
            deviation = max(np.median(np.abs(distance)), MIN_DEVIATION)
            names = (each["pair_id"] for each in group)
            scores |= dict(zip(names, (0.6745 * distance / deviation).tolist(), strict=True))
    return scores


@pytest.mark.parametrize(("seed", "count"), [(0, 0), (1, 1), (2, 2), (3, 60), (4, 400)])
def test_losses_are_compared_as_one_by_one(seed: int, count: int) -> None:
    table = made_up(seed, count)
    ids, (found, _) = table["pair_id"].to_pylist(), pairs.unusual_losses(table)
    scores = {pair_id: score for pair_id, score in zip(ids, found.tolist(), strict=True) if not np.isnan(score)}
    expected = scores_alone(table.to_pylist())
    assert scores == pytest.approx(expected)
    assert count < 400 or len(expected) > 200
    outliers = {pair_id for pair_id, score in expected.items() if abs(score) > pairs.MAX_Z}
    assert count < 400 or outliers
    assert {finding.pair_id for finding in pairs.outliers(table)} == outliers


@pytest.mark.parametrize("in_manifest", [False, True])
@pytest.mark.parametrize(("seed", "count"), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 60), (5, 400)])
def test_rows_are_compared_as_one_by_one(seed: int, count: int, in_manifest: bool) -> None:
    table = made_up(seed, count)
    rows = table.to_pylist()
    listed = table.select(["pair_id", "fingerprint"]).slice(0, count // 3)
    unexpected = rows[len(listed) :] if in_manifest else rows
    expected = list[tuple[str, str]]()
    networks: dict[str, Rows] = defaultdict(list)
    for each in unexpected:
        networks[json.loads(each["recipe"])["weights"]].append(each)
    for group in networks.values():
        names = odd(group, [each["weights_sha256"] for each in group], 0)
        expected += [("other-weights", pair_id) for pair_id, _, _ in names]
    expected += [("other-recipe", name) for name, _, _ in odd(unexpected, list(map(comparable, unexpected)), 0.5)]
    versions = [json.dumps(each["versions"]) for each in rows]
    expected += [("other-versions", pair_id) for pair_id, _, _ in odd(rows, versions, 0)]
    found = list(pairs.unusual_rows(table, listed if in_manifest else None))
    assert [(finding.kind, finding.pair_id) for finding in found] == expected
    differences = {name: pairs._difference(own, usual) for name, own, usual in odd(rows, versions, 0)}
    assert {f.pair_id: f.text for f in found if f.kind == "other-versions"} == differences
