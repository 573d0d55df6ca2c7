"""The exact losses and gradient of pictures larger than memory, tile by tile.

Losses are functions of sums over positions (`Sums`). A first pass over the tiles adds up these sums, without gradients;
from them follow the losses and the slopes of the Gram matrices. A second pass computes each tile's share of the
gradient.

A tile is a core with a margin around it, as wide as the core's positions in the deepest layer can see: their features
are then exactly those of the whole picture. Features in the margin are affected by the zeros that each layer finds
beyond the tile's sides, and are not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor

from batchnst.backbones import Layer, strides
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone, Pass, Place
from batchnst.transfer.canvas import Canvas
from batchnst.transfer.device import release_memory
from batchnst.transfer.losses import Losses, Region, Sums, channel_products, guide
from batchnst.transfer.objective import Objective, Tile

Result = TypeVar("Result")

FORWARD = 1.5
"""Side of a tile without gradients, as a multiple of one with gradients: it needs no more memory and overlaps less."""


@dataclass(frozen=True)
class Margin:
    """Positions of a layer that a tile needs before and after its core, along one axis."""

    before: int
    after: int


def margins(layers: Sequence[Layer]) -> dict[str, Margin]:
    """Return the margins that the layers above need: of the pixels, under "", and of each layer with a stride.

    Before the core it is rounded up to a multiple of the stride of the next layer with a stride, so that no pooling
    window is cut.
    """
    result, before, after, stride = {}, 0, 0, 1
    for layer in reversed((Layer("", 3), *layers)):
        if layer.stride > 1 or not layer.name:
            before = math.ceil(before / stride) * stride
            result[layer.name] = Margin(before, after)
            stride = layer.stride
        # In positions of the layer's input. Its first outputs see beyond the tile and are wrong: they come on top.
        before = (before + math.ceil(layer.padding / layer.stride)) * layer.stride
        after = max(0, (after - 1) * layer.stride + layer.kernel - layer.padding)
    return result


def grid(backbone: Backbone, height: int, width: int, side: float) -> list[Tile]:
    """Return the tiles of a picture, row by row; their cores have about equal sizes, at most `side` pixels a side.

    Cores begin at multiples of the deepest layer's stride.
    """
    layers, around = backbone.layers, margins(backbone.layers)
    stride = strides(layers)[layers[-1].name]
    rows, columns = (
        [_Axis(layers, around, length, *span) for span in _spans(length, side, stride)] for length in (height, width)
    )
    return [_tile(row, column) for row in rows for column in columns]


def _spans(length: int, side: float, stride: int) -> list[tuple[int, int]]:
    """Divide `length` pixels into pieces (start, stop) of at most `side` pixels that start at multiples of `stride`."""
    strides_in_all = math.ceil(length / stride)
    strides_in_one = max(1, int(min(side, length) // stride))
    count = math.ceil(strides_in_all / strides_in_one)
    cuts = [i * strides_in_all // count * stride for i in range(count)]
    return list(zip(cuts, [*cuts[1:], length], strict=True))


class _Axis:
    """One axis of a tile, with a Tile's attributes; its core is pixels `start` to `stop` of `length`."""

    def __init__(self, layers: Sequence[Layer], around: dict[str, Margin], length: int, start: int, stop: int) -> None:
        self.window = slice(max(0, start - around[""].before), min(length, stop + around[""].after))
        offset, extent, is_last = start - self.window.start, self.window.stop - self.window.start, stop == length
        self.place = {"": slice(start, stop)}
        self.core = {"": slice(offset, offset + stop - start)}
        self.crops: dict[str, list[int]] = {}
        for layer in layers:
            length, extent = layer.length(length), layer.length(extent)
            start, stop, offset = start // layer.stride, stop // layer.stride, offset // layer.stride
            stop = length if is_last else stop
            self.place[layer.name] = slice(start, stop)
            self.core[layer.name] = slice(offset, offset + stop - start)
            if layer.name in around:
                first = max(0, offset - around[layer.name].before)
                last = min(extent, offset + stop - start + around[layer.name].after)
                self.crops[layer.name] = [first, extent - last]
                offset, extent = offset - first, last - first


def _tile(row: _Axis, column: _Axis) -> Tile:
    def both(rows: dict[str, slice], columns: dict[str, slice]) -> dict[str, Place]:
        return {name: (..., rows[name], columns[name]) for name in rows}

    return Tile(
        window=(..., row.window, column.window),
        crops={name: column.crops[name] + row.crops[name] for name in row.crops},
        core=both(row.core, column.core),
        place=both(row.place, column.place),
    )


