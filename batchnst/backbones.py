"""The backbones, layer by layer: names, windows, channels and strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A layer: a convolution, a ReLU or a pooling, with the name that the papers use.

    channels: number of output channels.
    kernel, stride, padding: of the square window, in positions of the input.
    """

    name: str
    channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def is_convolution(self) -> bool:
        """True for a convolution, the only kind of layer with weights."""
        return self.name.startswith("conv")

    @property
    def is_pooling(self) -> bool:
        """True for a pooling, which takes the maximum or mean of each window."""
        return self.name.startswith("pool")

    def length(self, length: int) -> int:
        """Output length for an input of `length`, both in positions."""
        return (length + 2 * self.padding - self.kernel) // self.stride + 1


def _vgg(convolutions: Sequence[int]) -> tuple[Layer, ...]:
    """Layers of a VGG with these numbers of convolutions per block (Simonyan and Zisserman 2014, table 1)."""
    layers: list[Layer] = []
    for block, (count, channels) in enumerate(zip(convolutions, (64, 128, 256, 512, 512), strict=True), 1):
        for i in range(1, count + 1):
            layers += [Layer(f"conv{block}_{i}", channels, kernel=3, padding=1), Layer(f"relu{block}_{i}", channels)]
        layers.append(Layer(f"pool{block}", channels, kernel=2, stride=2))
    return tuple(layers)


def _alexnet() -> tuple[Layer, ...]:
    """Layers of torchvision's AlexNet: the one-GPU version of Krizhevsky 2014, without response normalisation."""
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
    """A backbone and its default layers.

    layers: in the order of torchvision's `features`.
    content_layers, style_layers: names of the layers that a recipe uses by default.
    """

    layers: tuple[Layer, ...]
    content_layers: tuple[str, ...]
    style_layers: tuple[str, ...]


_GATYS = {
    "content_layers": ("relu4_2",),
    "style_layers": ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
}
"""Default layers of VGG19 (Gatys et al. 2016, section 3); VGG16 has all of them too."""

BACKBONES = {
    "vgg19": Architecture(_vgg((2, 2, 4, 4, 4)), **_GATYS),
    "vgg16": Architecture(_vgg((2, 2, 3, 3, 3)), **_GATYS),
    "alexnet": Architecture(
        _alexnet(), content_layers=("relu3",), style_layers=("relu1", "relu2", "relu3", "relu4", "relu5")
    ),
}
"""Every backbone, by torchvision's name."""


def layer_names(backbone: str) -> list[str]:
    """Names of all layers of `backbone`, in order: conv1_1, relu1_1, …, pool5."""
    return [layer.name for layer in BACKBONES[backbone].layers]


def cut(backbone: str, names: Sequence[str]) -> list[Layer]:
    """Layers of `backbone` from the first to the deepest of `names`."""
    order = layer_names(backbone)
    return list(BACKBONES[backbone].layers[: max(map(order.index, names)) + 1])


def smallest_side(layers: Sequence[Layer]) -> int:
    """Smallest side of a picture, in pixels, for which the last of `layers` has an output."""
    side = 1
    for layer in reversed(layers):
        side = max(1, (side - 1) * layer.stride + layer.kernel - 2 * layer.padding)
    return side


def strides(layers: Sequence[Layer]) -> dict[str, int]:
    """Distance between neighbouring positions of each layer, in pixels of the picture."""
    distances, distance = {}, 1
    for layer in layers:
        distance *= layer.stride
        distances[layer.name] = distance
    return distances
