"""The claim on OUT: only one run at a time may write, and only its tasks that were not given up as lost.

A run claims OUT by a change of its state and, while it is alive, writes a heartbeat every few seconds. Its tasks read
the state before each write, so a task that outlives its run or was given up as lost stops.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from batchnst.errors import Occupied, StorageError, Superseded
from batchnst.ledger.pictures.form import FormName
from batchnst.ledger.process import Process
from batchnst.ledger.state import State, change_latest, change_state, prune_states, read_state
from batchnst.storage.files import Folder

BEAT_SECONDS = 10.0
"""Seconds between two heartbeats."""

SILENCE_SECONDS = 60.0
"""Seconds without a heartbeat after which a run counts as dead."""

SETTLE_SECONDS = 1.0
"""Seconds that the tasks of a dead run get to finish a write that they have begun."""


@dataclass(frozen=True)
class Lease:
    """The right of a run's task to write. `task` is its number; 0 is the run itself. `form` is that of its pictures."""

    run_id: str
    run_number: int
    task: int = 0
    form: FormName = "files"


@dataclass(frozen=True)
class Holder:
    """A run that holds OUT.

    `silent` is the time since its last heartbeat, in seconds. It compares the clock of the run's host with this one.
    """

    run_id: str
    host: str
    pid: int
    silent: float

    @property
    def alive(self) -> bool:
        """True if the last heartbeat is less than SILENCE_SECONDS old."""
        return self.silent < SILENCE_SECONDS


def holder(folder: Folder) -> Holder | None:
    """The run that holds OUT; None if no run does, or if it is known to be dead."""
    return _holder(folder, read_state(folder))


def _holder(folder: Folder, state: State) -> Holder | None:
    if state.holder is None or state.holder.has_exited():
        return None
    beat = _last_beat(folder, state.run_id)
    silent = (time.time_ns() - int(beat)) / 1e9 if beat else SILENCE_SECONDS
    return Holder(state.run_id, state.holder.host, state.holder.pid, silent)


class Claim:
    """A run's claim on OUT, held while the `with` block lasts.

    Entering raises Occupied if another run is alive. It may wait up to SILENCE_SECONDS for that run's heartbeat.
    `run_number` is known from then on: it is higher than that of every earlier run.
    """

    def __init__(
        self,
        folder: Folder,
        run_id: str,
        last_number: Callable[[], int] = lambda: 0,
        form: FormName = "files",
        above: int = 0,
    ) -> None:
        """`last_number` gives the highest run number in the ledger; it is called if OUT has no state.

        The number of this run is also higher than `above`. `form` is that of the run's pictures.
        """
        self.folder, self.run_id, self.run_number, self.form, self._above = folder, run_id, 0, form, above
        self._last_number = last_number
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def rival(self) -> str | None:
        """Description of the run that holds OUT and may be alive; None if there is none."""
        return _describe(holder(self.folder))

    def lease(self, task: int = 0) -> Lease:
        """The right to write of a task of this run, or of the run itself."""
        return Lease(self.run_id, self.run_number, task, self.form)

    def __enter__(self) -> Self:
        self._beat()
        try:
            previous = self._take()
        except BaseException:
            self.folder.remove(_beat_name(self.run_id))
            raise
        self.folder.clear_temporary()
        if previous.holder is not None:
            time.sleep(SETTLE_SECONDS)
        for info in self.folder.files(".batchnst", prefix="alive-"):
            if info.base_name != f"alive-{self.run_id}":
                self.folder.remove(self.folder.relative(info.path))
        self._thread.start()
        return self

    def _take(self) -> State:
        """Make this run the holder; returns the state before."""
        while True:
            state = read_state(self.folder)
            rival = _describe(_holder(self.folder, state))
            if rival and self._shows_life(state):
                raise Occupied(
                    f"{self.folder.address}: {rival} is painting into this folder; wait for it or stop it, "
                    "then run the same command again"
                )
            with suppress(Superseded):  # by another run, which is looked at next
                new = change_state(
                    self.folder,
                    state,
                    run_id=self.run_id,
                    run_number=max(self._above, state.run_number if state.number else self._last_number()) + 1,
                    holder=Process.here(),
                    revoked=(),
                )
                self.run_number = new.run_number
                prune_states(self.folder, new)
                return state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(StorageError):  # a store that is gone was reported already
            self.folder.remove(_beat_name(self.run_id))
            self.change(lambda state: {"holder": None})
            self.folder.clear_temporary()  # left by workers that were killed

    def check(self) -> None:
        """Raise Superseded if another run has claimed OUT."""
        check(self.folder, self.lease())

    def revoke(self, task: int) -> None:
        """Forbid a lost `task` to write, in case it is still alive; raises Superseded if another run holds OUT."""
        self.change(lambda state: {"revoked": (*state.revoked, task)})

    def change(self, change: Callable[[State], dict[str, Any]]) -> None:
        """Change the state of OUT by the fields that `change` returns; raises Superseded if another run holds OUT."""

        def checked(state: State) -> dict[str, Any]:
            _check(self.folder, state, self.lease())
            return change(state)

        change_latest(self.folder, checked)

    def _beat(self) -> None:
        # The random part tells two heartbeats apart where a clock stands still or jumps back.
        self.folder.write(_beat_name(self.run_id), f"{time.time_ns()} {uuid.uuid4().hex}".encode())

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
            except StorageError:
                continue  # the run stops at its next write if the store is gone

    def _shows_life(self, state: State) -> bool:
        """True if the run that holds OUT writes a heartbeat within SILENCE_SECONDS; False also if it ends.

        One that removes its heartbeat is ending, and gets the same time to do so.
        """
        first, silence, looked = self._read_beat(state), 0.0, time.monotonic()
        while silence < SILENCE_SECONDS:
            time.sleep(BEAT_SECONDS / 20)
            now = time.monotonic()
            silence += min(now - looked, BEAT_SECONDS)  # no longer: this process may have been suspended itself
            looked = now
            if read_state(self.folder).number != state.number:
                return read_state(self.folder).holder is not None
            beat = self._read_beat(state)
            if beat not in (first, None):
                return True
            if beat != first:
                first, silence = beat, 0.0
        return False

    def _read_beat(self, state: State) -> bytes | None:
        return self.folder.read(_beat_name(state.run_id))


def check(folder: Folder, lease: Lease) -> None:
    """Raise Superseded if another run has claimed OUT or the task of `lease` was given up as lost."""
    _check(folder, read_state(folder), lease)


def _check(folder: Folder, state: State, lease: Lease) -> None:
    if not state.number:
        raise Superseded(f"{folder.address}: its .batchnst is gone, as if the folder had been deleted; this run stops")
    if (state.run_id, state.run_number) != (lease.run_id, lease.run_number):
        raise Superseded(f"{folder.address}: another run has taken this folder over; this one stops")
    if lease.task in state.revoked:
        raise Superseded(f"{folder.address}: this task was given up as lost; its pairs are painted elsewhere")


def _describe(run: Holder | None) -> str | None:
    return f"run {run.run_id} on {run.host} (process {run.pid})" if run else None


def _last_beat(folder: Folder, run_id: str) -> str | None:
    """The time of a run's last heartbeat, in nanoseconds by its host's clock; None if there is none."""
    data = folder.read(_beat_name(run_id))
    return data.decode().split()[0] if data else None


def _beat_name(run_id: str) -> str:
    return f".batchnst/alive-{run_id}"
