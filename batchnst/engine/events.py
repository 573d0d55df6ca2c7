"""What a worker tells the driver while it paints."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Work done on a host since the last event, in steps of one picture and in pixel-steps, and the seconds it took."""

    steps: int
    work: int
    seconds: float
    host: str = field(default_factory=socket.gethostname)


@dataclass(frozen=True)
class Finished:
    """A pair's attempt has ended and its row is in the ledger; `error` is None if that says `ok`."""

    pair_id: str
    error: str | None


@dataclass(frozen=True)
class Notice:
    """Something that whoever watches the run should know."""

    text: str


Event = Progress | Finished | Notice
