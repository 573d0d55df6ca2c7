"""The usual loss of pairs of one style, size and recipe, by robust statistics, and how far a loss is from it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.recipe import picture_settings

MIN_GROUP, MIN_DEVIATION = 8, 0.05
"""Fewest pairs of a group whose losses are compared, and lower bound of the MAD of ln(loss)."""

LEAST_LOSS = 1e-30
"""Losses below this count as this, so that they have a logarithm."""


@dataclass(frozen=True)
class Usual:
    """The losses of a group of pairs: the `median` of their logarithms, and the `factor` from a distance to a z-score.

    z = factor · (ln loss − median) = 0.6745 (ln loss − median) / MAD (Iglewicz and Hoaglin 1993, How to Detect and
    Handle Outliers).
    """

    median: float
    factor: float

    @classmethod
    def of(cls, logarithms: NDArray[np.float64]) -> Usual | None:
        """The statistics of a group with these logarithms of losses (N,); None if it has fewer than MIN_GROUP pairs."""
        if len(logarithms) < MIN_GROUP:
            return None
        median = float(np.median(logarithms))
        return cls(median, 0.6745 / max(float(np.median(np.abs(logarithms - median))), MIN_DEVIATION))


def logarithms(rows: pa.Table) -> NDArray[np.float64]:
    """The logarithm of the loss of each row (N,); not finite where there is none."""
    return np.asarray(np.log(np.maximum(pc.fill_null(rows["total_loss"], np.nan).to_numpy(), LEAST_LOSS)))


def groups_of(rows: pa.Table) -> list[Hashable]:
    """The style, size and recipe of each row, of which the losses can be compared."""
    long_side = pc.max_element_wise(rows["width"], rows["height"]).to_pylist()
    styles, recipes = map(tuple, rows["styles"].to_pylist()), map(cache(comparable), rows["recipe"].to_pylist())
    return list(zip(styles, long_side, recipes, strict=True))


def comparable(recipe: str) -> str:
    """A recipe as JSON, without the seed and the keys that do not change the picture."""
    return json.dumps({key: value for key, value in picture_settings(json.loads(recipe)).items() if key != "seed"})


class Groups:
    """Pairs in numbered groups, with the statistics of each, while pairs are added and painted again."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._members: defaultdict[int, dict[str, float]] = defaultdict(dict)  # logarithm of the loss by pair
        self._group: dict[str, int] = {}
        self.usual: dict[int, Usual | None] = {}

    @property
    def of(self) -> Mapping[str, int]:
        """The number of the group of each pair; pairs without a loss have none."""
        return self._group

    def put(self, rows: pa.Table) -> Collection[int]:
        """Put the pairs of `rows`, their newest, into their groups; return the numbers of the groups that changed."""
        changed = set[int]()
        for pair_id, key, value in zip(rows["pair_id"].to_pylist(), groups_of(rows), logarithms(rows), strict=True):
            before = self._group.pop(pair_id, None)
            if before is not None:
                del self._members[before][pair_id]
                changed.add(before)
            if np.isfinite(value):
                number = self._group[pair_id] = self._numbers.setdefault(key, len(self._numbers))
                self._members[number][pair_id] = float(value)
                changed.add(number)
        for number in changed:
            self.usual[number] = Usual.of(np.fromiter(self._members[number].values(), float))
        return changed
