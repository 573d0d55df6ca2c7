"""Limits to the time that a run waits for a silent task, and for a node that can run one."""

from __future__ import annotations

import math
import time
from datetime import timedelta

from batchnst.engine.events import Notice
from batchnst.engine.plan import Chunk
from batchnst.errors import EngineError

SILENCE_SECONDS = 600.0
"""Shortest silence after which a task counts as hung, in seconds."""

PAIR_SECONDS = 60.0
"""Silence allowed in addition for each pair of a batch, whose pictures may come from a slow store, in seconds."""

SLOWEST = 1e4
"""Pixel-steps a second of a worker that is slower than any that was measured: a step reports only when it has ended."""

REMIND_SECONDS = 300.0
"""Seconds after which a notice is repeated."""

BUSY_SECONDS = 60.0
"""Seconds in which a node with enough resources should start a task; after that it counts as busy."""

MAX_TICK = 30.0
"""Seconds that count, at most, of the time between two looks: the driver itself may have been suspended."""


def longest_silence(chunk: Chunk) -> float:
    """Seconds without a report after which a task that paints `chunk` counts as hung: a generous bound."""
    pixels = max(len(batch.jobs) * math.prod(batch.size or (0, 0)) for batch in chunk.batches)
    return SILENCE_SECONDS + PAIR_SECONDS * max(len(batch.jobs) for batch in chunk.batches) + pixels / SLOWEST


class Stopwatch:
    """Measures the time between looks, without times in which this process was suspended."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def tick(self) -> float:
        """Seconds since the last call, at most MAX_TICK."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return min(seconds, MAX_TICK)


class Waiting:
    """Waits while no task can run: tells it at once and now and then, and gives up in the end."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is the longest wait for a node that can run a task."""
        self._patience = seconds
        self._stopwatch = Stopwatch()
        self._reason: str | None = None
        self._waited = self._told = 0.0

    def look(self, *, runs: bool, can_run: bool) -> Notice | None:
        """Return a notice if it is time for one. Raises EngineError if there was no node for too long.

        runs: a task runs. can_run: a node has enough resources for a task, though others may use them.
        """
        seconds = self._stopwatch.tick()
        reason = None if runs else "busy" if can_run else "no node"
        if reason != self._reason:
            # A task on a node starts within a minute; that there is no node is told at once.
            self._reason, self._waited, self._told = reason, 0.0, BUSY_SECONDS if can_run else 0.0
        else:
            self._waited += seconds
        if reason == "no node" and self._waited >= self._patience:
            raise EngineError(f"no node could run a task for {_duration(self._patience)}; start nodes")
        if runs or self._waited < self._told:
            return None
        self._told = self._waited + REMIND_SECONDS
        return Notice(self._text(can_run))

    def _text(self, can_run: bool) -> str:
        if can_run:
            return f"all nodes are busy with other work for {_duration(self._waited)}; waiting until one is free"
        left = _duration(self._patience - self._waited)
        return f"no node can run a task; waiting for the cluster to start a node, for up to {left}"


def _duration(seconds: float) -> str:
    """A duration as text: 0:15:00."""
    return str(timedelta(seconds=math.ceil(seconds)))
