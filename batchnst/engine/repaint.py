"""`--redo`: choose the pairs to paint again although they are settled."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.engine.events import Notice
from batchnst.errors import BatchNSTError, InputError, RequestError
from batchnst.ledger.out import ORDERED_BY, Out, newest_rows
from batchnst.ledger.outcomes import Outcomes, Settled
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import Pair
from batchnst.recipe import is_start_picture
from batchnst.redaction import stored
from batchnst.storage.files import resolve, sha256_of
from batchnst.storage.threads import in_threads

FAILED, MISSING, CHANGED = "failed", "missing", "changed"
"""Words that `--redo` knows; everything else is a pair's id, or a glob of ids."""

NAMED = "named"
"""The reason to paint a pair again whose id was given."""

REASONS = ("", NAMED, MISSING, CHANGED)
"""Reasons to paint a pair again; "" is none."""

BLOCK = 1 << 14
"""Pairs whose rows and hashes are in memory at once."""

THREADS = 16
"""Files that are hashed at the same time."""

REMEMBERED = 1 << 14
"""Hashes of inputs that are remembered, since many pairs share a style."""

TELL_SECONDS = 30.0
"""Seconds between two notices of how far the check is."""

_COLUMNS = (
    *("pair_id", "run_id", "output", "output_sha256"),
    *("content_sha256", "style_sha256", "mask_sha256", "start_sha256"),
)


@dataclass(frozen=True)
class Redo:
    """The pairs of a manifest to paint again.

    values: the values of `--redo`. failed: those that failed too. reasons: index in REASONS for each row (N,); None if
    no row has one. since: number of the run in which this began; None if it begins now.
    """

    values: tuple[str, ...] = ()
    failed: bool = False
    reasons: NDArray[np.uint8] | None = None
    since: int | None = None

    @property
    def names(self) -> bool:
        """True if ids were given."""
        return bool(set(self.values) - {FAILED, MISSING, CHANGED})

    def of(self, rows: NDArray[np.int64], settled: Settled) -> tuple[NDArray[np.bool_], Counter[str]]:
        """Which of the pairs of these rows (N,) are painted again although they are `settled`, and how many why."""
        reasons = np.zeros(len(rows), np.uint8) if self.reasons is None else self.reasons[rows]
        named = (reasons > 0) & (settled.done | settled.failed)
        retried = settled.failed & ~named & self.failed
        counts = Counter(REASONS[reason] for reason in reasons[named].tolist())
        return named | retried, counts + Counter({FAILED: int(retried.sum())})


NOTHING = Redo()
"""No settled pair is painted again."""

RETRY_FAILED = Redo((FAILED,), failed=True)
"""Pairs that failed are painted again."""


def named_rows(values: Sequence[str], manifest: Manifest) -> NDArray[np.bool_]:
    """Which rows have an id that is in `values`, or that a glob in `values` matches (N,).

    Raises RequestError if one of `values` is neither a word of `--redo` nor matches anything.
    """
    rows = np.zeros(len(manifest), bool)
    for text in dict.fromkeys(values):
        if text in (FAILED, MISSING, CHANGED):
            continue
        found = _matching(text, manifest.ids)
        if not found.any():
            raise RequestError(
                f"--redo {text}: no pair of {manifest.address} has such an id; expected {FAILED}, {MISSING}, "
                f"{CHANGED}, a pair's id, or a glob of ids in quotes"
            )
        rows |= found
    return rows


