from __future__ import annotations

import numpy as np
import pytest
import torch

from batchnst.backbones import BACKBONES, cut, layer_names, smallest_side
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.weights import Weights, tensor_shapes

EVERY_LAYER = [(backbone, name) for backbone in BACKBONES for name in layer_names(backbone)]


def transparent(backbone: str, wanted: list[str]) -> Backbone:
    """A backbone of one channel, in float64, where each position of a window counts: all weights are positive."""
    generator = np.random.default_rng(7)
    tensors = {}
    for name, shape in tensor_shapes(backbone).items():
        first = name == next(iter(tensor_shapes(backbone)))
        thin = (1, 3 if first else 1, *shape[2:]) if len(shape) == 4 else (1,)
        tensors[name] = generator.uniform(0.5, 1.5, thin).astype(np.float32) / np.float32(np.prod(thin))
    return Backbone(backbone, Weights(tensors, (0, 0, 0), ""), wanted, pooling="avg", dtype=torch.float64)


@pytest.mark.parametrize(("backbone", "name"), EVERY_LAYER)
def test_the_smallest_side_is_the_smallest(backbone: str, name: str) -> None:
    side = smallest_side(cut(backbone, [name]))
    network = transparent(backbone, [name])
    assert network(torch.zeros(1, 3, side, side, dtype=torch.float64))[name].shape[2:] == (1, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, side - 1, side, dtype=torch.float64))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_its_own_layers_are_among_those_it_has(backbone: str) -> None:
    own = BACKBONES[backbone]
    assert own.content_layers
    assert own.style_layers
    assert {*own.content_layers, *own.style_layers} <= {*layer_names(backbone)}


def test_layer_names_are_the_papers() -> None:
    assert layer_names("vgg19")[:6] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1", "conv2_1"]
    names = "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
    assert layer_names("alexnet") == names.split()
    convolutions = [sum(layer.is_convolution for layer in own.layers) for own in BACKBONES.values()]
    assert convolutions == [16, 13, 5]
