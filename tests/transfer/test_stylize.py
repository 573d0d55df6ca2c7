from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from batchnst.engine.loading import load_picture, to_tensors
from batchnst.recipe import Recipe, fit
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.pyramid import Scale, resize, scales, work
from batchnst.transfer.stylize import Blend, Step, Stylized, stylize

CPU = torch.device("cpu")


def load(path: Path, recipe: Recipe) -> Tensor:
    return to_tensors([load_picture(str(path), recipe.size, recipe).pixels], CPU)


def paint(contents: Tensor, blends: list[Blend], recipe: Recipe, backbone: Backbone) -> Stylized:
    painting = stylize(contents, blends, recipe, backbone)
    while True:
        try:
            next(painting)
        except StopIteration as end:
            result: Stylized = end.value
            return result


def test_the_same_pair_alone_and_in_a_batch_of_four(images: Path, vgg: Backbone) -> None:
    recipe = Recipe(size=128, steps=40, min_size=64)
    contents = torch.cat([load(images / name, recipe)[..., :80, :112] for name in ("coffee.png", "rocket.jpg")])
    contents = contents.repeat(2, 1, 1, 1)
    styles = [Blend((load(images / name, recipe),), (1.0,)) for name in ("swirls.png", "woodcut.png")]
    blends = [styles[0], styles[0], styles[1], styles[1]]
    together = paint(contents, blends, recipe, vgg)
    for i in (0, 3):
        alone = paint(contents[i : i + 1], [blends[i]], recipe, vgg)
        assert abs(together.losses.total[i] / alone.losses.total[0] - 1) < 0.02


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_it_paints(images: Path, vgg: Backbone, optimizer: str) -> None:
    recipe = Recipe(size=96, steps=30, min_size=48, optimizer=optimizer)  # type: ignore[arg-type]
    content = load(images / "astronaut.png", recipe)
    result = paint(content, [Blend((load(images / "swirls.png", recipe),), (1.0,))], recipe, vgg)
    totals = [float(step.losses.total) for step in result.history if step.scale == 96]
    assert result.losses.total.item() == min(totals)
    assert min(totals) < 0.2 * totals[0]
    assert result.pictures.min() >= 0 and result.pictures.max() <= 255
    assert [step.scale for step in result.history] == [48] * 12 + [96] * 30
    assert [step.index for step in result.history] == list(range(42))
    assert {step.of for step in result.history} == {42}


def test_lbfgs_losses_never_rise_within_a_scale_and_end_at_the_written_pictures(images: Path, vgg: Backbone) -> None:
    recipe = Recipe(size=64, steps=25, min_size=64)
    content = load(images / "astronaut.png", recipe)
    result = paint(content, [Blend((load(images / "woodcut.png", recipe),), (1.0,))], recipe, vgg)
    totals = torch.cat([step.losses.total for step in result.history])
    assert (totals.diff() <= 0).all()
    assert totals[-1] == result.losses.total[0]


def test_fp32_is_the_same_byte_for_byte(images: Path, vgg: Backbone) -> None:
    recipe = Recipe(size=64, steps=6, init="noise", seed=5)
    content, style = load(images / "chelsea.png", recipe), Blend((load(images / "ihc.png", recipe),), (1.0,))
    first, second = (paint(content, [style], recipe, vgg).pictures for _ in range(2))
    assert torch.equal(first, second)
    other = paint(content, [style], recipe.model_copy(update={"seed": 6}), vgg).pictures
    assert not torch.equal(first, other)


def test_two_equal_styles_are_one(images: Path, vgg: Backbone) -> None:
    recipe = Recipe(size=64, steps=5)
    content, style = load(images / "coffee.png", recipe), load(images / "swirls.png", recipe)
    one = paint(content, [Blend((style,), (1.0,))], recipe, vgg)
    two = paint(content, [Blend((style, style.clone()), (0.25, 0.75))], recipe, vgg)
    torch.testing.assert_close(one.losses.total, two.losses.total, rtol=1e-4, atol=0)


def test_scales_halve_down_to_min_size_and_stop_where_layers_go_blind() -> None:
    recipe = Recipe(size=512, steps=80, min_size=128)
    assert scales(recipe, 384) == [Scale(128, 30), Scale(256, 30), Scale(512, 80)]
    assert scales(recipe, 60) == [Scale(256, 30), Scale(512, 80)]
    assert scales(recipe.model_copy(update={"min_size": 512}), 384) == [Scale(512, 80)]
    assert work(recipe, 512, 384) == 30 * 128 * 96 + 30 * 256 * 192 + 80 * 512 * 384


def test_fit_and_resize_agree_and_stay_in_the_box() -> None:
    assert fit(640, 427, 256) == (256, 171)
    assert fit(3, 1000, 100) == (1, 100)
    sharp = (torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0)) > 0.5) * 255.0
    smaller = resize(sharp, 30, 20)
    assert smaller.shape == (1, 3, 20, 30)
    assert smaller.min() >= 0 and smaller.max() <= 255


def test_every_step_is_yielded(images: Path, vgg: Backbone) -> None:
    recipe = Recipe(size=48, steps=3)
    content = load(images / "astronaut.png", recipe)
    steps = list(stylize(content, [Blend((content,), (1.0,))], recipe, vgg))
    assert [step.index for step in steps] == [0, 1, 2]
    assert all(isinstance(step, Step) and step.pixels == 48 * 48 for step in steps)
