"""The losses of some attempts for a live page: only the files that have them are read."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from batchnst.ledger.out import Out, retry_vanished
from batchnst.ledger.schema import ATTEMPT
from batchnst.review.report import curves
from batchnst.review.report.curves import Curve, Key

T = TypeVar("T")


class CurveFiles:
    """The losses of OUT by attempt; safe to use from several threads.

    A task writes the rows and the losses of its attempts into files of one name. Other files are those that a
    compaction has merged: which attempts they have is read once from each.
    """

    def __init__(self, out: Out, is_commit: Callable[[str], bool]) -> None:
        """`is_commit` tells whether a task has written a file of this name with the rows of its attempts."""
        self._out, self._is_commit = out, is_commit
        self._lock = threading.Lock()
        self._indexed = set[str]()  # paths
        self._merged: dict[Key, pafs.FileInfo] = {}

    def sparks(self, attempts: Mapping[Key, str]) -> dict[Key, str]:
        """The sparklines of those `attempts` that have losses, and the names of the files that have their rows."""
        return dict(self._in_files(attempts, curves.SPARK_COLUMNS, curves.sparks))

    def curve(self, attempt: Key, name: str) -> Curve | None:
        """The curve of an attempt, see `sparks`; None if it has no losses."""
        return dict(self._in_files({attempt: name}, None, curves.in_rows)).get(attempt)

    def _in_files(
        self,
        attempts: Mapping[Key, str],
        columns: Sequence[str] | None,
        use: Callable[[pa.Table, Collection[Key]], Iterator[tuple[Key, T]]],
    ) -> Iterator[tuple[Key, T]]:
        """The results of `use` for the rows of `attempts`."""
        by_name, elsewhere = defaultdict[str, list[Key]](list), list[Key]()
        for key, name in attempts.items():
            by_name[name].append(key)
        for name, keys in by_name.items():
            rows = self._out.rows_in("losses", name, columns, matching_pairs(keys))
            found = {} if rows is None else dict(use(rows, keys))
            elsewhere += [key for key in keys if key not in found]
            yield from found.items()
        yield from retry_vanished(lambda: list(self._in_merged(elsewhere, columns, use))) if elsewhere else ()

    def _in_merged(
        self,
        keys: Collection[Key],
        columns: Sequence[str] | None,
        use: Callable[[pa.Table, Collection[Key]], Iterator[tuple[Key, T]]],
    ) -> Iterator[tuple[Key, T]]:
        by_path, places = defaultdict[str, list[Key]](list), self._index()
        for key in keys:
            if key in places:
                by_path[places[key].path].append(key)
        for found in by_path.values():
            rows = self._out.rows_of([places[found[0]]], "losses", columns, matching_pairs(found))
            yield from use(rows, found)

    def _index(self) -> Mapping[Key, pafs.FileInfo]:
        """The file of each attempt in files that no task has written under the name of its rows."""
        with self._lock:
            files = self._out.files("losses")
            if self._indexed - {info.path for info in files}:  # a compaction has merged them again
                self._indexed, self._merged = set(), {}
            for info in files:
                if info.path not in self._indexed and not self._is_commit(info.base_name):
                    keys = self._out.rows_of([info], "losses", ATTEMPT).group_by(list(ATTEMPT)).aggregate([])
                    self._merged |= dict.fromkeys(zip(*(keys[name].to_pylist() for name in ATTEMPT), strict=True), info)
                    self._indexed.add(info.path)
            return self._merged


def matching_pairs(keys: Collection[Key]) -> pc.Expression:
    """A filter for rows of the pairs of `keys`."""
    return pc.field("pair_id").isin(sorted({pair_id for _, pair_id, _ in keys}))
