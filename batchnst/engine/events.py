"""Events that a run yields."""

from __future__ import annotations

from dataclasses import dataclass

from batchnst.progress import Work


@dataclass(frozen=True)
class Finished:
    """An attempt at a pair has ended and its row is in the ledger; `error` is None if the row's status is `ok`."""

    pair_id: str
    error: str | None


@dataclass(frozen=True)
class Notice:
    """A line of text for the person who watches the run."""

    text: str


Event = Work | Finished | Notice
