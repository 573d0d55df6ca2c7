"""The newest outcome of every pair, in columns: what a run has to know of the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.ledger import parquet
from batchnst.text_hashes import Hashes, find, hashes

COLUMNS = ("pair_id", "status", "error_kind", "fingerprint", "output", "run_number", "attempt", "finished_at")
"""Columns of `pairs` that tell outcomes."""


@dataclass(frozen=True)
class Intent:
    """Outputs that a task is about to replace: until its rows are there, their pictures may be old or new.

    `attempts` has the attempt by output.
    """

    run_number: int
    attempts: dict[str, int]

    @classmethod
    def parse(cls, data: bytes) -> Intent:
        """An intent from its file; raises ValueError and TypeError if it is none."""
        values = json.loads(data)
        attempts = {str(output): int(attempt) for output, attempt in values["attempts"].items()}
        return cls(int(values["run_number"]), attempts)


@dataclass(frozen=True)
class Outcome:
    """The newest row of a pair.

    ok: its status. done: it is ok, and nothing else may have been written to its output since. passing: it failed for a
    reason that may pass by itself. finished: when its attempt ended, in microseconds since 1970.
    """

    ok: bool
    done: bool
    passing: bool
    attempt: int
    finished: int


class Outcomes:
    """The newest outcome of every pair, found by hashes: ten million pairs take half a gigabyte.

    Two pairs whose ids have the same hash, one case in 400,000 of ten million, would at worst be painted once more.
    """

    def __init__(self, rows: PairRows | None = None, intents: Sequence[Intent] = ()) -> None:
        """`rows` are those of all attempts at each pair; None if there are none."""
        rows = rows or PairRows.of(parquet.empty("pairs", COLUMNS))
        newest = rows.newest(rows.pairs, np.arange(len(rows.pairs)))
        self._done = rows.owners(intents)[newest]
        is_earlier = rows.ok.copy()
        is_earlier[newest] = False
        self._earlier = _both(rows.pairs[is_earlier], rows.fingerprints[is_earlier])
        self._rows = rows.take(newest)

    def __len__(self) -> int:
        return len(self._rows.pairs)

    def places(self, pair_ids: pa.Array) -> NDArray[np.int64]:
        """The place of the outcome of each of `pair_ids` (N,); -1 if there is none."""
        return find(self._rows.pairs, hashes(pair_ids))

    def at(self, places: NDArray[np.int64], fingerprints: pa.Array) -> Settled:
        """The outcomes at `places` of pairs that now have these `fingerprints`."""
        rows, asked = self._rows, hashes(fingerprints)
        unchanged = rows.fingerprints[places] == asked
        passing = rows.passing[places]
        back = ~unchanged & rows.ok[places] & np.isin(_both(rows.pairs[places], asked), self._earlier)
        return Settled(
            unchanged & self._done[places],
            unchanged & ~rows.ok[places] & ~passing,
            unchanged & passing,
            rows.attempts[places],
            rows.finished[places],
            np.where(back, rows.numbers[places], 0),
        )

    def find(self, pair_ids: Sequence[str]) -> tuple[NDArray[np.int64], Iterator[Outcome]]:
        """The positions in `pair_ids` of the pairs that have an outcome, and their outcomes in the same order."""
        places = self.places(pa.array(pair_ids, pa.string()))
        known, rows = places[places >= 0], self._rows
        columns: tuple[NDArray[Any], ...] = (rows.ok, self._done, rows.passing, rows.attempts, rows.finished)
        values = zip(*(column[known].tolist() for column in columns), strict=True)
        return np.flatnonzero(places >= 0), (Outcome(*each) for each in values)


@dataclass(frozen=True)
class Settled:
    """The outcomes of some pairs (N,).

    done: it is ok and unchanged, and nothing else may have been written to its output since. failed: it failed for a
    reason that will not pass, and is unchanged. passing: the same for one that may pass by itself. attempts: the number
    of its last attempt. finished: when that ended, in microseconds since 1970. otherwise: number of the run that has
    painted it otherwise, after an earlier one had painted it as it is asked for now; 0 if none has.
    """

    done: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    passing: NDArray[np.bool_]
    attempts: NDArray[np.int64]
    finished: NDArray[np.int64]
    otherwise: NDArray[np.int64]


def _both(pairs: Hashes, fingerprints: Hashes) -> Hashes:
    """A hash of each pair together with its fingerprint."""
    return pairs ^ (fingerprints >> 1)


@dataclass(frozen=True)
class PairRows:
    """Rows of `pairs` (N,). Texts are hashes; `numbers` are those of runs, 0 in ledgers of batchnst 0.1.0."""

    pairs: Hashes
    outputs: Hashes
    fingerprints: Hashes
    ok: NDArray[np.bool_]
    passing: NDArray[np.bool_]
    numbers: NDArray[np.int64]
    attempts: NDArray[np.int64]
    finished: NDArray[np.int64]

    @classmethod
    def of(cls, rows: pa.Table) -> PairRows:
        """The rows of a table that has COLUMNS."""
        passing = pc.fill_null(pc.equal(rows["error_kind"], "transient"), False)
        return cls(
            hashes(rows["pair_id"]),
            hashes(rows["output"]),
            hashes(rows["fingerprint"]),
            np.asarray(pc.equal(rows["status"], "ok").to_numpy(), bool),
            np.asarray(passing.to_numpy(), bool),
            pc.fill_null(rows["run_number"], 0).to_numpy(),
            rows["attempt"].cast(pa.int64()).to_numpy(),
            rows["finished_at"].cast(pa.int64()).to_numpy(),
        )

    @classmethod
    def joined(cls, parts: Iterable[PairRows]) -> PairRows:
        """The rows of all parts."""
        return cls(*map(np.concatenate, zip(*(part.arrays for part in parts), strict=True)))

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The columns, in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def take(self, places: NDArray[np.int64]) -> PairRows:
        """The rows at `places`."""
        return PairRows(*(column[places] for column in self.arrays))

    def newest(self, by: Hashes, among: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of the newest of the rows at `among` for each value of `by`, in the order of these values."""
        order = among[np.argsort(by[among], kind="stable")]
        values = by[order]
        ends = np.append(values[1:] != values[:-1], [True])[: len(values)]
        if not ends.all():  # in each group, oldest first
            several = np.flatnonzero(~ends | ~np.append([True], ends[:-1]))
            rows = order[several]
            attempts = np.where(self.numbers[rows] > 0, self.attempts[rows], 0)
            keys = (self.finished[rows], attempts, self.numbers[rows], values[several])
            order[several] = rows[np.lexsort(keys)]
        return np.asarray(order[ends])

    def owners(self, intents: Sequence[Intent]) -> NDArray[np.bool_]:
        """Which rows are the newest ok one of their output, that no later attempt was about to replace (N,)."""
        newest = self.newest(self.outputs, np.flatnonzero(self.ok))
        result = np.zeros(len(self.pairs), bool)
        result[newest] = True
        for intent in intents:
            places = find(self.outputs[newest], hashes(pa.array(intent.attempts, pa.string())))
            for place, attempt in zip(places.tolist(), intent.attempts.values(), strict=True):
                if place >= 0:
                    row = newest[place]
                    result[row] &= (intent.run_number, attempt) <= (int(self.numbers[row]), int(self.attempts[row]))
        return result
