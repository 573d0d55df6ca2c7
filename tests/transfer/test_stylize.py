from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.sizes import fit
from batchnst.transfer import stylize as module
from batchnst.transfer.color import luminance
from batchnst.transfer.pyramid import Scale, resize, scales, work
from batchnst.transfer.stylize import Guide, stylize
from batchnst.transfer.tiling import gram_matrices
from batchnst.transfer.weights import Weights
from tests.helpers import CPU, finish, in_double, load, paint, whole


@pytest.mark.slow
def test_the_same_pair_alone_and_in_a_batch_of_four(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=64, steps=20, min_size=32)
    contents = [load(images / name, recipe)[..., :40, :56] for name in ("coffee.png", "rocket.jpg")] * 2
    styles = [load(images / name, recipe) for name in ("swirls.png", "woodcut.png")]
    guides = [whole(styles[0]), whole(styles[0]), whole(styles[1]), whole(styles[1])]
    together, _ = paint(contents, guides, recipe, weights)
    for i in (0, 3):
        alone, _ = paint(contents[i : i + 1], [guides[i]], recipe, weights)
        assert abs(together.losses.total[i] / alone.losses.total[0] - 1) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rate"), [("adam", None), ("sgd", 1e-4)])  # sgd explodes at its default rate
def test_different_pairs_in_a_batch_with_the_other_optimisers(
    images: Path, weights: Weights, optimizer: str, rate: float | None
) -> None:
    recipe = Recipe(size=64, steps=15, optimizer=optimizer, learning_rate=rate)
    contents = [load(images / name, recipe)[..., :40, :64] for name in ("coffee.png", "rocket.jpg")]
    guides = [whole(load(images / name, recipe)) for name in ("swirls.png", "woodcut.png")]
    together, _ = paint(contents, guides, recipe, weights)
    assert together.stopped == ["steps", "steps"]
    for i in range(2):
        alone, _ = paint(contents[i : i + 1], [guides[i]], recipe, weights)
        torch.testing.assert_close(together.losses.total[i : i + 1], alone.losses.total, rtol=0.02, atol=0)


@pytest.mark.parametrize("optimizer", ["lbfgs", pytest.param("adam", marks=pytest.mark.slow)])
def test_it_paints(images: Path, weights: Weights, optimizer: str) -> None:
    recipe = Recipe(size=48, steps=20, min_size=24, tolerance=0, optimizer=optimizer)
    content = load(images / "astronaut.png", recipe)
    result, steps = paint([content], [whole(load(images / "swirls.png", recipe))], recipe, weights)
    totals = [float(step.losses.total) for step in steps if step.scale == 48]
    assert result.losses.total.item() == min(totals)
    assert min(totals) < 0.2 * totals[0]
    assert result.pictures[0].min() >= 0 and result.pictures[0].max() <= 255
    assert [step.scale for step in steps] == [24] * 5 + [48] * 20
    assert [step.index for step in steps] == list(range(25))
    assert steps[-1].share == 1


def test_lbfgs_losses_never_rise_within_a_scale_and_end_at_the_written_pictures(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=48, steps=15, min_size=48)
    content = load(images / "astronaut.png", recipe)
    result, steps = paint([content], [whole(load(images / "woodcut.png", recipe))], recipe, weights)
    totals = torch.cat([step.losses.total for step in steps])
    assert (totals.diff() <= 0).all()
    assert totals[-1] == result.losses.total[0]


def test_fp32_is_the_same_byte_for_byte(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=48, steps=6, init="noise", seed=5)
    content, style = load(images / "chelsea.png", recipe), load(images / "ihc.png", recipe)
    first, second = (paint([content], [whole(style)], recipe, weights)[0].pictures[0] for _ in range(2))
    assert torch.equal(first, second)
    other = paint([content], [whole(style)], recipe.model_copy(update={"seed": 6}), weights)[0].pictures[0]
    assert not torch.equal(first, other)


