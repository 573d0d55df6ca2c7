"""The recipe's options, for every command that takes a recipe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from batchnst.backbones import BACKBONES
from batchnst.errors import RecipeError
from batchnst.recipe import SOURCES, Recipe, read_recipe_file

RECIPE_OPTIONS = {
    "size": "Longest side of the picture, in pixels.",
    "steps": "Steps at the finest scale.",
    "optimizer": "lbfgs, adam or sgd.",
    "init": "What to start from: content, noise, style or a picture.",
    "seed": "Seed of the noise.",
    "content_weight": "Weight of the content loss.",
    "style_weight": "Weight of the style loss.",
    "tv_weight": "Weight of total variation.",
    "style_scale": "Size of the style's patterns; 1 is as large as in the style picture.",
    "preserve_color": "none, luminance or histogram.",
    "format": "Of pictures without an output of their own: png, jpg, webp, avif or tif.",
    "backbone": f"The network: {', '.join(BACKBONES)}.",
    "weights": f"Its weights: {', '.join(SOURCES)}, a file, or a name from `batchnst weights`.",
    "precision": "The network's numbers: auto, fp32 or bf16.",
    "tile": "Side of the tiles of pictures larger than memory, in pixels, or auto, or off.",
}
"""Recipe keys with an option of their own; `--set` reaches the others."""


Command = Callable[..., None]


def takes(*keys: str) -> Callable[[Command], Command]:
    """Give a command options for some recipe keys; it gets what they and the recipe file say as `settings`."""
    return lambda command: _with_options(command, keys)


def takes_recipe(command: Command) -> Command:
    """Give a command all of the recipe's options."""
    return _with_options(command, list(RECIPE_OPTIONS))


def _with_options(command: Command, keys: Sequence[str]) -> Command:
    def option(kind: Any, name: str, text: str, default: Any = None) -> Any:
        shown = str(default) if default is not None else False
        return Annotated[kind, typer.Option(name, help=text, rich_help_panel="Recipe", show_default=shown)]

    kinds: dict[str, Any] = {"recipe": option(str | None, "--recipe", "A TOML file with recipe keys.")}
    for key in keys:
        default = Recipe.model_fields[key].default
        kinds[key] = option(str | None, f"--{key.replace('_', '-')}", RECIPE_OPTIONS[key], default)
    kinds["set_"] = option(list[str] | None, "--set", "KEY=VALUE: any other recipe key; may be repeated.")

    @functools.wraps(command)
    def wrapper(**kwargs: Any) -> None:
        given = {key: kwargs.pop(key) for key in kinds}
        command(**kwargs, settings=_settings(**given))

    own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "settings"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(key, keyword, default=None, annotation=kind) for key, kind in kinds.items()]
    wrapper.__signature__ = inspect.Signature([p.replace(kind=keyword) for p in own] + added)  # type: ignore[attr-defined]
    return wrapper


def _settings(recipe: str | None, set_: list[str] | None, **options: str | None) -> dict[str, Any]:
    """What recipe file and options say, options last; validated together."""
    from batchnst.manifest.reading import resolve_settings
    from batchnst.storage.files import parent

    settings = resolve_settings(read_recipe_file(recipe), parent(recipe)) if recipe else {}
    given: dict[str, Any] = {}
    for assignment in set_ or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment}: expected KEY=VALUE")
        given[key.strip()] = value.strip()
    given |= {key: value for key, value in options.items() if value is not None}
    settings |= resolve_settings(given, ".")
    Recipe.from_settings(settings)
    return settings
