"""The losses: content, style and total variation, each with one value for each picture, shape (B,)."""

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
"""Index of all positions."""

EAGER_CALLS = 3
"""Calls of an objective on a GPU before it is recorded as a graph: libraries choose their algorithms during these."""


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    content, style, tv: the weighted terms of the total, each (B,). style_layers: style layer → its unweighted loss,
    (B,).
    """

    content: Tensor
    style: Tensor
    tv: Tensor
    style_layers: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The loss that is minimised, (B,)."""
        return self.content + self.style + self.tv

    @classmethod
    def cat(cls, parts: Sequence[Losses]) -> Losses:
        """Join the losses of several batches into one, (ΣB,), on the host."""
        return cls(
            content=torch.cat([part.content for part in parts]).cpu(),
            style=torch.cat([part.style for part in parts]).cpu(),
            tv=torch.cat([part.tv for part in parts]).cpu(),
            style_layers={
                name: torch.cat([part.style_layers[name] for part in parts]).cpu() for name in parts[0].style_layers
            },
        )

    def detach(self) -> Losses:
        """Return these losses without their autograd history."""
        return self._combine(self, lambda loss, _: loss.detach())

    def copy(self) -> Losses:
        """Return a copy in new memory."""
        return self._combine(self, lambda loss, _: loss.clone())

    def select(self, which: Tensor) -> Losses:
        """Return the losses of some of the pictures; `which` holds their indices."""
        layers = {name: loss[which] for name, loss in self.style_layers.items()}
        return Losses(self.content[which], self.style[which], self.tv[which], layers)

    def where(self, mask: Tensor, otherwise: Losses) -> Losses:
        """Return these losses where `mask` (B,) is true, and those of `otherwise` elsewhere."""
        return self._combine(otherwise, lambda loss, other: torch.where(mask, loss, other))

    def put(self, indices: Tensor, losses: Losses) -> Losses:
        """Return these losses with those of the pictures at `indices` (b,) replaced by `losses` (b,)."""
        return self._combine(losses, lambda loss, other: loss.index_copy(0, indices, other))

    def _combine(self, other: Losses, function: Callable[[Tensor, Tensor], Tensor]) -> Losses:
        """Apply `function` to each term and the same term of `other`."""
        layers = {name: function(loss, other.style_layers[name]) for name, loss in self.style_layers.items()}
        content, style = function(self.content, other.content), function(self.style, other.style)
        return Losses(content, style, function(self.tv, other.tv), layers)


@dataclass(frozen=True)
class Sums:
    """Sums over positions from which the losses are computed; the sums of a picture's tiles add up to its own.

    squares: content layer → Σ(F − P)², (B,). products: style layer → ΣFFᵀ of each region, a list of (B, C, C).
    variation: Σ|dx| + Σ|dy|, (B,).
    """

    squares: dict[str, Tensor]
    products: dict[str, list[Tensor]]
    variation: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All sums, in a fixed order."""
        products = (product for regions in self.products.values() for product in regions)
        return [*self.squares.values(), *products, self.variation]

    def add_(self, other: Sums) -> Self:
        """Add the sums of another tile in place; returns self."""
        for total, addend in zip(self.tensors, other.tensors, strict=True):
            total += addend.to(total.device)
        return self

    def requires_grad_(self) -> None:
        """Have autograd differentiate with respect to every sum."""
        for tensor in self.tensors:
            tensor.requires_grad_()


@dataclass(frozen=True)
class Definition:
    """A loss definition: the content loss and the style loss of one layer, (B,) each.

    content: takes Σ(F − P)², (B,), and the number of squares in the sum. style: takes a Gram matrix and its target,
    (B, C, C) each.
    """

    content: Callable[[Tensor, int], Tensor]
    style: Callable[[Tensor, Tensor], Tensor]


def _neural_style_content(squares: Tensor, count: int) -> Tensor:
    """Mean squared error over channels and positions."""
    return squares / count


def _neural_style_style(gram: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of Gram/(C·H·W); `gram` and `target` are already divided by H·W."""
    return sum_of_squares(gram, target) / gram.shape[1] ** 4


def _gatys_content(squares: Tensor, count: int) -> Tensor:
    """½ Σ (F − P)² (Gatys et al. 2016, eq. 1)."""
    return squares / 2


def _gatys_style(gram: Tensor, target: Tensor) -> Tensor:
    """1/(4 N² M²) Σ (G − A)² (Gatys et al. 2016, eq. 4), with each Gram already divided by its own picture's M."""
    return sum_of_squares(gram, target) / (4 * gram.shape[1] ** 2)


DEFINITIONS = {
    "neural-style": Definition(_neural_style_content, _neural_style_style),
    "gatys2016": Definition(_gatys_content, _gatys_style),
}
"""Loss definitions by the recipe's `loss`."""