def _matching(text: str, ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    if not re.search(r"[*?\[]", text):
        return np.asarray(pc.equal(ids, text).to_numpy())
    match = re.compile(translate(text)).match
    chunks = (chunk.to_pylist() for chunk in ids.chunks)
    return np.fromiter((match(pair_id) is not None for chunk in chunks for pair_id in chunk), bool, len(ids))


def choose(
    values: Sequence[str], manifest: Manifest, out: Out, weights_sha256: Mapping[tuple[str, str], str]
) -> Generator[Notice, None, Redo]:
    """Choose the pairs of `manifest` that `values` means; yields notices of how far it is and of what cannot be read.

    Pairs that are named are chosen once: a run that goes on with an interrupted one leaves those that this one has
    painted. Raises RequestError as `named_rows` does.
    """
    named = named_rows(values, manifest)
    named, since = _left(values, manifest, named, out) if named.any() else (named, None)
    reasons = named.astype(np.uint8)
    if kinds := [kind for kind in (MISSING, CHANGED) if kind in values]:
        check = _Check(kinds, out)
        yield from check.run(manifest, out.newest(), weights_sha256, reasons)
        yield from check.notices()
    return Redo(tuple(values), FAILED in values, reasons if reasons.any() else None, since)


def _left(
    values: Sequence[str], manifest: Manifest, named: NDArray[np.bool_], out: Out
) -> tuple[NDArray[np.bool_], int | None]:
    """The named rows that are left of the same request, and the number of the run in which it began.

    All rows and None if the newest run was another request, or has finished this one.
    """
    last = next(reversed(out.runs()), None)
    address = stored(resolve(manifest.address, "."))
    if last is None or last["redo_since"] is None or last["manifest"] != address:
        return named, None
    if sorted(last["redo"]) != sorted(values):
        return named, None
    since = last["redo_since"]
    ended = out.rows("pairs", ["run_id", "pair_id"], matching=pc.field("run_number") >= since)
    left = named & ~pc.is_in(manifest.ids, ended["pair_id"].combine_chunks()).to_numpy()
    of_last = ended.filter(pc.equal(ended["run_id"], last["run_id"]))
    finished = pc.count_distinct(of_last["pair_id"]).as_py() >= last["to_paint"]
    return (named, None) if finished and not left.any() else (left, since)


@dataclass
class _Check:
    """Compares the files of done pairs with their rows; `kinds` are MISSING, CHANGED or both."""

    kinds: Sequence[str]
    out: Out
    unread: dict[str, str] = field(default_factory=dict)  # the first error by kind
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._hash = lru_cache(maxsize=REMEMBERED)(_hash)
        self._stored = self.out.pictures([] if MISSING not in self.kinds else None, unreadable=lambda *_: None)

    def run(
        self,
        manifest: Manifest,
        outcomes: Outcomes,
        weights_sha256: Mapping[tuple[str, str], str],
        reasons: NDArray[np.uint8],
    ) -> Iterator[Notice]:
        """Check all pairs of `manifest` that are done, and set the `reasons` of those that are to be painted again."""
        what = " and ".join({MISSING: "pictures", CHANGED: "inputs"}[kind] for kind in self.kinds)
        yield Notice(f"comparing the {what} of done pairs with their rows")
        told = time.monotonic()
        for start in range(0, len(manifest), BLOCK):
            done = _done(manifest, start, outcomes, weights_sha256)
            for row, kind in self._found(done):
                reasons[row] = reasons[row] or REASONS.index(kind)
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                yield Notice(f"compared {min(start + BLOCK, len(manifest))} of {len(manifest)} pairs with their rows")

    def notices(self) -> Iterator[Notice]:
        """A notice for each kind of file of which some could not be read."""
        for kind, error in self.unread.items():
            what = "of the pictures" if kind == MISSING else "of the inputs"
            yield Notice(f"{self.counts[kind]} {what} cannot be read now and are left as they are; the first: {error}")

    def _found(self, done: Mapping[int, Pair]) -> Iterator[tuple[int, str]]:
        """Row and kind of each of the pairs `done`, by row, that is to be painted again."""
        rows = _rows(self.out, [pair.id for pair in done.values()])
        checks = [(row, pair, rows[pair.id]) for row, pair in done.items() if pair.id in rows]
        for kind in self.kinds:
            results = in_threads(lambda each, kind=kind: self._differs(kind, each[1], each[2]), checks, THREADS)  # type: ignore[misc]
            yield from ((row, kind) for (row, *_), differs in zip(checks, results, strict=True) if differs)

    def _differs(self, kind: str, pair: Pair, row: Mapping[str, Any]) -> bool:
        """True if a file of `pair` is another than `row` says; for pictures also if it is gone."""
        if kind == MISSING:
            if self._stored.holds(row):
                return self._is_other_together(row)
            picture = (resolve(f"images/{pair.output}", self.out.address), row["output_sha256"])
            return self._is_other(kind, *picture, gone=True)
        return any(self._is_other(kind, *source) for source in _inputs(pair, row))

    def _is_other_together(self, row: Mapping[str, Any]) -> bool:
        """True if the picture of `row`, in a file with others, has another hash than `row` says."""
        try:
            data = self._stored.find(row).data
        except BatchNSTError as error:
            self._count_unread(MISSING, error)
            return False
        return hashlib.sha256(data or b"").hexdigest() != str(row["output_sha256"])

    def _is_other(self, kind: str, address: str, sha256: str, *, gone: bool = False) -> bool:
        """True if the file at `address` has another hash; `gone` is the answer if there is none."""
        found = self._hash(address) if kind == CHANGED else _hash(address)
        if isinstance(found, str):
            return found != sha256
        if gone and isinstance(found, InputError) and found.missing:
            return True
        self._count_unread(kind, found)
        return False

    def _count_unread(self, kind: str, error: BatchNSTError) -> None:
        self.unread.setdefault(kind, str(error))
        self.counts[kind] = self.counts.get(kind, 0) + 1


def _done(
    manifest: Manifest, start: int, outcomes: Outcomes, weights_sha256: Mapping[tuple[str, str], str]
) -> dict[int, Pair]:
    """The pairs that are done among BLOCK rows from `start`, by row."""
    block = manifest.take_block(np.arange(start, min(start + BLOCK, len(manifest))))
    places = outcomes.places(block["id"])
    known = np.flatnonzero(places >= 0)
    pairs = block.take(pa.array(known))
    is_done = outcomes.at(places[known], manifest.fingerprints(pairs, weights_sha256)).done
    rows = (start + known[is_done]).tolist()
    return dict(zip(rows, manifest.pairs(pairs.filter(pa.array(is_done))), strict=True))


def _rows(out: Out, pair_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The newest ok row of each of these pairs, by id."""
    if not pair_ids:
        return {}
    matching = pc.field("pair_id").isin(pa.array(pair_ids, pa.string())) & (pc.field("status") == "ok")
    rows = newest_rows(out.rows("pairs", [*_COLUMNS, *ORDERED_BY], matching=matching))
    return {row["pair_id"]: row for row in rows.to_pylist()}


def _inputs(pair: Pair, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Address and hash of each file that a pair was painted from; rows of 0.1.0 lack some hashes."""
    yield pair.content, row["content_sha256"]
    yield from zip(pair.styles, row["style_sha256"] or [], strict=False)
    yield from zip((*pair.content_masks, *pair.style_masks), row["mask_sha256"] or [], strict=False)
    if row["start_sha256"] and is_start_picture(pair.recipe.init):
        yield pair.recipe.init, row["start_sha256"]


def _hash(address: str) -> str | BatchNSTError:
    """SHA-256 of a file in hexadecimal, or the error that says why it cannot be read."""
    try:
        return sha256_of(address)
    except BatchNSTError as error:
        return error