def test_two_equal_styles_are_one(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=48, steps=5)
    content, style = load(images / "coffee.png", recipe), load(images / "swirls.png", recipe)
    one, _ = paint([content], [whole(style)], recipe, weights)
    two, _ = paint([content], [[Guide((style, style.clone()), (0.25, 0.75))]], recipe, weights)
    torch.testing.assert_close(one.losses.total, two.losses.total, rtol=1e-4, atol=0)


def test_masks_of_ones_are_no_masks(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=48, steps=5)
    content, style = load(images / "coffee.png", recipe), load(images / "swirls.png", recipe)
    ones = torch.ones(1, 1, *content.shape[2:]), torch.ones(1, 1, *style.shape[2:])
    free, _ = paint([content], [whole(style)], recipe, weights)
    masked, _ = paint([content], [[Guide((style,), (1.0,), 1.0, *ones)]], recipe, weights)
    parts, _ = paint([content], [[Guide((style,), (1.0,), share, *ones) for share in (0.3, 0.7)]], recipe, weights)
    torch.testing.assert_close(masked.losses.total, free.losses.total, rtol=1e-4, atol=0)
    torch.testing.assert_close(parts.losses.total, free.losses.total, rtol=1e-4, atol=0)


def test_each_part_gets_its_own_style(images: Path, weights: Weights) -> None:
    # Two flat styles: one half must turn bright, the other dark.
    recipe = Recipe(size=48, steps=15, min_size=48, content_weight=0, style_layers={"relu1_1": 1.0, "relu2_1": 1.0})
    content = load(images / "astronaut.png", recipe)
    left = torch.zeros(1, 1, 48, 48)
    left[..., :24] = 1
    bright, dark = torch.full((1, 3, 48, 48), 230.0), torch.full((1, 3, 48, 48), 20.0)
    brighter = []
    for first, second in ((bright, dark), (dark, bright)):
        parts = [Guide((first,), (1.0,), 0.5, left), Guide((second,), (1.0,), 0.5, 1 - left)]
        result, _ = paint([content], [parts], recipe, weights)
        brighter.append(result.pictures[0][..., 4:20].mean() - result.pictures[0][..., 28:44].mean())
    assert brighter[0] - brighter[1] > 80


def test_a_start_of_the_users_own_is_where_it_starts(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=48, steps=2)
    content, start = load(images / "astronaut.png", recipe), torch.full((1, 3, 48, 48), 77.0)
    _, steps = paint([content], [whole(content)], recipe, weights, [start])
    assert torch.equal(steps[0].render()[0], start)


@pytest.mark.parametrize("init", ["content", "noise", "style"])
def test_where_it_starts(images: Path, weights: Weights, init: str) -> None:
    recipe = Recipe(size=48, steps=1, init=init)
    content, style = load(images / "coffee.png", recipe), load(images / "woodcut.png", recipe)
    _, steps = paint([content], [whole(style)], recipe, weights)
    start = steps[0].render()[0]
    assert start.shape == content.shape
    if init == "content":
        assert torch.equal(start, content)
    elif init == "style":
        assert torch.equal(start, resize(style, 48, 32))
    else:
        assert abs(start.mean() - 127.5) < 3
        assert abs(start.std() - 255 / 12**0.5) < 3


def test_a_finer_scale_keeps_the_fine_detail_that_the_coarser_one_has_not_seen(images: Path, weights: Weights) -> None:
    # One step at the coarse scale changes nothing yet: the fine scale must begin at the content itself.
    recipe = Recipe(size=96, steps=1, min_size=48)
    content, style = load(images / "coffee.png", recipe), load(images / "swirls.png", recipe)
    _, steps = paint([content], [whole(style)], recipe, weights)
    assert [step.scale for step in steps] == [48, 96]
    torch.testing.assert_close(steps[1].render()[0], content, rtol=0, atol=1e-3)


