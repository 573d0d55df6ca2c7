"""The newest outcome of every pair, in columns: what a run has to know of the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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

    def __init__(self, parts: Sequence[PairRows] = (), intents: Sequence[Intent] = ()) -> None:
        """`parts` together are the rows of `pairs`, with all attempts at each pair."""
        parts = parts or [PairRows.of(parquet.empty("pairs", COLUMNS))]
        rows = PairRows(*map(np.concatenate, zip(*(part.arrays for part in parts), strict=True)))
        places = rows.newest(rows.pairs)
        newest = rows.take(places)
        painted = rows.take(np.flatnonzero(rows.ok))
        owners = painted.take(painted.newest(painted.outputs))
        is_earlier = rows.ok.copy()
        is_earlier[places] = False
        earlier = rows.take(np.flatnonzero(is_earlier))
        self._earlier = _both(earlier.pairs, earlier.fingerprints)
        self._rows = newest
        self._done = newest.ok & newest.are_among(owners.take(np.flatnonzero(~owners.disputed(intents))))

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

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The columns, in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def take(self, places: NDArray[np.int64]) -> PairRows:
        """The rows at `places`."""
        return PairRows(*(column[places] for column in self.arrays))

    def newest(self, by: Hashes) -> NDArray[np.int64]:
        """Places of the newest row for each value of `by`, in the order of these values."""
        order = np.argsort(by, kind="stable")
        values = by[order]
        ends = np.append(values[1:] != values[:-1], [True])[: len(values)]
        if not ends.all():  # in each group, oldest first
            several = np.flatnonzero(~ends | ~np.append([True], ends[:-1]))
            rows = order[several]
            attempts = np.where(self.numbers[rows] > 0, self.attempts[rows], 0)
            keys = (self.finished[rows], attempts, self.numbers[rows], values[several])
            order[several] = rows[np.lexsort(keys)]
        return np.asarray(order[ends])

    def are_among(self, owners: PairRows) -> NDArray[np.bool_]:
        """Which of the rows are among `owners`, one for each output in the order of outputs (N,)."""
        places = find(owners.outputs, self.outputs)
        same = places >= 0
        for own, theirs in zip(self._identity, owners._identity, strict=True):
            same[same] = own[same] == theirs[places[same]]
        return same

    @property
    def _identity(self) -> tuple[NDArray[np.int64], ...]:
        return self.pairs, self.numbers, self.attempts

    def disputed(self, intents: Sequence[Intent]) -> NDArray[np.bool_]:
        """Which of the rows, one for each output in the order of outputs, a later attempt was about to replace (N,)."""
        result = np.zeros(len(self.pairs), bool)
        for intent in intents:
            outputs = pa.array(intent.attempts, pa.string())
            for place, attempt in zip(find(self.outputs, hashes(outputs)), intent.attempts.values(), strict=True):
                if place >= 0:
                    newest = int(self.numbers[place]), int(self.attempts[place])
                    result[place] |= (intent.run_number, attempt) > newest
        return result
