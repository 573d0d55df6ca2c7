"""Receptive fields: the pixels that a position of a layer sees (Dumoulin and Visin 2016, chapters 2 to 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchnst.backbones import Layer

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are just outside."""


@dataclass(frozen=True)
class Field:
    """The receptive fields of a layer: squares of one size, with a constant stride, in pixels.

    size: side of a square. stride: distance between the squares of neighbouring positions. start: left and top of the
    first position's square; negative if it reaches into the padding around the picture.
    """

    size: int
    stride: int
    start: int

    def box(self, x: int, y: int) -> Box:
        """Return the square that position (`x`, `y`) sees; at a border it reaches beyond the picture."""
        left, top = self.start + x * self.stride, self.start + y * self.stride
        return left, top, left + self.size, top + self.size

    def inside(self, length: int) -> range:
        """Return the positions along a side of `length` pixels that see nothing beyond it; empty if it is too short."""
        return range(-(self.start // self.stride), (length - self.size - self.start) // self.stride + 1)


def fields(layers: Sequence[Layer]) -> dict[str, Field]:
    """Return the receptive fields by layer name, for `layers` in their order from the picture on."""
    by_layer, field = {}, Field(size=1, stride=1, start=0)
    for layer in layers:
        field = Field(
            size=field.size + (layer.kernel - 1) * field.stride,
            stride=field.stride * layer.stride,
            start=field.start - layer.padding * field.stride,
        )
        by_layer[layer.name] = field
    return by_layer