def test_a_style_is_measured_once_for_as_long_as_it_is_in_memory(
    images: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(size=64, steps=2, min_size=32)
    content, style = load(images / "coffee.png", recipe), load(images / "swirls.png", recipe)
    measured = 0

    def counting(*arguments: Any) -> dict[str, Tensor]:
        nonlocal measured
        measured += 1
        return gram_matrices(*arguments)

    monkeypatch.setattr(module, "gram_matrices", counting)
    first, _ = paint([content], [whole(style)], recipe, weights)
    assert measured == 2  # scales
    second, _ = paint([content], [whole(style)], recipe, weights)
    assert measured == 2
    assert torch.equal(first.pictures[0], second.pictures[0])
    known = len(module._measured)
    del style
    assert len(module._measured) == known - 1


def test_luminance_keeps_the_photos_colours_and_writes_what_it_scores(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=48, steps=8, preserve_color="luminance")
    content, style = load(images / "astronaut.png", recipe), load(images / "swirls.png", recipe)
    result, _ = paint([content], [whole(style)], recipe, weights)
    painted, photo = result.pictures[0], content
    chroma, own = painted - luminance(painted), photo - luminance(photo)
    assert torch.nn.functional.cosine_similarity(chroma.flatten(), own.flatten(), dim=0) > 0.97
    # Starting from the written picture, the loss is the one that was reported.
    _, steps = paint([content], [whole(style)], recipe.model_copy(update={"steps": 1}), weights, [painted])
    torch.testing.assert_close(steps[0].losses.total, result.losses.total, rtol=1e-3, atol=0)


def test_a_picture_on_its_plateau_stops_and_costs_no_more(images: Path, weights: Weights) -> None:
    # In float64: in fewer bits, roundings grow to percents.
    layers: dict[str, Any] = {"content_layers": "relu2_1", "style_layers": "relu1_1,relu2_1"}
    recipe = Recipe(size=32, steps=40, min_size=32, tolerance=0.03, precision="fp32", **layers)
    network = in_double(load_backbone(recipe, weights, CPU))
    content, style = (load(images / name, recipe).double() for name in ("astronaut.png", "swirls.png"))
    # The first picture is its own style and content: nothing to gain. The second has far to go.
    contents = [content, content]
    guides = [whole(content), whole(style)]
    result, steps = finish(stylize(contents, guides, recipe, lambda _: network))
    active = [step.active for step in steps]
    assert active[0] == [0, 1]
    assert active[-1] == [1]
    assert result.stopped[0] == "plateau"
    assert all(len(step.losses.total) == len(step.active) for step in steps)
    alone, _ = finish(stylize([content], [guides[1]], recipe, lambda _: network))
    torch.testing.assert_close(result.losses.total[1:], alone.losses.total, rtol=1e-3, atol=0)


def test_what_explodes_is_painted_again_in_a_safer_way(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=32, steps=12, optimizer="sgd", learning_rate=1e9)
    content, style = load(images / "astronaut.png", recipe), load(images / "swirls.png", recipe)
    contents = [content, content]
    result, steps = paint(contents, [whole(style), whole(style)], recipe, weights)
    assert result.stopped == ["diverged", "diverged"]
    best = torch.stack([step.losses.total for step in steps if len(step.active) == 2]).nan_to_num(torch.inf).amin(0)
    torch.testing.assert_close(result.losses.total, best)
    assert (result.losses.total < 0.2 * steps[0].losses.total).all()


def test_losses_beyond_all_numbers_end_as_diverged(images: Path, weights: Weights) -> None:
    recipe = Recipe(size=32, steps=10, loss="neural-style", style_weight=1e38)
    content, style = load(images / "astronaut.png", recipe), load(images / "swirls.png", recipe)
    result, _ = paint([content], [whole(style)], recipe, weights)
    assert result.stopped == ["diverged"]
    assert not result.losses.total.isfinite().any()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_bf16_ends_within_two_percent_of_fp32(images: Path, weights: Weights, optimizer: str) -> None:
    totals = {}
    for precision in ("fp32", "bf16"):
        recipe = Recipe(size=128, steps=60, tolerance=0, precision=precision, optimizer=optimizer)
        content, style = load(images / "coffee.png", recipe), load(images / "swirls.png", recipe)
        painted, _ = paint([content], [whole(style)], recipe, weights)
        exact = recipe.model_copy(update={"precision": "fp32", "steps": 1})
        _, steps = paint([content], [whole(style)], exact, weights, painted.pictures)
        totals[precision] = steps[0].losses.total.item()
        assert painted.losses.total.item() == pytest.approx(totals[precision], rel=0.02)
    assert totals["bf16"] == pytest.approx(totals["fp32"], rel=0.02)


def test_scales_halve_down_to_min_size_and_stop_where_layers_go_blind() -> None:
    recipe = Recipe(size=512, steps=80, min_size=128)
    assert scales(recipe, 512, 384) == [Scale(128, 20), Scale(256, 80), Scale(512, 40)]
    assert scales(recipe, 512, 60) == [Scale(256, 80), Scale(512, 40)]
    assert scales(recipe, 2048, 1536)[2:] == [Scale(512, 40), Scale(1024, 20), Scale(2048, 20)]
    assert scales(recipe, 300, 200) == [Scale(150, 20), Scale(300, 80)]
    assert scales(recipe, 380, 200) == [Scale(190, 80), Scale(380, 40)]
    assert scales(recipe.model_copy(update={"min_size": 512}), 512, 384) == [Scale(512, 80)]
    assert work(recipe, 512, 384) == 20 * 128 * 96 + 80 * 256 * 192 + 40 * 512 * 384


def test_octaves_reach_down_to_the_scale_of_the_layout_unless_layers_go_blind() -> None:
    recipe = Recipe(size=512, steps=80, octaves=True)
    assert scales(recipe, 512, 384) == [Scale(128, 20), Scale(256, 80), Scale(512, 40, 2)]
    assert [scale.octaves for scale in scales(recipe, 2048, 1536)] == [1, 1, 2, 3, 4]
    assert [scale.octaves for scale in scales(recipe, 380, 200)] == [1, 2]
    assert [scale.octaves for scale in scales(recipe, 2048, 40)] == [1, 2]  # a quarter has 10 rows, and 16 are needed
    assert work(recipe, 512, 384) == 20 * 128 * 96 + 80 * 256 * 192 + 40 * (512 * 384 + 256 * 192)


@pytest.mark.parametrize(("length", "target"), [(8192, 128), (6016, 128), (20000, 64), (130, 128)])
def test_no_pass_of_a_resize_is_too_much_for_cudas_shared_memory(
    monkeypatch: pytest.MonkeyPatch, length: int, target: int
) -> None:
    real, ratios = F.interpolate, []

    def interpolate(pictures: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
        ratios.append(pictures.shape[-1] / size[-1])
        return real(pictures, size, **options)

    monkeypatch.setattr(F, "interpolate", interpolate)
    picture = torch.linspace(0, 255, length).expand(1, 1, 2, length)
    resized = resize(picture, target, 2)
    assert all(260 * (4 * ratio + 1) <= 48 * 1024 for ratio in ratios)
    middles = (torch.arange(target) + 0.5) * 255 / target
    torch.testing.assert_close(resized[0, 0, 0], middles, rtol=0, atol=2)


def test_fit_and_resize_agree_and_stay_in_the_box() -> None:
    assert fit(640, 427, 256) == (256, 171)
    assert fit(3, 1000, 100) == (1, 100)
    sharp = (torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0)) > 0.5) * 255.0
    smaller = resize(sharp, 30, 20)
    assert smaller.shape == (1, 3, 20, 30)
    assert smaller.min() >= 0 and smaller.max() <= 255
