"""Recognise the input that a network of torchvision's layout was trained with, by what its layers do to a picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from batchnst.backbones import BACKBONES
from batchnst.transfer.weights import NORMALISATIONS, Tensors

CAFFE_SHARES = (6e-5, 2e-3)
"""Smallest share of the biases, as `bias_share` returns it, of networks that were trained by Caffe on pixels of 0..255.

Measured on the original VGG19: 4e-4; it has the same function as a network for `imagenet` with a share of 1e-5.
"""

SURE = 5e-3
"""Above this the network was trained on inputs of about 1: untrained networks have 0.08."""

SIDE = 64
"""Side of the test picture, in pixels."""


def recognise(backbone: str, tensors: Tensors) -> str | None:
    """The normalisation of a file with torchvision's names, a key of NORMALISATIONS; None if that cannot be told.

    The names alone do not tell: Caffe's VGG networks are also published under them.
    """
    if not backbone.startswith("vgg"):
        return "imagenet"  # Caffe's AlexNet has other shapes
    lowest, highest = CAFFE_SHARES
    share = bias_share(backbone, tensors)
    if share < lowest or share > SURE:
        return "imagenet"
    return "caffe" if share < highest else None


def bias_share(backbone: str, tensors: Tensors) -> float:
    """The smallest ratio, of all convolutions, of mean bias to mean output without it, for an input as `imagenet` has.

    Biases belong to the input's scale: for inputs of 0..255 they are too small by the time inputs of 1 have grown.
    """
    expected = NORMALISATIONS["imagenet"]
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (expected.mean, expected.std))
    features, share = (_picture() - mean) / std, np.inf
    for layer in BACKBONES[backbone].layers:
        if layer.is_convolution:
            weight, bias = (torch.from_numpy(tensors[f"{layer.name}.{part}"]) for part in ("weight", "bias"))
            outputs = F.conv2d(features, weight, None, layer.stride, layer.padding)
            share = min(share, float(bias.abs().mean() / outputs.abs().mean()))
            features = outputs + bias.reshape(1, -1, 1, 1)
        elif layer.name.startswith("relu"):
            features = features.relu()
        elif layer.name.startswith("pool"):
            features = F.max_pool2d(features, layer.kernel, layer.stride)
    return share


def _picture() -> Tensor:
    """A picture (1, 3, H, W), 0..255, with detail of every size, as photographs have."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.zeros(1, 3, SIDE, SIDE)
    for side in (2, 4, 8, 16, 32, 64):
        detail = torch.randn(1, 3, side, side, generator=generator)
        picture += F.interpolate(detail, size=(SIDE, SIDE), mode="bilinear")
    return (picture / picture.std() * 60 + 120).clamp(0, 255)
