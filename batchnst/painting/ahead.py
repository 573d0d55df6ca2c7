"""Loading the next item in a thread while the current one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from batchnst.storage.threads import start

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield each of `items` with `function(item)`, which runs in a thread while the caller uses the item before.

    The first call begins at once. `items` must not be empty. Raises what `function` raises. A caller that stops early
    does not wait for the thread.
    """
    return _each(function, items, start(partial(function, items[0])))


def _each(
    function: Callable[[Item], Result], items: Sequence[Item], upcoming: Future[Result]
) -> Iterator[tuple[Item, Result]]:
    for i, item in enumerate(items):
        result = upcoming.result()
        if i + 1 < len(items):
            upcoming = start(partial(function, items[i + 1]))
        yield item, result
