"""Style transfer as it is usually written, as a baseline: one pair, fp32, one scale, torch's L-BFGS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchnst.backbones import BACKBONES
from batchnst.recipe import Recipe
from batchnst.transfer.device import synchronize
from batchnst.transfer.weights import Weights

STEPS = 500
"""Steps of the textbook loop."""

MEASURE_EVERY = 10
"""Steps between two measurements of the loss of the clamped picture; the clock is stopped meanwhile."""

LOSS_SCALES = {"neural-style": 1e-4, "balanced": 1e4}
"""Factor of each loss. The first step is as long as the gradient: without a factor so long or short that the loop ends.
"""


@dataclass(frozen=True)
class Moment:
    """The total and content loss after `step` steps and `seconds`, of the picture clamped to 0..255."""

    step: int
    seconds: float
    total: float
    content: float


class Textbook:
    """The textbook loop on one pair: content and style (1, 3, h, w), RGB, 0..255, float32, on the device to run on.

    It uses the layers and weights of `recipe`; the loss is `neural-style` or `balanced`.
    """

    def __init__(self, content: Tensor, style: Tensor, recipe: Recipe, weights: Weights) -> None:
        self.recipe, self.device = recipe, content.device
        self.mean = torch.tensor(weights.mean, device=self.device).view(1, 3, 1, 1)
        self.network = _torchvision(recipe.backbone, weights).to(self.device)
        with torch.no_grad():
            content_features, style_features = self._features(content), self._features(style)
        self.content = {name: content_features[name] for name in recipe.content_layers}
        self.grams = {name: _gram(style_features[name]) for name in recipe.style_layers}
        self.picture = content.clone(memory_format=torch.contiguous_format)

    def run(self, steps: int = STEPS, on_moment: Callable[[Moment], None] = lambda moment: None) -> list[Moment]:
        """Optimise `self.picture` and clamp it at the end; returns Moments, the last one at the end."""
        x = self.picture.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [x], max_iter=steps, max_eval=steps, history_size=100, tolerance_grad=0, tolerance_change=0
        )
        moments: list[Moment] = []
        started, step = self._now(), 0

        def measure() -> None:
            nonlocal started
            now = self._now()
            with torch.no_grad():
                total, content = (term.item() for term in self._losses(x.clamp(0, 255)))
            moments.append(Moment(step, now - started, total, content))
            on_moment(moments[-1])
            started += self._now() - now

        def closure() -> Tensor:
            nonlocal step
            if step % MEASURE_EVERY == 0:
                measure()
            step += 1
            optimizer.zero_grad()
            loss = LOSS_SCALES[self.recipe.loss] * self._losses(x)[0]
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        measure()
        self.picture = x.detach().clamp(0, 255)
        return moments

    def _losses(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """The total loss and its weighted content term."""
        recipe, features = self.recipe, self._features(picture)
        distance: Callable[[Tensor, Tensor], Tensor] = F.mse_loss
        weights, values = recipe.style_layers, 1
        if recipe.loss == "balanced":
            distance, values = _relative_distance, 255 * picture.numel()
            weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        content, style = picture.new_zeros(()), picture.new_zeros(())
        for name, weight in recipe.content_layers.items():
            content = content + weight * distance(features[name], self.content[name])
        for name, weight in weights.items():
            style = style + weight * distance(_gram(features[name]), self.grams[name])
        variation = (picture.diff(dim=-1).abs().sum() + picture.diff(dim=-2).abs().sum()) / values
        content = recipe.content_weight * content
        return content + recipe.style_weight * style + recipe.tv_weight * variation, content

    def _features(self, picture: Tensor) -> dict[str, Tensor]:
        """The output of every layer up to the deepest one that is needed, by name."""
        x, features, deepest = picture - self.mean, {}, self.recipe.deepest_layer
        for name, layer in self.network.named_children():
            x = layer(x)
            features[name] = x
            if name == deepest:
                break
        return features

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def _relative_distance(values: Tensor, target: Tensor) -> Tensor:
    """Σ(v − t)² / Σt²."""
    return (values - target).square().sum() / target.square().sum()


def _gram(features: Tensor) -> Tensor:
    """The Gram matrix (C, C) of features (1, C, h, w), divided by C·h·w."""
    flat = features.flatten(2)[0]
    return flat @ flat.T / flat.numel()


def _torchvision(backbone: str, weights: Weights) -> nn.Sequential:
    """The convolutional part of torchvision's `backbone` with `weights`; its modules have the papers' layer names."""
    from torchvision.models import get_model  # here, because it takes seconds

    named = nn.Sequential()
    with torch.device("meta"):  # allocates no memory for weights that are replaced or left out
        features = get_model(backbone).features
    for layer, module in zip(BACKBONES[backbone].layers, features, strict=True):
        if layer.is_convolution:
            module.weight = nn.Parameter(torch.tensor(weights.tensors[f"{layer.name}.weight"]))
            module.bias = nn.Parameter(torch.tensor(weights.tensors[f"{layer.name}.bias"]))
        named.add_module(layer.name, nn.ReLU(inplace=False) if isinstance(module, nn.ReLU) else module)
    return named.requires_grad_(False)
