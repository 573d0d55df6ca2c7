"""The same gradient, exactly, for pictures larger than memory: tile by tile.

Losses are functions of sums over positions (`Sums`). A first walk over the tiles adds these up, without gradients; they
tell the losses, and the losses' derivatives by them. A second walk derives each tile's own sums by its pixels.

A tile sees as far around itself as its own positions of the deepest layer do: these are then exactly the whole
picture's. What lies around them sees the zeros that every layer finds beyond its sides, and is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor

from batchnst.backbones import Layer, strides
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone, Place
from batchnst.transfer.device import release_memory
from batchnst.transfer.losses import ALL, Losses, Objective, Region, Sums, Tile, guide, tap_products

Result = TypeVar("Result")

FORWARD = 1.5
"""Side of a tile without gradients, as a multiple of one with: it takes no more memory, and overlaps less."""


@dataclass(frozen=True)
class Margin:
    """How many positions around its own ones a tile needs of a layer, before and after them."""

    before: int
    after: int


def margins(layers: Sequence[Layer]) -> dict[str, Margin]:
    """What the layers above need of the pixels, under "", and of each layer with a stride.

    Before its own positions a tile begins where the next stride does, so that no pooling window is cut.
    """
    found, before, after, stride = {}, 0, 0, 1
    for layer in reversed((Layer("", 3), *layers)):
        if layer.stride > 1 or not layer.name:
            before = math.ceil(before / stride) * stride
            found[layer.name] = Margin(before, after)
            stride = layer.stride
        # Positions that see beyond a side, and then those that the own ones see.
        before = (before + math.ceil(layer.padding / layer.stride)) * layer.stride
        after = max(0, (after - 1) * layer.stride + layer.kernel - layer.padding)
    return found


def grid(backbone: Backbone, height: int, width: int, side: float) -> list[Tile]:
    """A picture's tiles, row by row: all of much the same size, `side` pixels at the most.

    They begin at multiples of the deepest layer's stride.
    """
    layers, around = backbone.layers, margins(backbone.layers)
    stride = strides(layers)[layers[-1].name]
    rows, columns = (
        [_Axis(layers, around, length, *span) for span in _spans(length, side, stride)] for length in (height, width)
    )
    return [_tile(row, column) for row in rows for column in columns]


def _spans(length: int, side: float, stride: int) -> list[tuple[int, int]]:
    """A length in pixels in pieces (start, stop)."""
    strides_in_all = math.ceil(length / stride)
    strides_in_one = max(1, int(min(side, length) // stride))
    count = math.ceil(strides_in_all / strides_in_one)
    cuts = [i * strides_in_all // count * stride for i in range(count)]
    return list(zip(cuts, [*cuts[1:], length], strict=True))


class _Axis:
    """One axis of a tile: pixels start..stop of so many are its own. The attributes are those of a Tile."""

    def __init__(self, layers: Sequence[Layer], around: dict[str, Margin], length: int, start: int, stop: int) -> None:
        self.window = slice(max(0, start - around[""].before), min(length, stop + around[""].after))
        offset, seen, is_last = start - self.window.start, self.window.stop - self.window.start, stop == length
        self.place = {"": slice(start, stop)}
        self.own = {"": slice(offset, offset + stop - start)}
        self.crops: dict[str, list[int]] = {}
        for layer in layers:
            length, seen = layer.length(length), layer.length(seen)
            start, stop, offset = start // layer.stride, stop // layer.stride, offset // layer.stride
            stop = length if is_last else stop
            self.place[layer.name] = slice(start, stop)
            self.own[layer.name] = slice(offset, offset + stop - start)
            if layer.name in around:
                first = max(0, offset - around[layer.name].before)
                last = min(seen, offset + stop - start + around[layer.name].after)
                self.crops[layer.name] = [first, seen - last]
                offset, seen = offset - first, last - first


def _tile(row: _Axis, column: _Axis) -> Tile:
    def both(rows: dict[str, slice], columns: dict[str, slice]) -> dict[str, Place]:
        return {name: (..., rows[name], columns[name]) for name in rows}

    return Tile(
        window=(..., row.window, column.window),
        crops={name: column.crops[name] + row.crops[name] for name in row.crops},
        own=both(row.own, column.own),
        place=both(row.place, column.place),
    )


class TiledObjective(Objective):
    """An objective that never sees more at once than a tile of `side` pixels, and what surrounds it.

    `content` may lie on the host. With several devices, each has a share of the tiles.
    """

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        content: dict[str, Tensor],
        regions: Sequence[Region],
        side: int,
        devices: Sequence[torch.device] = (),
    ) -> None:
        super().__init__(backbone, recipe, content, regions)
        self.side = side
        self.backbones = [backbone, *(deepcopy(backbone).to(device) for device in devices[1:])]

    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Losses and gradients as an Objective gives them."""
        height, width = pictures.shape[-2:]
        coarse, fine = (grid(self.backbone, height, width, side) for side in (FORWARD * self.side, self.side))

        def measure(backbone: Backbone, tile: Tile) -> Sums:
            with torch.no_grad():
                return self.sums(backbone, pictures[tile.window].to(backbone.mean.device), tile)

        def derive(backbone: Backbone, tile: Tile) -> Tensor:
            pixels = pictures[tile.window].to(backbone.mean.device).detach().requires_grad_()
            with torch.enable_grad():
                own = self.sums(backbone, pixels, tile, multiply=False)
            given = [derivative.to(pixels.device) for derivative in derivatives]
            return torch.autograd.grad(own.tensors, pixels, given)[0].to(pictures.device)

        sums = reduce(Sums.add_, self._on_each(coarse, measure))
        sums.requires_grad_()
        with torch.enable_grad():
            losses = self.losses(sums, height, width)
        derivatives = torch.autograd.grad(losses.total.sum(), sums.tensors)
        gradient = torch.zeros_like(pictures)
        for tile, own in zip(fine, self._on_each(fine, derive), strict=True):
            gradient[tile.window] += own
        release_memory(pictures.device)  # for the optimiser
        return losses.detach(), gradient

    def _on_each(self, tiles: Sequence[Tile], function: Callable[[Backbone, Tile], Result]) -> Iterator[Result]:
        """What a function gives for each tile, in order; several devices take turns."""
        if len(self.backbones) == 1:
            yield from (function(self.backbone, tile) for tile in tiles)
            return
        with ExitStack() as stack:
            pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in self.backbones]
            turns = zip(cycle(zip(pools, self.backbones, strict=True)), tiles, strict=False)
            for result in [pool.submit(function, backbone, tile) for (pool, backbone), tile in turns]:
                yield result.result()


