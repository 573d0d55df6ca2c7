from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from batchnst.backbones import layer_names
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer import backbone as backbone_module
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.losses import Region, gram_matrix, guide
from batchnst.transfer.memory import UNBOUNDED
from batchnst.transfer.objective import Objective
from batchnst.transfer.stylize import Guide, stylize
from batchnst.transfer.tiling import TiledObjective, features, gram_matrices, grid
from batchnst.transfer.weights import Weights
from tests.helpers import CPU, canvas_for, each_layer, finish, in_double, load, paint, whole

RELUS = [name for name in layer_names("vgg19") if name.startswith("relu")]

SIZES = [(37, 41, 16), (80, 48, 512), (97, 131, 48), (80, 100, 64), (33, 203, 48)]
"""Height, width and side of a tile: odd, not divisible by 16, tiles smaller and larger than the picture."""

SHALLOW: dict[str, Any] = {"content_layers": "relu2_2", "style_layers": "relu1_1,relu2_1,relu3_1"}
"""Layers for what does not depend on their depth: tiles overlap less."""

FAST_SIZES = [*SIZES[:2], *(pytest.param(*size, marks=pytest.mark.slow) for size in SIZES[2:])]


def pictures(count: int, height: int, width: int, seed: int = 0, channels: int = 3) -> Tensor:
    made = torch.rand(
        count, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return made * 255


def network(weights: Weights, recipe: Recipe) -> Backbone:
    return in_double(load_backbone(recipe.model_copy(update={"precision": "fp32"}), weights, CPU))


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def both(
    backbone: Backbone, recipe: Recipe, height: int, width: int, side: int, count: int = 1
) -> tuple[Objective, TiledObjective]:
    """The objective of noise in the style of noise: whole, and in tiles."""
    content, style = pictures(count, height, width, 1), pictures(1, 64, 80, 2)
    dtype = next(backbone.buffers()).dtype
    with torch.no_grad():
        shown, painted = backbone(content.to(dtype)), backbone(style.to(dtype))
    grams = {name: gram_matrix(painted[name]).expand(count, -1, -1) for name in recipe.style_layers}
    everywhere = Region(grams, {}, torch.ones(count, dtype=dtype))
    target = {name: shown[name] for name in recipe.content_layers}
    canvas = canvas_for(backbone, *[(height, width)] * count)
    return (
        Objective(backbone, recipe, target, [everywhere], canvas),
        TiledObjective(backbone, recipe, target, [everywhere], canvas, side),
    )


@pytest.mark.parametrize(("height", "width", "side"), FAST_SIZES)
def test_the_gradient_is_the_whole_pictures(weights: Weights, height: int, width: int, side: int) -> None:
    recipe = Recipe()
    backbone = network(weights, recipe)
    for exact, limit in ((backbone, 1e-10), (load_backbone(Recipe(precision="fp32"), weights, CPU), 1e-5)):
        whole, tiled = both(exact, recipe, height, width, side)
        shown = pictures(1, height, width).to(next(exact.buffers()).dtype)
        losses, gradient = whole(shown)
        found, derivative = tiled(shown)
        assert apart(derivative, gradient) < limit
        assert apart(found.total, losses.total) < limit
        assert apart(found.content, losses.content) < limit
        for name, loss in losses.style_layers.items():
            assert apart(found.style_layers[name], loss) < limit, name


QUICK = (
    *("conv1_1", "relu1_1", "pool1", "conv2_2", "relu2_2", "pool2", "conv3_1", "pool3"),
    *("relu4_1", "relu5_1"),
)


@pytest.mark.parametrize("layer", each_layer("vgg19", *QUICK))
def test_every_layer(weights: Weights, layer: str) -> None:
    check_layer(weights, layer, "max")


@pytest.mark.parametrize("layer", ["relu2_1", "relu4_1", pytest.param("pool5", marks=pytest.mark.slow)])
def test_layers_under_average_pooling(weights: Weights, layer: str) -> None:
    check_layer(weights, layer, "avg")


def check_layer(weights: Weights, layer: str, pooling: str) -> None:
    settings = {"style_layers": [layer], "content_layers": [layer], "pooling": pooling}
    recipe = Recipe.from_settings(settings)
    backbone = network(weights, recipe)
    whole, tiled = both(backbone, recipe, 50, 77, 32)
    assert len(grid(backbone, 50, 77, 32)) == 6
    shown = pictures(1, 50, 77)
    assert apart(tiled(shown)[1], whole(shown)[1]) < 1e-10


@pytest.mark.parametrize(
    "backbone", ["alexnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16", "vgg19"))]
)
def test_every_backbone(backbone: str) -> None:
    recipe = Recipe.from_settings({"backbone": backbone, "weights": "random"})
    exact = network(load_weights(backbone, "random"), recipe)
    whole, tiled = both(exact, recipe, 101, 131, 64)
    shown = pictures(1, 101, 131)
    assert len(grid(exact, 101, 131, 64)) == 6
    assert apart(tiled(shown)[1], whole(shown)[1]) < 1e-10


