from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchnst import recipe
from batchnst.backbones import BACKBONES, layer_names
from batchnst.errors import RequestError
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.weights import SOURCES, cached, tensor_shapes, to_arrays, to_weights
from tests import oracles


def state_of(features: nn.Sequential) -> dict[str, Tensor]:
    return {f"features.{name}": tensor for name, tensor in features.state_dict().items()}


def arrays(backbone: str, features: nn.Sequential) -> dict[str, np.ndarray]:
    return dict(to_arrays(backbone, state_of(features)))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_network_is_torchvisions_with_its_normalisation(backbone: str) -> None:
    theirs = oracles.torchvision_features(backbone)
    oracles.check_features(backbone, to_weights(backbone, arrays(backbone, theirs), "imagenet"), theirs)


def test_a_recipe_names_the_sources_there_are() -> None:
    assert [*SOURCES] == recipe.SOURCES


def test_the_original_normalisation_is_bgr_with_a_mean_subtracted() -> None:
    theirs = oracles.torchvision_features("alexnet")
    pictures = torch.rand(1, 3, 40, 40) * 255
    expected = theirs[0](pictures.flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1))
    found = Backbone("alexnet", to_weights("alexnet", arrays("alexnet", theirs), "caffe"), ["conv1"])(pictures)
    assert torch.allclose(found["conv1"], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_random_weights_are_the_same_every_time_and_keep_features_at_one_size(backbone: str) -> None:
    weights = SOURCES["random"](backbone)
    assert weights.sha256 == SOURCES["random"](backbone).sha256
    assert {name: array.shape for name, array in weights.tensors.items()} == tensor_shapes(backbone)
    relus = [name for name in layer_names(backbone) if name.startswith("relu")]
    features = Backbone(backbone, weights, relus)(torch.rand(1, 3, 64, 64) * 255)
    assert all(10 < features[name].square().mean().sqrt() < 250 for name in relus)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's cache is empty and there is no network."""

    def refuse(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", refuse)


@pytest.mark.usefixtures("offline")
def test_without_a_network_one_line_says_what_to_do() -> None:
    file = "alexnet-owt-7be5be79.pth"
    for source, said in (
        ("bundled", "none are bundled for alexnet"),
        ("torchvision", "torchvision's alexnet: <urlopen"),
    ):
        with pytest.raises(RequestError) as caught:
            SOURCES[source]("alexnet")
        text = str(caught.value)
        assert text.startswith(f"weights: {said}")
        assert f"/{file} elsewhere" in text
        assert text.endswith(f"`batchnst weights import {file} alexnet` and --weights alexnet")
        assert "\n" not in text


@pytest.mark.usefixtures("offline")
def test_torchvisions_cache_is_used() -> None:
    theirs = oracles.torchvision_features("alexnet")
    cached("alexnet").parent.mkdir(parents=True)
    learned = {name: nn.Parameter(tensor) for name, tensor in state_of(theirs).items()}
    torch.save({**learned, "classifier.1.weight": torch.zeros(9)}, cached("alexnet"))
    weights = SOURCES["torchvision"]("alexnet")
    assert weights == to_weights("alexnet", arrays("alexnet", theirs), "imagenet")
    assert [*weights.tensors] == [*tensor_shapes("alexnet")]
