"""Retries for storage errors that may go away by themselves."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

RETRY_SECONDS = 60.0
"""Seconds after which no new attempt is made. The stores' own clients retry a few times within each attempt."""

LONGEST_WAIT_SECONDS = 5.0
"""Longest wait between two attempts, in seconds: short, so that a store that is back is noticed soon."""

UNREACHABLE = {
    getattr(errno, name)
    for name in [
        "EIO",
        "ESTALE",
        "ENODEV",
        "ENOTCONN",
        "ETIMEDOUT",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETUNREACH",
    ]
}
"""Error numbers of a disk or server that is gone, as opposed to a missing or unreadable file."""

_TRANSIENT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT|INTERNAL_FAILURE)"
    r"|Azure Error: \[\] "  # no answer, so no code
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL|ABORTED)\b"  # Google
    r"|(HTTP status |Azure Error: \[\w+\] )(408|429|5\d\d)"
)
"""Messages of transient errors: the stores' clients set no error number."""

T = TypeVar("T")


def retry(action: Callable[[], T]) -> T:
    """Call `action` until it succeeds, and return its result; transient errors are retried for RETRY_SECONDS.

    The waits between attempts grow. `action` may take effect twice: an answer can be lost after the store has acted.
    Raises the last error of `action`; errors of the stores' clients are raised as OSError.
    """
    retrying = Retrying(
        stop=stop_after_delay(RETRY_SECONDS),
        wait=wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT_SECONDS),
        retry=retry_if_exception(is_transient),
        reraise=True,
    )
    result: T = retrying(_call, action)
    return result


def is_transient(error: BaseException) -> bool:
    """True if `error` comes from the present state of the store or network, not from the file or the request."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and (error.errno in UNREACHABLE or bool(_TRANSIENT.search(str(error))))


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
        status = getattr(error, "status", None)
        return _http_error(status, str(error)) if status else ConnectionError(f"{error or type(error).__name__}")
    return OSError(str(error)) if isinstance(error, pa.ArrowException) else error


def _http_error(status: int, text: str) -> OSError:
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, text)
    if status in (401, 403):
        return PermissionError(errno.EACCES, f"access denied (HTTP status {status})")
    return OSError(f"HTTP status {status}: {text}")
