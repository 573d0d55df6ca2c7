from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from batchnst.bench import machine, race, speed
from batchnst.bench.textbook import Textbook
from batchnst.errors import RequestError
from batchnst.painting.inputs import load_picture
from batchnst.painting.tensors import to_tensor
from batchnst.pictures.decode import DecodeOptions
from batchnst.recipe import Recipe
from batchnst.transfer.pyramid import work
from batchnst.transfer.weights import Weights
from tests import oracles
from tests.helpers import CPU, batchnst, scene

RECIPE = Recipe(size=64, precision="fp32")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_operations_of_a_step_are_counted_as_by_hand() -> None:
    step = machine.measure_step(RECIPE, CPU, 64, 2)
    convolutions = grams = 0
    height, width, channels = 48, 64, 3
    for convs, out in ((2, 64), (2, 128), (4, 256), (4, 512), (1, 512)):
        grams += 2 * 2 * height * width * out**2  # forward, and backward into the features
        for _ in range(convs):
            convolutions += 2 * 2 * 9 * height * width * channels * out  # forward, and backward into the input
            channels = out
        height, width = height // 2, width // 2
    counted = step.flops * step.seconds * step.batch
    assert counted == pytest.approx(2 * (convolutions + grams), rel=0.03)
    assert step.memory > 50e6


def test_the_shares_of_a_step_are_those_of_its_work() -> None:
    shares = machine.measure_shares(Recipe(size=64, precision="fp32"), CPU, steps=2)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["convolutions"] > 0.25  # 0.7 on a machine that does nothing else
    assert 0.01 < shares["grams"] < shares["convolutions"]


def test_the_optimisers_products_are_no_gram_matrices() -> None:
    only_relu1_1 = {"content_layers": {"relu1_1": 1.0}, "style_layers": {"relu1_1": 1.0}}
    longer = machine.measure_shares(RECIPE.model_copy(update=only_relu1_1), CPU, steps=5)
    painting = speed.NoisePainting(RECIPE.model_copy(update=only_relu1_1), CPU, 64, 4)
    with torch.profiler.profile() as profiler:
        for _ in range(5):
            painting.step()
    products = [event for event in profiler.events() or [] if event.name in ("aten::bmm", "aten::baddbmm_")]
    assert {machine._purpose(event) for event in products} == {"grams", "rest"}
    assert longer["rest"] > 0


@pytest.mark.slow
def test_workers_are_counted_together() -> None:
    crew = machine.measure_workers(Recipe(size=32, steps=10, min_size=32), 2, 1)
    assert (crew.workers, crew.threads) == (2, 1)
    pair = work(Recipe(size=32, steps=10, min_size=32), 32, 24)
    assert crew.pairs_an_hour == pytest.approx(3600 * crew.pixel_steps / pair)


def test_what_bench_measured_is_remembered_for_the_same_network_alone() -> None:
    assert speed.known_speed(RECIPE, CPU) is None
    speed.remember_speed(RECIPE, CPU, 12.5)
    assert speed.known_speed(RECIPE.model_copy(update={"size": 512, "style_weight": 3.0}), CPU) == 12.5
    assert speed.known_speed(RECIPE.model_copy(update={"pooling": "avg"}), CPU) is None


def test_made_pictures_are_the_same_every_time_and_no_noise() -> None:
    (landscape, marble), again = machine.generate_pictures(256), machine.generate_pictures(256)
    assert landscape.size == marble.size == (256, 192)
    assert landscape.tobytes() == again[0].tobytes()
    for picture in (landscape, marble):
        pixels = np.asarray(picture, dtype=float)
        assert pixels.std() > 20
        assert np.abs(np.diff(pixels, axis=1)).mean() < 0.6 * pixels.std()


def test_the_textbooks_loss_is_that_of_the_picture_it_would_write(
    images: Path, weights: Weights, tmp_path: Path
) -> None:
    content, style = images / "astronaut.png", images / "swirls.png"
    tensors = [to_tensor(load_picture(str(path), DecodeOptions(size=64)).pixels, CPU) for path in (content, style)]
    loop = Textbook(tensors[0], tensors[1], RECIPE, weights)
    moments = loop.run(20)
    assert [moment.step for moment in moments] == [0, 10, 20]
    assert [moment.seconds for moment in moments] == sorted(moment.seconds for moment in moments)
    Image.fromarray(loop.picture[0].permute(1, 2, 0).round().byte().numpy()).save(tmp_path / "written.png")
    written = oracles.written_loss(oracles.torchvision_vgg19(weights), tmp_path / "written.png", content, style, 64)
    assert moments[-1].total == pytest.approx(written, rel=0.01)
    assert moments[-1].total < 0.5 * moments[0].total


