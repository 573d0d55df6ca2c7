"""Merkle trees as RFC 6962 defines them (section 2.1), with SHA-256: one hash that stands for a list of leaves.

A leaf is hashed after a byte 0, an inner node after a byte 1. A list is split at the largest power of two below its
length. Joining neighbours level by level, with the last node of an odd level moved up unchanged, gives the same tree.

The hashes of a level are kept end to end in one `bytes`: a list of a million objects would take twice the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise

import pyarrow as pa

from batchnst.ledger.canonical import slices

SIZE = 32
"""Bytes of a hash."""


def leaf_hashes(leaves: pa.Array) -> bytes:
    """The hash of each leaf of a binary array."""
    data, ends = slices(leaves)
    return b"".join([sha256(b"\0" + data[begin:end]).digest() for begin, end in pairwise(ends.tolist())])


def root(hashes: bytes) -> bytes:
    """The root of the tree over leaves with these hashes."""
    while len(hashes) > SIZE:
        hashes = _above(hashes)
    return hashes or sha256().digest()


def path(hashes: bytes, index: int) -> Iterator[tuple[str, bytes]]:
    """The inclusion proof of the leaf at `index`: the nodes that it is joined with, from below, each with its side.

    The side is "left" or "right".
    """
    while len(hashes) > SIZE:
        sibling = (index ^ 1) * SIZE
        if sibling < len(hashes):
            yield ("left" if index % 2 else "right"), hashes[sibling : sibling + SIZE]
        hashes, index = _above(hashes), index // 2


def _above(hashes: bytes) -> bytes:
    """The next level of the tree."""
    pairs = range(0, len(hashes) - SIZE, 2 * SIZE)
    nodes = [sha256(b"\1" + hashes[start : start + 2 * SIZE]).digest() for start in pairs]
    alone = hashes[-SIZE:] if len(hashes) // SIZE % 2 else b""
    return b"".join([*nodes, alone])
