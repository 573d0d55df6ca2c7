"""Progress callbacks for long tasks."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[str, float, float], None]
"""Callback `(text, done, total)`: a description of the task, the amount done and the total amount."""


def silent(text: str, done: float, total: float) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Work:
    """Work done on a host since its last report.

    steps: number of steps, counted per picture.
    pixel_steps: pixels times steps, summed over the pictures.
    seconds: time that the steps took.
    """

    steps: int
    pixel_steps: int
    seconds: float
    host: str = field(default_factory=socket.gethostname)
