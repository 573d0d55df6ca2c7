from __future__ import annotations

import pytest
import torch

from batchnst.backbones import layer_names
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.device import network_dtype
from batchnst.transfer.weights import Weights
from tests import oracles

RELUS = [name for name in layer_names("vgg19") if name.startswith("relu")]


def pictures(size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size + 5, generator=torch.Generator().manual_seed(3)) * 255


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_every_layer_is_torchvisions_with_the_same_weights(weights: Weights) -> None:
    ours = Backbone("vgg19", weights, RELUS)(pictures())
    theirs = oracles.relu_features(oracles.torchvision_vgg19(weights), pictures())
    assert list(ours) == RELUS == list(theirs)
    for name in RELUS:
        assert relative(ours[name], theirs[name]) < 1e-5, name


def test_a_convolution_asked_for_is_not_overwritten_by_its_relu(weights: Weights) -> None:
    features = Backbone("vgg19", weights, ["conv1_1", "relu1_1"])(pictures())
    assert (features["conv1_1"] < 0).any()
    assert torch.equal(features["conv1_1"].relu(), features["relu1_1"])


def test_it_is_cut_after_the_last_layer_and_frozen(weights: Weights) -> None:
    backbone = Backbone("vgg19", weights, ["relu2_1", "relu1_1"])
    assert backbone.layers[-1].name == "relu2_1"
    assert not list(backbone.parameters())
    assert not any("conv3" in name for name, _ in backbone.named_buffers())


def test_average_pooling_averages(weights: Weights) -> None:
    features = Backbone("vgg19", weights, ["relu1_2", "pool1"], pooling="avg")(pictures())
    whole, halved = features["relu1_2"], features["pool1"]
    width = whole.shape[3] // 2 * 2
    expected = whole[..., :width].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    assert torch.allclose(halved, expected, rtol=1e-5, atol=1e-3)


def test_bf16_features_are_close_to_fp32(weights: Weights) -> None:
    exact = Backbone("vgg19", weights, RELUS)(pictures())
    rounded = Backbone("vgg19", weights, RELUS, dtype=torch.bfloat16)(pictures())
    for name in RELUS[:13]:
        assert rounded[name].dtype == torch.bfloat16
        assert 0 < relative(rounded[name], exact[name]) < 0.03, name


def test_weights_are_hashed_by_their_values(weights: Weights) -> None:
    assert weights.sha256 == "51df58ce40c6fe72201f1c30dbaa37c91461c1f54465d7a281943d3780d23c52"
    assert {tensor.dtype.name for tensor in weights.tensors.values()} == {"float32"}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_as_asked_for(precision: str, dtype: torch.dtype) -> None:
    assert network_dtype(precision, torch.device("cpu")) == dtype


def test_smallest_side_is_the_stride_of_the_deepest_layer(weights: Weights) -> None:
    for layers, side in ((["relu1_1"], 1), (["relu3_1"], 4), (["relu5_1"], 16)):
        recipe = Recipe(content_layers={layers[0]: 1}, style_layers={layers[0]: 1})
        assert recipe.smallest_side == side
        smallest = torch.zeros(1, 3, side, side)
        assert Backbone("vgg19", weights, layers)(smallest)[layers[0]].shape[2:] == (1, 1)
