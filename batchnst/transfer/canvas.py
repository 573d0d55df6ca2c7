"""Pictures of several sizes in one batch: each in the upper left corner of its place on a canvas, with zeros around.

The positions outside each picture's own features are set to zero before a convolution or a sum reads them. So the
convolution finds the zeros there with which it pads a picture that is alone, and the sum is the picture's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from batchnst.backbones import Layer
from batchnst.transfer.device import exact_dtype

Size = tuple[int, int]
"""(height, width), in positions."""


class Extent:
    """The sizes of a batch's pictures on one grid of `height` × `width` positions: pixels, or a layer's features."""

    def __init__(self, sizes: Sequence[Size], height: int, width: int, device: torch.device) -> None:
        self.sizes, self.height, self.width, self.device = list(sizes), height, width, device
        # Only these strips, beyond the smallest height and width, are not inside all pictures.
        least = [min(lengths) for lengths in zip(*self.sizes, strict=True)]
        strips = [(..., slice(least[0], None), slice(None)), (..., slice(least[0]), slice(least[1], None))]
        self._strips = strips if least[0] < height else strips[1:] if least[1] < width else []

    @property
    def is_padded(self) -> bool:
        """True if some positions are outside some pictures."""
        return bool(self._strips)

    @cached_property
    def counts(self) -> Tensor:
        """Number of positions of each picture, (B,), float64 if possible."""
        counts = [height * width for height, width in self.sizes]
        return torch.tensor(counts, dtype=exact_dtype(self.device), device=self.device)

    @cached_property
    def _outside(self) -> list[Tensor]:
        """For each strip a mask of the positions outside each picture, (B, 1, rows, columns)."""
        heights, widths = torch.tensor(self.sizes, device=self.device)[:, :, None, None, None].unbind(1)
        rows, columns = (torch.arange(length, device=self.device) for length in (self.height, self.width))
        outside = (rows[:, None] >= heights) | (columns >= widths)
        return [outside[strip].contiguous() for strip in self._strips]

    def clear_(self, values: Tensor) -> Tensor:
        """Set `values` (B, C, height, width) to zero outside each picture, in place; returns them."""
        if self._strips:
            for strip, outside in zip(self._strips, self._outside, strict=True):
                values[strip].masked_fill_(outside, 0)
        return values

    def pack(self, pictures: Sequence[Tensor]) -> Tensor:
        """Return `pictures` (1, C, h, w), each of its own size, as (B, C, height, width), with zeros around."""
        if not self.is_padded:
            return torch.cat(list(pictures))
        canvas = pictures[0].new_zeros(len(pictures), pictures[0].shape[1], self.height, self.width)
        for inside, picture in zip(self.unpack(canvas), pictures, strict=True):
            inside.copy_(picture)
        return canvas

    def unpack(self, values: Tensor) -> list[Tensor]:
        """Return the pictures (1, C, h, w) in `values` (B, C, height, width), each of its own size, as views."""
        return [values[i : i + 1, :, :height, :width] for i, (height, width) in enumerate(self.sizes)]

    def after(self, layer: Layer) -> Extent:
        """Return the extent of a layer's output, if this is that of its input."""
        sizes = [(layer.length(height), layer.length(width)) for height, width in self.sizes]
        height, width = layer.length(self.height), layer.length(self.width)
        if (sizes, height, width) == (self.sizes, self.height, self.width):
            return self
        return Extent(sizes, height, width, self.device)

    def without(self, rows: int, columns: int) -> Extent:
        """Return the extent whose pictures and grid have so many `rows` and `columns` less."""
        sizes = [(height - rows, width - columns) for height, width in self.sizes]
        return Extent(sizes, self.height - rows, self.width - columns, self.device)


class Canvas:
    """The extents of a batch's pictures: of their pixels, and of every layer's features.

    sizes: (height, width) of each picture, (B,). least: smallest (height, width) of the canvas, which holds all
    pictures in any case.
    """

    def __init__(
        self, sizes: Sequence[Size], layers: Sequence[Layer], device: torch.device, least: Size = (0, 0)
    ) -> None:
        self._layers = list(layers)
        height, width = (max(lengths) for lengths in zip(least, *sizes, strict=True))
        self.pixels = Extent(sizes, height, width, device)
        self._features: dict[str, Extent] = {}
        extent = self.pixels
        for layer in layers:
            extent = self._features[layer.name] = extent.after(layer)

    def __getitem__(self, layer: str) -> Extent:
        """The extent of a layer's features."""
        return self._features[layer]

    @cached_property
    def differences(self) -> tuple[Extent, Extent]:
        """The extents of the pixels' differences from their right neighbours, and from their lower ones."""
        return self.pixels.without(0, 1), self.pixels.without(1, 0)

    def halved(self) -> Canvas:
        """Return the canvas of the pictures at half their size; odd sides are rounded up."""
        *sizes, least = (
            (math.ceil(height / 2), math.ceil(width / 2))
            for height, width in (*self.pixels.sizes, (self.pixels.height, self.pixels.width))
        )
        return Canvas(sizes, self._layers, self.pixels.device, least)

    def select(self, which: Tensor) -> Canvas:
        """Return the canvas of some of the pictures; `which` holds their indices."""
        sizes = [self.pixels.sizes[i] for i in which.tolist()]
        return Canvas(sizes, self._layers, self.pixels.device, (self.pixels.height, self.pixels.width))
