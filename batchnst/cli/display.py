"""Show progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from batchnst.engine.events import Event, Finished, Notice, Sealed
from batchnst.progress import Work
from batchnst.redaction import redact

if TYPE_CHECKING:  # imports torch, which takes seconds, and commands that only read a ledger do not need it
    from batchnst.engine.run import Planned

T = TypeVar("T")

WATCH_EVERY = 2.0
"""Seconds between two looks at a run on a terminal."""

PLAIN_EVERY = 10.0
"""Seconds between two plain lines elsewhere."""

MAX_HOSTS = 8
"""Largest number of hosts whose rates are shown."""


class Bar:
    """One line of progress: live on a terminal, printed every PLAIN_EVERY seconds elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(BarColumn(), TextColumn("{task.description}"), console=self.console, transient=True)
        self._task = self._progress.add_task("")
        self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:  # elsewhere this prints an empty line
            self._progress.stop()

    def update(self, text: str, completed: float, total: float) -> None:
        """Show `text`, and `completed` out of `total` as a bar."""
        now, text = time.monotonic(), redact(text)
        if self.console.is_terminal:
            self._progress.update(self._task, description=text, completed=completed, total=total)
        elif now - self._shown >= PLAIN_EVERY:
            self.print_line(text)
            self._shown = now

    def print_line(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(redact(text), markup=False)


class RunDisplay(Bar):
    """Counts the events of a run and shows pairs, steps, rates, time to go, failures and notices."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self.out = out
        self.planned: Planned | None = None
        self.done = self.work = 0
        self.failing = set[str]()  # ids of pairs; one that is tried again may succeed
        self.steps: Counter[str] = Counter()  # by host
        self.busy = 0.0
        self.sealed = ""
        self.started = time.monotonic()

    @property
    def failed(self) -> int:
        """Number of pairs that failed: in this run, or in an earlier run without being tried again."""
        return self.failed_now + (self.planned.plan.failed if self.planned else 0)

    @property
    def failed_now(self) -> int:
        """Number of pairs whose last attempt in this run failed."""
        return len(self.failing)

    def show(self, event: Planned | Event) -> None:
        """Count and show `event`."""
        if isinstance(event, Work):
            self.steps[event.host] += event.steps
            self.work += event.pixel_steps
            self.busy += event.seconds
        elif isinstance(event, Notice):
            self.print_line(event.text)
        elif isinstance(event, Sealed):
            self.sealed = f"\n{event.text}"
        elif not isinstance(event, Finished):
            self._begin(event)
        elif event.error is None:
            self.done += 1
            self.failing.discard(event.pair_id)
        else:
            self.failing.add(event.pair_id)
            self.print_line(f"failed: {event.pair_id}: {event.error}")
        if self.planned:
            self.update(self._status(self.planned), self.work, self.planned.work)

    def _begin(self, planned: Planned) -> None:
        self.planned, self.started = planned, time.monotonic()
        plan = planned.plan
        if plan.done:
            self.print_line(f"{plan.done} of {plan.pairs} pairs are done already; {plan.left} left")
        if plan.failed:
            self.print_line(
                "1 pair failed in an earlier run and is left alone; --retry-failed runs it again"
                if plan.failed == 1
                else f"{plan.failed} pairs failed in an earlier run and are left alone; --retry-failed runs them again"
            )
        if plan.again:
            self.print_line(
                "1 pair failed in an earlier run for a passing reason and is tried again"
                if plan.again == 1
                else f"{plan.again} pairs failed in an earlier run for a passing reason and are tried again"
            )
        if again := plan.redone.total():
            reasons = ", ".join(f"{count} {why}" for why, count in plan.redone.items())
            self.print_line(f"{again} {'pair is' if again == 1 else 'pairs are'} painted again: {reasons}")
        if len(plan):
            self.print_line(f"painting {len(plan)} into {self.out}")

    def _status(self, planned: Planned) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        share = min(1.0, self.work / max(planned.work, 1))
        to_go = _duration(seconds / share - seconds) if share > 0.01 else "?"
        ended = self.done + self.failed_now
        return (
            f"{ended}/{len(planned.plan)} pairs · {share:.0%} of steps · {self._rates(seconds)}"
            f" · {to_go} to go · {self.failed_now} failed"
        )

    def _rates(self, seconds: float) -> str:
        """Steps a second: of all hosts together, then of each host, the slowest first."""
        total = f"{self.steps.total() / seconds:.1f} steps/s"
        if len(self.steps) < 2:
            return total
        slowest = self.steps.most_common()[::-1]
        shown = ", ".join(f"{host} {steps / seconds:.1f}" for host, steps in slowest[:MAX_HOSTS])
        return f"{total} ({shown}{', …' if len(slowest) > MAX_HOSTS else ''})"

    def summary(self) -> str:
        """The last lines of a run that has begun: what is done, and its seal if it has one."""
        assert self.planned
        plan, seconds = self.planned.plan, time.monotonic() - self.started
        workers = max(self.planned.workers, math.ceil(self.busy / seconds))  # workers may have joined since the plan
        left = plan.left - self.done - self.failed_now
        text = (
            f"{self.out}: {plan.done + self.done} of {plan.pairs} pairs done"
            f" ({self.done} now, in {_duration(seconds)}), {self.failed} failed" + (f", {left} left" if left else "")
        )
        if self.busy:
            share = self.busy / (seconds * workers)
            text += f"; {workers} {'worker' if workers == 1 else 'workers'} busy {share:.0%} of the time"
        return text + self.sealed


def show_while(read: Callable[[], T], describe: Callable[[T], str], is_running: Callable[[T], bool]) -> T:
    """Read and show a state every few seconds while `is_running` holds for it; returns the last state."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    state = read()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while is_running(state):
            if console.is_terminal:
                live.update(Text(redact(describe(state))), refresh=True)
            else:
                console.print(redact(describe(state)), markup=False)
            time.sleep(WATCH_EVERY if console.is_terminal else PLAIN_EVERY)
            state = read()
    return state


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
