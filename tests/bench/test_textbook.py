"""The default recipe against what a user would run instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from batchnst import Recipe, stylize
from batchnst.backbones import BACKBONES
from batchnst.bench.textbook import Textbook
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.stylize import Guide
from batchnst.transfer.stylize import stylize as stylize_batch
from batchnst.transfer.weights import SOURCES, Weights
from tests import oracles

SIZE = 256


@pytest.mark.parametrize("backbone", BACKBONES)
def test_its_losses_are_ours_on_every_backbone(backbone: str) -> None:
    recipe, weights = Recipe(backbone=backbone, size=64, min_size=64), SOURCES["random"](backbone)
    content, style = torch.rand(2, 1, 3, 64, 48, generator=torch.Generator().manual_seed(2)) * 255
    moment, _ = Textbook(content, style, recipe, weights).run(steps=1)
    network = Backbone(backbone, weights, recipe.layers)
    first = next(stylize_batch([content], [[Guide((style,), (1.0,))]], recipe, lambda _: network))
    assert first.losses.total.item() == pytest.approx(moment.total, rel=1e-4)


@pytest.mark.slow
def test_the_default_recipe_ends_far_below_500_textbook_steps(images: Path, weights: Weights, tmp_path: Path) -> None:
    content, style = images / "astronaut.png", images / "swirls.png"
    pixels = [torch.from_numpy(oracles.fitted(path, SIZE)).permute(2, 0, 1)[None] for path in (content, style)]
    textbook = Textbook(pixels[0], pixels[1], Recipe(size=SIZE), weights)
    end = textbook.run()[-1]
    theirs = textbook.picture[0].permute(1, 2, 0).round().byte().numpy()
    Image.fromarray(np.ascontiguousarray(theirs)).save(tmp_path / "theirs.png")
    stylize(content, style, Recipe(size=SIZE)).picture.save(tmp_path / "ours.png")
    layers = oracles.torchvision_vgg19(weights)
    losses = {
        name: oracles.written_loss(layers, tmp_path / f"{name}.png", content, style, SIZE)
        for name in ("theirs", "ours")
    }
    assert end.total == pytest.approx(losses["theirs"], rel=0.01)
    assert losses["ours"] < 0.8 * losses["theirs"], losses
