"""What to do about stores that are busy, slow or away for a moment: ask again, for a while."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

PATIENCE_SECONDS = 60.0
"""For so long something is tried again. The stores' own clients try a few times within each of these tries."""

LONGEST_WAIT_SECONDS = 5.0
"""Between two tries, at the most: a store that is back is noticed soon."""

OUT_OF_REACH = {
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
"""What an operating system says when a disk or a server is gone, rather than a file."""

_PASSING = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT|INTERNAL_FAILURE)"
    r"|Azure Error: \[\] "  # no answer, so no code
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL|ABORTED)\b"  # Google
    r"|(HTTP status |Azure Error: \[\w+\] )(408|429|5\d\d)"
)
"""How the stores' clients, which give no number, say that it may pass."""

T = TypeVar("T")


def persist(do: Callable[[], T]) -> T:
    """What `do` returns; it is done again, with waits that grow, for PATIENCE_SECONDS where what it raises may pass.

    So `do` may be done twice, after an answer was lost. Raises what it raised the last time, an OSError for what the
    stores' clients say in their own ways.
    """
    retrying = Retrying(
        stop=stop_after_delay(PATIENCE_SECONDS),
        wait=wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT_SECONDS),
        retry=retry_if_exception(may_pass),
        reraise=True,
    )
    result: T = retrying(_translated, do)
    return result


def may_pass(error: BaseException) -> bool:
    """Whether it is the store's or the network's state of the moment, rather than the file or the request."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and (error.errno in OUT_OF_REACH or bool(_PASSING.search(str(error))))


def _translated(do: Callable[[], T]) -> T:
    try:
        return do()
    except pa.ArrowNotImplementedError:
        raise
    except Exception as error:
        known = _as_os_error(error)
        if known is error:
            raise
        raise known from None


def _as_os_error(error: BaseException) -> BaseException:
    """The error of a store's client as the OSError that it is, or as it stands."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        known = _as_os_error(error.__cause__)  # fsspec says "not found" of whatever a web server answers
        return known if isinstance(known, OSError) else error
    if type(error).__module__.startswith("aiohttp"):
        status = getattr(error, "status", None)
        return _of_status(status, str(error)) if status else ConnectionError(f"{error or type(error).__name__}")
    return OSError(str(error)) if isinstance(error, pa.ArrowException) else error


def _of_status(status: int, text: str) -> OSError:
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, text)
    if status in (401, 403):
        return PermissionError(errno.EACCES, f"access denied (HTTP status {status})")
    return OSError(f"HTTP status {status}: {text}")
