"""Read a file of network weights, find its backbone and check that it is complete."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pickle import UnpicklingError

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from batchnst.backbones import BACKBONES, layer_names
from batchnst.errors import BatchNSTError, RequestError
from batchnst.painting.expected_input import recognise
from batchnst.storage import files
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.weights import NORMALISATIONS, Tensors, Weights, by_layer, tensor_shapes, to_arrays, to_weights

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Names under which training programs store a state dict, beside other things."""

_PREFIXES = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and DataParallel add to the names of tensors."""

TEST_SIDE = 64
"""Side of the random picture that tests a network, in pixels."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights: its address, its tensors by their names in the file, and its metadata."""

    address: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def backbone(self) -> str:
        """The backbone whose convolutions the file holds; raises RequestError if it holds none."""
        for backbone in BACKBONES:
            if not self._mismatch(backbone):
                return backbone
        nearest = max(BACKBONES, key=self._count_matches)
        raise self._error(f"is none of {', '.join(BACKBONES)}; the nearest is {nearest}, but {self._mismatch(nearest)}")

    def normalisation(self) -> str:
        """The normalisation that the network expects of its input, a key of NORMALISATIONS.

        It is taken from the metadata; with torchvision's names, else from what the layers do. Raises RequestError if
        neither tells.
        """
        if normalisation := self.metadata.get("normalisation"):
            if normalisation not in NORMALISATIONS:
                raise self._error(f"its normalisation is {normalisation!r}; expected {' or '.join(NORMALISATIONS)}")
            return normalisation
        if any(name.startswith("features.") for name in self.tensors):
            backbone = self.backbone()
            if normalisation := recognise(backbone, self.arrays(backbone)):
                return normalisation
        choices = "|".join(NORMALISATIONS)
        raise self._error(
            "does not say what input it expects; "
            f"`batchnst weights import {self.address} NAME --normalisation {choices}`"
        )

    def weights(self, backbone: str) -> Weights:
        """The weights of `backbone` in this file; raises RequestError if they are not complete and usable."""
        if mismatch := self._mismatch(backbone):
            hints = [
                f"it looks like {other}'s; say --backbone {other}" for other in BACKBONES if not self._mismatch(other)
            ]
            raise self._error(f"is not {backbone}'s: {hints[0] if hints else mismatch}")
        weights = to_weights(backbone, self.arrays(backbone), self.normalisation())
        for name, array in weights.tensors.items():
            if not np.isfinite(array).all():
                raise self._error(f"{name} holds NaN or infinity; fetch it again")
            if name.endswith(".weight") and not array.any():
                raise self._error(f"{name} is all zero; expected a trained network")
        if layer := _dead_layer(backbone, weights):
            raise self._error(f"{layer} is all zero, or not finite, on a random picture; expected a trained network")
        return weights

    def arrays(self, backbone: str) -> Tensors:
        """The tensors of `backbone` by batchnst's names; the file must hold them all."""
        return to_arrays(backbone, self.tensors)

    def _mismatch(self, backbone: str) -> str:
        """The first difference between the file and `backbone`, in words; empty if there is none."""
        tensors, shapes = by_layer(backbone, self.tensors), tensor_shapes(backbone)
        for name in shapes:
            if name not in tensors:
                return f"it has no {name}{'' if tensors else self._names()}"
            tensor = tensors[name]
            if not tensor.is_floating_point() or tensor.shape != shapes[name]:
                dtype = str(tensor.dtype).removeprefix("torch.")
                return f"its {name} is {dtype} {_shape_text(tensor.shape)}, not float {_shape_text(shapes[name])}"
        return next((f"it has {name} as well" for name in tensors if name not in shapes), "")

    def _names(self) -> str:
        """The first names of its tensors, to add to a message."""
        return f"; its tensors are called {', '.join(list(self.tensors)[:2])} …" if self.tensors else ", nor any tensor"

    def _count_matches(self, backbone: str) -> int:
        """The number of tensors with a name and shape of `backbone`."""
        tensors = by_layer(backbone, self.tensors)
        return sum(name in tensors and tensors[name].shape == shape for name, shape in tensor_shapes(backbone).items())

    def _error(self, text: str) -> RequestError:
        return RequestError(f"weights {self.address}: {text}")


def _shape_text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _dead_layer(backbone: str, weights: Weights) -> str | None:
    """The first layer whose features of a random picture are all 0 or not finite; None if there is none."""
    noise = torch.rand(1, 3, TEST_SIDE, TEST_SIDE, generator=torch.Generator().manual_seed(0)) * 255
    relus = [name for name in layer_names(backbone) if name.startswith("relu")]
    with torch.no_grad():
        features = Backbone(backbone, weights, relus)(noise)
    # A Gram matrix sums the squares of features: these must be finite, too.
    return next(
        (name for name in relus if not features[name].any() or not (features[name] ** 2).sum().isfinite()), None
    )


def read_file(address: str) -> WeightsFile:
    """Read a safetensors or state-dict file; raises RequestError. No code in the file is run."""
    try:
        data = files.read(address)
        return WeightsFile(address, *(_from_safetensors if data[8:9] == b"{" else _from_torch)(data))
    except BatchNSTError as error:
        raise RequestError(f"weights {error}") from None
    except ValueError as error:
        raise RequestError(f"weights {address}: {error}") from None


def _from_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ValueError(f"is truncated or damaged ({error}); fetch it again") from None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {_bare(name): tensor for name, tensor in tensors.items()}, header.get("__metadata__", {})


def _from_torch(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not data.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError("is neither safetensors nor a state dict of torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles that are not its own
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError("holds more than tensors, and was not run; expected a state dict, or safetensors") from None
    except Exception:  # torch's readers raise many kinds of errors on damaged files
        raise ValueError(_whole_zip(data) or "is truncated or damaged; fetch it again") from None
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__}; expected a state dict, or safetensors")
    state = next((state[name] for name in _WRAPPERS if isinstance(state.get(name), dict)), state)
    return {_bare(str(name)): tensor for name, tensor in state.items() if _has_numbers(tensor)}, {}


def _whole_zip(data: bytes) -> str:
    """The reason why torch reads no state dict from a whole zip; empty for other files, or damaged ones."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return ""
    if "constants.pkl" in names:
        return "is a TorchScript program; expected a state dict, or safetensors"
    return "" if "data.pkl" in names else "is a zip, but none of torch; expected a state dict, or safetensors"


def _has_numbers(value: object) -> bool:
    """True for a tensor whose numbers are all stored, one by one."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type != "meta"


def _bare(name: str) -> str:
    """The name of a tensor without the prefixes of wrappers."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
