"""How much of a picture a position of a layer sees (Dumoulin and Visin 2016, chapters 2 to 4, from layer to layer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchnst.backbones import Layer

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, the last two just outside."""


@dataclass(frozen=True)
class Field:
    """The receptive fields of a layer, in pixels: squares of one size, a stride apart.

    start: where the first position's begins; below 0, as it also sees the padding around the picture.
    """

    size: int
    stride: int
    start: int

    def box(self, x: int, y: int) -> Box:
        """What a position sees at the most; at a border the box reaches beyond the picture."""
        left, top = self.start + x * self.stride, self.start + y * self.stride
        return left, top, left + self.size, top + self.size

    def inside(self, length: int) -> range:
        """The positions along a side of so many pixels that see nothing beyond it; none if the side is too short."""
        return range(-(self.start // self.stride), (length - self.size - self.start) // self.stride + 1)


def fields(layers: Sequence[Layer]) -> dict[str, Field]:
    """The receptive fields of each layer, of layers in their order from the picture on."""
    found, field = {}, Field(size=1, stride=1, start=0)
    for layer in layers:
        field = Field(
            size=field.size + (layer.kernel - 1) * field.stride,
            stride=field.stride * layer.stride,
            start=field.start - layer.padding * field.stride,
        )
        found[layer.name] = field
    return found
