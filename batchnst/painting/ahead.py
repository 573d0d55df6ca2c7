"""Loading the next item in a thread while the current one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield each of `items` with `function(item)`, which runs in a thread while the caller uses the item before.

    `items` must not be empty. Raises what `function` raises.
    """
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(function, items[0])
        for i, item in enumerate(items):
            result = upcoming.result()
            if i + 1 < len(items):
                upcoming = pool.submit(function, items[i + 1])
            yield item, result
