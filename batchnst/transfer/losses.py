"""What is minimised: content, style and total variation, each one value a picture, shape (B,)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone

BLOCK = 4096
"""Positions that a CPU multiplies at once: few enough for their float32 copy to stay in its cache."""

EAGER_CALLS = 3
"""Calls of an objective on a GPU before it is recorded as a graph: libraries choose their algorithms meanwhile."""


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
    def cat(cls, parts: Sequence[Losses]) -> Losses:
        """The losses of several batches in one row, (ΣB,), on the host."""
        return cls(
            content=torch.cat([part.content for part in parts]).cpu(),
            style=torch.cat([part.style for part in parts]).cpu(),
            tv=torch.cat([part.tv for part in parts]).cpu(),
            style_layers={
                name: torch.cat([part.style_layers[name] for part in parts]).cpu() for name in parts[0].style_layers
            },
        )

    def copy(self) -> Losses:
        """The same losses in memory of their own."""
        return self._with(self, lambda mine, _: mine.clone())

    def select(self, which: Tensor) -> Losses:
        """The losses of some of the pictures."""
        layers = {name: loss[which] for name, loss in self.style_layers.items()}
        return Losses(self.content[which], self.style[which], self.tv[which], layers)

    def where(self, which: Tensor, otherwise: Losses) -> Losses:
        """These losses for the pictures in the mask (B,), the others' for the rest."""
        return self._with(otherwise, lambda mine, theirs: torch.where(which, mine, theirs))

    def put(self, places: Tensor, losses: Losses) -> Losses:
        """These losses, with others (b,) at some places (b,)."""
        return self._with(losses, lambda mine, theirs: mine.index_copy(0, places, theirs))

    def _with(self, other: Losses, combine: Callable[[Tensor, Tensor], Tensor]) -> Losses:
        layers = {name: combine(loss, other.style_layers[name]) for name, loss in self.style_layers.items()}
        return Losses(
            combine(self.content, other.content), combine(self.style, other.style), combine(self.tv, other.tv), layers
        )


@dataclass(frozen=True)
class Definition:
    """A loss definition: per-picture content loss and style loss of one layer, each (B,)."""

    content: Callable[[Tensor, Tensor], Tensor]
    style: Callable[[Tensor, Tensor], Tensor]


