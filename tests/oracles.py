"""The same quantities, written a second time from the papers, for tests to compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from batchnst.transfer.weights import Weights

Array = NDArray[np.float64]

CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)


def torchvision_vgg19(weights: Weights) -> nn.Sequential:
    """torchvision's own VGG19 layers, not in place, holding our tensors."""
    layers = torchvision.models.vgg19(weights=None).features
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    names = [name.removesuffix(".weight") for name in weights.tensors if name.endswith(".weight")]
    assert len(convolutions) == len(names) == 16
    for layer, name in zip(convolutions, names, strict=True):
        layer.weight.data = torch.tensor(weights.tensors[f"{name}.weight"])
        layer.bias.data = torch.tensor(weights.tensors[f"{name}.bias"])
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return layers.eval().requires_grad_(False)


def relu_features(layers: nn.Sequential, pictures: Tensor) -> dict[str, Tensor]:
    """Every relu's features by name, for pictures (B, 3, H, W), RGB, 0..255."""
    x, features, block, index = pictures - torch.tensor(CAFFE_MEAN_RGB).view(1, 3, 1, 1), {}, 1, 0
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            block, index = block + 1, 0
        elif isinstance(layer, nn.ReLU):
            index += 1
            features[f"relu{block}_{index}"] = x
    return features


def gram(features: Array) -> Array:
    """G_ij = Σ_k F_ik F_jk (Gatys et al. 2016, eq. 3), features (C, h, w)."""
    flat = features.reshape(len(features), -1)
    return flat @ flat.T


def neural_style_loss(layers: nn.Sequential, picture: Path, content: Path, style: Path, size: int) -> float:
    """The default recipe's total for a finished picture, from files."""
    made = np.asarray(Image.open(picture).convert("RGB"), dtype=np.float32)
    pictures = [made, *(fitted(path, size) for path in (content, style))]
    tensors = [torch.from_numpy(p).permute(2, 0, 1)[None] for p in pictures]
    x, c, s = ({k: v[0].double().numpy() for k, v in relu_features(layers, t).items()} for t in tensors)
    content_loss = np.mean((x["relu4_2"] - c["relu4_2"]) ** 2)
    style_loss = sum(
        np.mean((gram(x[name]) / x[name].size - gram(s[name]) / s[name].size) ** 2)
        for name in (f"relu{block}_1" for block in range(1, 6))
    )
    wide = made.astype(np.float64)
    variation = np.abs(np.diff(wide, axis=0)).sum() + np.abs(np.diff(wide, axis=1)).sum()
    return float(5 * content_loss + 100 * style_loss + 1e-3 * variation)


def fitted(path: Path, size: int) -> NDArray[np.float32]:
    """A picture at its working size, (H, W, 3), RGB, 0..255."""
    image = Image.open(path).convert("RGB")
    scale = size / max(image.size)
    wanted = (round(image.width * scale), round(image.height * scale))
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.float32).copy()
