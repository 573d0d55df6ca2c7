"""Who may write into OUT: one run at a time, and of its tasks those that are not given up for lost.

A run writes its claim into OUT and, as long as it lives, a sign of life every few seconds. Tasks read the claim before
they write: one that outlives its run, or was taken for lost, cannot paint what another paints too.
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

BEAT_SECONDS = 10.0
"""Between two signs of life."""

SILENCE_SECONDS = 60.0
"""After so long without a sign of life a run counts as dead."""

SETTLE_SECONDS = 1.0
"""What the tasks of a dead run have to end the write they are in."""


@dataclass(frozen=True)
class Lease:
    """The right of a run's task to write, by its number; 0 is the run itself."""

    run_id: str
    task: int = 0


@dataclass(frozen=True)
class Holder:
    """A run that has OUT, and for how many seconds it gave no sign of life, by its own clock and this one."""

    run_id: str
    host: str
    pid: int
    silent: float

    @property
    def alive(self) -> bool:
        """Whether it gave one lately."""
        return self.silent < SILENCE_SECONDS


def holder(folder: Folder) -> Holder | None:
    """The run that has OUT, unless it has ended or is known to be dead."""
    claim = _read(folder)
    beat = folder.read(_beat_name(claim["run_id"])) if claim else None
    if claim is None or beat is None or _is_dead(claim):
        return None
    return Holder(claim["run_id"], claim["host"], claim["pid"], (time.time_ns() - int(beat)) / 1e9)


class Claim:
    """A run's hold on OUT, from `with` to the end of it."""

    def __init__(self, folder: Folder, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id
        self._revoked: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def rival(self) -> str | None:
        """The run that holds OUT and may be alive, in words."""
        other = holder(self.folder)
        return f"run {other.run_id} on {other.host} (process {other.pid})" if other else None

    def __enter__(self) -> Self:
        rival = self.rival()
        if rival and self._shows_life():
            raise Occupied(
                f"{self.folder.address}: {rival} is painting into this folder; wait for it or stop it, "
                "then run the same command again"
            )
        left_behind = _read(self.folder)
        self._beat()
        self._write()
        self.folder.clear_temporary()
        if left_behind and self.folder.read(_beat_name(left_behind["run_id"])):
            time.sleep(SETTLE_SECONDS)
            self.folder.remove(_beat_name(left_behind["run_id"]))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(StorageError):  # a store that is gone has been told of already
            self.folder.remove(_beat_name(self.run_id))
            check(self.folder, Lease(self.run_id))  # a run that has taken over is writing there
            self.folder.clear_temporary()  # what workers that were killed left

    def revoke(self, task: int) -> None:
        """From now on a task that was lost cannot write, should it live on somewhere."""
        check(self.folder, Lease(self.run_id))
        self._revoked.append(task)
        self._write()

    def _write(self) -> None:
        own = {"run_id": self.run_id, "host": socket.gethostname(), "pid": os.getpid(), "revoked": self._revoked}
        self.folder.write(CLAIM, json.dumps(own).encode())

    def _beat(self) -> None:
        self.folder.write(_beat_name(self.run_id), str(time.time_ns()).encode())

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
            except StorageError:
                continue  # a store that is gone stops the run where it writes

    def _shows_life(self) -> bool:
        """Whether the run that holds OUT gives a sign of life within the time in which it would."""
        name = _beat_name((_read(self.folder) or {})["run_id"])
        last, end = self.folder.read(name), time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 20)
            beat = self.folder.read(name)
            if beat != last:
                return beat is not None
        return False


def check(folder: Folder, lease: Lease) -> None:
    """Raise Superseded where another run has claimed OUT, or the task was given up for lost."""
    claim = _read(folder)
    if claim is None or claim["run_id"] != lease.run_id:
        raise Superseded(f"{folder.address}: another run has taken this folder over; this one stops")
    if lease.task in claim["revoked"]:
        raise Superseded(f"{folder.address}: this task was taken for lost, and its pairs are painted elsewhere")


def _read(folder: Folder) -> dict[str, Any] | None:
    data = folder.read(CLAIM)
    claim: dict[str, Any] | None = json.loads(data) if data else None
    return claim


def _beat_name(run_id: str) -> str:
    return f".batchnst/alive-{run_id}"


def _is_dead(claim: dict[str, Any]) -> bool:
    """Whether it is sure that the process which wrote a claim is no more: only on its own host it can be."""
    if claim["host"] != socket.gethostname():
        return False
    try:
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # In containers every process has the same number: this one is not the one that claimed.
    return bool(claim["pid"] == os.getpid())
