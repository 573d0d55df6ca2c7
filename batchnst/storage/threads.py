"""Threads that do not keep the process from ending, unlike those of `concurrent.futures`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


_IDLE = list[SimpleQueue[Callable[[], None]]]()
"""The queue of each thread that waits for its next call: a call is often shorter than the start of a thread."""

os.register_at_fork(after_in_child=_IDLE.clear)


def start(action: Callable[[], Result]) -> Future[Result]:
    """Call `action` in a thread that does nothing else meanwhile, with a context of its own."""
    future = Future[Result]()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    try:
        calls = _IDLE.pop()
    except IndexError:
        calls = SimpleQueue()
        threading.Thread(target=_serve, args=(calls,), daemon=True).start()
    calls.put(work)
    return future


def _serve(calls: SimpleQueue[Callable[[], None]]) -> None:
    """Make the calls in a queue, one after the other, without end."""
    while True:
        Context().run(calls.get())
        _IDLE.append(calls)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """The results of `function` for each of `items`, called in several `threads`; raises what `function` raises."""
    waiting, results = SimpleQueue[tuple[int, Item]](), dict[int, Result]()
    for numbered in enumerate(items):
        waiting.put(numbered)

    def work() -> None:
        with suppress(Empty):
            while True:
                number, item = waiting.get_nowait()
                results[number] = function(item)

    for future in [start(work) for _ in range(min(threads, waiting.qsize()))]:
        future.result()
    return [results[number] for number in sorted(results)]
