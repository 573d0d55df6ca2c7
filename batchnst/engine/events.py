"""Events that a run yields."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchnst.progress import Work


@dataclass(frozen=True)
class Unread:
    """A file that could not be read for a passing reason: its address, its store, and the reason."""

    address: str
    store: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """An attempt at a pair has ended and its row is in the ledger; `error` is None if the row's status is `ok`.

    given_up: the pair is not tried again in this run. answered: names of stores that have answered. unread: the input
    that could not be read.
    """

    pair_id: str
    error: str | None
    given_up: bool = field(default=False, compare=False)
    answered: tuple[str, ...] = field(default=(), compare=False)
    unread: Unread | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Notice:
    """A line of text for the person who watches the run."""

    text: str


@dataclass(frozen=True)
class Sealed:
    """The last event of a run that seals OUT: what was sealed and the root, as text."""

    text: str


Event = Work | Finished | Notice | Sealed
