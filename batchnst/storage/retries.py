"""Retries for storage errors that may go away by themselves, and how long a store of inputs is waited for."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import TypeVar

import pyarrow as pa
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from batchnst.storage.threads import start

RETRY_SECONDS = 60.0
"""Seconds after which no new attempt is made. The stores' own clients retry a few times within each attempt."""

LONGEST_WAIT_SECONDS = 5.0
"""Longest wait between two attempts, in seconds: short, so that a store that is back is noticed soon.

A web server may ask for a longer one.
"""

INPUT_SHARE = 0.5
"""Share of RETRY_SECONDS for which a process waits for a store of inputs: planning waits, and then painting."""

REST_SECONDS = 600.0
"""Seconds after which a process waits for a store of inputs again, although it gave up waiting for it before."""

LEAST_ATTEMPTS = 3
"""Attempts at an input in any case: short failures are frequent in stores that are busy."""

QUICK_SECONDS = 10.0
"""Time to read an input in, from a store that has just let a read run out of time."""

MOST_SILENT = 3
"""Files of a store whose reads may run out of time, with none read meanwhile, before the next reads fail at once."""

PAUSE_SECONDS = 5.0
"""Seconds after which one of these is tried again."""

SLOWEST = 1 << 15
"""Bytes a second below which reading an input counts as hanging."""

MOST_SHOWN = 200
"""Characters of a web server's or its client's message that are shown."""

UNREACHABLE = {
    getattr(errno, name)
    for name in [
        "EIO",
        "EREMOTEIO",
        "ESTALE",
        "ENODEV",
        "ENXIO",
        "ENOTCONN",
        "ENOLINK",
        "ETIMEDOUT",
        "ETIME",
        "ECONNABORTED",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETRESET",
        "ENETUNREACH",
        "EPIPE",
        "EAGAIN",
        "EBUSY",
        "EINTR",
        "EMFILE",
        "ENFILE",
        "ENOBUFS",
        "ENOMEM",
    ]
    if hasattr(errno, name)
}
"""Error numbers of a disk, server or machine in trouble, as opposed to a missing or unreadable file."""

_TRANSIENT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT|INTERNAL_FAILURE)"
    r"|Azure Error: \[\] "  # no answer, so no code
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL|ABORTED)\b"  # Google
    r"|(HTTP status |Azure Error: \[\w+\] )(408|429|5\d\d)"
)
"""Messages of transient errors: the stores' clients set no error number."""

_OF_CLIENT = re.compile(r"AWS Error |Azure Error: |Status\(|HTTP status ")
"""Messages of all errors that the stores' clients raise."""

T = TypeVar("T")


class Unwilling(ConnectionError):
    """A host has no address or a bad certificate: this may pass, but not within a minute."""


class Busy(ConnectionError):
    """A web server has too much to do, and asks for no further request within `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def retry(action: Callable[[], T]) -> T:
    """Call `action` until it succeeds, and return its result; transient errors are retried for RETRY_SECONDS.

    For an input it is the store's Patience that ends the retries. The waits between attempts grow, and are at least
    what a web server asks for. `action` may take effect twice: an answer can be lost after the store has acted. Raises
    the last error of `action`; errors of the stores' clients are raised as OSError.
    """
    patience = _PATIENCE.get()
    retrying = Retrying(
        stop=patience.is_over if patience else stop_before_delay(RETRY_SECONDS),
        wait=_wait,
        retry=retry_if_exception(lambda error: is_transient(error) and not isinstance(error, Unwilling)),
        reraise=True,
    )
    result: T = retrying(_call, action)
    if patience and retrying.statistics["attempt_number"] > 1:
        patience.renew()
    return result


class Patience:
    """The time that this process still waits for one store of inputs, such as a bucket, a web host or a mounted disk.

    A store that fails is waited for INPUT_SHARE of RETRY_SECONDS, by all reads together; from then on a read has
    LEAST_ATTEMPTS, or one if a web server asks for a longer wait than LONGEST_WAIT_SECONDS. Patience is renewed when an
    attempt succeeds after others failed, or after REST_SECONDS. A file that alone fails does not renew it, so a web
    host with many bad addresses does not take a minute for each.

    After reads of MOST_SILENT files ran out of time, further reads fail at once, but for a try every PAUSE_SECONDS,
    until one succeeds.

    Processes do not share what they know: they wait at the same time, so that takes no longer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = -REST_SECONDS
        self._silent: dict[str, str] = {}  # error messages by address, since the last success
        self._last_silent = self._last_success = 0.0

    @contextmanager
    def reading(self, address: str) -> Iterator[Deadline]:
        """Read the file at `address` in this block, within the time that is yielded.

        Raises TimeoutError at once if the store keeps letting reads run out of time.
        """
        if problem := self._problem():
            raise problem
        began, deadline = time.monotonic(), Deadline(self, self._seconds())
        try:
            yield deadline
        except TimeoutError as error:
            self._note_silence(address, str(error), began)
            raise
        else:
            self._last_success = time.monotonic()
            self._silent.clear()

    def is_over(self, state: RetryCallState) -> bool:
        """True if the attempt that has just failed is the last one."""
        now = time.monotonic()
        with self._lock:
            if now > self._began + REST_SECONDS:
                self._began = now
            end = self._began + INPUT_SHARE * RETRY_SECONDS
            enough = state.attempt_number >= LEAST_ATTEMPTS or state.upcoming_sleep > LONGEST_WAIT_SECONDS
            return enough and now + state.upcoming_sleep > end

    def renew(self) -> None:
        """Wait as long as at first the next time."""
        self._began = -REST_SECONDS

    def _seconds(self) -> float:
        """Time for the next read, without that for its bytes."""
        full = INPUT_SHARE * RETRY_SECONDS + QUICK_SECONDS / 2  # longer than the retries
        return min(full, QUICK_SECONDS) if self._silent else full

    def _problem(self) -> TimeoutError | None:
        """The error to raise without an attempt; None if the store may be asked."""
        with self._lock:
            if len(self._silent) < MOST_SILENT or time.monotonic() > self._last_silent + PAUSE_SECONDS:
                return None
            return TimeoutError(next(reversed(self._silent.values())))

    def _note_silence(self, address: str, message: str, began: float) -> None:
        """Note that a read that began at the time `began` ran out of time; not if others have succeeded since."""
        with self._lock:
            if self._last_success < began:
                self._silent[address] = message
                self._last_silent = time.monotonic()


