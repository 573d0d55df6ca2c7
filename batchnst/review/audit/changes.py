"""Compares two states of OUT, leaf by leaf: that of a seal, and that of a later seal or of now."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnst.ledger.leaves import LEAVES, NAMES
from batchnst.ledger.merkle import SIZE
from batchnst.ledger.schema import ATTEMPT
from batchnst.review.audit.findings import Finding

Leaf = dict[str, Any]


class State:
    """The leaves of a seal, or of OUT as it is now: then `number` is None."""

    def __init__(self, number: int | None, leaves: pa.Table, hashes: bytes) -> None:
        """`hashes` are those of the leaves, end to end."""
        self.number, self.leaves = number, leaves
        buffer = pa.py_buffer(_distinct(hashes))
        self.hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(SIZE), len(leaves), [None, buffer])

    @staticmethod
    def empty() -> State:
        """A state before all seals."""
        return State(0, LEAVES.empty_table(), b"")

    def without(self, other: State) -> pa.Table:
        """The leaves that `other` does not have."""
        return self.leaves.filter(pc.invert(pc.is_in(self.hashes, other.hashes)))


def _distinct(hashes: bytes) -> bytes:
    """The hashes, with those of repeated leaves, which are neighbours, hashed once more each time."""
    words = np.frombuffer(hashes, np.uint64).reshape(-1, SIZE // 8)
    repeated = np.flatnonzero((words[1:] == words[:-1]).all(axis=1)) + 1
    if not len(repeated):
        return hashes
    changed = bytearray(hashes)
    for start in (repeated * SIZE).tolist():
        changed[start : start + SIZE] = hashlib.sha256(changed[start - SIZE : start]).digest()
    return bytes(changed)


class Changes:
    """Leaves that were altered, removed, added or moved from the state `old`, a seal's, to `new`.

    Leaves of runs that `old` does not cover are no change: they came later, and are not sealed.
    """

    def __init__(self, old: State, new: State) -> None:
        self._old, self._new = old, new
        self._lost, self._fresh = old.without(new), new.without(old)
        runs = pc.unique(old.leaves["run_id"]).drop_null()
        self._runs, self._covered = set(runs.to_pylist()), pc.is_in(self._fresh["run_id"], runs)

    def unsealed(self) -> dict[str, int]:
        """The number of leaves of each kind in `new` that came after `old`."""
        later = self._fresh.filter(pc.invert(self._covered))["kind"]
        return {kind: pc.sum(pc.equal(later, kind)).as_py() or 0 for kind in NAMES}

    def findings(self) -> Iterator[Finding]:
        """A finding for each change."""
        suspects = self._suspects()
        known = self._old.leaves.filter(pc.is_in(self._old.leaves["sha256"], suspects["sha256"].combine_chunks()))
        origins = {_content(leaf): leaf for leaf in known.to_pylist()}
        fresh, removed = _grouped(suspects.to_pylist(), _key), list[Leaf]()
        for leaf in self._lost.to_pylist():
            if now := fresh[_key(leaf)]:
                yield from self._replaced(leaf, now.pop(), origins)
            else:
                removed.append(leaf)
        left = _grouped((leaf for leaves in fresh.values() for leaf in leaves), _content)
        for leaf in removed:
            if places := left[_content(leaf)]:
                yield self._finding("moved", leaf, f"is that of {_owner(places.pop())} since")
            else:
                yield self._finding("removed", leaf, "is gone since")
        for leaf in (leaf for leaves in left.values() for leaf in leaves):
            if leaf["run_id"] in self._runs:
                yield self._finding("added", leaf, "was added after")

    def _suspects(self) -> pa.Table:
        """New leaves of runs that `old` covers, and those that may stand in place of a lost one."""
        lost, fresh = self._lost, self._fresh
        same = [pc.is_in(fresh[name], lost[name].combine_chunks().drop_null()) for name in ("sha256", "output")]
        return fresh.filter(pc.or_(self._covered, pc.or_(*same)))

    def _replaced(self, leaf: Leaf, now: Leaf, origins: dict[Any, Leaf]) -> Iterator[Finding]:
        """The finding on a leaf that has another content `now`, unless a later run has painted the picture again."""
        later = now["run_id"] is not None and now["run_id"] not in self._runs
        if leaf["kind"] == "pictures" and (later or leaf["sha256"] == now["sha256"]):
            return
        if origin := origins.get(_content(now)):
            yield self._finding("moved", leaf, f"is that of {_owner(origin)} since")
        else:
            yield self._finding("altered", leaf, "is not as in")

    def _finding(self, kind: str, leaf: Leaf, text: str) -> Finding:
        over = f"; seal {self._new.number} was made over it" if self._new.number else ""
        return Finding(f"sealed-{kind}", leaf["pair_id"], f"{_name(leaf)} {text} seal {self._old.number}{over}")


def _grouped(leaves: Iterable[Leaf], by: Callable[[Leaf], Any]) -> defaultdict[Any, list[Leaf]]:
    groups = defaultdict[Any, list[Leaf]](list)
    for leaf in leaves:
        groups[by(leaf)].append(leaf)
    return groups


def _key(leaf: Leaf) -> tuple[Any, ...]:
    """The identity of a leaf's subject: the same before and after its content changes."""
    return (leaf["kind"], *(leaf[name] for name in (["output"] if leaf["kind"] == "pictures" else ATTEMPT)))


def _content(leaf: Leaf) -> tuple[str, bytes]:
    return leaf["kind"], leaf["sha256"]


def _name(leaf: Leaf) -> str:
    """A leaf in the text of a finding, which names its pair already."""
    if leaf["kind"] == "pictures":
        return f"images/{leaf['output']}"
    if leaf["kind"] == "runs":
        return f"the row of run {leaf['run_id']}"
    what = "row" if leaf["kind"] == "pairs" else "curve"
    return f"the {what} of attempt {leaf['attempt']} of run {leaf['run_id']}"


def _owner(leaf: Leaf) -> str:
    return leaf["pair_id"] or leaf["output"] or f"run {leaf['run_id']}"
