"""Style transfer as everybody writes it, to be measured against: one pair, fp32, one scale, torch's own L-BFGS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from batchnst.backbones import BACKBONES
from batchnst.recipe import Recipe
from batchnst.transfer.device import synchronize
from batchnst.transfer.weights import Weights

STEPS = 500
LOOK_EVERY = 10
"""Steps between two looks at the loss of the picture as it would be written; the clock stands still meanwhile."""

SCALE = 1e-4
"""The loss is scaled down, or the first step, as long as the gradient, would be the last."""


@dataclass(frozen=True)
class Moment:
    """Where the loop is after `seconds`: the losses of the clamped picture, which is the one that can be written."""

    step: int
    seconds: float
    total: float
    content: float


class Textbook:
    """The loop on one pair: content and style (1, 3, h, w), RGB, 0..255, float32, on the device to run on.

    Of the recipe it takes layers and weights; the loss is `neural-style`.
    """

    def __init__(self, content: Tensor, style: Tensor, recipe: Recipe, weights: Weights) -> None:
        self.recipe, self.device = recipe, content.device
        self.mean = torch.tensor(weights.mean, device=self.device).view(1, 3, 1, 1)
        self.network = _torchvision(recipe.backbone, weights).to(self.device)
        with torch.no_grad():
            shown, painted = self._features(content), self._features(style)
        self.content = {name: shown[name] for name in recipe.content_layers}
        self.grams = {name: _gram(painted[name]) for name in recipe.style_layers}
        self.picture = content.clone(memory_format=torch.contiguous_format)

    def run(self, steps: int = STEPS, on_look: Callable[[Moment], None] = lambda moment: None) -> list[Moment]:
        """Optimise `self.picture` and clamp it at the end; returns a look now and then, the last one at the end."""
        x = self.picture.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [x], max_iter=steps, max_eval=steps, history_size=100, tolerance_grad=0, tolerance_change=0
        )
        moments: list[Moment] = []
        started, step = self._now(), 0

        def look() -> None:
            nonlocal started
            now = self._now()
            with torch.no_grad():
                total, content = (term.item() for term in self._losses(x.clamp(0, 255)))
            moments.append(Moment(step, now - started, total, content))
            on_look(moments[-1])
            started += self._now() - now

        def closure() -> Tensor:
            nonlocal step
            if step % LOOK_EVERY == 0:
                look()
            step += 1
            optimizer.zero_grad()
            loss = SCALE * self._losses(x)[0]
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        look()
        self.picture = x.detach().clamp(0, 255)
        return moments

    def _losses(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """The total and its content term."""
        recipe, features = self.recipe, self._features(picture)
        content, style = picture.new_zeros(()), picture.new_zeros(())
        for name, weight in recipe.content_layers.items():
            content = content + weight * F.mse_loss(features[name], self.content[name])
        for name, weight in recipe.style_layers.items():
            style = style + weight * F.mse_loss(_gram(features[name]), self.grams[name])
        variation = picture.diff(dim=-1).abs().sum() + picture.diff(dim=-2).abs().sum()
        content = recipe.content_weight * content
        return content + recipe.style_weight * style + recipe.tv_weight * variation, content

    def _features(self, picture: Tensor) -> dict[str, Tensor]:
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


def _gram(features: Tensor) -> Tensor:
    flat = features.flatten(2)[0]
    return flat @ flat.T / flat.numel()


def _torchvision(backbone: str, weights: Weights) -> nn.Sequential:
    """The features of torchvision's network, by the papers' layer names, with these weights."""
    named = nn.Sequential()
    with torch.device("meta"):  # no memory for what is replaced, or left out
        features = get_model(backbone).features
    for own, layer in zip(BACKBONES[backbone].layers, features, strict=True):
        if own.is_convolution:
            layer.weight = nn.Parameter(torch.tensor(weights.tensors[f"{own.name}.weight"]))
            layer.bias = nn.Parameter(torch.tensor(weights.tensors[f"{own.name}.bias"]))
        named.add_module(own.name, nn.ReLU(inplace=False) if isinstance(layer, nn.ReLU) else layer)
    return named.requires_grad_(False)
