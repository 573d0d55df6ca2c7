"""All pairs of a manifest, stored in columns to save memory."""

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

from batchnst.manifest.blocks import BLOCK_ROWS
from batchnst.manifest.pair import Pair, to_json
from batchnst.recipe import Recipe

_PATTERNS = {key: rf'"{key}": (?P<text>"(?:[^"\\]|\\.)*")' for key in ("backbone", "weights")}
"""Regular expressions for the values of `backbone` and `weights` in a row's settings, a JSON text."""

_TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
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
"""Columns of a block of pairs."""


class Manifest:
    """The pairs of a manifest, in columns: a million pairs take some hundred megabytes.

    Pair objects are created only when they are read; a loop creates those of one block of rows at a time.

    address: path or URI of the manifest.
    settings: recipe settings from options and recipe file; a row's own settings override them.
    notes: remarks for the user on how the file was read.
    """

    def __init__(
        self, address: str, blocks: Sequence[pa.RecordBatch], settings: Mapping[str, Any], notes: Sequence[str] = ()
    ) -> None:
        """`blocks` have the columns of SCHEMA and BLOCK_ROWS rows each; the last one may have fewer."""
        self.address, self.settings, self.notes = address, dict(settings), tuple(notes)
        self._blocks = blocks
        self._recipe = lru_cache(maxsize=1024)(lambda row: Recipe.from_settings({**settings, **json.loads(row)}))

    @classmethod
    def of(cls, address: str, pairs: Sequence[Pair]) -> Manifest:
        """A manifest of `pairs`, with all keys of their recipes as settings of their rows."""
        rows = [
            [
                *(pair.id, pair.content, pair.styles, pair.style_weights, pair.content_masks, pair.style_masks),
                *(pair.output, to_json(pair.recipe.model_dump()), pair.extra),
            ]
            for pair in pairs
        ]
        table = pa.table(
            [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)],
            schema=SCHEMA,
        )
        return cls(address, table.combine_chunks().to_batches(BLOCK_ROWS), {})

    def sets(self, key: str) -> bool:
        """True if a row sets the recipe key `key` itself."""
        # A quote inside of a text has a backslash, so that only a key matches.
        return any(pc.any(pc.match_substring(block["settings"], f'"{key}": ')).as_py() for block in self._blocks)

    @property
    def ids(self) -> pa.ChunkedArray:
        """The ids of all pairs, as an Arrow column."""
        return pa.chunked_array([block["id"] for block in self._blocks], pa.string())

    @property
    def networks(self) -> set[tuple[str, str]]:
        """All (backbone, weights) that the pairs need."""
        # Found without making recipes: if each row has its own seed, there is a recipe per row, but few networks.
        keys = list(_PATTERNS)
        default = dict(zip(keys, self._recipe("{}").network, strict=True))
        networks = set()
        for block in self._blocks:
            matches = [pc.extract_regex(block["settings"], pattern) for pattern in _PATTERNS.values()]
            columns = [pc.struct_field(match, "text") for match in matches]
            for row in pa.table(columns, keys).group_by(keys).aggregate([]).to_pylist():
                network = default | {key: json.loads(text) for key, text in row.items() if text}
                networks.add((network["backbone"], network["weights"]))
        return networks

    def __len__(self) -> int:
        return sum(block.num_rows for block in self._blocks)

    def __iter__(self) -> Iterator[Pair]:
        return chain.from_iterable(map(self._pairs, self._blocks))

    def __getitem__(self, row: int) -> Pair:
        return next(self.take(np.array([row])))

    def take(self, rows: NDArray[np.int64]) -> Iterator[Pair]:
        """The pairs with the row numbers `rows`, which must be in ascending order."""
        for number in np.unique(rows // BLOCK_ROWS):
            start, end = number * BLOCK_ROWS, (number + 1) * BLOCK_ROWS
            first, last = np.searchsorted(rows, [start, end])
            yield from self._pairs(self._blocks[number].take(pa.array(rows[first:last] - start)))

    def _pairs(self, block: pa.RecordBatch) -> Iterator[Pair]:
        for id_, content, styles, weights, content_masks, style_masks, output, settings, extra in zip(
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
                recipe=self._recipe(settings),
                extra=extra,
            )