def sum_of_squares(a: Tensor, b: Tensor) -> Tensor:
    """Return Σ(a − b)² of each picture, (B,)."""
    return (a - b).square().flatten(1).sum(1)


def total_variation(pictures: Tensor, place: Place = ALL) -> Tensor:
    """Return Σ|dx| + Σ|dy| of `pictures` (B, 3, H, W), (B,).

    The differences are those between each pixel in `place` and its right and lower neighbours, inside `place` or not.
    """
    _, rows, columns = place
    across = pictures[..., rows, _and_next(columns)].diff(dim=-1)
    down = pictures[..., _and_next(rows), columns].diff(dim=-2)
    return across.abs().sum((1, 2, 3)) + down.abs().sum((1, 2, 3))


def _and_next(positions: slice) -> slice:
    """Extend a slice by the next position, if there is one."""
    return slice(positions.start, positions.stop and positions.stop + 1)


class _Products(torch.autograd.Function):
    """Passes features through, and returns ΣFFᵀ over a place in them.

    The derivative is written out: autograd's would multiply twice and add tensors of different memory layouts.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, place: Place, multiply: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features)
        ctx.place = place
        if multiply:
            return features, _multiply(features[place])
        batch, channels = features.shape[:2]
        return features, features.new_zeros(batch, channels, channels, dtype=_sum_dtype(features.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (features,), (upstream, gradient) = ctx.saved_tensors, gradients
        symmetric = (gradient + gradient.mT).to(features.dtype)
        through_products = features[ctx.place].permute(0, 2, 3, 1) @ symmetric[:, None]
        if ctx.place is ALL:
            return through_products.permute(0, 3, 1, 2).add_(upstream), None, None
        derivative = upstream.clone()
        derivative[ctx.place] += through_products.permute(0, 3, 1, 2)
        return derivative, None, None


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums of values in `dtype`: float32 or better."""
    return torch.promote_types(dtype, torch.float32)


