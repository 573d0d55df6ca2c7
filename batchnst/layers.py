"""The backbones, layer by layer: names, windows and channels, and how far each layer sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A layer by the papers' name: a convolution, a ReLU or a pooling.

    channels: of its output. kernel, stride, padding: of its square window, in positions of its input.
    """

    name: str
    channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def is_convolution(self) -> bool:
        """Whether it has weights."""
        return self.name.startswith("conv")

    @property
    def is_pooling(self) -> bool:
        """Whether it takes the largest, or the mean, of its window."""
        return self.name.startswith("pool")

    def length(self, length: int) -> int:
        """Positions of its output, of so many of its input."""
        return (length + 2 * self.padding - self.kernel) // self.stride + 1


def _vgg(convolutions: Sequence[int]) -> tuple[Layer, ...]:
    """VGG by the convolutions of each block (Simonyan and Zisserman 2014, table 1)."""
    layers: list[Layer] = []
    for block, (count, channels) in enumerate(zip(convolutions, (64, 128, 256, 512, 512), strict=True), 1):
        for i in range(1, count + 1):
            layers += [Layer(f"conv{block}_{i}", channels, kernel=3, padding=1), Layer(f"relu{block}_{i}", channels)]
        layers.append(Layer(f"pool{block}", channels, kernel=2, stride=2))
    return tuple(layers)


BACKBONES = {"vgg19": _vgg((2, 2, 4, 4, 4))}
"""Every backbone's layers, in order."""


def layer_names(backbone: str) -> list[str]:
    """Every layer of a backbone in order: conv1_1, relu1_1, …, pool5."""
    return [layer.name for layer in BACKBONES[backbone]]


def cut(backbone: str, wanted: Sequence[str]) -> list[Layer]:
    """The layers of a backbone up to the last of those wanted."""
    names = layer_names(backbone)
    return list(BACKBONES[backbone][: max(map(names.index, wanted)) + 1])


def smallest_side(layers: Sequence[Layer]) -> int:
    """The least a picture's side may measure, in pixels, for the last layer to have a position."""
    side = 1
    for layer in reversed(layers):
        side = max(1, (side - 1) * layer.stride + layer.kernel - 2 * layer.padding)
    return side


def strides(layers: Sequence[Layer]) -> dict[str, int]:
    """Pixels between two positions of each layer."""
    found, stride = {}, 1
    for layer in layers:
        stride *= layer.stride
        found[layer.name] = stride
    return found
