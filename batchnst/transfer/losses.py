"""What is minimised: content, style and total variation, each one value a picture, shape (B,)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone


@dataclass(frozen=True)
class Losses:
    """The terms of the total, weighted, each (B,); and each style layer's own loss, unweighted, (B,)."""

    content: Tensor
    style: Tensor
    tv: Tensor
    style_layers: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """What is minimised, (B,)."""
        return self.content + self.style + self.tv

    @classmethod
    def stack(cls, steps: Sequence[Losses]) -> Losses:
        """The losses of T steps as one, each term (T, B), on the host."""
        return cls(
            content=torch.stack([step.content for step in steps]).cpu(),
            style=torch.stack([step.style for step in steps]).cpu(),
            tv=torch.stack([step.tv for step in steps]).cpu(),
            style_layers={
                name: torch.stack([step.style_layers[name] for step in steps]).cpu() for name in steps[0].style_layers
            },
        )

    def where(self, which: Tensor, otherwise: Losses) -> Losses:
        """These losses for the pictures in the mask (B,), the others' for the rest."""
        layers = self.style_layers
        return Losses(
            content=torch.where(which, self.content, otherwise.content),
            style=torch.where(which, self.style, otherwise.style),
            tv=torch.where(which, self.tv, otherwise.tv),
            style_layers={name: torch.where(which, layers[name], otherwise.style_layers[name]) for name in layers},
        )


@dataclass(frozen=True)
class Definition:
    """A loss definition: per-picture content loss and style loss of one layer, each (B,)."""

    content: Callable[[Tensor, Tensor], Tensor]
    style: Callable[[Tensor, Tensor], Tensor]


class _Gram(torch.autograd.Function):
    """FᵀF over positions; autograd's own derivative would multiply twice, and in another memory layout."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        positions = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h·w, C), a view when channels_last
        ctx.save_for_backward(positions)
        ctx.shape = features.shape
        exact = positions.to(torch.promote_types(features.dtype, torch.float32))
        return exact.mT @ exact / positions.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positions,), (gradient,) = ctx.saved_tensors, gradients
        symmetric = (gradient + gradient.mT) / positions.shape[1]
        batch, channels, height, width = ctx.shape
        moved: Tensor = positions @ symmetric.to(positions.dtype)
        return moved.view(batch, height, width, channels).permute(0, 3, 1, 2)


def gram_matrix(features: Tensor) -> Tensor:
    """Channel correlations (B, C, C), in float32 or better, as the mean over positions, of features (B, C, h, w).

    The papers sum over positions (Gatys et al. 2016, eq. 3); the mean makes pictures of different sizes compare.
    """
    gram: Tensor = _Gram.apply(features)
    return gram


def total_variation(pictures: Tensor) -> Tensor:
    """Σ|dx| + Σ|dy| over pictures (B, 3, H, W), (B,)."""
    across, down = pictures.diff(dim=-1).abs(), pictures.diff(dim=-2).abs()
    return across.sum((1, 2, 3)) + down.sum((1, 2, 3))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Σ(a − b)² of each picture, (B,)."""
    return (a - b).square().flatten(1).sum(1)


def _neural_style_content(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over channels and positions."""
    return _squares(features, target) / features[0].numel()


def _neural_style_style(gram: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of Gram/(C·H·W); ours is already divided by H·W."""
    return _squares(gram, target) / gram.shape[1] ** 4


def _gatys_content(features: Tensor, target: Tensor) -> Tensor:
    """½ Σ (F − P)² (Gatys et al. 2016, eq. 1)."""
    return _squares(features, target) / 2


def _gatys_style(gram: Tensor, target: Tensor) -> Tensor:
    """1/(4 N² M²) Σ (G − A)² (Gatys et al. 2016, eq. 4), M divided out of each Gram by its own picture."""
    return _squares(gram, target) / (4 * gram.shape[1] ** 2)


DEFINITIONS = {
    "neural-style": Definition(_neural_style_content, _neural_style_style),
    "gatys2016": Definition(_gatys_content, _gatys_style),
}


class Objective:
    """The losses of a batch of pictures against their targets, and their gradient.

    `content` maps layers to features (B, C, h, w), `style` to Gram matrices (B, C, C).
    """

    def __init__(
        self, backbone: Backbone, recipe: Recipe, content: dict[str, Tensor], style: dict[str, Tensor]
    ) -> None:
        self.backbone, self.recipe, self.content, self.style = backbone, recipe, content, style
        self.definition = DEFINITIONS[recipe.loss]

    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Losses of each picture, and each picture's gradient of its own total, (B, 3, H, W), for 0..255 pixels."""
        pictures = pictures.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._losses(pictures)
        (gradient,) = torch.autograd.grad(losses.total.sum(), pictures)
        detached = {name: loss.detach() for name, loss in losses.style_layers.items()}
        return Losses(losses.content.detach(), losses.style.detach(), losses.tv.detach(), detached), gradient

    def _losses(self, pictures: Tensor) -> Losses:
        recipe, features = self.recipe, self.backbone(pictures)
        content = torch.zeros(len(pictures), dtype=pictures.dtype, device=pictures.device)
        for name, weight in recipe.content_layers.items():
            content = content + weight * self.definition.content(features[name].to(pictures.dtype), self.content[name])
        layers = {name: self.definition.style(gram_matrix(features[name]), self.style[name]) for name in self.style}
        style = torch.stack([weight * layers[name] for name, weight in recipe.style_layers.items()]).sum(0)
        return Losses(
            content=recipe.content_weight * content,
            style=recipe.style_weight * style,
            tv=recipe.tv_weight * total_variation(pictures),
            style_layers=layers,
        )