def test_a_batch_several_regions_gray_pictures_and_the_papers_loss(weights: Weights) -> None:
    recipe = Recipe.from_settings(SHALLOW | {"loss": "gatys2016", "content_layers": {"relu1_2": 1.0, "relu2_2": 0.5}})
    backbone, count, size = network(weights, recipe), 2, (60, 75)
    content, shown = pictures(count, *size, seed=1, channels=1), pictures(count, *size, channels=1)
    masks = [pictures(count, *size, seed=seed, channels=1) / 255 for seed in (5, 6)]
    shapes, layers = backbone.shapes(*size), list(recipe.style_layers)
    with torch.no_grad():
        target = {name: backbone(content)[name] for name in recipe.content_layers}
        regions = [
            Region(
                {name: gram.expand(count, -1, -1) for name, gram in gram_matrices(backbone, style, layers, 32).items()},
                {name: guide(mask, *shapes[name][1:]) for name in recipe.style_layers},
                torch.tensor([0.3, 0.7], dtype=torch.float64),
            )
            for mask, style in zip(masks, (pictures(1, 64, 64, 7), pictures(1, 50, 90, 8)), strict=True)
        ]
    canvas = canvas_for(backbone, *[size] * count)
    losses, gradient = Objective(backbone, recipe, target, regions, canvas)(shown)
    tiled = TiledObjective(backbone, recipe, target, regions, canvas, 32)
    found, derivative = tiled(shown)
    assert apart(found.total, losses.total) < 1e-10
    assert apart(derivative, gradient) < 1e-10
    # And going on with one of the two.
    second, alone = tiled.select(torch.tensor([1]))(shown[1:])
    assert apart(second.total, losses.total[1:]) < 1e-10
    assert apart(alone, gradient[1:]) < 1e-10


def test_tiles_spread_over_devices_give_the_same(weights: Weights) -> None:
    recipe = Recipe.from_settings(SHALLOW)
    backbone = network(weights, recipe)
    whole, tiled = both(backbone, recipe, 50, 77, 32)
    spread = TiledObjective(backbone, recipe, tiled.content, tiled.regions, tiled.canvas, 32, devices=[CPU] * 3)
    shown = pictures(1, 50, 77)
    gradient = spread(shown)[1]
    assert len(spread.crew) == 3
    next_scale = TiledObjective(backbone, recipe, tiled.content, tiled.regions, tiled.canvas, 32, devices=[CPU] * 3)
    assert next_scale.crew is spread.crew, "threads and networks are made anew at each scale"
    assert apart(gradient, whole(shown)[1]) < 1e-10
    assert torch.equal(gradient, spread(shown)[1]), "the order of the sums depends on who is ready first"


@pytest.mark.parametrize(("height", "width", "side"), FAST_SIZES)
def test_targets_are_measured_in_tiles(weights: Weights, height: int, width: int, side: int) -> None:
    recipe = Recipe.from_settings({"style_layers": RELUS[:13]})
    backbone = network(weights, recipe)
    picture, mask = pictures(1, height, width), pictures(1, height, width, 3, channels=1) / 255
    with torch.no_grad():
        expected = backbone(picture)
        grams = gram_matrices(backbone, picture, recipe.style_layers, side)
        guided = gram_matrices(backbone, picture, recipe.style_layers, side, mask)
        content = features(backbone, picture, recipe.content_layers, side)
    assert apart(content["relu4_2"], expected["relu4_2"]) < 1e-12
    for name in recipe.style_layers:
        assert apart(grams[name], gram_matrix(expected[name])) < 1e-10, name
        factor = guide(mask, *expected[name].shape[2:])
        assert apart(guided[name], gram_matrix(expected[name] * factor)) < 1e-10, name


