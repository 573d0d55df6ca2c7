"""What is minimised: content, style and total variation, each one value a picture, shape (B,)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone, Place

BLOCK = 4096
"""Positions that a CPU multiplies at once: few enough for their float32 copy to stay in its cache."""

ALL: Place = (..., slice(None), slice(None))

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

    def detach(self) -> Losses:
        """The same losses without how they came about."""
        return self._with(self, lambda mine, _: mine.detach())

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
class Sums:
    """What the losses are made of: sums over positions, so that those of a picture's tiles add up to its own.

    squares: content layer → Σ(F − P)², (B,). products: style layer → ΣFFᵀ of each region, R of (B, C, C).
    variation: Σ|dx| + Σ|dy|, (B,).
    """

    squares: dict[str, Tensor]
    products: dict[str, list[Tensor]]
    variation: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        return [*self.squares.values(), *(own for each in self.products.values() for own in each), self.variation]

    def add_(self, other: Sums) -> Self:
        """These with the sums of another part added, in place."""
        for mine, theirs in zip(self.tensors, other.tensors, strict=True):
            mine += theirs.to(mine.device)
        return self

    def requires_grad_(self) -> None:
        """Have autograd derive by all of them."""
        for tensor in self.tensors:
            tensor.requires_grad_()


@dataclass(frozen=True)
class Definition:
    """A loss definition: each picture's content loss and style loss of one layer, (B,).

    content: of Σ(F − P)², (B,), and how many squares that is. style: of a Gram matrix and its target, (B, C, C).
    """

    content: Callable[[Tensor, int], Tensor]
    style: Callable[[Tensor, Tensor], Tensor]


def _neural_style_content(squares: Tensor, count: int) -> Tensor:
    """Mean squared error over channels and positions."""
    return squares / count


def _neural_style_style(gram: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of Gram/(C·H·W); ours is already divided by H·W."""
    return sum_of_squares(gram, target) / gram.shape[1] ** 4


def _gatys_content(squares: Tensor, count: int) -> Tensor:
    """½ Σ (F − P)² (Gatys et al. 2016, eq. 1)."""
    return squares / 2


def _gatys_style(gram: Tensor, target: Tensor) -> Tensor:
    """1/(4 N² M²) Σ (G − A)² (Gatys et al. 2016, eq. 4), M divided out of each Gram by its own picture."""
    return sum_of_squares(gram, target) / (4 * gram.shape[1] ** 2)


DEFINITIONS = {
    "neural-style": Definition(_neural_style_content, _neural_style_style),
    "gatys2016": Definition(_gatys_content, _gatys_style),
}


def sum_of_squares(a: Tensor, b: Tensor) -> Tensor:
    """Σ(a − b)² of each picture, (B,)."""
    return (a - b).square().flatten(1).sum(1)


def total_variation(pictures: Tensor, place: Place = ALL) -> Tensor:
    """Σ|dx| + Σ|dy| of pictures (B, 3, H, W), (B,), from each pixel of a place to its right and its lower neighbour."""
    _, rows, columns = place
    across = pictures[..., rows, _and_next(columns)].diff(dim=-1)
    down = pictures[..., _and_next(rows), columns].diff(dim=-2)
    return across.abs().sum((1, 2, 3)) + down.abs().sum((1, 2, 3))


def _and_next(positions: slice) -> slice:
    """The positions and the one behind them, if there is one."""
    return slice(positions.start, positions.stop and positions.stop + 1)


class _Products(torch.autograd.Function):
    """Features, to go on with, and ΣFFᵀ over some of their positions, whose derivative is added where it lies.

    Autograd's own derivative would multiply twice and add tensors of different memory layouts.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, place: Place, multiply: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features)
        ctx.place = place
        if multiply:
            return features, _multiply(features[place])
        batch, channels = features.shape[:2]
        return features, features.new_zeros(batch, channels, channels, dtype=_exact(features.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (features,), (upstream, gradient) = ctx.saved_tensors, gradients
        symmetric = (gradient + gradient.mT).to(features.dtype)
        own = features[ctx.place].permute(0, 2, 3, 1) @ symmetric[:, None]
        if ctx.place is ALL:
            return own.permute(0, 3, 1, 2).add_(upstream), None, None
        derived = upstream.clone()
        derived[ctx.place] += own.permute(0, 3, 1, 2)
        return derived, None, None


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What sums of a dtype are kept in: float32 or better."""
    return torch.promote_types(dtype, torch.float32)


