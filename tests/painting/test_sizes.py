"""`size = "original"` and `enlarge = false`: a photo's own size, never larger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from batchnst import Recipe, read_ledger, stylize
from batchnst.errors import RecipeError
from batchnst.painting.inputs import gather, style_files
from tests.helpers import as_bytes, batchnst, pair, photo_exif, scene, size_of

QUICK: dict[str, Any] = {"steps": 1, "style_layers": ["relu1_1"], "content_layers": ["relu1_1"], "min_size": 16}


def recipe(**settings: Any) -> Recipe:
    return Recipe.from_settings(QUICK | settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in {"small": (40, 30), "large": (120, 50), "style": (64, 64)}.items():
        scene(*size).save(tmp_path / f"{name}.png")
    (tmp_path / "turned.jpg").write_bytes(as_bytes(scene(96, 64), "JPEG", exif=photo_exif()))
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "small", "large"),
    [
        ({"size": 64}, (64, 48), (64, 27)),
        ({"size": 64, "enlarge": False}, (40, 30), (64, 27)),
        ({"size": "original"}, (40, 30), (120, 50)),
        ({"size": "original", "enlarge": "false"}, (40, 30), (120, 50)),
    ],
)
def test_a_photo_has_the_size_that_the_recipe_asks_for(
    folder: Path, settings: dict[str, Any], small: tuple[int, int], large: tuple[int, int]
) -> None:
    own = recipe(**settings)
    for name, size, full in (("small", small, (40, 30)), ("large", large, (120, 50))):
        assert own.working_size(*full) == size
        inputs = gather(own, str(folder / f"{name}.png"), [str(folder / "style.png")], style_weights=(1.0,))
        assert inputs.content.shape[1::-1] == size
        assert max(inputs.styles[0].shape) == max(size)  # patterns are as large as in any other size
        painting = stylize(folder / f"{name}.png", Image.open(folder / "style.png"), own)
        assert painting.picture.size == size
        assert painting.painted.curve.scales[-1] == max(size)
        assert painting.painted.curve.scales[0] < 40 if name == "small" and max(size) >= 32 else True


def test_a_pair_of_its_own_size_is_painted_as_one_of_that_number(folder: Path) -> None:
    content, style = folder / "small.png", folder / "style.png"
    settings: dict[str, Any] = {"steps": 4, "tolerance": 0, "style_scale": 1.5}
    found = [stylize(content, style, recipe(size=size, **settings)).painted.pixels for size in ("original", 40)]
    assert (found[0] == found[1]).all()


def test_styles_are_known_beforehand_only_where_all_photos_have_one_size() -> None:
    (known,) = style_files(pair("a", recipe=recipe(size=64, style_scale=2)))
    assert known.options.size == 128
    for settings in ({"size": "original"}, {"size": 64, "enlarge": False}):
        assert style_files(pair("a", recipe=recipe(**settings))) == []


def test_photos_of_many_sizes_go_through_a_run(folder: Path) -> None:
    contents = ["small.png", "large.png", "turned.jpg", "small.png"]
    rows = [{"content": name, "style": "style.png", "id": f"n{i}", **QUICK} for i, name in enumerate(contents)]
    rows[3]["content_mask"] = ["large-mask.png"]
    Image.new("L", (400, 300), "white").save(folder / "large-mask.png")
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [folder / "m.jsonl", "--size", "original"]
    plan = batchnst("plan", *arguments)
    assert plan.exit_code == 0, plan.output
    assert "64×96" in plan.stdout
    run = batchnst("run", *arguments, "--out", folder / "out", "--engine", "inline")
    assert run.exit_code == 0, run.output
    sizes = [size_of(folder / "out" / "images" / f"n{i}.png") for i in range(4)]
    assert sizes == [(40, 30), (120, 50), (64, 96), (40, 30)]
    table = read_ledger(str(folder / "out"), "pairs").to_table().to_pylist()
    assert {json.loads(row["recipe"])["size"] for row in table} == {"original"}
    replay = batchnst("replay", folder / "out", "n2")
    assert replay.exit_code == 0, replay.output


def test_a_photo_too_small_for_the_layers_is_refused_with_advice(folder: Path) -> None:
    scene(12, 6).save(folder / "tiny.png")
    result = batchnst(
        "stylize", folder / "tiny.png", folder / "style.png", "--out", folder / "x.png", "--size", "original"
    )
    assert result.exit_code == 1 or result.exit_code == 2
    assert (
        "12×6 pixels at this size, but relu5_1 needs 16 on each side; enlarge it or leave that layer out"
        in result.stderr
    )


@pytest.mark.parametrize("value", ["originl", "0", 0, 70_000, 12.5, None])
def test_other_sizes_are_refused_and_both_kinds_named(value: object) -> None:
    with pytest.raises(RecipeError, match=r"^size: .* is not allowed: .*; a number of pixels, or original$"):
        Recipe.from_settings({"size": value})


def test_the_default_is_in_no_fingerprint_and_the_rest_is() -> None:
    assert not {"enlarge", "octaves"} & json.loads(Recipe().picture_text).keys()
    texts = [Recipe(), recipe(enlarge=False), recipe(octaves=True), recipe(size="original"), recipe()]
    assert len({text.picture_text for text in texts}) == 5
    assert recipe(damaged="accept").picture_text == recipe().picture_text


def test_the_limit_of_megapixels_holds_for_masks_and_start_pictures(folder: Path) -> None:
    Image.new("L", (400, 300), "white").save(folder / "mask.png")
    common: dict[str, Any] = {"content": "small.png", "style": "style.png", **QUICK, "size": 40}
    rows: list[dict[str, Any]] = [
        {"id": "mask", "content_mask": ["mask.png"]},
        {"id": "style_mask", "style_mask": ["mask.png"]},
        {"id": "start", "init": "mask.png"},
    ]
    for limit, failed in ((0.1, 3), (250, 1)):  # the style mask is of another shape
        lines = [json.dumps(common | row | {"max_megapixels": limit}) for row in rows]
        (folder / "m.jsonl").write_text("\n".join(lines))
        run = batchnst("run", folder / "m.jsonl", "--out", folder / f"out-{limit}", "--engine", "inline")
        table = read_ledger(str(folder / f"out-{limit}"), "pairs").to_table().to_pylist()
        messages = [row["error_message"] for row in table if row["status"] == "failed"]
        assert len(messages) == failed, run.output
        if failed == 3:
            assert all("400×300 pixels, more than max_megapixels = 0.1 allows" in message for message in messages)
    assert np.asarray(Image.open(folder / "out-250" / "images" / "start.png")).shape == (30, 40, 3)


def test_a_long_style_is_no_smaller_at_coarse_scales_than_the_layers_take(tmp_path: Path) -> None:
    scene(64, 64).save(tmp_path / "square.png")
    scene(160, 50).save(tmp_path / "long.png")
    options = ("--size", 64, "--steps", 1, "--weights", "random", "--set", "min_size=16")
    result = batchnst("stylize", tmp_path / "square.png", tmp_path / "long.png", "--out", tmp_path / "x.png", *options)
    assert result.exit_code == 0, result.stderr
