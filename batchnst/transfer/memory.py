"""What painting takes of a device's memory, and how it is made to fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from batchnst.backbones import cut, strides
from batchnst.recipe import Recipe
from batchnst.transfer.optimizers import HISTORY
from batchnst.transfer.tiling import margins

PROCESS_BYTES = 850e6
"""Memory of a process before it paints."""

ACTIVATIONS = 2.5
"""What a step holds of the network, as a multiple of what its convolutions put out (measured on a CPU)."""

VECTORS = 8
"""Copies of a picture, (3, H, W) in float32, that are held at once beside the history: content, style, trial, best,
gradients, the optimiser's state, and what it works with.
"""

VECTOR_BYTES = 12
"""A pixel of such a copy."""

TILED = 1.45
"""Time of a tiled step, were there no overlaps, as a multiple of a whole one (measured on a CPU)."""

TILES = (2048, 1024, 512, 256)
"""Sides of tiles that are tried, in pixels: what a tile sees around itself costs ever more of smaller ones."""

SMALL_TILE = 512
"""The largest tile for whose sake the history is not made shorter."""

LEAST_HISTORY = 1

CPU_BATCH = 4 * 256 * 256
"""Pixels of a batch on a CPU, which gains nothing from more."""

GPU_BATCH = 16 * 512 * 512
"""Pixels of a batch on a GPU, at the most."""


@dataclass(frozen=True)
class Fitting:
    """How pictures are painted in the memory there is.

    tile: side of a tile in pixels; inf: the whole picture at once. history: steps that L-BFGS remembers. memory: bytes
    at the most. devices: those that the tiles are spread over; none: the picture's own.
    """

    tile: float
    history: int = HISTORY
    memory: float = 0.0
    devices: Sequence[torch.device] = ()

    @property
    def recipe_tile(self) -> int | str:
        """The recipe's `tile` for just this."""
        return "off" if math.isinf(self.tile) else int(self.tile)

    def notes(self, recipe: Recipe) -> list[str]:
        """What is not as it would be with more memory."""
        if recipe.optimizer != "lbfgs" or self.history == HISTORY:
            return []
        return [f"L-BFGS remembers {self.history} steps, not {HISTORY}: memory"]


UNBOUNDED = Fitting(math.inf)
"""Without a thought for memory."""


@lru_cache(maxsize=4096)
def fit_into(memory: float, recipe: Recipe, size: tuple[int, int], count: int, dtype: torch.dtype) -> Fitting | None:
    """How so many pictures of a size (width, height) are painted in so many bytes; None where they cannot be.

    Whole if that fits; else in the largest tiles that leave room for L-BFGS's whole history; else in small ones, with
    as long a history as fits. `recipe.tile` may ask for one of these.
    """
    whole, fixed = Fitting(math.inf), recipe.tile_side
    if recipe.tile == "off":
        tries = [whole, *(Fitting(math.inf, history) for history in _shorter())]
    elif fixed:
        tries = [Fitting(fixed), *(Fitting(fixed, history) for history in _shorter())]
    else:
        small = [tile for tile in TILES if tile <= SMALL_TILE]
        tries = [whole, *map(Fitting, TILES), *(Fitting(tile, history) for tile in small for history in _shorter())]
    for fitting in tries:
        needed = memory_of(fitting, recipe, size, count, dtype)
        if needed <= memory:
            return replace(fitting, memory=needed)
    return None


def least_memory(recipe: Recipe, size: tuple[int, int], dtype: torch.dtype) -> float:
    """Bytes that one picture of a size (width, height) takes at the least."""
    tile = math.inf if recipe.tile == "off" else recipe.tile_side or TILES[-1]
    return memory_of(Fitting(tile, LEAST_HISTORY), recipe, size, 1, dtype)


def memory_problem(memory: float, recipe: Recipe, size: tuple[int, int], dtype: torch.dtype) -> str:
    """Why one picture of `size` (width, height) does not fit into `memory` bytes, and what to do."""
    width, height = size
    needed = least_memory(recipe, size, dtype)
    return (
        f"{width}×{height} pixels take {needed / 1e9:.0f} GB at the least, more than the {memory / 1e9:.0f} GB "
        "available; lower size"
    )


def memory_of(fitting: Fitting, recipe: Recipe, size: tuple[int, int], count: int, dtype: torch.dtype) -> float:
    """Bytes that a batch takes at its peak, about."""
    layers = cut(recipe.backbone, recipe.layers)
    around = margins(layers)[""]
    seen = math.prod(min(length, fitting.tile + around.before + around.after) for length in size)
    pixel = count * (seen * _activations(recipe, dtype) + math.prod(size) * _vectors(recipe, dtype, fitting.history))
    return PROCESS_BYTES + pixel


def slowdown(fitting: Fitting, recipe: Recipe) -> float:
    """Time of a step as a multiple of that of a whole picture, about: a walk more, and what tiles see twice."""
    if math.isinf(fitting.tile):
        return 1.0
    # The deeper the layer, the less lies around its own positions: on average about two thirds.
    around = margins(cut(recipe.backbone, recipe.layers))[""]
    seen = 1 + 2 / 3 * (around.before + around.after) / fitting.tile
    return TILED * seen**2


def largest_batch(memory: float, recipe: Recipe, device_type: str, dtype: torch.dtype) -> int:
    """Pixels of a batch on `auto`: no more than so many bytes hold, nor than makes it faster."""
    room = (memory - PROCESS_BYTES) / (_activations(recipe, dtype) + _vectors(recipe, dtype, HISTORY))
    return min(GPU_BATCH if device_type == "cuda" else CPU_BATCH, int(room))


def _shorter() -> range:
    return range(HISTORY - 1, LEAST_HISTORY - 1, -1)


def _outputs(recipe: Recipe) -> dict[str, float]:
    """Numbers that each layer puts out for each pixel."""
    layers = cut(recipe.backbone, recipe.layers)
    apart = strides(layers)
    return {layer.name: layer.channels / apart[layer.name] ** 2 for layer in layers}


def _activations(recipe: Recipe, dtype: torch.dtype) -> float:
    """Bytes of the network for each pixel that it sees at once."""
    outputs = _outputs(recipe)
    return ACTIVATIONS * dtype.itemsize * sum(count for name, count in outputs.items() if name.startswith("conv"))


def _vectors(recipe: Recipe, dtype: torch.dtype, history: int) -> float:
    """Bytes for each pixel of the picture: copies of it, the optimiser's history, the content's features."""
    outputs = _outputs(recipe)
    # One more pair than L-BFGS remembers is written, and each is two vectors.
    pairs = 2 * (history + 1) if recipe.optimizer == "lbfgs" else 0
    return VECTOR_BYTES * (VECTORS + pairs) + dtype.itemsize * sum(outputs[name] for name in recipe.content_layers)
