"""Finds inputs of done pairs that were written after their pictures: they may have changed."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.chains import outer_of
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.row_columns import by_value, contain, same
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

    def add(self, pairs: pa.RecordBatch, painted: NDArray[np.int64], manifest: Manifest) -> None:
        """Add the files of `pairs` of a manifest that were `painted` at these times, in microseconds since 1970."""
        for name in ("styles", "content_masks", "style_masks"):
            lengths = pc.list_value_length(pairs[name]).to_numpy()
            self._add(pairs[name].flatten(), np.repeat(painted, lengths))
        self._add(manifest.starts(pairs), painted)
        self._add(pairs["content"], painted)

    def _add(self, addresses: pa.Array, painted: NDArray[np.int64]) -> None:
        """Add files; null is none."""
        if addresses.null_count == len(addresses):
            return
        odd = pc.or_(contain(addresses, "::"), pc.starts_with(addresses, "file://"))
        paths = by_value(addresses, pc.invert(odd), same, lambda address: outer_of(address).removeprefix("file://"))
        table = pa.table({"path": paths, "painted": painted})
        if len(self._painted) == MOST:
            table = table.filter(pc.is_in(table["path"], pa.array(self._painted, pa.string())))
        for row in table.group_by("path").aggregate([("painted", "min")]).to_pylist():
            path, time = row["path"], row["painted_min"]
            known = self._painted.get(path)
            if time < known if known is not None else len(self._painted) < MOST and path and not is_uri(path):
                self._painted[path] = time

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
