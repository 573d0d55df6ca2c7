"""Measures of pairs for a live page that are not in their rows: the curve of the losses, and loud flat areas.

These are read and measured when a page asks for them: sparklines and loudness of the pairs that somebody looks at or
sorts by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa

from batchnst.errors import LedgerError
from batchnst.ledger.out import sort_rows
from batchnst.ledger.schema import without_secrets
from batchnst.review.report import cards
from batchnst.review.report.cards import Row
from batchnst.review.report.curves import Key, key_of
from batchnst.review.report.loudness import loudness
from batchnst.review.serve.curve_files import CurveFiles, matching_pairs
from batchnst.review.serve.gallery import Gallery
from batchnst.review.serve.night import Night

MOST_ASKED = 64
"""Most pairs that are measured for one request."""

T = TypeVar("T")


class Measures:
    """Measures of the pairs of a Night; safe to use from several threads."""

    def __init__(self, night: Night, gallery: Gallery) -> None:
        self._night, self._gallery = night, gallery
        self._curves = CurveFiles(night.out, night.is_file)
        self._lock = threading.Lock()
        self._sparks: dict[Key, str] = {}
        self._loud: dict[Key, float | None] = {}

    def sparks(self, pair_ids: Sequence[str]) -> dict[str, Row]:
        """The sparkline of each of these pairs that is painted, and the attempt `made` that it belongs to."""

        def read(rows: Sequence[Row]) -> dict[Key, str]:
            try:
                return self._curves.sparks({key_of(row): row["file"] for row in rows})
            except LedgerError:  # `audit` reports damaged files; the page shows the rest
                return {}

        return self._measured(pair_ids, self._sparks, read, "")

    def loud(self, pair_ids: Sequence[str]) -> dict[str, Row]:
        """The loudness of each of these pairs, as `sparks`; None if one of its two pictures cannot be seen."""

        def measure(rows: Sequence[Row]) -> dict[Key, float | None]:
            return {key_of(row): self._loudness(row) for row in rows}

        return self._measured(pair_ids, self._loud, measure, None)

    def _measured(
        self, pair_ids: Sequence[str], known: dict[Key, T], measure: Callable[[Sequence[Row]], dict[Key, T]], other: T
    ) -> dict[str, Row]:
        rows = [row for row in self._night.newest(pair_ids[:MOST_ASKED]) if row["status"] == "ok"]
        new = [row for row in rows if key_of(row) not in known]
        measured = dict.fromkeys(map(key_of, new), other) | measure(new)
        with self._lock:
            known.update(measured)
        return {row["pair_id"]: {"made": cards.made(row), "value": known[key_of(row)]} for row in rows}

    def _loudness(self, row: Row) -> float | None:
        photo = self._gallery.photo(row)
        painting = photo and self._gallery.small(f"images/{row['output']}")
        return round(loudness(photo.gray, painting.gray), 1) if photo and painting else None

    def details(self, pair_id: str) -> Row | None:
        """The content of a pair's dialog, with its whole recipe; None if there is no such pair."""
        files = self._night.files_of(pair_id)
        if not files:
            return None
        out, matching = self._night.out, matching_pairs(files.keys())
        parts = [out.rows_in("pairs", name, None, matching) for name in dict.fromkeys(files.values())]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):  # a compaction has just merged them
            found = [out.rows("pairs", matching=matching)]
        attempts = sort_rows(without_secrets(pa.concat_tables(found, promote_options="default"))).to_pylist()
        if not attempts:  # OUT was removed, and the next look will tell
            return None
        newest = key_of(attempts[-1])
        return cards.details(attempts, {}, self._curves.curve(newest, files.get(newest, "")))
