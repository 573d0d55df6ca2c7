"""End in good order on SIGINT, SIGTERM and SIGHUP, at any moment, and always soon.

The first signal raises Interrupted, unless all is over but a last message; the second one ends the process. So does the
time to tidy up when it is over: the main thread may hang where no exception reaches it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from batchnst.redaction import redact

INTERRUPTED = 130
"""Exit code after a signal."""

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SECONDS = 5.0
"""Time to tidy up after a signal, in seconds, unless `give_time` has set another one."""

EXIT_SECONDS = 10.0
"""Time for the interpreter to end after everything else is tidied up, in seconds."""


class Interrupted(KeyboardInterrupt):
    """A signal came. Python itself would replace the exit code after a KeyboardInterrupt in code that `exec` runs."""


class _State:
    """The state of this process: its time to tidy up, and when that ends after a signal has come.

    finishing: a first signal changes nothing any more. ignored: one has come then.
    """

    seconds = SECONDS
    deadline: float | None = None
    installed = told = finishing = ignored = False


_state = _State()


def catch() -> None:
    """Install the handlers; a second call does nothing. SIGHUP stays ignored if the parent ignores it, as `nohup` does.

    A thread learns of a signal from a pipe, even if the main thread is deep in a library that never returns.
    """
    if _state.installed:
        return
    _state.installed = True
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_leave_in_time, args=(read_end,), daemon=True, name="signals").start()
    for kind in KINDS:
        if kind != signal.SIGHUP or signal.getsignal(kind) != signal.SIG_IGN:
            signal.signal(kind, _interrupt)


@contextmanager
def ending() -> Iterator[None]:
    """Catch signals; if one ends the work in this context, print the last line and exit with 130.

    A signal may come out of a library, or of an import, as another error.
    """
    catch()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt) and not interrupted():
            raise
        tell()
        sys.exit(INTERRUPTED)


def give_time(seconds: float) -> None:
    """Set the time to tidy up after a signal."""
    _state.seconds = seconds


@contextmanager
def finishing() -> Iterator[None]:
    """Let what is done in this context end, although a first signal comes; the process then ends as without it.

    What is done must end by itself, and soon. A second signal ends the process at once.
    """
    _state.finishing = not interrupted()
    try:
        yield
    finally:
        _state.finishing = _state.ignored


def interrupted() -> bool:
    """True after the first signal."""
    return _state.deadline is not None


def how_to_go_on() -> str:
    """The command that goes on with what was begun."""
    return f"what was finished is kept. Go on with: {shlex.join(['batchnst', *sys.argv[1:]])}"


def tell() -> None:
    """Print the last line after a signal, once. From now on only the exit is left, which no signal disturbs."""
    for kind in KINDS if _state.installed else ():
        signal.signal(kind, signal.SIG_IGN)
    if not _state.told:
        _state.told = True
        with suppress(OSError):
            sys.stderr.write(f"{_last_line()}\n")
            sys.stderr.flush()
    if _state.deadline is not None:
        _state.deadline = min(_state.deadline, time.monotonic() + EXIT_SECONDS)


def _last_line() -> str:
    return redact(f"batchnst: interrupted: {how_to_go_on()}")


def _interrupt(signum: int, frame: Any) -> None:
    """Handle the first signal."""
    for kind in KINDS:
        if signal.getsignal(kind) == _interrupt:
            signal.signal(kind, lambda *_: _leave())
    if _state.finishing:
        _state.ignored = True
        return
    _begin_to_end()
    raise Interrupted


def _begin_to_end() -> None:
    if _state.deadline is None and not _state.finishing:
        _state.deadline = time.monotonic() + _state.seconds


def _leave() -> None:
    """End this process at once."""
    if not _state.told:
        _state.told = True
        with suppress(OSError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{_last_line()}\n".encode())
    os._exit(INTERRUPTED)


def _leave_in_time(read_end: int) -> None:
    """Wait for a signal and then for the end of the time to tidy up, and end this process."""
    while not any(number in KINDS for number in os.read(read_end, 64)):
        pass
    _begin_to_end()
    while _state.deadline is None or time.monotonic() < _state.deadline:
        time.sleep(0.1)
    _leave()
