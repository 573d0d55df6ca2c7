"""Check many rows of a manifest at a time, in columns, and make pairs of them.

A row that is in doubt is left to `reading`, which checks it alone and says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.manifest.address_columns import Addresses
from batchnst.manifest.columns import ID_PATTERN, KNOWN_COLUMNS, RECIPE_KEYS
from batchnst.manifest.identity import derive_ids
from batchnst.manifest.manifest import SCHEMA
from batchnst.manifest.outputs import SIMPLE_OUTPUT, format_problem, output_problem
from batchnst.manifest.pair import mask_problems, to_texts
from batchnst.manifest.row_columns import (
    Cells,
    by_value,
    is_text,
    is_texts,
    join,
    json_objects,
    json_texts,
    mask,
    quoted,
    same,
)
from batchnst.pictures.encode import FORMATS
from batchnst.recipe import ADDRESSES, Recipe
from batchnst.storage.files import resolve

_SEED = r"^(?:0|[1-9][0-9]{0,17})$"
"""A text that is a seed for sure."""

_SIMPLE_LENGTH = 255
"""Longest output that is simple, in bytes."""

ReadRecipe = Callable[[str], tuple[Recipe, tuple[str, ...]]]
"""The recipe of a row's settings, and its problems."""


@dataclass(frozen=True)
class Checks:
    """Settings and functions with which rows are checked.

    base: folder of relative addresses. longest: that of an output, in bytes. recipe: reads a row's settings.
    shares: makes weights of a number of styles sum to 1; raises ValueError.
    """

    base: str
    longest: int
    recipe: ReadRecipe
    shares: Callable[[tuple[str, ...], int], tuple[float, ...]]


def in_columns(cells: Cells) -> bool:
    """True if the columns have types that `check` knows; rows of other ones are checked one by one."""
    kinds = {name: column.type for name, column in cells.columns.items()}
    if any(pa.types.is_map(kind) for kind in kinds.values()):  # a key may be there twice
        return False
    texts = ("content", "output", "init", "weights")
    lists = ("style", "content_mask", "style_mask")
    return (
        {"content", "style"} <= kinds.keys()
        and all(is_text(kinds[name]) for name in texts if name in kinds)
        and all(is_text(kinds[name]) or is_texts(kinds[name]) for name in lists if name in kinds)
    )


def check(cells: Cells, checks: Checks) -> tuple[pa.RecordBatch, NDArray[np.bool_]]:
    """The pairs of all rows, in the columns of SCHEMA, and a mask of those in doubt, whose pairs mean nothing (N,)."""
    content = Addresses(cells.columns["content"])
    lists = [cells.lists(name) for name in ("style", "content_mask", "style_mask")]
    addresses = [Addresses(column.values) for column in lists]
    counts = [column.lengths for column in lists]
    weights, doubt = _style_weights(cells, counts[0], checks)
    doubt |= mask(pc.is_null(cells.columns["content"])) | content.refused() | _do_not_go_together(*counts)
    for column, values in zip(lists, addresses, strict=True):
        doubt |= column.any(values.refused()) | column.wrong
    settings = _Settings.of(cells, checks)
    ids, odd_ids = _ids(cells, content, addresses[0])
    outputs, odd_outputs = _outputs(cells, ids, settings, checks)
    doubt |= settings.doubtful | odd_ids | odd_outputs
    extra = {name: json_texts(column) for name, column in cells.columns.items() if name not in KNOWN_COLUMNS}
    files = [column.array(values.resolved(checks.base)) for column, values in zip(lists, addresses, strict=True)]
    columns = [
        *(ids, content.resolved(checks.base), files[0], weights, *files[1:], outputs),
        *(settings.texts, settings.seeds, json_objects(extra, len(cells))),
    ]
    return pa.record_batch(columns, SCHEMA), doubt


