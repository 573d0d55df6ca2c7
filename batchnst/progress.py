"""How long tasks report their progress."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[str, float, float], None]
"""Called with a text that says what is being done, how much of it is done, and how much there is."""


def silent(text: str, done: float, total: float) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Work:
    """Work done on a host since its last report: steps of one picture, pixel-steps, and the seconds they took."""

    steps: int
    pixel_steps: int
    seconds: float
    host: str = field(default_factory=socket.gethostname)
