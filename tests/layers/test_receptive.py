from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from batchnst import backbones
from batchnst.backbones import BACKBONES, Architecture, Layer
from batchnst.layers.receptive import Box, fields
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.weights import Weights

ODD = (
    Layer("conv1", 64, kernel=11, stride=4, padding=2),
    Layer("relu1", 64),
    Layer("pool1", 64, kernel=3, stride=2),
    Layer("conv2", 192, kernel=5, padding=2),
    Layer("relu2", 192),
    Layer("pool2", 192, kernel=3, stride=2),
    Layer("conv3", 384, kernel=3, padding=1),
)
"""Windows that overlap, leave pixels out at the end of a side, and are wider than what is padded."""


def of_one_channel(weights: Weights, backbone: str) -> Weights:
    """Convolutions that let everything they see through: a pixel that moves nothing is one that is not seen."""
    random, inputs, tensors = np.random.default_rng(1), 3, dict[str, NDArray[np.float32]]()
    for layer in (layer for layer in BACKBONES[backbone].layers if layer.is_convolution):
        positive = random.uniform(0.5, 1, (1, inputs, layer.kernel, layer.kernel)).astype(np.float32)
        tensors[f"{layer.name}.weight"] = positive / positive.sum()
        tensors[f"{layer.name}.bias"] = np.ones(1, np.float32)
        inputs = 1
    return replace(weights, tensors=tensors, sha256=f"one channel of {backbone}")


def moved_by(network: Backbone, name: str, size: int, x: int, y: int) -> Box:
    """The pixels that move an output, by its gradient; all within the box do."""
    picture = torch.full((1, 3, size, size + 9), 200.0, dtype=torch.float64, requires_grad=True)
    network(picture)[name][0, 0, y, x].backward()
    assert picture.grad is not None
    rows, columns = (picture.grad[0, 0] != 0).nonzero().T
    box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    assert len(rows) == (box[2] - box[0]) * (box[3] - box[1])
    return box


@pytest.mark.parametrize(
    "backbone", ["alexnet", "odd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16", "vgg19"))]
)
def test_the_fields_are_the_pixels_that_move_an_output(
    backbone: str, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backbones.BACKBONES, "odd", Architecture(ODD, (), ()))
    table = BACKBONES[backbone].layers
    network = Backbone(
        backbone, of_one_channel(weights, backbone), [table[-1].name], pooling="avg", dtype=torch.float64
    )
    for layer in table:
        network.wanted = frozenset([layer.name])
        field, size = fields(table)[layer.name], 300
        inside = field.inside(size)
        for x, y in ((0, 0), (inside[0], inside[-1]), (inside[len(inside) // 2], 0)):
            left, top, right, bottom = field.box(x, y)
            assert right - left == bottom - top == field.size
            assert moved_by(network, layer.name, size, x, y) == (max(0, left), max(0, top), right, bottom), layer.name


def test_positions_inside_are_those_that_see_the_picture_alone() -> None:
    for field in (fields(table)[name] for table in (ODD, BACKBONES["vgg19"].layers) for name in fields(table)):
        for length in (20, 97, 300):
            whole = [x for x in range(-300, 300) if field.box(x, 0)[0] >= 0 and field.box(x, 0)[2] <= length]
            assert list(field.inside(length)) == whole
            assert whole or field.size > length - field.stride


def test_fields_of_vgg19_as_they_are_known() -> None:
    known = {"relu1_1": 3, "relu2_1": 10, "relu3_1": 24, "relu4_1": 68, "relu5_1": 156, "relu5_4": 252}
    assert {name: fields(BACKBONES["vgg19"].layers)[name].size for name in known} == known
