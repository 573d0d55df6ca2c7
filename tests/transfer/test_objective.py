from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from batchnst.backbones import layer_names
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.recipe import LOSSES, Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.losses import Region, gram_matrix, guide
from batchnst.transfer.objective import Objective
from tests import oracles
from tests.helpers import CPU, canvas_for, in_double

STYLES = {"alexnet": (64, 67), "vgg16": (33, 35), "vgg19": (33, 35)}
"""Height and width of the style pictures: just enough for a position in the last layer."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_objectives_gradient_is_that_of_its_total(vgg: Backbone, loss: str) -> None:
    # All in float64, against a finite difference along a random direction.
    recipe = Recipe(loss=loss, content_layers={"relu2_1": 1}, style_layers={"relu1_1": 0.5, "relu2_1": 2})
    exact = in_double(vgg)
    pictures, content, style = (random(2, 3, 24, 32, seed=seed) * 255 for seed in range(3))
    features, painted = exact(content), exact(style)
    objective = Objective(
        exact,
        recipe,
        {"relu2_1": features["relu2_1"]},
        [Region({name: gram_matrix(painted[name]) for name in recipe.style_layers}, {}, torch.ones(2).double())],
        canvas_for(exact, *[(24, 32)] * 2),
    )
    losses, gradient = objective(pictures)
    assert losses.total.shape == (2,)
    direction = random(2, 3, 24, 32, seed=9) - 0.5
    step = 1e-4
    ahead, behind = (objective(pictures + sign * step * direction)[0].total for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum((1, 2, 3)), slope, rtol=1e-5)


def test_losses_belong_to_one_picture_each(vgg: Backbone) -> None:
    recipe = Recipe()
    pictures, content, style = (random(3, 3, 32, 32, seed=seed).float() * 255 for seed in range(3))
    with torch.no_grad():
        c, s = vgg(content), vgg(style)

    def objective(which: slice) -> Objective:
        grams = {name: gram_matrix(s[name][which]) for name in recipe.style_layers}
        everywhere = Region(grams, {}, torch.ones(len(pictures[which])))
        canvas = canvas_for(vgg, *[(32, 32)] * len(pictures[which]))
        return Objective(vgg, recipe, {"relu4_2": c["relu4_2"][which]}, [everywhere], canvas)

    together, gradients = objective(slice(0, 3))(pictures)
    for i in range(3):
        alone, gradient = objective(slice(i, i + 1))(pictures[i : i + 1])
        torch.testing.assert_close(together.total[i], alone.total[0], rtol=1e-4, atol=0)
        assert float((gradients[i] - gradient[0]).norm() / gradient.norm()) < 1e-3


def objective_of(settings: dict[str, Any], height: int, width: int, masked: bool = False) -> Objective:
    """The objective, in float64, of a batch of two noisy pictures in the style of others."""
    random_weights = {"weights": "random"} if settings.get("backbone", "vgg19") != "vgg19" else {}
    recipe = Recipe.from_settings({"precision": "fp32", **random_weights, **settings})
    network = in_double(load_backbone(recipe, load_weights(*recipe.network), CPU))
    with torch.no_grad():
        shown = network(255 * random(2, 3, height, width, seed=1))
        seeds, size = (2, 3) if masked else (2,), STYLES[recipe.backbone]
        painted = [network(255 * random(2, 3, *size, seed=seed)) for seed in seeds]
    regions = []
    for part, seed in zip(painted, (4, 5), strict=False):
        mask = random(2, 1, height, width, seed=seed)
        grams = {name: gram_matrix(part[name]) for name in recipe.style_layers}
        guides = {name: guide(mask, *shown[name].shape[2:]) for name in recipe.style_layers}
        regions.append(Region(grams, guides if masked else {}, torch.tensor([0.25, 0.5], dtype=torch.float64)))
    content = {name: shown[name] for name in recipe.content_layers}
    canvas = canvas_for(network, *[(height, width)] * 2)
    return Objective(network, recipe, content, regions, canvas)


def check(objective: Objective, pictures: Tensor) -> None:
    losses, gradient = objective(pictures)
    total, expected = oracles.differentiate(objective, pictures)
    torch.testing.assert_close(losses.total, total, rtol=1e-12, atol=0)
    assert gradient.shape == pictures.shape
    assert float((gradient - expected).abs().max() / expected.abs().max()) < 1e-10


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_is_autograds(loss: str, masked: bool, channels: int) -> None:
    check(objective_of({"loss": loss}, 23, 31, masked), 255 * random(2, channels, 23, 31))


@pytest.mark.parametrize(
    ("backbone", "layer", "pooling"),
    [
        *(("alexnet", name, "max") for name in layer_names("alexnet")),
        *(("vgg19", name, "max") for name in layer_names("vgg19")[:14]),
        *((backbone, "relu5_1", "max") for backbone in ("vgg16", "vgg19")),
        ("vgg19", "pool3", "avg"),
        ("alexnet", "pool5", "avg"),
    ],
)
def test_every_layer_set_and_backbone(backbone: str, layer: str, pooling: str) -> None:
    first = layer_names(backbone)[0]
    settings = {"backbone": backbone, "pooling": pooling, "content_layers": [layer], "style_layers": [first, layer]}
    size = (75, 97) if backbone == "alexnet" else (37, 53)  # odd at every pooling of the layers tried
    check(objective_of(settings, *size), 255 * random(2, 3, *size))


@pytest.mark.parametrize("backbone", ["vgg19", "alexnet"])
def test_of_equal_maxima_the_same_one_wins_as_with_autograd(backbone: str) -> None:
    pictures = 255 * random(2, 3, 66, 90)
    pictures[..., 20:60, 30:] = 100
    check(objective_of({"backbone": backbone}, 66, 90), pictures)
