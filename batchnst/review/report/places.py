"""Where the pictures of OUT are, for pages: those of the newest attempts, and of earlier ones that OUT keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from batchnst.ledger.compaction import SHARDS
from batchnst.ledger.out import Out
from batchnst.ledger.previous import PREVIOUS, previous_name
from batchnst.ledger.schema import ATTEMPT
from batchnst.review.report.previews import Source


class Places:
    """The places of painted pictures at one moment, in every form; `stored` reads those in files with others."""

    def __init__(
        self, out: Out, pair_ids: Collection[str] | None = None, known: dict[tuple[str, int], pa.Table] | None = None
    ) -> None:
        """Only pictures of `pair_ids`, if given. known: as of `Pictures`."""
        self.stored = out.pictures(pair_ids, tables=SHARDS, unreadable=lambda *_: None, known=known)
        self._kept = frozenset(out.folder.relative(info.path) for info in out.folder.files(PREVIOUS))

    def newest(self, row: Mapping[str, Any]) -> Source:
        """The picture of a pair's newest attempt, whether it is there or not."""
        return Source(f"images/{row['output']}", True, row["output_sha256"], attempt=self._attempt(row))

    def name(self, row: Mapping[str, Any]) -> str:
        """The path in OUT of the picture of a pair's newest attempt, or of the file that holds it, and its output."""
        return self.stored.name(row)

    def earlier(self, row: Mapping[str, Any]) -> Source | None:
        """The picture of an earlier attempt; None if OUT does not keep it."""
        path, attempt = previous_name(row["pair_id"], row["run_id"], row["attempt"], row["output"]), self._attempt(row)
        is_kept = bool(attempt) or path in self._kept
        return Source(path, True, row["output_sha256"], attempt=attempt) if is_kept else None

    def _attempt(self, row: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """The columns of a row that find its picture in a file with others; empty if it is not in one."""
        return tuple((name, row[name]) for name in (*ATTEMPT, "output")) if self.stored.holds(row) else ()
