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

from batchnst.manifest.blocks import BLOCK_ROWS, Blocks, to_batch
from batchnst.manifest.identity import fingerprints, recipe_texts
from batchnst.manifest.pair import Pair, to_json
from batchnst.recipe import Recipe, is_start_picture

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
        "seed": pa.int64(),  # one that is not in `settings`, which then are those of many rows
        "extra": pa.string(),
    }
)
"""Columns of a block of pairs."""


class Manifest:
    """The pairs of a manifest, in compressed columns: ten million pairs take some hundred megabytes.

    Pair objects are created only when they are read; a loop creates those of one block of rows at a time.

    address: path or URI of the manifest.
    settings: recipe settings from options and recipe file; a row's own settings override them.
    notes: remarks for the user on how the file was read.
    """

    def __init__(self, address: str, rows: Blocks, settings: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        """`rows` have the columns of SCHEMA."""
        self.address, self.settings, self.notes = address, dict(settings), tuple(notes)
        self._rows = rows
        self._recipe = lru_cache(maxsize=1024)(self._read_recipe)

    @classmethod
    def of(cls, address: str, pairs: Sequence[Pair]) -> Manifest:
        """A manifest of `pairs`, with all keys of their recipes as settings of their rows."""
        rows = Blocks(SCHEMA)
        for start in range(0, len(pairs), BLOCK_ROWS):
            rows.add(to_batch([_row(pair) for pair in pairs[start : start + BLOCK_ROWS]], SCHEMA))
        return cls(address, rows, {})

    def sets(self, key: str) -> bool:
        """True if a row sets the recipe key `key` itself."""
        # A quote inside of a text has a backslash, so that only a key matches.
        return any(
            pc.any(pc.match_substring(block["settings"], f'"{key}": ')).as_py()
            or (key == "seed" and block["seed"].null_count < len(block))
            for block in self._rows.read(["settings", "seed"])
        )

    @property
    def ids(self) -> pa.ChunkedArray:
        """The ids of all pairs, as an Arrow column."""
        return pa.chunked_array([block["id"] for block in self._rows.read(["id"])], pa.string())

    @property
    def networks(self) -> set[tuple[str, str]]:
        """All (backbone, weights) that the pairs need."""
        settings = {
            text for block in self._rows.read(["settings"]) for text in pc.unique(block["settings"]).to_pylist()
        }
        return {self._recipe(text, None).network for text in settings}

    def fingerprints(self, block: pa.RecordBatch, weights_sha256: Mapping[tuple[str, str], str]) -> pa.Array:
        """The fingerprint of each pair of a block, with the hash of the weights of its network."""
        recipes, places = self._recipes(block)
        hashes = [weights_sha256[recipe.network] for recipe in recipes]
        return fingerprints(block, recipe_texts(recipes, hashes, block["seed"], places))

    def starts(self, block: pa.RecordBatch) -> pa.Array:
        """The address of the start picture of each pair of a block; null if it has none."""
        recipes, places = self._recipes(block)
        starts = [recipe.init if is_start_picture(recipe.init) else None for recipe in recipes]
        return pa.array(starts, pa.string()).take(places)

    def _recipes(self, block: pa.RecordBatch) -> tuple[list[Recipe], pa.Array]:
        """The recipes of a block, without the pairs' own seeds, and which of them each pair has."""
        settings = block["settings"].dictionary_encode()
        return [self._recipe(text, None) for text in settings.dictionary.to_pylist()], settings.indices

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Pair]:
        return chain.from_iterable(map(self.pairs, self._rows.read()))

    def __getitem__(self, row: int) -> Pair:
        return next(self.take(np.array([row])))

    def blocks(self) -> Iterator[pa.RecordBatch]:
        """All rows, in the columns of SCHEMA."""
        return self._rows.read()

    def take(self, rows: NDArray[np.int64]) -> Iterator[Pair]:
        """The pairs with the row numbers `rows`, which must be in ascending order."""
        return self.pairs(self.take_block(rows))

    def take_block(self, rows: NDArray[np.int64]) -> pa.RecordBatch:
        """The rows with these numbers, which must be in ascending order, uncompressed in one block."""
        return pa.concat_batches([pa.RecordBatch.from_pylist([], SCHEMA), *self._rows.take(rows)])

    def take_ids(self, rows: NDArray[np.int64]) -> pa.ChunkedArray:
        """The ids of the pairs with the row numbers `rows`, which must be in ascending order."""
        return pa.chunked_array([block["id"] for block in self._rows.take(rows, ["id"])], pa.string())

    def pairs(self, block: pa.RecordBatch) -> Iterator[Pair]:
        """The pairs of a block."""
        for id_, content, styles, weights, content_masks, style_masks, output, settings, seed, extra in zip(
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
                recipe=self._recipe(settings, seed),
                extra=extra,
            )

    def _read_recipe(self, settings: str, seed: int | None) -> Recipe:
        if seed is not None:
            return self._recipe(settings, None).model_copy(update={"seed": seed})
        return Recipe.from_settings({**self.settings, **json.loads(settings)})


def _row(pair: Pair) -> tuple[Any, ...]:
    """The values of a pair in the order of SCHEMA."""
    pictures = (
        pair.id,
        pair.content,
        pair.styles,
        pair.style_weights,
        pair.content_masks,
        pair.style_masks,
        pair.output,
    )
    return (*pictures, to_json(pair.recipe.model_dump()), None, pair.extra)
