"""Pictures of several sizes in one batch: each is what it is alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from batchnst.backbones import layer_names
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer import pyramid
from batchnst.transfer import stylize as stylize_module
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.canvas import Canvas, Extent
from batchnst.transfer.losses import Losses, Region, gram_matrix, guide
from batchnst.transfer.lowpass import LowPass
from batchnst.transfer.objective import Objective
from batchnst.transfer.optimizers import OPTIMIZERS
from batchnst.transfer.stylize import Guide, Step, Stylized, stylize
from tests.helpers import CPU, canvas_for, each_layer, finish, in_double, whole

SIZES = [(33, 47), (48, 31), (40, 40), (33, 47)]
"""(height, width); the canvas is larger than each of them."""

STYLES = {"alexnet": (64, 67), "vgg19": (33, 35)}
"""Height and width of the style pictures: just enough for a position in the last layer."""

SHALLOW = {"style_layers": "relu1_1,relu2_1", "content_layers": "relu2_1"}
"""Layers on both sides of a pooling, for what does not depend on the layer."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(sizes: list[tuple[int, int]], seed: int = 0, channels: int = 3) -> list[Tensor]:
    """Noisy pictures of these sizes."""
    return [255 * random(1, channels, *size, seed=10 * seed + i) for i, size in enumerate(sizes)]


def network(settings: dict[str, Any]) -> tuple[Recipe, Backbone]:
    """A recipe and its network in float64."""
    weights = {"weights": "random"} if settings.get("backbone", "vgg19") != "vgg19" else {}
    recipe = Recipe.from_settings({"precision": "fp32", **weights, **settings})
    return recipe, in_double(load_backbone(recipe, load_weights(*recipe.network), CPU))


def objective_of(
    recipe: Recipe, exact: Backbone, which: list[int], sizes: list[tuple[int, int]], masked: bool, least: int = 0
) -> Objective:
    """The objective of some of the noisy pictures of `sizes`, each in styles of its own."""
    canvas = canvas_for(exact, *(sizes[i] for i in which), least=(least, least))
    with torch.no_grad():
        contents = [exact(noise(sizes, seed=1)[i]) for i in which]
        parts = (1, 2) if masked else (1,)
        size = STYLES[recipe.backbone]
        styles = [[exact(255 * random(1, 3, *size, seed=100 * part + i)) for i in which] for part in parts]
    regions = []
    for part, painted in enumerate(styles):
        grams = {name: torch.cat([gram_matrix(style[name]) for style in painted]) for name in recipe.style_layers}
        masks = [mask / 255 for mask in noise(sizes, seed=2 + part, channels=1)]
        guides = {
            name: canvas[name].pack([guide(masks[i], *canvas[name].sizes[place]) for place, i in enumerate(which)])
            for name in recipe.style_layers
        }
        share = torch.tensor([0.2 + 0.1 * i for i in which], dtype=torch.float64)
        regions.append(Region(grams, guides if masked else {}, share))
    content = {name: canvas[name].pack([seen[name] for seen in contents]) for name in recipe.content_layers}
    return Objective(exact, recipe, content, regions, canvas)


def check(settings: dict[str, Any], sizes: list[tuple[int, int]] = SIZES, masked: bool = False, least: int = 0) -> None:
    """Assert that losses and gradient in the batch are those of each picture alone."""
    channels = 1 if settings.get("preserve_color") == "luminance" else 3
    recipe, exact = network(settings)
    everyone = list(range(len(sizes)))
    together = objective_of(recipe, exact, everyone, sizes, masked, least)
    pictures = noise(sizes, channels=channels)
    losses, gradients = together(together.canvas.pixels.pack(pictures))
    outside = gradients.clone()
    for i, gradient in enumerate(together.canvas.pixels.unpack(gradients)):
        alone = objective_of(recipe, exact, [i], sizes, masked)
        assert not alone.canvas.pixels.is_padded
        expected, slope = alone(pictures[i])
        for found, own in zip(tensors(losses), tensors(expected), strict=True):
            torch.testing.assert_close(found[i : i + 1], own, rtol=1e-10, atol=0)
        assert float((gradient - slope).abs().max() / slope.abs().max()) < 1e-10
        together.canvas.pixels.unpack(outside)[i].zero_()
    assert not outside.any()


def tensors(losses: Losses) -> list[Tensor]:
    return [losses.content, losses.style, losses.tv, *losses.style_layers.values()]