class TiledObjective(Objective):
    """An objective that computes one tile at a time, with a core of at most `side` pixels a side.

    All pictures are as large as the `canvas`. With several `devices`, each computes a share of the tiles.
    """

    recordable = False

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        content: dict[str, Tensor],
        regions: Sequence[Region],
        canvas: Canvas,
        side: int,
        devices: Sequence[torch.device] = (),
    ) -> None:
        super().__init__(backbone, recipe, content, regions, canvas)
        self.side = side
        self.crew = _crew(backbone, tuple(devices[1:]))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Return losses and gradient, as an Objective does."""
        height, width = pictures.shape[-2:]
        coarse, fine = (grid(self.backbone, height, width, side) for side in (FORWARD * self.side, self.side))

        def measure(backbone: Backbone, tile: Tile) -> Sums:
            return self.sums(backbone, pictures[tile.window].to(backbone.mean.device), tile)

        def differentiate(backbone: Backbone, tile: Tile) -> Tensor:
            pixels, tape = pictures[tile.window].to(backbone.mean.device), list[Pass]()
            backbone(pixels.expand(-1, 3, -1, -1), tile.crops, tape)
            return self.gradient(backbone, pixels, tape, slopes, tile).to(pictures.device)

        losses, slopes = self.losses(reduce(Sums.add_, self._map(measure, coarse)))
        gradient = torch.zeros_like(pictures)
        for tile, tile_gradient in zip(fine, self._map(differentiate, fine), strict=True):
            gradient[tile.window] += tile_gradient
        if pictures.device.type == "cpu":  # a GPU's allocator uses the tiles' memory again by itself
            release_memory(pictures.device)  # for the optimiser
        return losses, gradient

    def _map(self, function: Callable[[Backbone, Tile], Result], tiles: Sequence[Tile]) -> Iterator[Result]:
        """Yield the results of `function` for `tiles`, in their order; several devices take turns."""
        if len(self.crew) == 1:
            yield from (function(self.backbone, tile) for tile in tiles)
            return
        for result in [
            pool.submit(function, backbone, tile)
            for (pool, backbone), tile in zip(cycle(self.crew), tiles, strict=False)
        ]:
            yield result.result()


@lru_cache(maxsize=2)
def _crew(backbone: Backbone, more: tuple[torch.device, ...]) -> list[tuple[ThreadPoolExecutor, Backbone]]:
    """A thread and a network for the device of `backbone`, and for each of `more` devices.

    They live as long as the process, because CUDA's libraries keep what they have prepared for each thread.
    """
    backbones = [backbone, *(deepcopy(backbone).to(device) for device in more)]
    return [(ThreadPoolExecutor(1, "tiles"), backbone) for backbone in backbones]


def gram_matrices(
    backbone: Backbone, picture: Tensor, layers: Iterable[str], side: float, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the Gram matrices (1, C, C) of `layers` for `picture` (1, 3, H, W), computed in tiles of `side` pixels.

    With `mask` (1, 1, H, W), 0..1, they are those of the part of the picture that it shows.
    """
    height, width = picture.shape[-2:]
    shapes = backbone.shapes(height, width)
    guides = {} if mask is None else {name: guide(mask, *shapes[name][1:]) for name in layers}
    sums: dict[str, Tensor] = {}
    for tile in grid(backbone, height, width, side):
        features = backbone(picture[tile.window].to(backbone.mean), tile.crops)
        for name in backbone.wanted.intersection(layers):
            core = features[name][tile.core[name]]
            if guides:
                core = core * guides[name][tile.place[name]].to(core)
            products = channel_products(core)
            sums[name] = sums[name] + products if name in sums else products
    return {name: products / math.prod(shapes[name][1:]) for name, products in sums.items()}


def features(backbone: Backbone, pictures: Tensor, layers: Iterable[str], side: float) -> dict[str, Tensor]:
    """Return the features (B, C, h, w) of `layers` for `pictures` (B, 3 or 1, H, W), in tiles of `side` pixels.

    They stay on the device of `pictures`, as `memory_of` counts them: no tile waits for a copy from the host.
    """
    height, width = pictures.shape[-2:]
    shapes = backbone.shapes(height, width)
    result = {
        name: torch.empty(
            len(pictures),
            *shapes[name],
            dtype=backbone.dtype,
            device=pictures.device,
            memory_format=torch.channels_last,
        )
        for name in layers
    }
    for tile in grid(backbone, height, width, side):
        seen = backbone(pictures[tile.window], tile.crops)
        for name, values in result.items():
            values[tile.place[name]] = seen[name][tile.core[name]]
    return result
