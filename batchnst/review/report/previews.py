"""Previews for the report: each picture once, small enough for all of them to fit into one file."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchnst.errors import InputError, StorageError
from batchnst.ledger.out import Out
from batchnst.ledger.pictures.stored import Pictures
from batchnst.pictures import isolated
from batchnst.pictures.decode import DecodeOptions
from batchnst.progress import Progress
from batchnst.storage import files
from batchnst.storage.addresses import store_name

SIDES = (768, 640, 512, 448, 384, 320, 256, 224, 192, 160, 128, 96)
"""Possible longest sides of previews, in pixels."""

SAMPLES = 48
"""Pictures that are scaled down to estimate the size of all previews."""

BYTES, BYTES_A_PAIR = 18_000_000, 5_500
"""Largest size of all previews together, in bytes: a constant plus a part for each pair. Base64 adds a third."""


MAX_FAILURES = 3
"""Pictures of a store that may be out of reach in a row before the others are left out."""

CHANGED = "changed since the run"
"""Problem of a picture whose hash is not that of its row."""


@dataclass(frozen=True)
class Source:
    """A picture to show. Its preview is `reduction` times smaller than the others.

    `attempt` finds a picture that is in a file with others; its `address` is then the path of a file of its own.
    """

    address: str  # path in OUT if `in_out`
    in_out: bool = False
    sha256: str | None = None  # None if unknown
    reduction: int = 1
    attempt: tuple[tuple[str, Any], ...] = ()  # columns of the row and their values


@dataclass(frozen=True)
class Preview:
    """A small picture for the page: `text` is WebP in base64. `problem` says why it is missing or may be wrong.

    `gray` is its brightness (h, w), 0..255, None if it is missing.
    """

    text: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""
    gray: NDArray[np.uint8] | None = field(default=None, repr=False)


class Album:
    """The pictures of a page, numbered in the order in which they are added."""

    def __init__(self, out: Out, stored: Pictures) -> None:
        """`stored` reads the pictures that are in files with others."""
        self.out, self.stored = out, stored
        self._numbers: dict[Source, int] = {}
        self._originals = Originals()

    def number(self, source: Source) -> int:
        """Add a picture to the page, unless it was added before; return its number."""
        return self._numbers.setdefault(source, len(self._numbers))

    @property
    def sources(self) -> list[Source]:
        """The pictures, by number."""
        return list(self._numbers)

    def previews(self, pairs: int, progress: Progress) -> list[Preview]:
        """The previews of all pictures, by number, in the largest size that fits a page of `pairs`."""
        sources, previews = self.sources, list[Preview]()
        with ThreadPoolExecutor((os.cpu_count() or 1) if self.out.folder.local else self.out.folder.streams) as pool:
            side = self._side(pool, sources, BYTES + BYTES_A_PAIR * pairs)
            for preview in pool.map(partial(self._preview, side), sources):
                previews.append(preview)
                progress(f"{len(previews)} of {len(sources)} pictures", len(previews), len(sources))
        return previews

    def _side(self, pool: ThreadPoolExecutor, sources: Sequence[Source], most_bytes: int) -> int:
        """The largest of SIDES in which the previews take at most `most_bytes`, estimated from a sample."""
        full = sum(1 / source.reduction**2 for source in sources)
        sample = [source for source in sources if source.reduction == 1]
        sample = sample[:: -(-len(sample) // SAMPLES) or 1]
        for side in SIDES:
            size = sum(len(preview.text) for preview in pool.map(partial(self._preview, side), sample)) * 3 / 4
            if size / max(len(sample), 1) * full <= most_bytes:
                return side
        return SIDES[-1]

    def _preview(self, side: int, source: Source) -> Preview:
        try:
            data = self._read(source)
            if data is None:
                return Preview(problem="missing")
            small = isolated.preview(data, source.address, side // source.reduction)
            problem = "" if _matches(data, source.sha256) else CHANGED
            return Preview(base64.b64encode(small.data).decode(), small.width, small.height, problem, small.gray)
        except Exception:
            # `run` and `audit` report pictures that are gone, damaged or out of reach; the page shows the rest.
            return Preview(problem="cannot be read")

    def _read(self, source: Source) -> bytes | None:
        """The bytes of a picture; None if OUT has none."""
        if source.attempt:
            return self.stored.find(dict(source.attempt)).data
        if source.in_out:
            return self.out.folder.read(source.address)
        return self._originals.read(source.address)


class Originals:
    """Reads pictures outside OUT; a store that keeps failing is not asked again."""

    def __init__(self) -> None:
        self._failures = Counter[str]()  # in a row, by store

    def read(self, address: str) -> bytes:
        """The bytes of the picture at `address`; raises InputError and StorageError."""
        store = store_name(address)
        if self._failures[store] >= MAX_FAILURES:  # waiting for it ten thousand times would take hours
            raise StorageError(f"{store}: does not answer")
        try:
            data = files.read_at_most(address, DecodeOptions().max_file_bytes, "a preview is made of")
        except InputError as error:
            self._failures[store] += error.transient
            raise
        self._failures[store] = 0
        return data


def _matches(data: bytes, sha256: str | None) -> bool:
    """True if `data` has this hash, or if the hash is unknown."""
    return sha256 is None or hashlib.sha256(data).hexdigest() == sha256
