"""The pairs of a manifest, kept in columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.manifest.pair import Pair
from batchnst.manifest.readers import BLOCK
from batchnst.recipe import Recipe

_TEXT = {key: rf'"{key}": (?P<text>"(?:[^"\\]|\\.)*")' for key in ("backbone", "weights")}
"""Regular expressions for the values of `backbone` and `weights` in a row's settings, which are JSON."""

_TEXTS = pa.list_(pa.string())
COLUMNS = pa.schema(
    {
        "id": pa.string(),
        "content": pa.string(),
        "styles": _TEXTS,
        "style_weights": pa.list_(pa.float64()),
        "content_masks": _TEXTS,
        "style_masks": _TEXTS,
        "output": pa.string(),
        "settings": pa.string(),  # the row's own recipe keys, as JSON
        "extra": pa.string(),
    }
)
"""Schema of a block of pairs."""


class Manifest:
    """The pairs of a manifest, in columns: a million of them take some hundred megabytes.

    A Pair is made when it is asked for; in a loop, a block of rows at a time. `address` says where it came from,
    `settings` what goes under each row's own.
    """

    def __init__(self, address: str, blocks: Sequence[pa.RecordBatch], settings: Mapping[str, Any]) -> None:
        """Blocks of BLOCK rows, the last one of what is left."""
        self.address, self.settings = address, dict(settings)
        self._blocks = blocks
        self._recipe = lru_cache(maxsize=1024)(lambda own: Recipe.from_settings({**settings, **json.loads(own)}))

    @property
    def ids(self) -> pa.ChunkedArray:
        """The ids of all pairs, as an Arrow column."""
        return pa.chunked_array([block["id"] for block in self._blocks], pa.string())

    @property
    def networks(self) -> set[tuple[str, str]]:
        """Backbone and weights of every recipe."""
        # Where every row has a seed of its own there are as many recipes as rows, but few networks.
        usual = dict(zip(_TEXT, self._recipe("{}").network, strict=True))
        found = set()
        for block in self._blocks:
            texts = [pc.struct_field(pc.extract_regex(block["settings"], text), "text") for text in _TEXT.values()]
            for own in pa.table(texts, list(_TEXT)).group_by(list(_TEXT)).aggregate([]).to_pylist():
                named = usual | {key: json.loads(text) for key, text in own.items() if text}
                found.add((named["backbone"], named["weights"]))
        return found

    def __len__(self) -> int:
        return sum(block.num_rows for block in self._blocks)

    def __iter__(self) -> Iterator[Pair]:
        return chain.from_iterable(map(self._pairs, self._blocks))

    def __getitem__(self, row: int) -> Pair:
        return next(self.take(np.array([row])))

    def take(self, rows: NDArray[np.int64]) -> Iterator[Pair]:
        """The pairs of these rows, which are in ascending order."""
        for number in np.unique(rows // BLOCK):
            first, last = np.searchsorted(rows, [number * BLOCK, (number + 1) * BLOCK])
            yield from self._pairs(self._blocks[number].take(pa.array(rows[first:last] - number * BLOCK)))

    def _pairs(self, block: pa.RecordBatch) -> Iterator[Pair]:
        for id_, content, styles, weights, content_masks, style_masks, output, own, extra in zip(
            *(column.to_pylist() for column in block.columns), strict=True
        ):
            yield Pair(
                id=id_,
                content=content,
                styles=tuple(styles),
                style_weights=tuple(weights),
                content_masks=tuple(content_masks),
                style_masks=tuple(style_masks),
                output=output,
                recipe=self._recipe(own),
                extra=extra,
            )
