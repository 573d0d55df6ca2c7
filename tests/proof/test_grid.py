from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from batchnst.cli.main import app
from batchnst.cli.options import RECIPE_OPTIONS
from batchnst.errors import RecipeError
from batchnst.proof.copied import as_options, as_toml, essential
from batchnst.proof.grid import read_grid
from batchnst.recipe import PRESETS, Recipe

LAYERS = "style_layers=relu1_1,relu2_1=0.5|relu3_1"


def names(*texts: str) -> list[str]:
    return [column.name for column in read_grid(texts, {})]


def test_columns_are_every_combination_and_the_last_key_changes_fastest() -> None:
    found = names("style_weight=5,10", "style_scale=0.5, 1,0.5")
    assert found == [f"style_weight={weight} style_scale={scale}" for weight in (5, 10) for scale in ("0.5", "1")]
    assert names() == [""]


def test_a_bar_separates_values_that_have_commas() -> None:
    first, second = read_grid([LAYERS], {})
    assert first.recipe(Recipe()).style_layers == {"relu1_1": 1.0, "relu2_1": 0.5}
    assert second.recipe(Recipe()).style_layers == {"relu3_1": 1.0}
    assert names("content_layers=relu3_1,relu4_1") == ["content_layers=relu3_1,relu4_1"]
    assert names("init=a,b.png|noise") == [f"init={value}" for value in ("a,b.png", "noise")]


def test_a_column_overrides_a_row_and_leaves_its_other_keys() -> None:
    row = Recipe.from_settings({"style_weight": 3, "steps": 7})
    (column,) = read_grid(["style_weight=9"], {})
    assert (column.recipe(row).style_weight, column.recipe(row).steps) == (9.0, 7)


def test_keys_that_depend_on_others_follow_the_grid() -> None:
    (column,) = read_grid(["loss=gatys2016"], {})
    assert column.recipe(Recipe.from_settings({"seed": 1})).style_weight == 100.0


def test_recipes_by_name_differ_in_what_they_say_alone() -> None:
    row = Recipe.from_settings({"steps": 7, "size": 64, "tolerance": 0.1})
    draft, standard, fine = read_grid(["recipe=draft,standard,fine"], {})
    assert [column.recipe(row).steps for column in (draft, standard, fine)] == [27, 110, 220]
    assert [column.recipe(row).tolerance for column in (draft, standard, fine)] == [0.002, 0.002, 0]
    assert {column.recipe(row).size for column in (draft, standard, fine)} == {64}


def test_a_key_of_its_own_overrides_that_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('steps = 9\ninit = "start.png"\n')
    (column,) = read_grid([f"recipe={tmp_path / 'mine.toml'}", "steps=4"], {})
    assert (column.recipe(Recipe()).steps, column.recipe(Recipe()).init) == (4, str(tmp_path / "start.png"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["style_weight"], "--grid style_weight: expected KEY=VALUE,VALUE,… without empty values"),
        (["style_weight="], "--grid style_weight=: expected KEY=VALUE"),
        (["style_weight=5,,9"], "--grid style_weight=5,,9: expected KEY=VALUE"),
        (["=5"], "--grid =5: expected KEY=VALUE"),
        (["stlye_weight=5"], "--grid stlye_weight=5: stlye_weight: no such recipe key (did you mean 'style_weight'?)"),
        (["steps=4", "style_weight=5,x"], "--grid steps=4 style_weight=x: style_weight: 'x' is not allowed"),
        (["steps=4", "steps=5"], "--grid steps=5: steps is there twice; expected all its values in one --grid"),
        (["recipe=drafd"], "recipe drafd: cannot be read: No such file or directory; a TOML file, or draft, standard"),
        (["style_layers=relu9_9"], "--grid style_layers=relu9_9: style_layers: no layer 'relu9_9'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_grid(texts, {})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# What is copied ----------------------------------------------------------------------------------------------------

CHOSEN: list[dict[str, Any]] = [
    {},
    {"style_weight": 20, "pooling": "avg"},
    {"loss": "gatys2016", "style_weight": 100, "content_weight": 1},
    {"style_layers": "relu1_1=0.2,relu3_1", "tile": 128, "tolerance": 0.0},
    {"init": "/photos/a 'b' \"c\" \x7f\\.png", "learning_rate": 0.1},
    {"backbone": "alexnet", "weights": "random", "style_layers": "relu1,relu2"},
    {"enlarge": False, "octaves": True},
    *PRESETS.values(),
]


@pytest.mark.parametrize("settings", CHOSEN)
def test_what_is_copied_gives_the_same_recipe(settings: dict[str, Any]) -> None:
    recipe = Recipe.from_settings(settings)
    kept = essential(recipe)
    assert Recipe.from_settings(tomllib.loads(as_toml(kept))) == recipe
    words = shlex.split(as_options(kept, RECIPE_OPTIONS))
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    given = command.make_context("run", ["m.csv", "--out", "o", *words]).params
    assigned = dict(text.split("=", 1) for text in given["set_"] or [])
    assigned |= {key: given[key] for key in RECIPE_OPTIONS if given[key] is not None}
    assert Recipe.from_settings(assigned) == recipe


def test_only_what_differs_from_the_defaults_is_copied() -> None:
    recipe = Recipe.from_settings({"steps": 110, "style_weight": 20.0, "pooling": "avg", "content_weight": 1})
    assert as_options(essential(recipe), RECIPE_OPTIONS) == "--set pooling=avg --style-weight 20"
    assert as_toml(essential(recipe)) == 'pooling = "avg"\nstyle_weight = 20\n'
    assert as_options(essential(Recipe()), RECIPE_OPTIONS) == ""
