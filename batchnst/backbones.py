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


def _alexnet() -> tuple[Layer, ...]:
    """AlexNet on one GPU, as torchvision has it (Krizhevsky 2014, without its response normalisation)."""
    layers: list[Layer] = []
    for i, (channels, kernel, stride, padding) in enumerate(
        [(64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)], 1
    ):
        layers += [Layer(f"conv{i}", channels, kernel, stride, padding), Layer(f"relu{i}", channels)]
        if i in (1, 2, 5):
            layers.append(Layer(f"pool{i}", channels, kernel=3, stride=2))
    return tuple(layers)


@dataclass(frozen=True)
class Architecture:
    """A backbone: its layers, each at its place in torchvision's `features`, and those of a recipe that names none."""

    layers: tuple[Layer, ...]
    content_layers: tuple[str, ...]
    style_layers: tuple[str, ...]


_GATYS = {
    "content_layers": ("relu4_2",),
    "style_layers": ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
}
"""Gatys et al. 2016, section 3; VGG16 has all of them as well."""

BACKBONES = {
    "vgg19": Architecture(_vgg((2, 2, 4, 4, 4)), **_GATYS),
    "vgg16": Architecture(_vgg((2, 2, 3, 3, 3)), **_GATYS),
    "alexnet": Architecture(
        _alexnet(), content_layers=("relu3",), style_layers=("relu1", "relu2", "relu3", "relu4", "relu5")
    ),
}
"""Every backbone, by torchvision's name."""


def layer_names(backbone: str) -> list[str]:
    """Every layer of a backbone in order: conv1_1, relu1_1, …, pool5."""
    return [layer.name for layer in BACKBONES[backbone].layers]


def cut(backbone: str, wanted: Sequence[str]) -> list[Layer]:
    """The layers of a backbone up to the last of those wanted."""
    names = layer_names(backbone)
    return list(BACKBONES[backbone].layers[: max(map(names.index, wanted)) + 1])


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
