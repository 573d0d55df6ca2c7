"""The chosen settings as text to copy: command-line options, or a recipe file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from batchnst.errors import RecipeError
from batchnst.recipe import Recipe


def essential(recipe: Recipe) -> dict[str, Any]:
    """The fewest settings that give `recipe`: without those that equal the default."""
    kept = recipe.model_dump(exclude_unset=True)
    for key in list(kept):
        fewer = {other: value for other, value in kept.items() if other != key}
        if _gives(fewer, recipe):
            kept = fewer
    return kept


def _gives(settings: Mapping[str, Any], recipe: Recipe) -> bool:
    try:
        return Recipe.from_settings(settings).json_text == recipe.json_text
    except RecipeError:  # such as layers without their backbone
        return False


def as_options(settings: Mapping[str, Any], with_option: Collection[str]) -> str:
    """Command-line options for `settings`; keys that are not in `with_option` are given to `--set`."""
    words = list[str]()
    for key, value in settings.items():
        text = _plain(value)
        words += [f"--{key.replace('_', '-')}", text] if key in with_option else ["--set", f"{key}={text}"]
    return shlex.join(words)


def as_toml(settings: Mapping[str, Any]) -> str:
    """A recipe file for `settings`."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())


def _plain(value: Any) -> str:
    """A value as an option takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ",".join(f"{name}={_plain(weight)}" for name, weight in value.items())
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(weight)}" for name, weight in value.items()) + "}"
    # A TOML text is written like one of JSON, but may not hold DEL as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else _plain(value)
