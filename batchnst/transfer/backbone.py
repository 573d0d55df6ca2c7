"""The frozen network: pictures in, features of chosen layers out."""

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
"""Index (..., rows, columns) of a rectangle of positions in features (B, C, h, w) or of pixels in pictures."""

POOLING: dict[str, Callable[..., Tensor]] = {"max": F.max_pool2d, "avg": F.avg_pool2d}
"""Pooling functions by the recipe's `pooling`."""


def _pool_first(layers: list[Layer], wanted: frozenset[str]) -> None:
    """Swap each ReLU in `layers` with the max pooling after it, unless one of the two is in `wanted`.

    Both take maxima, so their order does not change the result, and after pooling the ReLU has a quarter of the work.
    """
    for i, (layer, following) in enumerate(pairwise(layers)):
        if layer.name.startswith("relu") and following.is_pooling and not wanted & {layer.name, following.name}:
            layers[i : i + 2] = following, layer


class Backbone(nn.Module):
    """A frozen network, cut after the last layer in `wanted`.

    `pooling` is a key of POOLING. Convolutions run in `dtype` and channels_last; features come back in `dtype`.
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
                # A copy, because Ray's shared arrays are read-only.
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
        """Return the features (B, C, h, w) of the wanted layers by name, for `pictures` (B, 3, H, W), RGB, 0..255.

        `tap` is called with the name and the features of each wanted layer, and returns the features to go on with.
        `crops` maps a layer to [left, right, top, bottom]: the columns and rows to cut off its features before the next
        layer.
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
                # In place, unless the convolution's own output is wanted too.
                x = F.relu(x, inplace=name.replace("relu", "conv") not in self.wanted)
            if name in self.wanted:
                x = tap(name, x) if tap else x
                features[name] = x
            if name in crops:
                # By negative padding, because the derivative of a slice is not channels_last.
                x = F.pad(x, [-positions for positions in crops[name]])
        return features

    def shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return the shape (C, h, w) of each layer's features, for a picture of `height` × `width` pixels."""
        shapes = {}
        for layer in self.layers:
            height, width = layer.length(height), layer.length(width)
            shapes[layer.name] = layer.channels, height, width
        return shapes
