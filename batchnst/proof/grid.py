"""The columns of a proof: every combination of the values that `--grid` gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from batchnst.errors import RecipeError
from batchnst.manifest.reading import resolve_settings
from batchnst.recipe import Recipe, read_recipe
from batchnst.storage.files import parent

RECIPE = "recipe"
"""The key whose values are names of presets or recipe files."""

_WITH_COMMAS = ("content_layers", "style_layers")
"""Keys whose values have commas, so that only `|` separates them."""


@dataclass(frozen=True)
class Column:
    """Settings that override those of every pair.

    labels: the keys and values of the grid, as they were given.
    settings: recipe keys.
    reset: keys that get their defaults if they are not in `settings`.
    """

    labels: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any]
    reset: frozenset[str]

    @property
    def name(self) -> str:
        """The settings as text, such as `style_weight=5 style_scale=0.5`; "" if there is no grid."""
        return " ".join(f"{key}={value}" for key, value in self.labels)

    def recipe(self, base: Recipe) -> Recipe:
        """The recipe `base` with the settings of this column; raises RecipeError."""
        return base.changed(self.settings, self.reset)


def read_grid(texts: Sequence[str], settings: Mapping[str, Any]) -> list[Column]:
    """The columns for the values of `--grid`, each a text `KEY=VALUE,VALUE,…`; the last key changes fastest.

    `settings` are those of recipe file and options. Raises RecipeError with one line if a key or value is not allowed.
    """
    axes = dict[str, list[str]]()
    for text in texts:
        key, values = _read_axis(text)
        if key in axes:
            raise RecipeError(f"--grid {text}: {key} is there twice; expected all its values in one --grid")
        axes[key] = values
    recipes = {name: resolve_settings(read_recipe(name), parent(name)) for name in axes.get(RECIPE, [])}
    reset = frozenset(key for recipe in recipes.values() for key in recipe)
    columns = [_column(dict(zip(axes, values, strict=True)), recipes, reset) for values in product(*axes.values())]
    base = Recipe.from_settings(settings)
    for column in columns:
        try:
            column.recipe(base)
        except RecipeError as error:
            raise RecipeError(f"--grid {column.name}: {error.problems[0]}") from None
    return columns


def _read_axis(text: str) -> tuple[str, list[str]]:
    """The key and the values of one `--grid`: between commas, or between `|` where a value has commas itself."""
    key, _, listed = (part.strip() for part in text.partition("="))
    separator = "|" if "|" in listed or key in _WITH_COMMAS else ","
    values = [value.strip() for value in listed.strip(separator).split(separator)]
    if not key or not all(values):
        raise RecipeError(f"--grid {text}: expected KEY=VALUE,VALUE,… without empty values")
    return key, list(dict.fromkeys(values))


def _column(values: Mapping[str, str], recipes: Mapping[str, Mapping[str, Any]], reset: frozenset[str]) -> Column:
    """The column with one value for each key of the grid; a key of its own overrides the same key of a recipe."""
    own = resolve_settings({key: value for key, value in values.items() if key != RECIPE}, ".")
    return Column(tuple(values.items()), {**recipes.get(values.get(RECIPE, ""), {}), **own}, reset)
