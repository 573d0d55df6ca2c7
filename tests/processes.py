"""Processes of this machine, from /proc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """The running processes that `pid` has started, those that these have started, and so on."""
    parents = {process: parent for process, state, parent in _processes() if state != "Z"}
    family = [pid]
    for known in family:
        family += [process for process, parent in parents.items() if parent == known]
    return family[1:]


def task_pids(ancestor: int, task: str = "_Worker.paint") -> list[int]:
    """The descendants of `ancestor` in which Ray runs `task` at this moment."""
    return [pid for pid in descendants(ancestor) if _command_line(pid).startswith(f"ray::{task}".encode())]


def is_running(pid: int) -> bool:
    """False for a process that has ended, also if nobody has waited for it."""
    return any(process == pid and state != "Z" for process, state, _ in _processes())


def _processes() -> Iterator[tuple[int, str, int]]:
    """Process, state and parent of every process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
            yield int(path.parent.name), state, int(parent)


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