def _do_not_go_together(
    styles: NDArray[np.int32], content_masks: NDArray[np.int32], style_masks: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Rows without a style, or whose numbers of styles and masks do not go together (N,)."""
    wrong = styles == 0
    some = np.flatnonzero(content_masks + style_masks)
    counts = zip(*(column[some].tolist() for column in (styles, content_masks, style_masks)), strict=True)
    wrong[some] |= np.array([bool(mask_problems(*each)) for each in counts], bool)
    return np.asarray(wrong)


def _style_weights(cells: Cells, styles: NDArray[np.int32], checks: Checks) -> tuple[pa.ListArray, NDArray[np.bool_]]:
    """Shares of the styles of each row, and a mask of rows whose weights are not right."""
    doubt = np.zeros(len(cells), bool)
    offsets = pa.array(np.concatenate([[0], np.cumsum(styles)]), pa.int32())
    if "style_weights" not in cells.columns:
        return pa.ListArray.from_arrays(offsets, np.repeat(1.0 / np.maximum(styles, 1), styles)), doubt
    shares = list[tuple[float, ...]]()
    for i, (value, count) in enumerate(zip(cells.values("style_weights", count=None), styles.tolist(), strict=True)):
        try:
            shares.append(checks.shares(to_texts(value), count))
        except ValueError:
            shares.append(())
            doubt[i] = True
    return pa.array(shares, pa.list_(pa.float64())), doubt


@dataclass(frozen=True)
class _Settings:
    """The settings of each row: `texts` as JSON, without the `seeds` that are seeds for sure.

    recipes: those of the distinct texts. places: which of them each row has (N,). doubtful: a mask of rows (N,).
    """

    texts: pa.Array
    seeds: pa.Array
    recipes: list[Recipe]
    places: NDArray[np.int64]
    doubtful: NDArray[np.bool_]

    @classmethod
    def of(cls, cells: Cells, checks: Checks) -> _Settings:
        """Each distinct text is read once, whatever the seeds are."""
        members = {name: _setting_json(cells, name, checks.base) for name in cells.columns if name in RECIPE_KEYS}
        seeds = pa.nulls(len(cells), pa.int64())
        if "seed" in members:
            seeds = _seeds(cells.columns["seed"])
            members["seed"] = pc.if_else(pc.is_valid(seeds), pa.scalar(None, pa.string()), members["seed"])
        texts = json_objects(members, len(cells))
        distinct = texts.dictionary_encode()
        read = [checks.recipe(text) for text in distinct.dictionary.to_pylist()]
        places = distinct.indices.to_numpy()
        wrong = np.array([bool(problems) for _, problems in read], bool)
        return cls(texts, seeds, [recipe for recipe, _ in read], places, wrong[places])

    def by_recipe(self, values: list[str]) -> pa.Array:
        """The value of each row, where `values` has one for each recipe."""
        return pa.array(values, pa.string()).take(pa.array(self.places))


def _setting_json(cells: Cells, name: str, base: str) -> pa.Array:
    """The values of a recipe key as JSON, with addresses resolved."""
    is_address = ADDRESSES.get(name)
    if is_address is None:
        return json_texts(cells.columns[name])

    def resolved(text: str) -> str:
        return resolve(text, base) if is_address(text) else text

    column = cells.columns[name]
    return quoted(by_value(column, pa.repeat(False, len(column)), same, resolved))


def _seeds(column: pa.Array) -> pa.Array:
    """The values that are seeds for sure; null for the others."""
    if is_text(column.type):
        sure = pc.match_substring_regex(column, _SEED)
    elif pa.types.is_integer(column.type) and not pa.types.is_uint64(column.type):
        sure = pc.greater_equal(column, 0)
    else:
        return pa.nulls(len(column), pa.int64())
    return pc.if_else(sure, column, pa.scalar(None, column.type)).cast(pa.int64())


def _ids(cells: Cells, content: Addresses, styles: Addresses) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The id of each row, and a mask of those that are not allowed (N,)."""
    column = cells.columns.get("id")
    if column is None:
        return pc.fill_null(derive_ids(cells, content, styles), ""), np.zeros(len(cells), bool)
    if is_text(column.type) or pa.types.is_integer(column.type):
        ids = column.cast(pa.string())
    else:
        ids = pa.array((None if value is None else str(value) for value in column.to_pylist()), pa.string())
    if ids.null_count:
        ids = pc.coalesce(ids, derive_ids(cells, content, styles), "")
    allowed = pc.and_(pc.match_substring_regex(ids, f"^{ID_PATTERN}$"), pc.match_substring_regex(ids, "[^.]"))
    return ids, ~mask(allowed)


def _outputs(cells: Cells, ids: pa.Array, settings: _Settings, checks: Checks) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The normalised output of each row, and a mask of those that are not allowed (N,)."""
    outputs = join(ids, ".", settings.by_recipe([recipe.format for recipe in settings.recipes]))
    if (column := cells.columns.get("output")) is not None:
        outputs = pc.coalesce(column, outputs)
    simple = pc.less_equal(pc.binary_length(outputs), pa.scalar(min(_SIMPLE_LENGTH, checks.longest), pa.int32()))
    if column is not None:
        simple = pc.and_(simple, pc.match_substring_regex(outputs, SIMPLE_OUTPUT))
    right = by_value(
        outputs,
        simple,
        lambda texts: pa.repeat(True, len(texts)),
        lambda output: output_problem(output, checks.longest) is None,
    )
    if column is None:
        held = [format_problem(f"x.{recipe.format}", recipe) is None for recipe in settings.recipes]
        return outputs, ~mask(right) | ~np.array(held)[settings.places]
    normal = by_value(outputs, simple, same, lambda output: str(PurePosixPath(output)))
    return normal, ~mask(right) | ~_held(normal, settings)


def _held(outputs: pa.Array, settings: _Settings) -> NDArray[np.bool_]:
    """Rows whose format can hold what their recipe paints (N,)."""
    names = pc.ascii_lower(pc.replace_substring_regex(outputs, r"(?s)^.*\.", "x.")).dictionary_encode()
    endings, recipes = names.dictionary.to_pylist(), settings.recipes
    distinct, places = np.unique(names.indices.to_numpy() * len(recipes) + settings.places, return_inverse=True)
    each = ((endings[code // len(recipes)], recipes[code % len(recipes)]) for code in distinct.tolist())
    held = [PurePosixPath(name).suffix in FORMATS and format_problem(name, recipe) is None for name, recipe in each]
    return np.asarray(np.array(held, bool)[places])
