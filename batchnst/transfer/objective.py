"""The objective of a batch: its losses, and the gradient by an explicit reverse pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone, Pass, Place
from batchnst.transfer.canvas import Canvas
from batchnst.transfer.losses import (
    ALL,
    DEFINITIONS,
    Losses,
    Region,
    Sums,
    add_product_,
    add_variation_,
    channel_products,
    sum_dtype,
    sum_of_squares,
    total_variation,
)


class Slopes(NamedTuple):
    """Derivatives of the total of whole pictures with respect to their sums.

    style: layer → for each region the symmetric matrix (B, C, C) with which its features are multiplied in the
    gradient: twice the derivative with respect to their ΣFFᵀ. variation: that with respect to Σ|dx| + Σ|dy|, (B,).
    """

    style: dict[str, list[Tensor]]
    variation: Tensor


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

    `content` maps each content layer to its target features (B, C, h, w); `regions` hold the style targets. Pictures
    that are smaller than the `canvas`, and their targets, have zeros around.
    """

    recordable = True
    """True if a CUDA graph can record a call."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        content: dict[str, Tensor],
        regions: Sequence[Region],
        canvas: Canvas,
    ) -> None:
        self.backbone, self.recipe, self.content, self.regions = backbone, recipe, content, regions
        self.canvas = canvas
        self.definition = DEFINITIONS[recipe.loss]
        # For each content layer the weight of its Σ(F − P)² in the total, (B,): once, because the targets are large.
        self._content_weights = {name: self._content_weight(name, target) for name, target in content.items()}

    @property
    def pixels(self) -> int:
        """Pixels of each picture's place that a call looks at."""
        return self.canvas.pixels.height * self.canvas.pixels.width

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Return each picture's losses, and the gradient of its own total, shaped like `pictures`.

        pictures: (B, 3, H, W), or (B, 1, H, W) for gray ones, 0..255.
        """
        tape: list[Pass] = []
        sums = self.sums(self.backbone, pictures, tape=tape)
        losses, slopes = self.losses(sums)
        return losses, self.gradient(self.backbone, pictures, tape, slopes)

    def select(self, which: Tensor) -> Self:
        """Return the objective of some of the pictures; `which` holds their indices."""
        chosen = copy(self)
        chosen.content = {name: features[which] for name, features in self.content.items()}
        chosen.regions = [region.select(which) for region in self.regions]
        chosen.canvas = self.canvas.select(which)
        chosen._content_weights = {name: weight[which] for name, weight in self._content_weights.items()}
        return chosen

    def sums(
        self, backbone: Backbone, pictures: Tensor, tile: Tile = WHOLE_PICTURE, tape: list[Pass] | None = None
    ) -> Sums:
        """Return the sums over the core of `tile`; `pictures` (B, 3 or 1, h, w) are the pixels of its window.

        A `tape` is filled for `gradient`.
        """
        pictures = pictures.expand(-1, 3, -1, -1)
        features = backbone(pictures, tile.crops, tape, self.canvas)
        squares = {
            name: sum_of_squares(self._misses(name, features[name][tile.core[name]], pictures.dtype, tile))
            for name in self.recipe.content_layers
        }
        products = {}
        for name in self.recipe.style_layers:
            core = features[name][tile.core[name]]
            factors = [_guide(region, name, core, tile) for region in self.regions]
            seen = [core if factor is None else core * factor for factor in factors]
            products[name] = [channel_products(part) for part in seen]
        if self.recipe.tv_weight:
            variation = total_variation(pictures, self.canvas.differences, tile.core[""])
        else:
            variation = 0 * pictures.sum((1, 2, 3))  # NaN if a pixel is: a ReLU may make zero of that
        return Sums(squares, products, variation)

    def losses(self, sums: Sums) -> tuple[Losses, Slopes]:
        """Compute the losses from the sums over whole pictures, and the slopes."""
        recipe, definition = self.recipe, self.definition
        content, style = torch.zeros_like(sums.variation), torch.zeros_like(sums.variation)
        for name, squares in sums.squares.items():
            content += self._content_weights[name] * squares
        variation = recipe.tv_weight * definition.tv(3 * self.canvas.pixels.counts)
        layers, slopes = {}, Slopes({}, torch.zeros_like(style).add_(variation))
        for name, weight in definition.style_weights(recipe).items():
            positions = self.canvas[name].counts.to(style.dtype)
            layers[name], slopes.style[name] = torch.zeros_like(style), []
            for products, region in zip(sums.products[name], self.regions, strict=True):
                misses = products / positions[:, None, None] - region.grams[name]
                share = region.share.to(misses.dtype)
                factor = definition.style(region.grams[name])
                layers[name] += factor * share * sum_of_squares(misses)
                slope = 4 * recipe.style_weight * weight * factor / positions * share
                slopes.style[name].append(misses.mul_(slope[:, None, None]).to(self.backbone.dtype))
            style += weight * layers[name]
        return Losses(content, recipe.style_weight * style, slopes.variation * sums.variation, layers), slopes

    def gradient(
        self, backbone: Backbone, pictures: Tensor, tape: list[Pass], slopes: Slopes, tile: Tile = WHOLE_PICTURE
    ) -> Tensor:
        """Return the gradient of the total with respect to `pictures`, given the `tape` of their sums."""

        def add(name: str, features: Tensor, gradient: Tensor) -> None:
            features, gradient = features[tile.core[name]], gradient[tile.core[name]]
            if name in self.recipe.content_layers:
                weights = 2 * self._content_weights[name][:, None, None, None].to(gradient.device)
                gradient.addcmul_(self._misses(name, features, pictures.dtype, tile), weights)
            for region, matrices in zip(
                self.regions if name in slopes.style else (), slopes.style.get(name, ()), strict=True
            ):
                factor = _guide(region, name, features, tile)
                if factor is None:
                    add_product_(gradient, features, matrices.to(gradient.device))
                else:
                    through = torch.zeros_like(gradient)
                    add_product_(through, features * factor, matrices.to(gradient.device))
                    gradient.addcmul_(through, factor)

        result = backbone.backward(tape, add, tile.crops, self.canvas)
        result = result.to(pictures.dtype, memory_format=torch.contiguous_format)
        if self.recipe.tv_weight:
            inside, weights = self.canvas.differences, slopes.variation.to(result.device)
            add_variation_(result, pictures.expand_as(result), weights, inside, tile.core[""])
        return result if pictures.shape[1] == 3 else result.sum(1, keepdim=True)

    def _content_weight(self, name: str, target: Tensor) -> Tensor:
        counts = target.shape[1] * self.canvas[name].counts.to(target.device)
        factor = self.recipe.content_weight * self.recipe.content_layers[name] * self.definition.content(target, counts)
        return torch.as_tensor(factor, dtype=sum_dtype(target.dtype)).to(self.backbone.mean.device).expand(len(target))

    def _misses(self, name: str, features: Tensor, dtype: torch.dtype, tile: Tile) -> Tensor:
        """F − P of a content layer's `features` in the core of `tile`, in `dtype`."""
        return features - self.content[name][tile.place[name]].to(features.device, dtype)


def _guide(region: Region, name: str, features: Tensor, tile: Tile) -> Tensor | None:
    """The factor that marks `region` in the core of `tile`, for its `features`; None if it is the whole picture."""
    return region.guides[name][tile.place[name]].to(features) if region.guides else None