def _multiply(features: Tensor) -> Tensor:
    """Return ΣFFᵀ, (B, C, C), of `features` (B, C, h, w), summed in float32 or better."""
    batch, channels, _, width = features.shape
    if features.is_cuda and features.dtype == torch.bfloat16:
        positions = features.permute(0, 2, 3, 1).flatten(1, 2)
        product: Tensor = torch.bmm(positions.mT, positions, out_dtype=torch.float32)
        return product
    sums = torch.zeros(batch, channels, channels, dtype=_sum_dtype(features.dtype), device=features.device)
    for rows in torch.split(features, max(1, BLOCK // max(1, width)), dim=2):
        wide = rows.to(sums.dtype).permute(0, 2, 3, 1).flatten(1, 2)
        sums.baddbmm_(wide.mT, wide)
    return sums


def tap_products(features: Tensor, place: Place, *, multiply: bool = True) -> tuple[Tensor, Tensor]:
    """Return `features` (B, C, h, w) to go on with, and ΣFFᵀ, (B, C, C), over the positions of `place`.

    multiply: False if only the derivative is needed; the sum is then zeros with the right derivative.
    """
    passed_on, products = _Products.apply(features, place, multiply)
    return passed_on, products


def gram_matrix(features: Tensor) -> Tensor:
    """Return the channel correlations of `features` (B, C, h, w) as a mean over positions, (B, C, C).

    The dtype is float32 or better. The papers sum over positions (Gatys et al. 2016, eq. 3); the mean makes pictures of
    different sizes comparable.
    """
    return tap_products(features, ALL)[1] / features[0, 0].numel()


@dataclass(frozen=True)
class Region:
    """A part of each picture in a batch, and the style for it.

    grams: layer → target Gram matrix (B, C, C). guides: layer → factor that marks the part, (B, 1, h, w), see `guide`;
    empty if the part is the whole picture. share: weight of the part in the style loss, (B,).
    """

    grams: dict[str, Tensor]
    guides: dict[str, Tensor]
    share: Tensor

    def select(self, which: Tensor) -> Region:
        """Return the region of some of the pictures; `which` holds their indices."""
        grams = {name: gram[which] for name, gram in self.grams.items()}
        guides = {name: guide[which] for name, guide in self.guides.items()}
        return Region(grams, guides, self.share[which])


def guide(mask: Tensor, height: int, width: int) -> Tensor:
    """Turn `mask` (B, 1, H, W), 0..1, into the factor T (B, 1, h, w) for a layer's features (Gatys et al. 2017, eq. 6).

    The mask is averaged to `height` × `width` positions and scaled so that the mean of T² is 1. The Gram matrix of T∘F
    is then the mean over the masked part, and a mask of ones changes nothing.
    """
    small = F.adaptive_avg_pool2d(mask, (height, width))
    return small / small.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)


@dataclass(frozen=True)
class Tile:
    """A part of a picture: the core, whose positions are counted for this tile alone, with a margin around it.

    window: place of core and margin in the picture's pixels. crops: layer → margin that the layers above no longer
    need, as [left, right, top, bottom] in columns and rows. core: layer → place of the core in the tile's features.
    place: layer → place of the core in the whole picture's features. In `core` and `place` the key "" stands for the
    pixels.
    """

    window: Place
    crops: Mapping[str, list[int]]
    core: Mapping[str, Place]
    place: Mapping[str, Place]


WHOLE_PICTURE = Tile(ALL, {}, defaultdict(lambda: ALL), defaultdict(lambda: ALL))
"""A tile that is the whole picture, without a margin."""


class Objective:
    """The losses of a batch of pictures against their targets, and the gradient.

    `content` maps each content layer to its target features (B, C, h, w); `regions` hold the style targets.
    """

    def __init__(
        self, backbone: Backbone, recipe: Recipe, content: dict[str, Tensor], regions: Sequence[Region]
    ) -> None:
        self.backbone, self.recipe, self.content, self.regions = backbone, recipe, content, regions
        self._calls = 0
        self._graph: _Graph | None = None

    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Return each picture's losses, and the gradient of its own total, shaped like `pictures`.

        pictures: (B, 3, H, W), or (B, 1, H, W) for gray ones, 0..255; the same shape in every call.
        """
        self._calls += 1
        if not pictures.is_cuda or self._calls <= EAGER_CALLS:
            return self.evaluate(pictures)
        self._graph = self._graph or _Graph(self.evaluate, pictures)
        return self._graph(pictures)

    def evaluate(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Compute the same result as a call, without a CUDA graph."""
        pictures = pictures.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.losses(self.sums(self.backbone, pictures), *pictures.shape[-2:])
        (gradient,) = torch.autograd.grad(losses.total.sum(), pictures)
        return losses.detach(), gradient

    def select(self, which: Tensor) -> Self:
        """Return the objective of some of the pictures; `which` holds their indices."""
        chosen = copy(self)
        chosen.content = {name: features[which] for name, features in self.content.items()}
        chosen.regions = [region.select(which) for region in self.regions]
        chosen._calls, chosen._graph = 0, None
        return chosen

    def sums(self, backbone: Backbone, pictures: Tensor, tile: Tile = WHOLE_PICTURE, *, multiply: bool = True) -> Sums:
        """Return the sums over the core of `tile`; `pictures` (B, 3 or 1, h, w) are the pixels of its window.

        multiply: as in `tap_products`.
        """
        squares: dict[str, Tensor] = {}
        products: dict[str, list[Tensor]] = {}

        def tap(name: str, features: Tensor) -> Tensor:
            if name in self.recipe.content_layers:
                target = self.content[name][tile.place[name]].to(pictures)
                squares[name] = sum_of_squares(features[tile.core[name]].to(pictures.dtype), target)
            if name in self.recipe.style_layers:
                products[name] = []
                for region in self.regions:
                    if region.guides:
                        guided = features[tile.core[name]] * region.guides[name][tile.place[name]].to(features)
                        products[name].append(tap_products(guided, ALL, multiply=multiply)[1])
                    else:
                        features, sums = tap_products(features, tile.core[name], multiply=multiply)
                        products[name].append(sums)
            return features

        pictures = pictures.expand(-1, 3, -1, -1)
        backbone(pictures, tap, tile.crops)
        return Sums(squares, products, total_variation(pictures, tile.core[""]))

    def losses(self, sums: Sums, height: int, width: int) -> Losses:
        """Compute the losses from the sums over whole pictures of `height` × `width` pixels."""
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
            region_losses = [region.share * definition.style(gram, region.grams[name]) for gram, region in parts]
            layers[name] = torch.stack(region_losses).sum(0)
        style = torch.stack([weight * layers[name] for name, weight in recipe.style_layers.items()]).sum(0)
        return Losses(
            content=recipe.content_weight * content,
            style=recipe.style_weight * style,
            tv=recipe.tv_weight * sums.variation,
            style_layers=layers,
        )


class _Graph:
    """An evaluation recorded as a CUDA graph, which starts hundreds of kernels in one call."""

    def __init__(self, evaluate: Callable[[Tensor], tuple[Losses, Tensor]], pictures: Tensor) -> None:
        self.pictures, self.graph = pictures.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = evaluate(self.pictures)

    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        self.pictures.copy_(pictures)
        self.graph.replay()
        losses, gradient = self.results
        return losses.copy(), gradient.clone()
