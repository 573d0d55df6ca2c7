"""One pair, a content and its styles: its id, its fingerprint and checks of its values."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from anyascii import anyascii

from batchnst.chains import path_of
from batchnst.manifest.columns import KNOWN_COLUMNS, Row
from batchnst.recipe import Recipe
from batchnst.redaction import public

HASH_DIGITS = 16
"""Hexadecimal digits of the hash in a default id: 64 bits."""

ID_PART = r"[^A-Za-z0-9._-]+"
"""Characters of a name that become `-` in a default id."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A row of a manifest: a content and the styles to paint it in. All addresses are absolute.

    style_weights: one number for each style; they sum to 1.
    content_masks: each marks a part of the content.
    style_masks: each marks the part of a style to use.
    output: path relative to `OUT/images`.
    extra: the manifest's other columns, as JSON.
    """

    id: str
    content: str
    styles: tuple[str, ...]
    style_weights: tuple[float, ...]
    content_masks: tuple[str, ...]
    style_masks: tuple[str, ...]
    output: str
    recipe: Recipe
    extra: str


def fingerprint(pair: Pair, weights_sha256: str) -> str:
    """SHA-256 of all that determines the picture: addresses, recipe, weights and loss definition; in hexadecimal.

    A signature in an address does not count: it may change every day.
    """
    addresses = (pair.styles, pair.content_masks, pair.style_masks)
    styles, content_masks, style_masks = (tuple(map(public, group)) for group in addresses)
    pictures = [public(pair.content), styles, pair.style_weights, content_masks, style_masks, pair.output]
    text = f"[{json.dumps(pictures)}, {recipe_text(pair.recipe, weights_sha256)}]"
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_text(recipe: Recipe, weights_sha256: str) -> str:
    """The part of a fingerprint's text that says how to paint."""
    start = public(recipe.init)
    if start != recipe.init:
        recipe = recipe.model_copy(update={"init": start})
    return json.dumps([recipe.picture_text, weights_sha256, recipe.loss_definition])[1:-1]


def derive_id(row: Row) -> str:
    """Default id of a row: names of the content and first style, and a hash of the row; the same in every run.

    Two of a billion rows have the same hash with a probability of 3 %; `read_manifest` refuses the second one.
    """
    known = {key: public_value(value) for key, value in row.items() if key in KNOWN_COLUMNS}
    digest = hashlib.sha256(to_json(known).encode()).hexdigest()[:HASH_DIGITS]
    addresses = [str(row.get("content", "")), *to_texts(row.get("style"))[:1]]
    return "--".join([*map(id_part, addresses), digest])


@lru_cache(maxsize=1 << 14)
def id_part(address: str) -> str:
    """The file name of an address without its ending, in letters that an id may have; other scripts by their sound."""
    path = path_of(public(address))
    stem = anyascii(PurePosixPath(unquote(path) if "://" in path else path).stem)
    return re.sub(ID_PART, "-", stem)[:40].strip("-.") or "picture"


def public_value(value: Any) -> Any:
    """The value of a cell, with addresses in their public form."""
    if isinstance(value, list | tuple):
        return [public_value(item) for item in value]
    return public(value) if isinstance(value, str) else value


def style_shares(weights: Sequence[str | float], styles: int) -> tuple[float, ...]:
    """Share of each style in the style loss: `weights` scaled to sum to 1, or equal shares if `weights` is empty.

    `styles` is the number of styles. Raises ValueError unless `weights` has that many numbers ≥ 0, not all of them 0.
    """
    try:
        numbers = [float(weight) for weight in weights] or [1.0] * styles
    except ValueError:
        numbers = []
    if len(numbers) != styles or min(numbers, default=0) < 0 or not 0 < sum(numbers) < float("inf"):
        raise ValueError(f"expected {styles} numbers ≥ 0, not all 0; found {list(weights)}")
    return tuple(number / sum(numbers) for number in numbers)


def mask_problems(styles: int, content_masks: int, style_masks: int) -> list[tuple[str, str]]:
    """Check the numbers of styles, content masks and style masks; each problem is a (column, message)."""
    parts, problems = max(1, content_masks), []
    if parts > 1 and styles not in (1, parts):
        problems.append(("content_mask", f"marks {parts} parts for {styles} styles; expected one style, or {parts}"))
    if style_masks not in (0, parts):
        problems.append(("style_mask", f"expected {parts}, one for each part of the content; found {style_masks}"))
    return problems


def to_json(value: Any) -> str:
    """Encode `value` as JSON with sorted keys, whatever it holds.

    NaN becomes null; infinity, decimals, times and all else that JSON lacks become text, bytes that are no text base64.
    """
    return json.dumps(_json_value(value), sort_keys=True, allow_nan=False)


def _json_value(value: Any) -> Any:
    """`value` in the types of JSON."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, bytes):
        return value.decode() if _is_utf8(value) else base64.b64encode(value).decode()
    return str(value)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def to_texts(value: Any) -> tuple[str, ...]:
    """The values of a cell, which may be none, one or a list, as texts."""
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
