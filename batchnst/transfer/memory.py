"""Memory of painting: the bytes that a batch needs, and the tiles and history with which it fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from batchnst.backbones import cut, strides
from batchnst.recipe import Recipe
from batchnst.transfer.device import PROCESS_BYTES
from batchnst.transfer.optimizers import HISTORY
from batchnst.transfer.tiling import margins

ACTIVATIONS = 2.5
"""Bytes of the network in a step, as a multiple of the bytes that its convolutions output (measured on a CPU)."""

VECTORS = 8
"""Copies of a picture, (3, H, W) in float32, held at once beside the history: content, style, trial, best, gradients,
the optimiser's state and its working memory.
"""

VECTOR_BYTES = 12
"""Bytes of a pixel in such a copy."""

TILED = 1.45
"""Time of a tiled step, not counting overlaps, as a multiple of an untiled one (measured on a CPU)."""

TILES = (2048, 1024, 512, 256)
"""Sides of tiles to try, in pixels. The smaller the tiles, the more time their margins cost."""

SMALL_TILE = 512
"""Tiles up to this side, in pixels, are also tried with a shorter history."""

LEAST_HISTORY = 1
"""Fewest steps that L-BFGS remembers."""

CPU_BATCH = 4 * 256 * 256
"""Largest batch on a CPU, in pixels; larger ones are no faster."""

GPU_BATCH = 16 * 512 * 512
"""Largest batch on a GPU, in pixels."""


MOST_POSITIONS = 2**31 // 64
"""Most positions that a GPU's libraries convolve at once: they count values, 64 at each position, in 32 bits."""


@dataclass(frozen=True)
class Fitting:
    """The way to paint a batch within a memory limit.

    tile: side of a tile in pixels; inf for the whole picture at once. history: steps that L-BFGS remembers. memory:
    bytes that the batch needs. devices: devices that share the tiles; if empty, the pictures' own device does all.
    """

    tile: float
    history: int = HISTORY
    memory: float = 0.0
    devices: Sequence[torch.device] = ()

    @property
    def recipe_tile(self) -> int | str:
        """The value of the recipe's `tile` that requests this tile."""
        return "off" if math.isinf(self.tile) else int(self.tile)

    def notes(self, recipe: Recipe) -> list[str]:
        """Return the notes on compromises made for lack of memory."""
        if recipe.optimizer != "lbfgs" or self.history == HISTORY:
            return []
        return [f"L-BFGS remembers {self.history} steps, not {HISTORY}: memory"]


UNBOUNDED = Fitting(math.inf)
"""No memory limit."""


@lru_cache(maxsize=4096)
def fit_into(memory: float, recipe: Recipe, size: tuple[int, int], count: int, dtype: torch.dtype) -> Fitting | None:
    """Return how to paint `count` pictures of `size` (width, height) in `memory` bytes; None if they do not fit.

    The first of these that fits: whole pictures, if they have at most MOST_POSITIONS together; the largest tiles with
    L-BFGS's full history; small tiles with the longest history that fits. If `recipe.tile` is "off" or a side, only the
    history is shortened.
    """
    whole, fixed = Fitting(math.inf), recipe.tile_side
    if recipe.tile == "off":
        tries = [whole, *(Fitting(math.inf, history) for history in _shorter_histories())]
    elif fixed:
        tries = [Fitting(fixed), *(Fitting(fixed, history) for history in _shorter_histories())]
    else:
        small = [tile for tile in TILES if tile <= SMALL_TILE]
        shorter = (Fitting(tile, history) for tile in small for history in _shorter_histories())
        tries = [*map(Fitting, TILES), *shorter]
        if count * math.prod(size) <= MOST_POSITIONS:
            tries.insert(0, whole)
    for fitting in tries:
        needed = memory_of(fitting, recipe, size, count, dtype)
        if needed <= memory:
            return replace(fitting, memory=needed)
    return None


