"""`run --notify`: tells a web hook, as chat services have them, how a run ends, and when pairs begin to fail.

The hook's address is a secret: whoever has it can post. It is never shown or stored, and a hook that fails or hangs
neither fails nor delays the run.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from batchnst.cli import signals
from batchnst.cli.display import RunDisplay
from batchnst.engine.events import Event, Finished
from batchnst.engine.run import Planned
from batchnst.errors import RequestError
from batchnst.redaction import hide, redact, redact_json
from batchnst.storage.threads import start

BURST, WINDOW = 5, 10
"""Failures among the last pairs that ended which make a burst, and the number of these pairs."""

TRIES, TRY_SECONDS, PAUSE_SECONDS = 3, 4.0, 0.5
"""Attempts at a message, the time for each, and the pause before the next one."""

END_SECONDS = 15.0
"""Longest time that the end of a run waits for its messages, in seconds."""

_PASSING = {408, 429, 500, 502, 503, 504}
"""HTTP statuses after which another attempt may succeed."""


class _Refused(Exception):
    """The hook did not take a message; `passing` says that another attempt may succeed."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


def check_hook(url: str) -> None:
    """Raise RequestError, without showing `url`, if it is no address of a hook; from now on no text shows it."""
    if not re.fullmatch(r"https?://[^\s/'\"<>\\][^\s'\"<>\\]*", url, re.IGNORECASE):
        raise RequestError("--notify: expected the address of a hook, which begins with https:// or http://")
    hide(url)


class Notifier:
    """Posts messages on the run that `display` counts, inside of its `with` block; does nothing if `url` is None."""

    def __init__(self, url: str | None, display: RunDisplay, warn: Callable[[str], None]) -> None:
        """`warn` prints a line about a message that was not taken."""
        self._url, self._display, self._warn = url, display, warn
        self._last = deque[bool](maxlen=WINDOW)  # True for a pair that failed
        self._sent = list[Future[None]]()
        self._began = time.monotonic()
        self._run_id = ""

    def see(self, event: Planned | Event) -> None:
        """Post a message if `event` completes the run's first burst of failures."""
        if isinstance(event, Planned):
            self._run_id = event.run_id
        if not isinstance(event, Finished):
            return
        self._last.append(event.error is not None)
        if sum(self._last) >= BURST and not self._sent:
            text = f"{sum(self._last)} of the last {len(self._last)} pairs failed"
            self._post("failures", "running", f"{text}, the last one with: {event.error or 'another error'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Post the message on the end, and wait for all messages, but not long.

        The run is over: a first signal meanwhile changes neither the message nor the exit code.
        """
        with signals.finishing():
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self._post("end", "failed" if self._display.failed else "done", "")
        elif isinstance(error, KeyboardInterrupt) or signals.interrupted():
            self._post("end", "interrupted", "")
        else:
            self._post("end", "stopped", str(error) or type(error).__name__)
        end = time.monotonic() + END_SECONDS
        for future in self._sent:
            self._wait(future, max(0.0, end - time.monotonic()))

    def _wait(self, future: Future[None], seconds: float) -> None:
        try:
            future.result(seconds)
        except TimeoutError:
            self._warn("--notify: the hook did not take a message: no answer in time")
        except _Refused as refused:
            self._warn(f"--notify: the hook did not take a message: {refused}")
        except Exception as error:  # whatever it is, the run has ended as it has
            self._warn(f"--notify: the hook did not take a message: {type(error).__name__}")

    def _post(self, event: str, status: str, message: str) -> None:
        """Begin to post a message; `message` is what went wrong."""
        if self._url is None:
            return
        url, body = self._url, redact_json(json.dumps(self._fields(event, status, message))).encode()
        self._sent.append(start(lambda: asyncio.run(_deliver(url, body))))

    def _fields(self, event: str, status: str, message: str) -> dict[str, Any]:
        display = self._display
        plan = display.planned.plan if display.planned else None
        counts, numbers = f"{display.out}: no pair was painted", dict.fromkeys(("pairs", "done", "failed", "left"))
        if plan is not None:  # one without rows is false
            counts, done = display.summary(), plan.done + display.done
            left = plan.left - display.done - display.failed_now
            numbers = {"pairs": plan.pairs, "done": done, "failed": display.failed, "left": left}
        # Names of files may look like links or mentions, which chat services would act upon.
        text = redact(f"batchnst, {status}: {counts}" + (f"; {message}" if message else ""))
        return {
            "text": text.translate({ord("<"): "‹", ord(">"): "›", ord("@"): "＠"}),
            "event": event,
            "status": status,
            "out": display.out,
            "run_id": self._run_id,
            **numbers,
            "seconds": round(time.monotonic() - self._began, 1),
            "message": message,
        }


async def _deliver(url: str, body: bytes) -> None:
    """Post `body` to `url` in at most TRIES attempts; raises _Refused."""
    for attempt in range(1, TRIES + 1):
        try:
            await _try(url, body)
            return
        except _Refused as refused:
            if attempt == TRIES or not refused.passing:
                raise
        await asyncio.sleep(PAUSE_SECONDS * attempt)


async def _try(url: str, body: bytes) -> None:
    """Post `body` to `url` once. The reason of a _Refused has neither the address nor its host."""
    from aiohttp import ClientConnectorDNSError, ClientError, ClientSession, ClientSSLError, ClientTimeout

    headers = {"Content-Type": "application/json"}
    try:
        async with (
            ClientSession(timeout=ClientTimeout(total=TRY_SECONDS), trust_env=True) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            status = answer.status
    except TimeoutError:
        raise _Refused("no answer in time", passing=True) from None
    except ClientSSLError:
        raise _Refused("its certificate is not valid", passing=False) from None
    except ClientConnectorDNSError:
        raise _Refused("its host has no address", passing=True) from None
    except (ClientError, OSError, ValueError):
        raise _Refused("it cannot be reached", passing=True) from None
    if not 200 <= status < 300:
        raise _Refused(f"HTTP status {status}", passing=status in _PASSING)
