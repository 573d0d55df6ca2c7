"""Hashes of many texts, to compare millions of them in little memory.

They differ from process to process. Two of ten million different texts have the same hash in one of 400,000 runs, so
that what depends on it must be checked or harmless.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hashes = NDArray[np.int64]
"""64 bits for each text (N,)."""

_AT_ONCE = 1 << 16
"""Texts that are held as Python objects at a time."""


def hashes(texts: pa.Array | pa.ChunkedArray) -> Hashes:
    """The hash of each text (N,)."""
    parts = [texts.slice(start, _AT_ONCE) for start in range(0, len(texts), _AT_ONCE)]
    each = [np.fromiter(map(hash, part.to_pylist()), np.int64, len(part)) for part in parts]
    return np.concatenate(each) if each else np.array([], np.int64)


def repeated(values: Hashes) -> NDArray[np.bool_]:
    """Which of the values are there more than once (N,)."""
    in_order = np.sort(values)
    twice = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    return np.isin(values, twice) if len(twice) else np.zeros(len(values), bool)


def find(in_order: Hashes, values: Hashes) -> NDArray[np.int64]:
    """The place of each value (N,) in `in_order`, which is sorted and has each of its values once; -1 if missing."""
    if not len(in_order):
        return np.full(len(values), -1)
    order = np.argsort(values)  # neighbours are found in memory that has just been read
    places = np.empty(len(values), np.int64)
    places[order] = np.searchsorted(in_order, values[order])
    places[places == len(in_order)] = 0
    return np.where(in_order[places] == values, places, -1)
