"""The columns of a manifest that have a meaning, and the names from which `batchnst manifest` makes outputs."""

from __future__ import annotations

from typing import Any

from batchnst.recipe import recipe_keys

Row = dict[str, Any]
"""A row's values, by column."""

LIST_COLUMNS = ("style", "style_weights", "content_mask", "style_mask")
"""Columns that may hold several values."""

RECIPE_KEYS = frozenset(recipe_keys())

KNOWN_COLUMNS = frozenset(("content", "id", "output", *LIST_COLUMNS)) | RECIPE_KEYS
"""Columns with a meaning; all others are copied to the ledger's `extra`."""

ID_PATTERN = r"[A-Za-z0-9._-]{1,200}"
"""Regular expression of an id; one of full stops alone is not allowed either."""

OUTPUT_TEMPLATE = "{folder}/{name}--{style}.{format}"
"""Default template of outputs: the tree of the photographs, each with the name of its style."""

OUTPUT_FIELDS = {
    "folder": "the photograph's folder, relative to CONTENTS",
    "name": "its file name without the ending",
    "ending": "its ending, without the dot",
    "style": "the style's file name without the ending",
    "style_folder": "the style's folder, relative to STYLES",
    "style_ending": "its ending, without the dot",
    "id": "the pair's id",
    "format": "the ending that --format gives",
}
"""Names that the template of outputs may have in braces, and their meaning."""


class Unreadable(Exception):
    """The manifest as a whole cannot be read; the message says why."""


def check_columns(names: list[str]) -> None:
    """Raise Unreadable if a required column is missing from `names`, or if a name is there twice."""
    missing = [column for column in ("content", "style") if column not in names]
    if missing:
        raise Unreadable(f"has no column {' and no column '.join(missing)}; it has: {', '.join(names) or 'none'}")
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise Unreadable(f"has the column {', '.join(sorted(repeated))} twice")
