"""The frozen network whose features say what a picture shows and how it is painted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchnst.layers import Layer, cut
from batchnst.transfer.weights import Weights

POOLING: dict[str, Callable[..., Tensor]] = {"max": F.max_pool2d, "avg": F.avg_pool2d}


@dataclass(frozen=True)
class Edges:
    """Which sides of a picture are its own, where the network sees zeros, and not cuts through a larger picture."""

    left: bool = True
    right: bool = True
    top: bool = True
    bottom: bool = True


WHOLE = Edges()


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
        self, pictures: Tensor, tap: Callable[[str, Tensor], Tensor] | None = None, edges: Edges = WHOLE
    ) -> dict[str, Tensor]:
        """Features (B, C, h, w) of the wanted layers by name, for pictures (B, 3, H, W), RGB, 0..255.

        `tap` is given each wanted layer's name and features, and returns the features that go on. At a side that is
        not one of `edges` only features are computed that see nothing beyond it.
        """
        x = (pictures - self.mean).to(self.dtype, memory_format=torch.channels_last)
        features = {}
        for layer in self.layers:
            name = layer.name
            if layer.is_convolution:
                x = self._convolve(x, layer, edges)
            elif layer.is_pooling:
                x = self.pool(x, layer.kernel, layer.stride)
            else:
                # In place unless the layer before is wanted as it was.
                x = F.relu(x, inplace=name.replace("relu", "conv") not in self.wanted)
            if name in self.wanted:
                x = tap(name, x) if tap else x
                features[name] = x
        return features

    def shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Channels, rows and columns (C, h, w) of each layer, for a picture of so many pixels."""
        found = {}
        for layer in self.layers:
            height, width = layer.length(height), layer.length(width)
            found[layer.name] = layer.channels, height, width
        return found

    def _convolve(self, x: Tensor, layer: Layer, edges: Edges) -> Tensor:
        weight, bias = getattr(self, f"{layer.name}_weight"), getattr(self, f"{layer.name}_bias")
        padding = [layer.padding * edge for edge in (edges.left, edges.right, edges.top, edges.bottom)]
        if edges.left != edges.right or edges.top != edges.bottom:
            x, padding = F.pad(x, padding), [0] * 4
        return F.conv2d(x, weight, bias, stride=layer.stride, padding=(padding[2], padding[0]))
