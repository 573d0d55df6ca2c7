"""The state of OUT: which run may write, and which files of the ledger count.

The state is a numbered series of small files; the one with the highest number counts. A change creates the next file,
which fails if another process has created it meanwhile. So a process that was suspended cannot undo a decision that
others took: its next change fails, and it stops. (Delta Lake's log works in the same way.)
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from batchnst.errors import StorageError, Superseded
from batchnst.ledger.process import Process
from batchnst.storage.files import Folder

STATES = ".batchnst/state"
"""Folder of the series in OUT."""

KEPT = 32
"""Files of the series that are kept, the newest."""

TRIES = 20
"""Attempts at reading the newest file, if it is not complete yet or is replaced by a newer one in between."""


@dataclass(frozen=True, kw_only=True)
class Journal:
    """A compaction that was decided: new files that replace old ones.

    Names are paths under `ledger/`, or in OUT for those that begin with `pictures/` or `previous/`.
    """

    id: str
    new: tuple[str, ...]
    old: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class State:
    """The state after `number` changes.

    run_id, run_number: of the run that claimed OUT last; the number grows by one with each claim. holder: its process,
    None once it has ended. revoked: tasks of that run that may not write. journal: the compaction that is to be
    finished. retired: names of the lists of files that earlier compactions replaced, oldest first. nonce: tells two
    changes with the same number apart.
    """

    number: int = 0
    run_id: str = ""
    run_number: int = 0
    holder: Process | None = None
    revoked: tuple[int, ...] = ()
    journal: Journal | None = None
    retired: tuple[str, ...] = ()
    nonce: str = ""


def read_state(folder: Folder) -> State:
    """The current state of OUT; raises StorageError if it cannot be read."""
    for attempt in range(TRIES):
        numbers = _numbers(folder)
        if not numbers:
            return State()
        if state := _entry(folder, numbers[-1]):
            return state
        time.sleep(0.05 * attempt)
    raise StorageError(f"{folder.path(_name(numbers[-1]))}: is damaged; remove it and run the same command again")


def change_state(folder: Folder, state: State, **changes: Any) -> State:
    """Write the state after `state`; return it. Raises Superseded if there is one already, and StorageError."""
    new = replace(state, number=state.number + 1, nonce=uuid.uuid4().hex, **changes)
    data = json.dumps(asdict(new)).encode()
    try:
        folder.create(_name(new.number), data)
    except StorageError:
        # The answer may have been lost after the file was written.
        if _nonce(folder, new.number) != new.nonce:
            raise
    # A state with a higher number means that `state` was long outdated, and its successor already removed.
    if _nonce(folder, new.number) != new.nonce or _numbers(folder)[-1] != new.number:
        raise Superseded(f"{folder.address}: another run has taken this folder over; this one stops")
    return new


def change_latest(folder: Folder, change: Callable[[State], dict[str, Any]]) -> State:
    """Apply `change` to the current state, again if another process changes it at the same moment."""
    for attempt in range(TRIES):
        state = read_state(folder)
        try:
            return change_state(folder, state, **change(state))
        except Superseded:
            if attempt == TRIES - 1:
                raise
    raise AssertionError


def prune_states(folder: Folder, state: State) -> None:
    """Remove old files of the series."""
    for number in _numbers(folder):
        if number <= state.number - KEPT:
            folder.remove(_name(number))


def _numbers(folder: Folder) -> list[int]:
    stems = (info.base_name.removesuffix(".json") for info in folder.files(STATES, ending=".json"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _entry(folder: Folder, number: int) -> State | None:
    """A state of the series; None if its file is gone or not complete yet."""
    data = folder.read(_name(number))
    try:
        return _parse(data) if data else None
    except (ValueError, TypeError, LookupError, RecursionError):  # not complete, or damaged
        return None


def _nonce(folder: Folder, number: int) -> str | None:
    state = _entry(folder, number)
    return state.nonce if state else None


@lru_cache(maxsize=256)
def _parse(data: bytes) -> State:
    values = json.loads(data)
    holder, journal = values["holder"], values["journal"]
    return State(
        **{
            **values,
            "holder": Process(**holder) if holder else None,
            "journal": Journal(id=journal["id"], new=tuple(journal["new"]), old=tuple(journal["old"]))
            if journal
            else None,
            "revoked": tuple(values["revoked"]),
            "retired": tuple(values["retired"]),
        }
    )


def _name(number: int) -> str:
    return f"{STATES}/{number:012d}.json"