def _multiply(features: Tensor) -> Tensor:
    """ΣFFᵀ, (B, C, C), summed in float32 or better, of features (B, C, h, w)."""
    batch, channels, _, width = features.shape
    if features.is_cuda and features.dtype == torch.bfloat16:
        positions = features.permute(0, 2, 3, 1).flatten(1, 2)
        product: Tensor = torch.bmm(positions.mT, positions, out_dtype=torch.float32)
        return product
    sums = torch.zeros(batch, channels, channels, dtype=_exact(features.dtype), device=features.device)
    for rows in torch.split(features, max(1, BLOCK // max(1, width)), dim=2):
        wide = rows.to(sums.dtype).permute(0, 2, 3, 1).flatten(1, 2)
        sums.baddbmm_(wide.mT, wide)
    return sums


def tap_products(features: Tensor, place: Place, *, multiply: bool = True) -> tuple[Tensor, Tensor]:
    """The features (B, C, h, w), to go on with, and ΣFFᵀ, (B, C, C), over the positions of a place in them.

    multiply: whether the sum itself is wanted; without, it is zeros whose derivative is right.
    """
    passed_on, products = _Products.apply(features, place, multiply)
    return passed_on, products


def gram_matrix(features: Tensor) -> Tensor:
    """Channel correlations (B, C, C), in float32 or better, as the mean over positions, of features (B, C, h, w).

    The papers sum over positions (Gatys et al. 2016, eq. 3); the mean makes pictures of different sizes compare.
    """
    return tap_products(features, ALL)[1] / features[0, 0].numel()


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


def guide(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask (B, 1, H, W), 0..1, as the factor T (B, 1, h, w) for a layer's features (Gatys et al. 2017, eq. 6).

    Averaged to the layer's size and scaled so that the mean of T² is 1: the Gram matrix of T∘F is then the mean over
    the masked part, and a mask of ones changes nothing.
    """
    small = F.adaptive_avg_pool2d(mask, (height, width))
    return small / small.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)


@dataclass(frozen=True)
class Tile:
    """A part of a picture, which has positions of each layer for its own, and sees what lies around them.

    window: where its pixels lie in the picture. crops: layer → what the layers above do not need of it: columns on
    the left and right, rows at the top and bottom. own, place: layer → where its own positions lie in what it sees, and
    in the picture; under "" the pixels.
    """

    window: Place
    crops: Mapping[str, list[int]]
    own: Mapping[str, Place]
    place: Mapping[str, Place]


EVERYTHING = Tile(ALL, {}, defaultdict(lambda: ALL), defaultdict(lambda: ALL))
"""The whole picture as one tile."""


class Objective:
    """The losses of a batch of pictures against their targets, and their gradient.

    `content` maps layers to features (B, C, h, w).
    """

    def __init__(
        self, backbone: Backbone, recipe: Recipe, content: dict[str, Tensor], regions: Sequence[Region]
    ) -> None:
        self.backbone, self.recipe, self.content, self.regions = backbone, recipe, content, regions
        self._calls = 0
        self._graph: _Graph | None = None

    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Losses of each picture, and each picture's gradient of its own total, shaped like the pictures.

        pictures: (B, 3, H, W), or (B, 1, H, W) for gray ones, 0..255; always of the same shape.
        """
        self._calls += 1
        if not pictures.is_cuda or self._calls <= EAGER_CALLS:
            return self.evaluate(pictures)
        self._graph = self._graph or _Graph(self.evaluate, pictures)
        return self._graph(pictures)

    def evaluate(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """What a call gives, without a graph."""
        pictures = pictures.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.losses(self.sums(self.backbone, pictures), *pictures.shape[-2:])
        (gradient,) = torch.autograd.grad(losses.total.sum(), pictures)
        return losses.detach(), gradient

    def select(self, which: Tensor) -> Self:
        """The objective of some of the pictures."""
        chosen = copy(self)
        chosen.content = {name: features[which] for name, features in self.content.items()}
        chosen.regions = [region.select(which) for region in self.regions]
        chosen._calls, chosen._graph = 0, None
        return chosen

    def sums(self, backbone: Backbone, pictures: Tensor, tile: Tile = EVERYTHING, *, multiply: bool = True) -> Sums:
        """The sums over a tile's own positions, of its pixels (B, 3 or 1, h, w); multiply as in `tap_products`."""
        squares: dict[str, Tensor] = {}
        products: dict[str, list[Tensor]] = {}

        def tap(name: str, features: Tensor) -> Tensor:
            if name in self.recipe.content_layers:
                target = self.content[name][tile.place[name]].to(pictures)
                squares[name] = sum_of_squares(features[tile.own[name]].to(pictures.dtype), target)
            if name in self.recipe.style_layers:
                products[name] = []
                for region in self.regions:
                    if region.guides:
                        guided = features[tile.own[name]] * region.guides[name][tile.place[name]].to(features)
                        products[name].append(tap_products(guided, ALL, multiply=multiply)[1])
                    else:
                        features, sums = tap_products(features, tile.own[name], multiply=multiply)
                        products[name].append(sums)
            return features

        pictures = pictures.expand(-1, 3, -1, -1)
        backbone(pictures, tap, tile.crops)
        return Sums(squares, products, total_variation(pictures, tile.own[""]))

    def losses(self, sums: Sums, height: int, width: int) -> Losses:
        """The losses of pictures of a size in pixels, from their sums."""
        recipe, definition = self.recipe, DEFINITIONS[self.recipe.loss]
        shapes = self.backbone.shapes(height, width)
        content = torch.zeros_like(sums.variation)
        for name, weight in recipe.content_layers.items():
            content = content + weight * definition.content(sums.squares[name], math.prod(shapes[name]))
        layers = {}
        for name, products in sums.products.items():
            _, rows, columns = shapes[name]
            grams = [product / (rows * columns) for product in products]
            parts = zip(grams, self.regions, strict=True)
            own = [region.share * definition.style(gram, region.grams[name]) for gram, region in parts]
            layers[name] = torch.stack(own).sum(0)
        style = torch.stack([weight * layers[name] for name, weight in recipe.style_layers.items()]).sum(0)
        return Losses(
            content=recipe.content_weight * content,
            style=recipe.style_weight * style,
            tv=recipe.tv_weight * sums.variation,
            style_layers=layers,
        )


class _Graph:
    """A CUDA graph of an evaluation: hundreds of kernels are started at once."""

    def __init__(self, evaluate: Callable[[Tensor], tuple[Losses, Tensor]], pictures: Tensor) -> None:
        self.pictures, self.graph = pictures.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = evaluate(self.pictures)

    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        self.pictures.copy_(pictures)
        self.graph.replay()
        losses, gradient = self.results
        return losses.copy(), gradient.clone()
