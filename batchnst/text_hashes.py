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


def hashes(texts: pa.Array | pa.ChunkedArray) -> Hashes:
    """The hash of each text (N,)."""
    return np.fromiter(map(hash, texts.to_pylist()), np.int64, len(texts))


def repeated(values: Hashes) -> NDArray[np.bool_]:
    """Which of the values are there more than once (N,)."""
    in_order = np.sort(values)
    twice = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    return np.isin(values, twice) if len(twice) else np.zeros(len(values), bool)


def find(in_order: Hashes, values: Hashes) -> NDArray[np.int64]:
    """The place of each value (N,) in `in_order`, which is sorted and has each of its values once; -1 if missing."""
    if not len(in_order):
        return np.full(len(values), -1)
    places = np.searchsorted(in_order, values)
    places[places == len(in_order)] = 0
    return np.where(in_order[places] == values, places, -1)