def least_memory(recipe: Recipe, size: tuple[int, int], dtype: torch.dtype) -> float:
    """Return the fewest bytes in which one picture of `size` (width, height) can be painted."""
    tile = math.inf if recipe.tile == "off" else recipe.tile_side or TILES[-1]
    return memory_of(Fitting(tile, LEAST_HISTORY), recipe, size, 1, dtype)


def memory_problem(memory: float, recipe: Recipe, size: tuple[int, int], dtype: torch.dtype) -> str:
    """Explain why one picture of `size` (width, height) does not fit into `memory` bytes, and what to do."""
    width, height = size
    needed = least_memory(recipe, size, dtype)
    return (
        f"{width}×{height} pixels take {needed / 1e9:.0f} GB at the least, more than the {memory / 1e9:.0f} GB "
        "available; lower size"
    )


def memory_of(fitting: Fitting, recipe: Recipe, size: tuple[int, int], count: int, dtype: torch.dtype) -> float:
    """Estimate the peak memory of painting `count` pictures of `size` (width, height), in bytes."""
    layers = cut(recipe.backbone, recipe.layers)
    margin = margins(layers)[""]
    window = math.prod(min(length, fitting.tile + margin.before + margin.after) for length in size)
    network, pictures = _network_bytes(recipe, dtype), _picture_bytes(recipe, dtype, fitting.history)
    return PROCESS_BYTES + count * (window * network + math.prod(size) * pictures)


def slowdown(fitting: Fitting, recipe: Recipe) -> float:
    """Estimate the time of a step as a multiple of an untiled one.

    A tiled step has a second forward pass, and its tiles overlap.
    """
    if math.isinf(fitting.tile):
        return 1.0
    # The deeper the layer, the smaller its margin: on average about two thirds of that in pixels.
    margin = margins(cut(recipe.backbone, recipe.layers))[""]
    overlap = 1 + 2 / 3 * (margin.before + margin.after) / fitting.tile
    return TILED * overlap**2


def largest_batch(memory: float, recipe: Recipe, device_type: str, dtype: torch.dtype) -> int:
    """Return the largest useful batch on `auto`, in pixels, that fits into `memory` bytes."""
    room = (memory - PROCESS_BYTES) / (_network_bytes(recipe, dtype) + _picture_bytes(recipe, dtype, HISTORY))
    return min(CPU_BATCH if device_type == "cpu" else GPU_BATCH, int(room))


def _shorter_histories() -> range:
    return range(HISTORY - 1, LEAST_HISTORY - 1, -1)


def _outputs(recipe: Recipe) -> dict[str, float]:
    """Return the number of values that each layer outputs for each pixel of the picture."""
    layers = cut(recipe.backbone, recipe.layers)
    pixels_apart = strides(layers)
    return {layer.name: layer.channels / pixels_apart[layer.name] ** 2 for layer in layers}


def _network_bytes(recipe: Recipe, dtype: torch.dtype) -> float:
    """Return the network's bytes for each pixel that it processes at once."""
    outputs = _outputs(recipe)
    return ACTIVATIONS * dtype.itemsize * sum(count for name, count in outputs.items() if name.startswith("conv"))


def _picture_bytes(recipe: Recipe, dtype: torch.dtype, history: int) -> float:
    """Return the bytes for each pixel of a picture: its copies, L-BFGS's history and the content's features."""
    outputs = _outputs(recipe)
    # Two vectors for each curvature pair, and one pair more than L-BFGS remembers.
    curvature = 2 * (history + 1) if recipe.optimizer == "lbfgs" else 0
    # The smaller octaves together have a third of the pixels; each is held with its gradient.
    vectors, octaves = VECTORS + curvature + 2 / 3 * recipe.octaves, 1 + recipe.octaves / 3
    content = dtype.itemsize * sum(outputs[name] for name in recipe.content_layers)
    return VECTOR_BYTES * vectors + octaves * content
