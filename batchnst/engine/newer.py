"""Finds inputs of done pairs that were written after their pictures: they may have changed."""

from __future__ import annotations

import os
from contextlib import suppress

from batchnst.chains import outer_of
from batchnst.manifest.pair import Pair
from batchnst.recipe import is_start_picture
from batchnst.storage.files import is_uri
from batchnst.storage.threads import start

MOST = 10_000
"""Largest number of files to look at."""

SECONDS = 5.0
"""Longest time to look at files, in seconds; a disk may hang."""


class DoneInputs:
    """The files on disk that done pairs were painted from, at most MOST of them; of those inside others, the others."""

    def __init__(self) -> None:
        self._painted: dict[str, int] = {}  # the earliest picture of each file, in microseconds since 1970

    def add(self, pair: Pair, painted: int) -> None:
        """Add the files of a pair that was `painted` at this time, in microseconds since 1970."""
        init = [pair.recipe.init] if is_start_picture(pair.recipe.init) else []
        for address in (pair.content, *pair.styles, *pair.content_masks, *pair.style_masks, *init):
            path = outer_of(address).removeprefix("file://")
            known = self._painted.get(path)
            if painted < known if known is not None else len(self._painted) < MOST and not is_uri(path):
                self._painted[path] = painted

    def newer(self) -> list[str]:
        """The files that were written after the earliest picture painted from them."""
        found = list[str]()

        def look() -> None:
            for path, painted in self._painted.items():
                with suppress(OSError):
                    if os.stat(path).st_mtime_ns // 1000 > painted:
                        found.append(path)

        with suppress(TimeoutError):
            start(look).result(SECONDS)
        return sorted(found)


def describe_newer(paths: list[str], out: str) -> str:
    """One line about the inputs that are newer than their pictures."""
    what = "1 input of done pairs was" if len(paths) == 1 else f"{len(paths)} inputs of done pairs were"
    which = paths[0] if len(paths) == 1 else f"{paths[0]} and others"
    return f"{what} written after the pictures ({which}); `batchnst audit {out} --deep` tells if they have changed"
