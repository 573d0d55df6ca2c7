"""A file of weights: what it holds, which backbone that is, and whether it is whole."""

from __future__ import annotations

import io
import json
import warnings
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
from batchnst.storage import files
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.weights import NORMALISATIONS, Tensors, Weights, by_layer, tensor_shapes, to_arrays, to_weights

SIDE = 64
"""Of the made-up picture that a network must see something in, in pixels."""


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds: tensors by their names in it, and what it says of itself."""

    address: str
    tensors: Mapping[str, Tensor]
    says: Mapping[str, str]

    def backbone(self) -> str:
        """The backbone whose convolutions it holds; raises RequestError for none."""
        for backbone in BACKBONES:
            if not self._misfit(backbone):
                return backbone
        nearest = max(BACKBONES, key=self._fits)
        raise self._error(f"is none of {', '.join(BACKBONES)}; the nearest is {nearest}, but {self._misfit(nearest)}")

    def normalisation(self) -> str:
        """The normalisation its network expects; raises RequestError where nothing says it."""
        if said := self.says.get("normalisation"):
            if said not in NORMALISATIONS:
                raise self._error(f"its normalisation is {said!r}; expected {' or '.join(NORMALISATIONS)}")
            return said
        if any(name.startswith("features.") for name in self.tensors):
            return "imagenet"  # as torchvision names them
        choices = "|".join(NORMALISATIONS)
        raise self._error(
            "does not say what input it expects; "
            f"`batchnst weights import {self.address} NAME --normalisation {choices}`"
        )

    def weights(self, backbone: str) -> Weights:
        """The weights it holds of a backbone, after all checks; raises RequestError."""
        if misfit := self._misfit(backbone):
            others = [
                f"it looks like {other}'s; say --backbone {other}" for other in BACKBONES if not self._misfit(other)
            ]
            raise self._error(f"is not {backbone}'s: {others[0] if others else misfit}")
        weights = to_weights(backbone, self.arrays(backbone), self.normalisation())
        for name, array in weights.tensors.items():
            if not np.isfinite(array).all():
                raise self._error(f"{name} holds NaN or infinity; fetch it again")
        if blind := _blind_layer(backbone, weights):
            raise self._error(f"{blind} sees nothing, or no numbers, in a made-up picture; was it trained, and whole?")
        return weights

    def arrays(self, backbone: str) -> Tensors:
        """The tensors of a backbone, which it holds, by our names."""
        return to_arrays(backbone, self.tensors)

    def _misfit(self, backbone: str) -> str:
        """What keeps it from being a backbone's, in a few words; nothing if it is."""
        own, shapes = by_layer(backbone, self.tensors), tensor_shapes(backbone)
        for name in shapes:
            if name not in own:
                return f"it has no {name}"
            if not own[name].is_floating_point() or own[name].shape != shapes[name]:
                kind = str(own[name].dtype).removeprefix("torch.")
                return f"its {name} is {kind} {_by(own[name].shape)}, not float {_by(shapes[name])}"
        return next((f"it has {name} as well" for name in own if name not in shapes), "")

    def _fits(self, backbone: str) -> int:
        """How many tensors are as a backbone has them."""
        own = by_layer(backbone, self.tensors)
        return sum(name in own and own[name].shape == shape for name, shape in tensor_shapes(backbone).items())

    def _error(self, text: str) -> RequestError:
        return RequestError(f"weights {self.address}: {text}")


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _blind_layer(backbone: str, weights: Weights) -> str | None:
    """The first layer whose features of a made-up picture are all 0, or not finite."""
    noise = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 255
    relus = [name for name in layer_names(backbone) if name.startswith("relu")]
    with torch.no_grad():
        features = Backbone(backbone, weights, relus)(noise)
    return next((name for name in relus if not (features[name].isfinite().all() and features[name].any())), None)


def read_file(address: str) -> WeightsFile:
    """What a safetensors or state-dict file holds; raises RequestError."""
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
    return tensors, header.get("__metadata__", {})


def _from_torch(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not data.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError("is neither safetensors nor a state dict of torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are not torch's
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError("holds more than tensors, and was not run; expected a state dict, or safetensors") from None
    except Exception:  # whatever torch's readers stumble over
        raise ValueError("is truncated or damaged; fetch it again") from None
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__}; expected a state dict, or safetensors")
    dense = (item for item in state.items() if isinstance(item[1], Tensor) and item[1].layout == torch.strided)
    return {str(name): tensor for name, tensor in dense}, {}