def gram_matrices(
    backbone: Backbone, picture: Tensor, layers: Iterable[str], side: float, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Gram matrices (1, C, C) of a picture (1, 3, H, W), or of the part of it that a mask (1, 1, H, W), 0..1, shows."""
    height, width = picture.shape[-2:]
    shapes = backbone.shapes(height, width)
    guides = {} if mask is None else {name: guide(mask, *shapes[name][1:]) for name in layers}
    sums: dict[str, Tensor] = {}
    for tile in grid(backbone, height, width, side):

        def tap(name: str, features: Tensor, tile: Tile = tile) -> Tensor:
            if name in layers:
                own = features[tile.own[name]]
                if guides:
                    own = own * guides[name][tile.place[name]].to(own)
                products = tap_products(own, ALL)[1]
                sums[name] = sums[name] + products if name in sums else products
            return features

        backbone(picture[tile.window].to(backbone.mean), tap, tile.crops)
    return {name: products / math.prod(shapes[name][1:]) for name, products in sums.items()}


def features(
    backbone: Backbone, pictures: Tensor, layers: Iterable[str], side: float, device: torch.device
) -> dict[str, Tensor]:
    """Features (B, C, h, w) of pictures (B, 3 or 1, H, W), on a device."""
    height, width = pictures.shape[-2:]
    shapes = backbone.shapes(height, width)
    made = {
        name: torch.empty(
            len(pictures), *shapes[name], dtype=backbone.dtype, device=device, memory_format=torch.channels_last
        )
        for name in layers
    }
    for tile in grid(backbone, height, width, side):

        def tap(name: str, features: Tensor, tile: Tile = tile) -> Tensor:
            if name in made:
                made[name][tile.place[name]] = features[tile.own[name]].to(device)
            return features

        backbone(pictures[tile.window], tap, tile.crops)
    return made