def test_content_targets_stay_on_the_pictures_device(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the cached choice, which is that of a pretended GPU in the tests of `bench --trace`.
    monkeypatch.setattr(backbone_module, "_fastest", lambda *_: backbone_module._one_after_the_other)
    backbone = deepcopy(load_backbone(Recipe(precision="fp32"), weights, CPU)).to("meta")
    (found,) = features(backbone, torch.empty(1, 3, 97, 131, device="meta"), ["relu4_2"], 64).values()
    assert (found.device.type, tuple(found.shape)) == ("meta", (1, 512, 12, 16))


def test_tiles_share_the_picture_among_them(weights: Weights) -> None:
    backbone = load_backbone(Recipe(precision="fp32"), weights, CPU)
    for height, width, side in SIZES:
        counts = {name: torch.zeros(shape[1:]) for name, shape in backbone.shapes(height, width).items()}
        counts[""] = torch.zeros(height, width)
        for tile in grid(backbone, height, width, side):
            rows, columns = tile.place[""][1:]
            assert rows.stop - rows.start <= side and columns.stop - columns.start <= side
            for name, count in counts.items():
                count[tile.place[name]] += 1
        assert all((count == 1).all() for count in counts.values())


@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_in_tiles_follows_the_whole_ones_curve(
    images: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    # In float64: in fewer bits, roundings grow to percents in fifty steps, whoever makes them.
    layers = SHALLOW if masked else {}
    recipe = Recipe.from_settings({"size": 48, "min_size": 24, "steps": 12, "tolerance": 0, **layers})
    exact = network(weights, recipe)
    content, style = (load(images / name, recipe).double() for name in ("coffee.png", "swirls.png"))
    mask = torch.zeros(1, 1, *content.shape[2:], dtype=torch.float64)
    mask[..., :20] = 1
    guides = [Guide((style,), (1.0,), 0.5, part) for part in (mask, 1 - mask)] if masked else whole(style)
    curves = []
    for fitting in (UNBOUNDED, replace(UNBOUNDED, tile=32)):
        _, steps = finish(stylize([content], [guides], recipe, lambda _: exact, fitting=fitting))
        curves.append(torch.cat([step.losses.total for step in steps]))
    assert len(curves[0]) == 15
    torch.testing.assert_close(*curves, rtol=1e-6, atol=0)
    assert curves[0][-1] < 0.4 * curves[0][-12]


@pytest.mark.slow
@pytest.mark.parametrize("color", ["luminance", "histogram"])
def test_colours_are_preserved_in_tiles_too(images: Path, weights: Weights, color: str) -> None:
    recipe = Recipe(size=96, min_size=96, steps=4, precision="fp32", preserve_color=color)
    content, style = load(images / "coffee.png", recipe), load(images / "swirls.png", recipe)
    pictures = [
        paint([content], [whole(style)], recipe, weights, fitting=fitting)[0].pictures
        for fitting in (UNBOUNDED, replace(UNBOUNDED, tile=32))
    ]
    torch.testing.assert_close(*pictures, rtol=0, atol=0.8)


PEAK = """
import resource, sys
from batchnst.painting.single import stylize
from batchnst.recipe import Recipe
from batchnst.transfer.device import tune_process
content, style, size, memory, steps = sys.argv[1:]
tune_process()
recipe = Recipe(size=int(size), min_size=int(size), steps=int(steps), tolerance=0)
losses = stylize(content, style, recipe, memory=float(memory)).losses
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, *losses.total.tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "granted", "steps", "limit"), [(4096, 4, 3, 4), (8192, 12, 1, 8)])
def test_a_poster_fits_into_little_memory(images: Path, size: int, granted: int, steps: int, limit: int) -> None:
    # The first step has no history yet, which is what the rest of what is granted is for.
    command = [sys.executable, "-c", PEAK, *(str(images / name) for name in ("astronaut.png", "swirls.png"))]
    done = subprocess.run([*command, str(size), f"{granted}e9", str(steps)], check=True, capture_output=True, text=True)
    peak, *losses = [float(number) for number in done.stdout.split()]
    assert len(losses) == steps
    assert losses == sorted(losses, reverse=True)
    assert peak < limit * 2**30
