"""The losses: content, style and total variation, each with one value for each picture, shape (B,)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Place
from batchnst.transfer.canvas import Extent

BLOCK = 4096
"""Positions that a CPU multiplies at once: few enough for their float32 copy to stay in its cache."""

ALL: Place = (..., slice(None), slice(None))
"""Index of all positions."""


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

    @classmethod
    def mean(cls, parts: Sequence[Losses]) -> Losses:
        """Return the mean of several losses of the same pictures, (B,)."""
        total = reduce(lambda one, other: one._combine(other, torch.add), parts)
        return total._combine(total, lambda loss, _: loss / len(parts))

    def copy(self) -> Losses:
        """Return a copy in new memory."""
        return self._combine(self, lambda loss, _: loss.clone())

    def assign(self, losses: Losses) -> None:
        """Overwrite these losses in place."""
        self._combine(losses, lambda loss, other: loss.copy_(other))

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
    variation: Σ|dx| + Σ|dy|, (B,). If its weight is 0 this is 0, or NaN if a pixel is not finite.
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


@dataclass(frozen=True)
class Definition:
    """A loss definition: the factors that turn sums over a picture into its losses, each a number or (B,).

    content: factor of a layer's Σ(F − P)², given its target P (B, C, h, w) and each picture's count of values in it
    (B,). style: factor of Σ(G − A)² for Gram matrices that are means over positions, given their target A (B, C, C).
    tv: factor of Σ|dx| + Σ|dy|, given each picture's count of values (B,). shares: True if the weights of the style
    layers are divided by their sum.
    """

    content: Callable[[Tensor, Tensor], Tensor | float]
    style: Callable[[Tensor], Tensor | float]
    tv: Callable[[Tensor], Tensor | float]
    shares: bool = False

    def style_weights(self, recipe: Recipe) -> dict[str, float]:
        """Return the weight of each style layer in the style loss."""
        total = sum(recipe.style_layers.values()) if self.shares else 1
        return {name: weight / total for name, weight in recipe.style_layers.items()}


def _relative(target: Tensor) -> Tensor:
    """Return 1/Σt² of each picture's `target` (B, …), (B,); 0 if that is zero: nothing is relative to it."""
    norm = torch.linalg.vector_norm(target.flatten(1), dim=1, dtype=sum_dtype(target.dtype))
    return torch.where(norm > 0, norm.square().reciprocal(), 0)


DEFINITIONS = {
    # Every term relative to its own target, so that every layer, painting and size counts alike.
    "balanced": Definition(
        content=lambda target, _: _relative(target),
        style=_relative,
        tv=lambda counts: 1 / (255 * counts),
        shares=True,
    ),
    # Mean squared errors: of the features, and of Gram/(C·H·W).
    "neural-style": Definition(
        content=lambda _, counts: 1 / counts, style=lambda target: 1 / len(target[0]) ** 4, tv=lambda _: 1
    ),
    # Gatys et al. 2016, eq. 1 and 4: with 1/(4 N² M²), each Gram being divided by its own picture's M.
    "gatys2016": Definition(
        content=lambda *_: 1 / 2, style=lambda target: 1 / (4 * len(target[0]) ** 2), tv=lambda _: 1
    ),
}
"""Loss definitions by the recipe's `loss`."""


def sum_of_squares(differences: Tensor) -> Tensor:
    """Return the sum of the squares of each picture's `differences` (B, …), (B,)."""
    return differences.square().sum(tuple(range(1, differences.ndim)))


def neighbours(pictures: Tensor, place: Place = ALL) -> list[tuple[Tensor, Tensor]]:
    """Return each pixel of `place` in `pictures` (B, C, H, W) beside its right one, and beside its lower one, as views.

    The neighbours of its last column and row are outside `place`, unless they are the picture's last.
    """
    _, rows, columns = place
    across, down = pictures[..., rows, _and_next(columns)], pictures[..., _and_next(rows), columns]
    return [(across[..., :-1], across[..., 1:]), (down[..., :-1, :], down[..., 1:, :])]


def total_variation(pictures: Tensor, inside: Sequence[Extent], place: Place = ALL) -> Tensor:
    """Return Σ|dx| + Σ|dy| of the pixels of `place` in `pictures` (B, C, H, W), (B,).

    inside: the extents of dx and of dy, see Canvas.
    """
    pairs = zip(neighbours(pictures, place), inside, strict=True)
    sums = [extent.clear_(second - first).abs_().sum((1, 2, 3)) for (first, second), extent in pairs]
    return torch.stack(sums).sum(0)


def add_variation_(
    gradient: Tensor, pictures: Tensor, weights: Tensor, inside: Sequence[Extent], place: Place = ALL
) -> None:
    """Add each picture's weight, of `weights` (B,), times the derivative of its total variation to `gradient`."""
    weights = weights[:, None, None, None]
    pairs = zip(neighbours(pictures, place), neighbours(gradient, place), inside, strict=True)
    for pixels, slopes, extent in pairs:
        sign = extent.clear_((pixels[1] - pixels[0]).sign_())
        slopes[1].addcmul_(sign, weights)
        slopes[0].addcmul_(sign, weights, value=-1)


def _and_next(positions: slice) -> slice:
    """Extend a slice by the next position, if there is one."""
    return slice(positions.start, positions.stop and positions.stop + 1)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums of values in `dtype`: float32 or better."""
    return torch.promote_types(dtype, torch.float32)


def channel_products(features: Tensor) -> Tensor:
    """Return ΣFFᵀ, (B, C, C), of `features` (B, C, h, w), summed in float32 or better."""
    batch, channels, _, width = features.shape
    if features.is_cuda and features.dtype == torch.bfloat16:
        positions = _positions(features)
        product: Tensor = torch.bmm(positions.mT, positions, out_dtype=torch.float32)
        return product
    sums = torch.zeros(batch, channels, channels, dtype=sum_dtype(features.dtype), device=features.device)
    for rows in torch.split(features, max(1, BLOCK // max(1, width)), dim=2):
        wide = _positions(rows.to(sums.dtype))
        sums.baddbmm_(wide.mT, wide)
    return sums


def add_product_(total: Tensor, features: Tensor, matrices: Tensor) -> None:
    """Add each position of `features` (B, C, h, w) times the symmetric `matrices` (B, C, C) to `total`, in place."""
    batch, channels, height, width = features.shape
    flat = _positions(total).baddbmm_(_positions(features), matrices)
    if flat.data_ptr() != total.data_ptr():  # `total` is not channels_last
        total.copy_(flat.view(batch, height, width, channels).permute(0, 3, 1, 2))


def _positions(features: Tensor) -> Tensor:
    """Return `features` (B, C, h, w) as (B, h·w, C): a view, if they are channels_last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def gram_matrix(features: Tensor) -> Tensor:
    """Return the channel correlations of `features` (B, C, h, w) as a mean over positions, (B, C, C).

    The dtype is float32 or better. The papers sum over positions (Gatys et al. 2016, eq. 3); the mean makes pictures of
    different sizes comparable.
    """
    return channel_products(features) / features[0, 0].numel()


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
