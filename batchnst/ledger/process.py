"""Processes, told apart across machines, restarts and containers."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BOOT_ID, NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class Process:
    """A process, and where it runs.

    boot: identifies the machine and its last start. namespace: the PID namespace, which containers have of their own.
    started: start of the process in clock ticks since that start. All three are empty where the system does not tell.
    """

    host: str
    pid: int
    boot: str = ""
    namespace: str = ""
    started: str = ""

    @classmethod
    def here(cls) -> Process:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), *_place(), _started(os.getpid()))

    def has_exited(self) -> bool:
        """True only if the process certainly no longer runs, which only its own machine and namespace can tell."""
        if not self.boot or (self.boot, self.namespace) != _place():
            return False
        if started := _started(self.pid):
            return started != self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


@cache
def _place() -> tuple[str, str]:
    boot, namespace = "", ""
    with suppress(OSError):
        boot = BOOT_ID.read_text().strip()
        namespace = os.readlink(NAMESPACE)
    return boot, namespace


def _started(pid: int) -> str:
    """Start of a process in clock ticks since the machine started (proc(5), field 22).

    "exited" for one that only waits for its parent to take note; empty if the process cannot be seen.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "exited" if state in "ZX" else fields[18]