class Deadline:
    """The time that reading one input may take: some seconds, and more for each byte.

    used: seconds spent in calls of `run`; only these count.
    """

    def __init__(self, patience: Patience, seconds: float) -> None:
        self._patience, self._allowed, self.used = patience, seconds, 0.0

    @property
    def is_over(self) -> bool:
        """True if a call ran out of time; it may still go on."""
        return self.used >= self._allowed

    def run(self, action: Callable[[], T], size: int = 0) -> T:
        """Call `action`, which fetches `size` bytes, in a thread, which is left behind if it takes too long.

        Raises TimeoutError if the time is over.
        """
        self._allowed += size / SLOWEST
        began = time.monotonic()

        def patiently() -> T:
            _PATIENCE.set(self._patience)  # in this thread only
            return action()

        try:
            return start(patiently).result(self._allowed - self.used)
        except TimeoutError:
            if time.monotonic() - began < self._allowed - self.used:  # an error of `action` itself
                raise
            raise TimeoutError(f"no answer within {self._allowed:.0f} s") from None
        finally:
            self.used += time.monotonic() - began


_PATIENCE: ContextVar[Patience | None] = ContextVar("patience", default=None)
"""The patience with the store that this thread reads an input from; None for OUT."""


def is_transient(error: BaseException) -> bool:
    """True if `error` comes from the present state of the store or network, not from the file or the request."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and (error.errno in UNREACHABLE or bool(_TRANSIENT.search(str(error))))


def is_of_store(error: BaseException) -> bool:
    """True if `error` comes from a store or disk, now or for good, and so says nothing of what is in the file."""
    return is_transient(error) or (
        isinstance(error, OSError) and (error.errno is not None or bool(_OF_CLIENT.search(str(error))))
    )


def _wait(state: RetryCallState) -> float:
    """Seconds before the next attempt."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.seconds if isinstance(error, Busy) else 0.0
    return asked + wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT_SECONDS)(state)


def _call(action: Callable[[], T]) -> T:
    """Call `action`; errors of the stores' clients become OSError."""
    try:
        return action()
    except pa.ArrowNotImplementedError:
        raise
    except Exception as error:
        translated = _as_os_error(error)
        if translated is error:
            raise
        raise translated from None


def _as_os_error(error: BaseException) -> BaseException:
    """The OSError that fits a client's `error`; any other error is returned unchanged."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        # fsspec raises FileNotFoundError for every error of a web server; the cause has the real one.
        cause = _as_os_error(error.__cause__)
        return cause if isinstance(cause, OSError) else error
    if type(error).__module__.startswith("aiohttp"):
        return _web_error(error)
    if isinstance(error, TimeoutError) and not str(error):
        return TimeoutError("no answer in time")
    return OSError(str(error)) if isinstance(error, pa.ArrowException) else error


def _web_error(error: BaseException) -> OSError:
    """The OSError that fits an `error` of aiohttp; what a server has sent is in its message only in part."""
    from aiohttp import ClientConnectorDNSError, ClientSSLError, RedirectClientError, TooManyRedirects
    from aiohttp.http_exceptions import HttpProcessingError

    status = getattr(error, "status", None)
    text = _in_a_line(getattr(error, "message", "") or str(error) or type(error).__name__)
    if isinstance(error, TooManyRedirects):
        return Unwilling("too many redirects")
    if isinstance(error, RedirectClientError):
        return Unwilling(f"it redirects to {text}")
    if isinstance(error, ClientSSLError | ClientConnectorDNSError):
        return Unwilling(text)
    if isinstance(error.__cause__, HttpProcessingError):  # aiohttp calls it an answer with status 400
        return ConnectionError(f"its answer is not HTTP: {text}")
    if isinstance(error, ValueError):
        return OSError(errno.EINVAL, f"not a web address: {text}")
    if isinstance(error, TimeoutError):
        return TimeoutError(text)
    headers = getattr(error, "headers", None) or {}
    return _http_error(status, text, headers.get("Retry-After")) if status else ConnectionError(text)


def _in_a_line(text: str) -> str:
    """The text in one line, cut after MOST_SHOWN characters."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}…"


def _http_error(status: int, text: str, retry_after: str | None) -> OSError:
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, text)
    if status in (401, 403):
        return PermissionError(errno.EACCES, f"access denied (HTTP status {status})")
    if status in (429, 503) and retry_after:
        return Busy(f"HTTP status {status}: {text}", _seconds_from_now(retry_after))
    return OSError(f"HTTP status {status}: {text}")


def _seconds_from_now(retry_after: str) -> float:
    """Seconds to wait by a header Retry-After (RFC 9110, section 10.2.3), at most REST_SECONDS.

    The header gives seconds or a date; any other text asks for no wait.
    """
    if retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), REST_SECONDS)
    with suppress(ValueError):
        return min(max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time()), REST_SECONDS)
    return 0.0