class _Gram(torch.autograd.Function):
    """FᵀF over positions, and F itself, whose gradient is added to the Gram's where it lies.

    Autograd's own derivative would multiply twice and add tensors of different memory layouts.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        positions = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h·w, C), a view when channels_last
        ctx.save_for_backward(positions)
        return features, _products(positions) / positions.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positions,), (upstream, gradient) = ctx.saved_tensors, gradients
        symmetric = ((gradient + gradient.mT) / positions.shape[1]).to(positions.dtype)
        batch, channels, height, width = upstream.shape
        own = (positions @ symmetric).add_(upstream.permute(0, 2, 3, 1).flatten(1, 2))
        derived: Tensor = own.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return derived


def _products(positions: Tensor) -> Tensor:
    """PᵀP, (B, C, C), summed in float32 or better, of positions (B, n, C)."""
    if positions.is_cuda and positions.dtype == torch.bfloat16:
        product: Tensor = torch.bmm(positions.mT, positions, out_dtype=torch.float32)
        return product
    batch, _, channels = positions.shape
    exact = torch.promote_types(positions.dtype, torch.float32)
    sums = torch.zeros(batch, channels, channels, dtype=exact, device=positions.device)
    for block in torch.split(positions, BLOCK, dim=1):
        wide = block.to(exact)
        sums.baddbmm_(wide.mT, wide)
    return sums


def tap_gram(features: Tensor) -> tuple[Tensor, Tensor]:
    """The features (B, C, h, w), to go on with, and their Gram matrix."""
    passed_on, gram = _Gram.apply(features)
    return passed_on, gram


def gram_matrix(features: Tensor) -> Tensor:
    """Channel correlations (B, C, C), in float32 or better, as the mean over positions, of features (B, C, h, w).

    The papers sum over positions (Gatys et al. 2016, eq. 3); the mean makes pictures of different sizes compare.
    """
    return tap_gram(features)[1]


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


@dataclass(frozen=True)
class Region:
    """A part of each picture and the style it should have.

    grams: layer → target (B, C, C). guides: layer → where the part is, (B, 1, h, w); empty for the whole picture.
    share: (B,), the part's share in the style loss.
    """

    grams: dict[str, Tensor]
    guides: dict[str, Tensor]
    share: Tensor

    def select(self, which: Tensor) -> Region:
        """The region of some of the pictures."""
        grams = {name: gram[which] for name, gram in self.grams.items()}
        guides = {name: guide[which] for name, guide in self.guides.items()}
        return Region(grams, guides, self.share[which])


def guide(mask: Tensor, features: Tensor) -> Tensor:
    """A mask (B, 1, H, W), 0..1, as the factor T for a layer's features (B, C, h, w) (Gatys et al. 2017, eq. 6).

    Averaged to the layer's size and scaled so that the mean of T² is 1: the Gram matrix of T∘F is then the mean over
    the masked part, and a mask of ones changes nothing.
    """
    small = F.adaptive_avg_pool2d(mask, (features.shape[2], features.shape[3]))
    return (small / small.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)).to(features.dtype)


class Objective:
    """The losses of a batch of pictures against their targets, and their gradient.

    `content` maps layers to features (B, C, h, w).
    """

    def __init__(
        self, backbone: Backbone, recipe: Recipe, content: dict[str, Tensor], regions: Sequence[Region]
    ) -> None:
        self.backbone, self.recipe, self.content, self.regions = backbone, recipe, content, regions
        self.definition = DEFINITIONS[recipe.loss]
        self._calls = 0

    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Losses of each picture, and each picture's gradient of its own total, shaped like the pictures.

        pictures: (B, 3, H, W), or (B, 1, H, W) for gray ones, 0..255; always of the same shape.
        """
        self._calls += 1
        if not pictures.is_cuda or self._calls <= EAGER_CALLS:
            return self._evaluate(pictures)
        return self._replay(pictures)

    def _replay(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """The same by a CUDA graph: hundreds of kernels are started at once."""
        if self._calls == EAGER_CALLS + 1:
            self._pictures, self._graph = pictures.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._results = self._evaluate(self._pictures)
        self._pictures.copy_(pictures)
        self._graph.replay()
        losses, gradient = self._results
        return losses.copy(), gradient.clone()

    def _evaluate(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        pictures = pictures.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._losses(pictures.expand(-1, 3, -1, -1))
        (gradient,) = torch.autograd.grad(losses.total.sum(), pictures)
        detached = {name: loss.detach() for name, loss in losses.style_layers.items()}
        return Losses(losses.content.detach(), losses.style.detach(), losses.tv.detach(), detached), gradient

    def select(self, which: Tensor) -> Objective:
        """The objective of some of the pictures."""
        content = {name: features[which] for name, features in self.content.items()}
        return Objective(self.backbone, self.recipe, content, [region.select(which) for region in self.regions])

    def _losses(self, pictures: Tensor) -> Losses:
        recipe = self.recipe
        content = pictures.new_zeros(len(pictures))
        layers: dict[str, Tensor] = {}

        def tap(name: str, features: Tensor) -> Tensor:
            nonlocal content
            if name in recipe.content_layers:
                own = self.definition.content(features.to(pictures.dtype), self.content[name])
                content = content + recipe.content_layers[name] * own
            if name in recipe.style_layers:
                features, layers[name] = self._style_loss(name, features)
            return features

        self.backbone(pictures, tap)
        style = torch.stack([weight * layers[name] for name, weight in recipe.style_layers.items()]).sum(0)
        return Losses(
            content=recipe.content_weight * content,
            style=recipe.style_weight * style,
            tv=recipe.tv_weight * total_variation(pictures),
            style_layers=layers,
        )

    def _style_loss(self, name: str, features: Tensor) -> tuple[Tensor, Tensor]:
        """The features, to go on with, and the style loss of their layer, (B,), over all regions."""
        loss = torch.zeros_like(self.regions[0].share)
        for region in self.regions:
            if region.guides:
                gram = gram_matrix(features * region.guides[name])
            else:
                features, gram = tap_gram(features)
            loss = loss + region.share * self.definition.style(gram, region.grams[name])
        return features, loss