@pytest.mark.parametrize("settings", [{"octaves": True}, {"loss": "gatys2016"}, {"preserve_color": "luminance"}])
def test_other_losses_than_the_textbooks_are_not_raced(settings: dict[str, Any]) -> None:
    nothing = torch.zeros(1, 3, 64, 64)
    with pytest.raises(RequestError, match=r"--against textbook: expected loss = .* octaves = false"):
        race.race(nothing, nothing, Recipe.from_settings(settings), lambda *_: None)


@pytest.mark.slow
def test_a_race_is_won_when_the_loss_is_equal(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "STEPS", 10)
    monkeypatch.setattr(race, "REPEATS", 1)
    recipe = RECIPE.model_copy(update={"steps": 20})
    paths = [str(images / "astronaut.png"), str(images / "swirls.png")]
    content, style, recipe = machine.load_pair(paths, recipe)
    looks: list[float] = []
    outcome = race.race(content, style, recipe, lambda text, done, total: looks.append(done))
    assert looks == [0, 10] == [moment.step for moment in outcome.textbook]
    assert outcome.seconds_to_equal is not None and outcome.ratio is not None
    assert outcome.ratio == pytest.approx(outcome.textbook[-1].seconds / outcome.seconds_to_equal)
    goal = outcome.textbook[-1].total
    before = [moment for moment in outcome.recipe if moment.total > goal]
    assert before and len(before) < len(outcome.recipe)
    assert outcome.loss_ratio == outcome.recipe[-1].total / goal < 1
    out_of_reach = race.race(content, style, RECIPE.model_copy(update={"steps": 1}), lambda *_: None)
    assert out_of_reach.ratio is None
    assert "not with this recipe" in race.describe(out_of_reach)[-1]


@pytest.mark.slow
def test_bench_prints_what_it_measured_and_writes_it_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "STEPS", 10)
    out = tmp_path / "bench"
    result = batchnst("bench", "--size", 32, "--steps", 4, "--against", "textbook", "--out", out)
    assert result.exit_code == 0, result.output
    starts = [line.split("  ")[0].strip() for line in result.stdout.splitlines()]
    for wanted in ("machine", "ceiling", "a step", "workers", "a run", "textbook", "batchnst", "ratio"):
        assert wanted in starts, wanted
    assert "to the textbook's final loss" in result.stdout
    found = json.loads((out / "bench.json").read_text())
    assert found["run"]["pairs"] == 2
    assert 0.3 < found["run"]["busy"] <= 1
    assert len(found["race"]["textbook"]) == 2
    svg = ElementTree.fromstring((out / "curves.svg").read_text())
    assert svg.tag.endswith("svg")
    assert speed.known_speed(Recipe(size=32), CPU) == max(crew["pixel_steps"] for crew in found["workers"])


def test_one_picture_is_no_pair(images: Path) -> None:
    result = batchnst("bench", images / "coffee.png")
    assert result.exit_code == 2
    assert "expected a content and a style" in result.stderr


@pytest.mark.parametrize(("settings", "size"), [({"size": "original"}, 48), ({"size": 200, "enlarge": False}, 48)])
def test_a_pair_is_raced_at_its_own_size_if_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], size: int
) -> None:
    monkeypatch.setattr(race, "STEPS", 1)
    monkeypatch.setattr(race, "REPEATS", 1)
    paths = [str(tmp_path / name) for name in ("content.png", "style.png")]
    scene(48, 36).save(paths[0])
    scene(90, 60).rotate(9).save(paths[1])
    wanted = Recipe.from_settings({"backbone": "alexnet", "weights": "random", "steps": 1, "min_size": 16} | settings)
    content, style, recipe = machine.load_pair(paths, wanted)
    assert (content.shape[2:], style.shape[2:], recipe.size) == ((36, 48), (32, 48), size)
    assert len(race.race(content, style, recipe, lambda *_: None).recipe) == 1


@pytest.mark.parametrize("options", [[], ["--trace"]])
def test_without_a_picture_its_own_size_is_unknown(options: list[str]) -> None:
    result = batchnst("bench", "--size", "original", *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "there is no picture to take it from; expected --size PIXELS" in result.stderr


def test_a_picture_that_is_too_small_to_race_is_named(tmp_path: Path) -> None:
    scene(24, 12).save(tmp_path / "small.png")
    result = batchnst("bench", tmp_path / "small.png", tmp_path / "small.png", "--size", "original")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "small.png: 24×12 pixels at this size" in result.stderr
