"""Default ids and fingerprints of many rows: those that `derive_id` and `fingerprint` give one row."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.manifest.address_columns import Addresses
from batchnst.manifest.columns import KNOWN_COLUMNS, LIST_COLUMNS
from batchnst.manifest.pair import HASH_DIGITS, public_value, recipe_text, to_json
from batchnst.manifest.row_columns import (
    Cells,
    Texts,
    is_text,
    is_texts,
    join,
    json_lists,
    json_objects,
    json_texts,
    quoted,
)
from batchnst.recipe import Recipe

_MARK = 2**62 + 57
"""A seed whose place in a recipe's text is looked for."""


def derive_ids(cells: Cells, content: Addresses, styles: Addresses) -> pa.Array:
    """The default id of each row; those of rows without content or style mean nothing.

    content: the column of that name. styles: those of all rows, one after another.
    """
    known = {name: _known_json(cells, name) for name in cells.columns if name in KNOWN_COLUMNS - {"id", "content"}}
    known["content"] = content.public_json()
    known["style"] = json_lists(cells.lists("style"), styles.public_json())
    digests = hex_texts(sha256s(json_objects(known, len(cells))), HASH_DIGITS)
    first = cells.lists("style").array(styles.id_parts())
    return pc.binary_join_element_wise(content.id_parts(), _first(first), digests, "--")


def _first(lists: pa.ListArray) -> pa.Array:
    """The first value of each list; null if it has none."""
    offsets = lists.offsets.to_numpy()
    return lists.values.take(pa.array(offsets[:-1], mask=offsets[:-1] == offsets[1:]))


def _known_json(cells: Cells, name: str) -> pa.Array:
    """A column's values in their public form, as JSON."""
    column = cells.columns[name]
    if is_text(column.type) or is_texts(column.type):
        if name in LIST_COLUMNS or is_texts(column.type):
            lists = cells.lists(name)
            return json_lists(lists, Addresses(lists.values).public_json())
        return Addresses(column).public_json()
    if pa.types.is_nested(column.type):
        return pa.array(None if value is None else to_json(public_value(value)) for value in column.to_pylist())
    return json_texts(column)


def fingerprints(pairs: pa.RecordBatch, recipe_texts: pa.Array) -> pa.Array:
    """The fingerprint of each of `pairs`, rows of a manifest's SCHEMA; `recipe_texts` as `recipe_text` gives them."""
    styles, content_masks, style_masks = (
        _joined(pairs[name], lambda addresses: Addresses(addresses).public_json())
        for name in ("styles", "content_masks", "style_masks")
    )
    weights = _joined(pairs["style_weights"], json_texts)
    content, output = Addresses(pairs["content"]).public_json(), quoted(pairs["output"])
    pictures = ("[[", content, ", [", styles, "], [", weights, "], [", content_masks, "], [", style_masks, "], ")
    return hex_texts(sha256s(join(*pictures, output, "], ", recipe_texts, "]")), 64)


def recipe_texts(
    recipes: Sequence[Recipe], weights_sha256: Sequence[str], seeds: pa.Array, places: pa.Array
) -> pa.Array:
    """The `recipe_text` of each pair: its recipe is that of `recipes` at its place, with its seed unless that is null.

    `weights_sha256` has the hash for each recipe.
    """
    both = list(zip(recipes, weights_sha256, strict=True))
    whole = pa.array([recipe_text(recipe, sha256) for recipe, sha256 in both], pa.string()).take(places)
    if seeds.null_count == len(seeds):
        return whole
    marked = ((recipe.model_copy(update={"seed": _MARK}), sha256) for recipe, sha256 in both)
    # A quote inside of a text of the recipe has more backslashes.
    parts = [recipe_text(recipe, sha256).split(f'\\"seed\\":{_MARK}') for recipe, sha256 in marked]
    before, after = (pa.array(ends, pa.string()).take(places) for ends in zip(*parts, strict=True))
    return pc.coalesce(join(before, '\\"seed\\":', seeds.cast(pa.string()), after), whole)


def _joined(lists: pa.ListArray, values_json: Texts) -> pa.Array:
    """Each list as JSON, without its brackets; `values_json` gives the JSON of values."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(offsets, values_json(lists.flatten())), ", ")


def sha256s(texts: pa.Array) -> NDArray[np.uint8]:
    """The SHA-256 of each text (N, 32)."""
    digests = [sha256(text).digest() for text in texts.cast(pa.binary()).to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def hex_texts(digests: NDArray[np.uint8], digits: int) -> pa.Array:
    """The first hexadecimal `digits` of each of `digests`, as texts."""
    data = digests[:, : digits // 2].tobytes().hex().encode()
    offsets = np.arange(len(digests) + 1, dtype=np.int32) * digits
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(data))