@pytest.mark.parametrize(
    ("pooling", "masked"),
    [
        ("max", True),
        ("avg", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("max", False), ("avg", True))),
    ],
)
def test_losses_and_gradients_are_each_pictures_own(pooling: str, masked: bool) -> None:
    check({"pooling": pooling}, masked=masked)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "neural-style"},
        {"preserve_color": "luminance", "tv_weight": 50.0},
        pytest.param({"loss": "gatys2016"}, marks=pytest.mark.slow),
    ],
)
def test_every_term_is_each_pictures_own(settings: dict[str, Any]) -> None:
    check(SHALLOW | settings, masked=True)


def test_a_canvas_larger_than_all_pictures_changes_nothing() -> None:
    check({}, [(32, 48), (32, 48)], least=64)


@pytest.mark.parametrize("layer", each_layer("alexnet", "conv1", "relu1", "pool1", "conv2", "pool2", "pool5"))
def test_every_layer_of_alexnet(layer: str) -> None:
    check_layer("alexnet", layer, "max")


@pytest.mark.parametrize("layer", each_layer("vgg19", "conv1_1", "relu1_2", "pool1", "conv2_1", "pool2", "pool5"))
def test_every_layer_of_vgg19(layer: str) -> None:
    check_layer("vgg19", layer, "max")


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [
        *(("alexnet", name) for name in ("conv1", "pool1", "relu3", "pool5")),
        *(("vgg19", name) for name in ("conv1_2", "pool1", "conv2_1", "pool2", "pool5")),
    ],
)
def test_layers_under_average_pooling(backbone: str, layer: str) -> None:
    check_layer(backbone, layer, "avg")


def check_layer(backbone: str, layer: str, pooling: str) -> None:
    # All remainders modulo AlexNet's stride of 4, and odd lengths at every pooling.
    sizes = [(67, 75), (77, 66), (72, 68)] if backbone == "alexnet" else [(33, 47), (45, 39)]
    first = layer_names(backbone)[0]
    check({"backbone": backbone, "pooling": pooling, "content_layers": [layer], "style_layers": [first, layer]}, sizes)


def test_some_of_the_pictures_go_on_as_before() -> None:
    recipe, exact = network({})
    together = objective_of(recipe, exact, [0, 1, 2, 3], SIZES, masked=True)
    pictures = together.canvas.pixels.pack(noise(SIZES))
    losses, gradient = together(pictures)
    which = torch.tensor([1, 3])
    found, slope = together.select(which)(pictures[which])
    torch.testing.assert_close(found.total, losses.total[which], rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, gradient[which], rtol=0, atol=1e-12 * float(gradient.abs().max()))


def test_a_canvas_knows_its_pictures() -> None:
    canvas = Canvas([(5, 4), (3, 6)], [], CPU, (6, 0))
    assert (canvas.pixels.height, canvas.pixels.width) == (6, 6)
    assert canvas.pixels.counts.tolist() == [20, 18]
    pictures = [1 + random(1, 2, 5, 4), 1 + random(1, 2, 3, 6)]
    packed = canvas.pixels.pack(pictures)
    assert [int(picture.count_nonzero()) for picture in packed] == [40, 36]
    assert all(map(torch.equal, canvas.pixels.unpack(packed), pictures))
    assert torch.equal(canvas.pixels.clear_(packed + 1), packed + (packed > 0))
    exact = Canvas([(5, 4)] * 2, [], CPU).pixels
    assert not exact.is_padded
    assert exact.clear_(packed) is packed


def test_equal_sizes_touch_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, exact = network({"pooling": "avg"})
    objective = objective_of(recipe, exact, [0, 3], SIZES, masked=False)
    monkeypatch.setattr(Tensor, "masked_fill_", None)
    monkeypatch.setattr(Extent, "_outside", None)
    objective(objective.canvas.pixels.pack([noise(SIZES)[i] for i in (0, 3)]))


def test_the_low_pass_filter_is_each_pictures_own() -> None:
    pixels = Canvas(SIZES, [], CPU).pixels
    pictures = noise(SIZES)
    filtered = LowPass(SIZES, 0.02, pictures[0])(pixels.pack(pictures))
    for picture, size, found in zip(pictures, SIZES, pixels.unpack(filtered), strict=True):
        torch.testing.assert_close(found, LowPass([size], 0.02, picture)(picture), rtol=0, atol=1e-10)
    assert torch.equal(pixels.clear_(filtered.clone()), filtered)


