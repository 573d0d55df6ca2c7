"""The frozen network whose features say what a picture shows and how it is painted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchnst.recipe import layer_names
from batchnst.transfer.weights import Weights

POOLING: dict[str, Callable[..., Tensor]] = {"max": F.max_pool2d, "avg": F.avg_pool2d}


def _pool_first(names: list[str], wanted: frozenset[str]) -> None:
    """Move each ReLU behind the pooling where nobody sees it: maxima commute, and a quarter of the work is left."""
    for i, (name, following) in enumerate(pairwise(names)):
        if name.startswith("relu") and following.startswith("pool") and not wanted & {name, following}:
            names[i : i + 2] = following, name


class Backbone(nn.Module):
    """VGG by layer name, frozen, cut after the last layer asked for.

    Convolutions run in `dtype` and channels_last; features come back in `dtype`.
    """

    def __init__(
        self,
        backbone: str,
        weights: Weights,
        layers: Iterable[str],
        *,
        pooling: str = "max",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.wanted = frozenset(layers)
        self.dtype = dtype
        self.pool = POOLING[pooling]
        names = layer_names(backbone)
        self.names = names[: max(names.index(name) for name in self.wanted) + 1]
        if pooling == "max":
            _pool_first(self.names, self.wanted)
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(weights.mean, device=device).view(1, 3, 1, 1), persistent=False)
        for name in self.names:
            for part in ("weight", "bias") if name.startswith("conv") else ():
                # Copied: Ray's shared arrays are read-only.
                tensor = torch.tensor(weights.tensors[f"{name}.{part}"]).to(device, dtype)
                if tensor.ndim == 4:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)

    def forward(self, pictures: Tensor, tap: Callable[[str, Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Features (B, C, h, w) of the wanted layers by name, for pictures (B, 3, H, W), RGB, 0..255.

        `tap` is given each wanted layer's name and features, and returns the features that go on.
        """
        x = (pictures - self.mean).to(self.dtype, memory_format=torch.channels_last)
        features = {}
        for name in self.names:
            if name.startswith("conv"):
                x = F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), padding=1)
            elif name.startswith("relu"):
                # In place unless the layer before is wanted as it was.
                x = F.relu(x, inplace=name.replace("relu", "conv") not in self.wanted)
            else:
                x = self.pool(x, kernel_size=2)
            if name in self.wanted:
                x = tap(name, x) if tap else x
                features[name] = x
        return features
