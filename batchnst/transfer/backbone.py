"""The frozen network whose features say what a picture shows and how it is painted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchnst.backbones import Layer, cut
from batchnst.transfer.weights import Weights

Place = tuple[Any, slice, slice]
"""Where some positions lie in features (B, C, h, w), as an index."""

POOLING: dict[str, Callable[..., Tensor]] = {"max": F.max_pool2d, "avg": F.avg_pool2d}


def _pool_first(layers: list[Layer], wanted: frozenset[str]) -> None:
    """Move each ReLU behind the pooling where nobody sees it: maxima commute, and a quarter of the work is left."""
    for i, (layer, following) in enumerate(pairwise(layers)):
        if layer.name.startswith("relu") and following.is_pooling and not wanted & {layer.name, following.name}:
            layers[i : i + 2] = following, layer


class Backbone(nn.Module):
    """A network by layer name, frozen, cut after the last layer asked for.

    Convolutions run in `dtype` and channels_last; features come back in `dtype`.
    """

    def __init__(
        self,
        backbone: str,
        weights: Weights,
        wanted: Iterable[str],
        *,
        pooling: str = "max",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.wanted = frozenset(wanted)
        self.dtype = dtype
        self.pool = POOLING[pooling]
        self.layers = cut(backbone, list(self.wanted))
        if pooling == "max":
            _pool_first(self.layers, self.wanted)
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(weights.mean, device=device).view(1, 3, 1, 1), persistent=False)
        for name in (layer.name for layer in self.layers if layer.is_convolution):
            for part in ("weight", "bias"):
                # Copied: Ray's shared arrays are read-only.
                tensor = torch.tensor(weights.tensors[f"{name}.{part}"]).to(device, dtype)
                if tensor.ndim == 4:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)

    def forward(
        self,
        pictures: Tensor,
        tap: Callable[[str, Tensor], Tensor] | None = None,
        crops: Mapping[str, list[int]] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Features (B, C, h, w) of the wanted layers by name, for pictures (B, 3, H, W), RGB, 0..255.

        `tap` is given each wanted layer's name and features, and returns the features that go on. Of a layer in `crops`
        that many columns on the left and right, and rows at the top and bottom, do not go on.
        """
        x = (pictures - self.mean).to(self.dtype, memory_format=torch.channels_last)
        features = {}
        for layer in self.layers:
            name = layer.name
            if layer.is_convolution:
                weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
                x = F.conv2d(x, weight, bias, layer.stride, layer.padding)
            elif layer.is_pooling:
                x = self.pool(x, layer.kernel, layer.stride)
            else:
                # In place unless the layer before is wanted as it was.
                x = F.relu(x, inplace=name.replace("relu", "conv") not in self.wanted)
            if name in self.wanted:
                x = tap(name, x) if tap else x
                features[name] = x
            if name in crops:
                x = F.pad(x, [-positions for positions in crops[name]])  # a slice's derivative is not channels_last
        return features

    def shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Channels, rows and columns (C, h, w) of each layer, for a picture of so many pixels."""
        found = {}
        for layer in self.layers:
            height, width = layer.length(height), layer.length(width)
            found[layer.name] = layer.channels, height, width
        return found