@pytest.mark.parametrize(("name", "rate"), [*((name, None) for name in OPTIMIZERS), ("sgd", 0.02)])
def test_an_optimizer_moves_each_picture_as_if_alone(name: str, rate: float | None) -> None:
    # A quadratic with a minimum partly outside the box; a step scale from a coarser scale for one of them.
    pixels = Canvas(SIZES, [], CPU).pixels
    minimum = [2 * picture - 128 for picture in noise(SIZES, seed=1)]
    curvature = [0.1 + 40 * (picture / 255) ** 3 for picture in noise(SIZES, seed=2)]
    start, scale = noise(SIZES), torch.tensor([0.0, 1e-5, 0.0, 1e-4])
    together = OPTIMIZERS[name](pixels.pack(start), rate, scale, sizes=SIZES)
    alone = [OPTIMIZERS[name](picture, rate, scale[i : i + 1]) for i, picture in enumerate(start)]
    wide, deep = pixels.pack(minimum), pixels.pack(curvature)
    for step in range(30):
        off = together.trial - wide
        accepted = together.observe((deep * off.square()).flatten(1).sum(1), deep * off)
        for i, optimizer in enumerate(alone):
            off = optimizer.trial - minimum[i]
            kept = optimizer.observe((curvature[i] * off.square()).flatten(1).sum(1), curvature[i] * off)
            assert kept.item() == accepted[i].item(), step
        for optimizer, trial in zip(alone, pixels.unpack(together.trial), strict=True):
            torch.testing.assert_close(trial, optimizer.trial, rtol=1e-8, atol=1e-7)
    assert torch.equal(pixels.clear_(together.trial.clone()), together.trial)
    expected = torch.cat([optimizer.step_scale for optimizer in alone])
    torch.testing.assert_close(together.step_scale, expected, rtol=1e-8, atol=0)


PHOTOS = [(24, 48), (48, 33), (48, 48), (25, 48)]


def painted(
    settings: dict[str, Any], which: list[int], canvas: tuple[int, int] = (0, 0)
) -> tuple[Stylized, list[Step]]:
    """Some of the pictures PHOTOS painted together, in float64."""
    recipe, exact = network({"min_size": 24, "size": 48, "steps": 6} | SHALLOW | settings)
    contents, styles = smooth(PHOTOS, 1), smooth([(40, 52)] * 4, 2)
    masks = [torch.zeros(1, 1, *size, dtype=torch.float64) for size in PHOTOS]
    for mask in masks:
        mask[..., : mask.shape[3] // 2] = 1
    guides = [
        [Guide((styles[i],), (1.0,), 0.25, masks[i]), Guide((styles[3 - i],), (1.0,), 0.75, 1 - masks[i])]
        if settings.get("pooling") == "avg"
        else whole(styles[i])
        for i in which
    ]
    run = stylize([contents[i] for i in which], guides, recipe, lambda _: exact, canvas=canvas)
    return finish(run)


def smooth(sizes: list[tuple[int, int]], seed: int) -> list[Tensor]:
    """Smooth pictures of these sizes."""
    return [
        torch.nn.functional.interpolate(255 * random(1, 3, 6, 6, seed=10 * seed + i), size, mode="bilinear")
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"init": "noise", "seed": 3}, marks=pytest.mark.slow),
        pytest.param({"init": "style", "preserve_color": "histogram"}, marks=pytest.mark.slow),
        {"preserve_color": "luminance", "optimizer": "adam"},
        {"pooling": "avg"},  # with masks
        pytest.param({"optimizer": "sgd", "learning_rate": 0.02}, marks=pytest.mark.slow),
    ],
)
def test_whole_paintings_are_each_pictures_own(settings: dict[str, Any]) -> None:
    together, steps = painted(settings, [0, 1, 2, 3], (48, 64))
    assert [step.scale for step in steps] == [24] * 2 + [48] * 6
    assert steps[0].pixels == 24 * 32 and steps[-1].pixels == 48 * 64
    check_painted(settings, together, steps)


