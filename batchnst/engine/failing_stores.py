"""Tell one bad file from a store that is gone: the first fails its pair, the second stops the run."""

from __future__ import annotations

from batchnst.engine.events import Finished, Unread
from batchnst.errors import InputError, StorageError
from batchnst.manifest.pair import Pair
from batchnst.recipe import is_start_picture
from batchnst.storage.addresses import store_name

MAX_UNREAD = 20
"""Different files of a store that may fail in a row before the run stops."""


def painted(pair: Pair, error: str | None) -> Finished:
    """The event of a pair whose inputs were all read."""
    start = [pair.recipe.init] if is_start_picture(pair.recipe.init) else []
    inputs = (pair.content, *pair.styles, *pair.content_masks, *pair.style_masks, *start)
    return Finished(pair.id, error, answered=tuple({store_name(address) for address in inputs}))


def failed(pair: Pair, error: Exception, message: str) -> Finished:
    """The event of a pair that failed because of `error`; `message` is its text for the user."""
    if not isinstance(error, InputError) or error.unread is None:
        return Finished(pair.id, message)
    store = store_name(error.unread)
    if error.transient:
        return Finished(pair.id, message, unread=Unread(error.unread, store, message))
    return Finished(pair.id, message, answered=(store,))


class FailingStores:
    """The files that could not be read for a passing reason, by store, since the store last answered."""

    def __init__(self) -> None:
        self._unread: dict[str, set[str]] = {}

    def add(self, event: Finished) -> None:
        """Count what `event` says of stores; raises StorageError if MAX_UNREAD files of one failed in a row."""
        for store in event.answered:
            self._unread.pop(store, None)
        if event.unread:
            files = self._unread.setdefault(event.unread.store, set())
            files.add(event.unread.address)
            if len(files) >= MAX_UNREAD:
                raise StorageError(
                    f"{event.unread.store}: {len(files)} of its files in a row could not be read; run the same command "
                    f"again when it answers. The last error: {event.unread.reason}"
                )
