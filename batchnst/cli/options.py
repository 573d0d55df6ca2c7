"""Add the options for recipe keys to the commands that take a recipe."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from batchnst.backbones import BACKBONES
from batchnst.errors import RecipeError, RequestError
from batchnst.recipe import PRESETS, SOURCES, Recipe, read_recipe

RECIPE_OPTIONS = {
    "size": "Longest side of the painted picture, in pixels; or original.",
    "steps": "Optimisation steps at the scale nearest to 256 pixels; others get fewer.",
    "optimizer": "Optimiser: lbfgs, adam or sgd.",
    "init": "Start of the optimisation: content, noise, style, or a picture file.",
    "seed": "Seed of the noise that `--init noise` starts from.",
    "content_weight": "Weight of the content loss; the default is that of loss = balanced.",
    "style_weight": "Weight of the style loss; the default is that of loss = balanced.",
    "tv_weight": "Weight of the total variation loss, which smooths; the default is that of loss = balanced.",
    "style_scale": "Size of the style's patterns; 2 doubles them.",
    "preserve_color": "Way to keep the colours of the content: none, luminance or histogram.",
    "format": "File format of pictures without an output in the manifest: png, jpg, webp, avif or tif.",
    "backbone": f"Network whose features are compared: {', '.join(BACKBONES)}.",
    "weights": f"Weights of the network: {', '.join(SOURCES)}, a file, or a name from `batchnst weights`.",
    "precision": "Number format of the network: auto, fp32 or bf16.",
    "tile": "Side of the tiles for pictures larger than memory, in pixels; or auto, or off.",
}
"""Help texts of the recipe keys that have an option; all other keys are set by `--set`."""


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
"""Units of a size, and their bytes."""

LEAST_SIZE = 10**6
"""Smallest size of a file that many pictures are merged into, in bytes."""

Command = Callable[..., None]


def with_options(*keys: str) -> Callable[[Command], Command]:
    """Add options for recipe keys to a command, and `--recipe` and `--set`; it gets all of them as `settings`."""
    return lambda command: _with_options(command, keys)


def with_recipe_options(command: Command) -> Command:
    """Add the options for all of RECIPE_OPTIONS to a command."""
    return _with_options(command, list(RECIPE_OPTIONS))


def _with_options(command: Command, keys: Sequence[str]) -> Command:
    def option(kind: Any, name: str, text: str, default: Any = None) -> Any:
        shown = str(default) if default is not None else False
        return Annotated[kind, typer.Option(name, help=text, rich_help_panel="Recipe", show_default=shown)]

    kinds: dict[str, Any] = {
        "recipe": option(str | None, "--recipe", f"TOML file with recipe keys, or {', '.join(PRESETS)}.")
    }
    for key in keys:
        kinds[key] = option(str | None, f"--{key.replace('_', '-')}", RECIPE_OPTIONS[key], getattr(Recipe(), key))
    kinds["set_"] = option(list[str] | None, "--set", "KEY=VALUE for any recipe key; may be repeated.")

    @functools.wraps(command)
    def wrapper(**kwargs: Any) -> None:
        recipe_options = {key: kwargs.pop(key) for key in kinds}
        command(**kwargs, settings=_settings(**recipe_options))

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(command, eval_str=True).parameters
    kept = [parameter.replace(kind=keyword) for name, parameter in parameters.items() if name != "settings"]
    added = [inspect.Parameter(key, keyword, default=None, annotation=kind) for key, kind in kinds.items()]
    wrapper.__signature__ = inspect.Signature(kept + added)  # type: ignore[attr-defined]
    return wrapper


def size_in_bytes(text: str, option: str) -> int:
    """A size such as 256MB in bytes; raises RequestError, which names `option`, if it is none or less than 1 MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", text.strip(), re.IGNORECASE)
    unit = UNITS.get(match[2].upper()) if match else None
    if match and unit and (size := float(match[1]) * unit) >= LEAST_SIZE:
        return int(size)
    raise RequestError(f"{option} {text}: expected a size of at least 1MB, such as 256MB or 1GB")


def _settings(recipe: str | None, set_: list[str] | None, **options: str | None) -> dict[str, Any]:
    """The settings of recipe file and options; options override the file. Raises RecipeError if they are not valid."""
    from batchnst.manifest.reading import resolve_settings
    from batchnst.storage.files import parent

    settings = resolve_settings(read_recipe(recipe), parent(recipe)) if recipe else {}
    assigned: dict[str, Any] = {}
    for assignment in set_ or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment}: expected KEY=VALUE")
        assigned[key.strip()] = value.strip()
    assigned |= {key: value for key, value in options.items() if value is not None}
    settings |= resolve_settings(assigned, ".")
    Recipe.from_settings(settings)
    return settings
