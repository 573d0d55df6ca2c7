"""The claim on OUT: only one run at a time may write, and only its tasks that were not given up as lost.

A run writes a claim into OUT and, while it is alive, a heartbeat every few seconds. Its tasks read the claim before
they write, so a task that outlives its run or was given up as lost cannot write a pair that is painted elsewhere too.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from batchnst.errors import Occupied, StorageError, Superseded
from batchnst.storage.files import Folder

CLAIM = ".batchnst/claim"
"""Path of the claim in OUT."""

BEAT_SECONDS = 10.0
"""Seconds between two heartbeats."""

SILENCE_SECONDS = 60.0
"""Seconds without a heartbeat after which a run counts as dead."""

SETTLE_SECONDS = 1.0
"""Seconds that the tasks of a dead run get to finish a write that they have begun."""


@dataclass(frozen=True)
class Lease:
    """The right of a run's task to write. `task` is its number; 0 is the run itself."""

    run_id: str
    task: int = 0


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
    claim = _read(folder)
    beat = folder.read(_beat_name(claim["run_id"])) if claim else None
    if claim is None or beat is None or _is_dead(claim):
        return None
    return Holder(claim["run_id"], claim["host"], claim["pid"], (time.time_ns() - int(beat)) / 1e9)


class Claim:
    """A run's claim on OUT, held while the `with` block lasts.

    Entering raises Occupied if another run is alive. It may wait up to SILENCE_SECONDS for that run's heartbeat.
    """

    def __init__(self, folder: Folder, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id
        self._revoked: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def rival(self) -> str | None:
        """Description of the run that holds OUT and may be alive; None if there is none."""
        current = holder(self.folder)
        return f"run {current.run_id} on {current.host} (process {current.pid})" if current else None

    def __enter__(self) -> Self:
        rival = self.rival()
        if rival and self._shows_life():
            raise Occupied(
                f"{self.folder.address}: {rival} is painting into this folder; wait for it or stop it, "
                "then run the same command again"
            )
        previous = _read(self.folder)
        self._beat()
        self._write()
        self.folder.clear_temporary()
        if previous and self.folder.read(_beat_name(previous["run_id"])):
            time.sleep(SETTLE_SECONDS)
            self.folder.remove(_beat_name(previous["run_id"]))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(StorageError):  # a store that is gone was reported already
            self.folder.remove(_beat_name(self.run_id))
            check(self.folder, Lease(self.run_id))  # if another run has taken over, it is writing there
            self.folder.clear_temporary()  # left by workers that were killed

    def revoke(self, task: int) -> None:
        """Forbid a lost `task` to write, in case it is still alive; raises Superseded if another run holds OUT."""
        check(self.folder, Lease(self.run_id))
        self._revoked.append(task)
        self._write()

    def _write(self) -> None:
        claim = {"run_id": self.run_id, "host": socket.gethostname(), "pid": os.getpid(), "revoked": self._revoked}
        self.folder.write(CLAIM, json.dumps(claim).encode())

    def _beat(self) -> None:
        self.folder.write(_beat_name(self.run_id), str(time.time_ns()).encode())

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
            except StorageError:
                continue  # the run stops at its next write if the store is gone

    def _shows_life(self) -> bool:
        """True if the run that holds OUT writes a heartbeat within SILENCE_SECONDS."""
        name = _beat_name((_read(self.folder) or {})["run_id"])
        last, end = self.folder.read(name), time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 20)
            beat = self.folder.read(name)
            if beat != last:
                return beat is not None
        return False


def check(folder: Folder, lease: Lease) -> None:
    """Raise Superseded if another run has claimed OUT or the task of `lease` was given up as lost."""
    claim = _read(folder)
    if claim is None or claim["run_id"] != lease.run_id:
        raise Superseded(f"{folder.address}: another run has taken this folder over; this one stops")
    if lease.task in claim["revoked"]:
        raise Superseded(f"{folder.address}: this task was given up as lost; its pairs are painted elsewhere")


def _read(folder: Folder) -> dict[str, Any] | None:
    data = folder.read(CLAIM)
    claim: dict[str, Any] | None = json.loads(data) if data else None
    return claim


def _beat_name(run_id: str) -> str:
    return f".batchnst/alive-{run_id}"


def _is_dead(claim: dict[str, Any]) -> bool:
    """True only if the claimant ran on this host and has exited."""
    if claim["host"] != socket.gethostname():
        return False
    try:
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # In containers, every run may have the same process id: a claim with ours was written by an earlier run.
    return bool(claim["pid"] == os.getpid())