@pytest.mark.parametrize("pooling", ["max", "avg"])  # with masks
def test_paintings_in_octaves_are_each_pictures_own(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "LAYOUT_SIZE", 16)
    settings = {"octaves": True, "pooling": pooling}
    together, steps = painted(settings, [0, 1, 2, 3], (48, 64))
    assert steps[-1].pixels == 48 * 64 + 24 * 32 + 12 * 16
    check_painted(settings, together, steps)


def check_painted(settings: dict[str, Any], together: Stylized, steps: list[Step]) -> None:
    """Assert that each of PHOTOS was painted together with the others as it is alone."""
    for i, size in enumerate(PHOTOS):
        alone, own = painted(settings, [i])
        assert together.pictures[i].shape == (1, 3, *size)
        torch.testing.assert_close(together.pictures[i], alone.pictures[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.losses.total[i : i + 1], alone.losses.total, rtol=1e-8, atol=0)
        for step, expected in zip(steps, own, strict=True):
            torch.testing.assert_close(step.losses.total[i : i + 1], expected.losses.total, rtol=1e-8, atol=0)
            torch.testing.assert_close(step.render()[i], expected.render()[0], rtol=0, atol=1e-6)


def curve_of(steps: list[Step], picture: int) -> list[float]:
    """The totals of a picture for as long as it was active."""
    return [float(step.losses.total[step.active.index(picture)]) for step in steps if picture in step.active]


def batches_of(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Collects the shapes of the batches (B, height, width) that the network sees, style pictures left out."""
    seen: list[tuple[int, ...]] = []
    real = backbone.forward

    def forward(pictures: Tensor, *rest: Any, **options: Any) -> dict[str, Tensor]:
        if len(rest) == 3 or options.get("canvas"):
            seen.append((len(pictures), *pictures.shape[2:]))
        return real(pictures, *rest, **options)

    monkeypatch.setattr(backbone, "forward", forward)
    return seen


@pytest.mark.parametrize(("early", "places"), [pytest.param([2], {5}, marks=pytest.mark.slow), ([0, 2, 4], {5, 2})])
def test_a_picture_that_stops_leaves_its_place_until_half_are_free(
    monkeypatch: pytest.MonkeyPatch, early: list[int], places: set[int]
) -> None:
    recipe, exact = network({"size": 32, "min_size": 32, "steps": 22, "tolerance": 0.02} | SHALLOW)
    sizes = [(21, 32), (32, 32), (21, 32), (32, 32), (27, 32)]
    contents, styles = smooth(sizes, 1), smooth([(40, 52)] * 5, 2)
    for i in early:  # nothing to gain: their own styles
        styles[i] = contents[i] = contents[i] / 50 + 100
    guides = [whole(style) for style in styles]
    runs = {}
    for keeps in (True, False):
        monkeypatch.setattr(stylize_module, "keeps_shapes", lambda _, keeps=keeps: keeps)
        with monkeypatch.context() as patch:
            shapes = batches_of(exact, patch)
            runs[keeps] = *finish(stylize(contents, guides, recipe, lambda _: exact, canvas=(32, 32))), shapes
    kept, steps, shapes = runs[True]
    dropped, expected, others = runs[False]
    assert set(shapes) == {(count, 32, 32) for count in places}
    assert set(others) == {(count, 32, 32) for count in (5, 5 - len(early))}
    assert [step.active for step in steps] == [step.active for step in expected]
    assert steps[-1].active == [i for i in range(5) if i not in early]
    for i in range(5):
        torch.testing.assert_close(curve_of(steps, i), curve_of(expected, i), rtol=1e-7, atol=0)
        torch.testing.assert_close(kept.pictures[i], dropped.pictures[i], rtol=0, atol=1e-5)
    assert kept.stopped == dropped.stopped
    torch.testing.assert_close(kept.losses.total, dropped.losses.total, rtol=1e-7, atol=0)


@pytest.mark.slow
def test_what_explodes_in_a_mixed_batch_is_painted_again() -> None:
    exploding = {"optimizer": "sgd", "learning_rate": 10.0, "loss": "neural-style"}
    recipe, exact = network({"size": 48, "min_size": 48, "steps": 20, **exploding})
    contents = smooth([(48, 33), (40, 48)], 1)
    result, steps = finish(stylize(contents, [whole(*smooth([(48, 48)], 2))] * 2, recipe, lambda _: exact))
    assert result.stopped == ["diverged", "diverged"]
    assert [picture.shape for picture in result.pictures] == [content.shape for content in contents]
    assert (result.losses.total < steps[0].losses.total).all()
