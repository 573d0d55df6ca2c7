"""Neural style transfer (Gatys, Ecker and Bethge 2016), a batch at a time, coarse to fine."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchnst.recipe import Recipe, fit
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.losses import Losses, Objective, gram_matrix
from batchnst.transfer.optimizers import OPTIMIZERS, Optimizer
from batchnst.transfer.pyramid import Scale, resize, scales


@dataclass(frozen=True)
class Step:
    """One step of a batch: its number through all scales, from 0, and each picture's losses, (B,)."""

    index: int
    of: int  # steps in all
    scale: int  # longest side, pixels
    pixels: int  # of one picture
    losses: Losses


@dataclass(frozen=True)
class Blend:
    """The styles of one picture, (1, 3, h, w) each, of any sizes, RGB, 0..255; and their weights, which sum to 1."""

    pictures: tuple[Tensor, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Stylized:
    """Pictures (B, 3, H, W), RGB, 0..255, float32, the best of their runs; their losses; every step before."""

    pictures: Tensor
    losses: Losses
    history: list[Step]


def stylize(
    contents: Tensor, styles: Sequence[Blend], recipe: Recipe, backbone: Backbone
) -> Generator[Step, None, Stylized]:
    """Paint `contents` in `styles`; yields every step, returns the pictures.

    contents: (B, 3, H, W), RGB, 0..255, float32, on the backbone's device, longest side `recipe.size`.
    styles: B blends; a style tensor that stands in several of them is measured once a scale.
    """
    height, width = contents.shape[-2:]
    pictures = _start(contents, styles, recipe)
    optimizer: Optimizer | None = None
    history: list[Step] = []
    pyramid = scales(recipe, min(height, width))
    total = sum(scale.steps for scale in pyramid)
    for scale in pyramid:
        objective = _objective(contents, styles, recipe, backbone, scale)
        pictures = resize(pictures, *fit(width, height, scale.size))
        optimizer = _successor(optimizer, OPTIMIZERS[recipe.optimizer](pictures, recipe.learning_rate))
        kept: Losses | None = None
        best: Losses | None = None
        for _ in range(scale.steps):
            trial = optimizer.trial
            losses, gradient = objective(trial)
            accepted = optimizer.observe(losses.total, gradient)
            # A step that was taken back leaves the picture, and so its losses, as they were.
            kept = losses if kept is None else losses.where(accepted, kept)
            better = torch.ones_like(accepted) if best is None else _better(losses.total, best.total)
            best = losses.where(better, best) if best else losses
            pictures = torch.where(better[:, None, None, None], trial, pictures)
            history.append(Step(len(history), total, scale.size, trial[0, 0].numel(), kept))
            yield history[-1]
    assert best is not None
    return Stylized(pictures, best, history)


def _successor(coarser: Optimizer | None, optimizer: Optimizer) -> Optimizer:
    if coarser is not None:
        optimizer.inherit(coarser)
    return optimizer


def _better(loss: Tensor, best: Tensor) -> Tensor:
    """Where a loss (B,) is below the best one so far, or that one is no number at all."""
    return (loss < best) | ~best.isfinite()


def _start(contents: Tensor, styles: Sequence[Blend], recipe: Recipe) -> Tensor:
    """The pictures to start from, (B, 3, H, W)."""
    if recipe.init == "content":
        return contents
    height, width = contents.shape[-2:]
    if recipe.init == "style":
        return torch.cat([resize(blend.pictures[0], width, height) for blend in styles])
    # White noise, the same for every pair of that seed, made on the CPU to be the same on every device.
    noise = torch.rand(contents.shape[1:], generator=torch.Generator().manual_seed(recipe.seed))
    return (noise * 255).to(contents).expand_as(contents).contiguous()


def _objective(
    contents: Tensor, styles: Sequence[Blend], recipe: Recipe, backbone: Backbone, scale: Scale
) -> Objective:
    """The objective of one scale: content features and style Grams of the pictures resized to it."""
    height, width = contents.shape[-2:]
    with torch.no_grad():
        features = backbone(resize(contents, *fit(width, height, scale.size)))
        content = {name: features[name].to(contents.dtype) for name in recipe.content_layers}
        unique = {id(picture): picture for blend in styles for picture in blend.pictures}
        grams = {key: _style_grams(picture, recipe, backbone, scale) for key, picture in unique.items()}
        style = {
            name: torch.cat([_mix(blend, [grams[id(p)][name] for p in blend.pictures]) for blend in styles])
            for name in recipe.style_layers
        }
    return Objective(backbone, recipe, content, style)


def _mix(blend: Blend, grams: list[Tensor]) -> Tensor:
    """The blend's Gram matrix (1, C, C): the weighted mean of its styles'."""
    return torch.stack([weight * gram for weight, gram in zip(blend.weights, grams, strict=True)]).sum(0)


def _style_grams(style: Tensor, recipe: Recipe, backbone: Backbone, scale: Scale) -> dict[str, Tensor]:
    """The Gram matrices (1, C, C) of one style, in proportion to the scale."""
    height, width = style.shape[-2:]
    size = max(height, width) * scale.size / recipe.size
    features = backbone(resize(style, *fit(width, height, size)))
    return {name: gram_matrix(features[name]) for name in recipe.style_layers}
