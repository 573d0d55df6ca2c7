"""Threads that do not keep the process from ending, unlike those of `concurrent.futures`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def start(action: Callable[[], Result]) -> Future[Result]:
    """Call `action` in a thread of its own."""
    future = Future[Result]()

    def work() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


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
