from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnst.errors import RecipeError
from batchnst.recipe import Recipe, read_recipe_file
from batchnst.sizes import fit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stlye_weight": 1}, "stlye_weight: no such recipe key (did you mean 'style_weight'?)"),
        ({"optimizer": "adm"}, "optimizer: 'adm' is not allowed (did you mean 'adam'?); one of lbfgs, adam, sgd"),
        ({"size": "big"}, "size: 'big' is not allowed: should be a valid integer"),
        ({"size": 4}, "size: 4 is not allowed: should be greater than or equal to 16"),
        ({"tv_weight": "nan"}, "tv_weight: 'nan' is not allowed: should be a finite number"),
        ({"learning_rate": 0}, "learning_rate: 0 is not allowed: should be greater than 0"),
        ({"style_layers": "relu6_1"}, "style_layers: no layer 'relu6_1' (did you mean 'relu5_1'?)"),
        (
            {"backbone": "alexnet", "content_layers": "relu4_2"},
            "content_layers: no layer 'relu4_2' (did you mean 'relu4'?); those of alexnet are named like relu3",
        ),
        (
            {"backbone": "vgg16", "style_layers": "relu3_4"},
            "style_layers: no layer 'relu3_4' (did you mean 'relu3_3'?)",
        ),
        (
            {"backbone": "vgg11"},
            "backbone: 'vgg11' is not allowed (did you mean 'vgg19'?); one of vgg19, vgg16, alexnet",
        ),
        ({"style_layers": "relu1_1=much"}, "style_layers.relu1_1: 'much' is not allowed: should be a valid number"),
        ({"style_layers": ""}, "style_layers: expected at least one layer with a weight above 0"),
        ({"style_layers": 3}, "style_layers: 3 is not allowed: should be a valid dictionary"),
        ({"content_layers": {"relu4_2": 0}}, "content_layers: expected at least one layer with a weight above 0"),
        (
            {"init": "contnt"},
            "init: 'contnt' is not allowed (did you mean 'content'?); content, noise, style or a picture",
        ),
        ({"content_weight": 0, "style_weight": 0}, "content_weight, style_weight: both are 0; expected at least one"),
        ({"size": 16, "style_layers": "pool5"}, "size: 16 is not allowed: pool5 needs at least 32 pixels; raise size"),
        ({"tolerance": -0.1}, "tolerance: -0.1 is not allowed: should be greater than or equal to 0"),
        ({"preserve_color": "luminosity"}, "preserve_color: 'luminosity' is not allowed (did you mean 'luminance'?)"),
        ({"precision": "fp16"}, "precision: 'fp16' is not allowed (did you mean 'bf16'?); one of auto, fp32, bf16"),
        ({"style_layers": {"relu1_1": -1}}, "style_layers.relu1_1: -1 is not allowed"),
        (
            {"style_weight": "1,5"},
            "style_weight: '1,5' is not allowed: should be a valid number, written with a point and no comma",
        ),
        ({"size": "1.024,00"}, "size: '1.024,00' is not allowed: should be a valid integer, written with a point and"),
        ({"enlarge": "WAHR"}, "enlarge: 'WAHR' is not allowed: should be a valid boolean: true or false"),
        ({"seed": date(2020, 1, 1)}, "seed: 2020-01-01 is not allowed: should be a valid integer"),
        ({"style_weight": "x" * 999}, f"style_weight: '{'x' * 79}… is not allowed: should be a valid number"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_settings(settings)
    assert str(caught.value).startswith(message)


def test_of_an_unknown_backbone_nothing_else_is_said() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_settings({"backbone": "resnet", "style_layers": "relu9"})
    assert len(caught.value.problems) == 1


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_settings({"size": 0, "loss": "l2", "colour": 1})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "layers",
    [
        "relu1_1, relu2_1=0.5",
        "{relu1_1 = 1, relu2_1 = 0.5}",
        '{"relu2_1": 0.5, "relu1_1": 1}',
        '["relu1_1", "relu2_1=0.5"]',
        ["relu1_1", "relu2_1=0.5"],
        [("relu1_1", 1.0), ("relu2_1", 0.5)],
        {"relu1_1": 1.0, "relu2_1": 0.5, "relu3_1": None},
    ],
)
def test_layers_may_be_written_as_each_format_has_it(layers: object) -> None:
    recipe = Recipe.from_settings({"style_layers": layers})
    assert recipe.style_layers == {"relu1_1": 1.0, "relu2_1": 0.5}


def test_the_same_settings_are_the_same_recipe() -> None:
    one = Recipe.from_settings({"style_layers": {"relu2_1": 1, "relu1_1": 1, "relu3_1": 0}, "size": "256"})
    two = Recipe.from_settings({"size": 256, "style_layers": "relu1_1,relu2_1"})
    assert one == two
    assert hash(one) == hash(two)
    assert one.json_text == two.json_text
    assert Recipe.model_validate_json(one.json_text) == one


def test_a_recipe_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml: cannot be read: No such file"):
        read_recipe_file(tmp_path / "nowhere.toml")
    (tmp_path / "western.toml").write_bytes("size = 32\n# größer\n".encode("cp1252"))
    with pytest.raises(RecipeError, match=r"line 2: not UTF-8 \(byte 0xf6\); save it as UTF-8$"):
        read_recipe_file(tmp_path / "western.toml")
    (tmp_path / "broken.toml").write_text("size = = 3")
    with pytest.raises(RecipeError, match=r"broken\.toml: not valid TOML"):
        read_recipe_file(tmp_path / "broken.toml")


def test_layers_that_are_not_given_are_the_backbones_own() -> None:
    vgg16, alexnet = (Recipe.from_settings({"backbone": name}) for name in ("vgg16", "alexnet"))
    assert vgg16.layers == Recipe().layers == ["relu4_2", "relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]
    assert alexnet.layers == ["relu3", "relu1", "relu2", "relu4", "relu5"]
    assert json.loads(alexnet.json_text)["content_layers"] == {"relu3": 1.0}
    assert Recipe.from_settings({"backbone": "alexnet", "style_layers": "relu2"}).layers == ["relu3", "relu2"]


def test_the_neural_style_recipe_is_what_it_was() -> None:
    """Its text is in every fingerprint: a change of it would paint all pairs of every OUT again."""
    assert Recipe(loss="neural-style").picture_text == (
        '{"alpha":"white","backbone":"vgg19","content_layers":{"relu4_2":1.0},"content_weight":5.0,"format":"png",'
        '"init":"content","learning_rate":null,"loss":"neural-style","metadata":"none","min_size":128,'
        '"optimizer":"lbfgs","pooling":"max","precision":"auto","preserve_color":"none","quality":95,'
        '"resample":"lanczos","seed":0,"size":512,"snapshot_every":0,"steps":110,"style_layers":{"relu1_1":1.0,'
        '"relu2_1":1.0,"relu3_1":1.0,"relu4_1":1.0,"relu5_1":1.0},"style_scale":1.0,"style_weight":100.0,'
        '"tolerance":0.002,"tv_weight":0.001}'
    )


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(16, 4096))
def test_the_longest_side_becomes_size_and_the_shape_stays(width: int, height: int, size: int) -> None:
    fitted = fit(width, height, size)
    assert max(fitted) == size
    assert min(fitted) >= 1
    assert abs(min(fitted) - size * min(width, height) / max(width, height)) <= 1
