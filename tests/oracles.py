"""The same quantities, written a second time from the papers, for tests to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from batchnst.backbones import layer_names
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.objective import Objective
from batchnst.transfer.weights import Weights

Array = NDArray[np.float64]

CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The normalisation that torchvision's networks expect."""

UNIT = 255 * sum(IMAGENET_DEVIATION) / 3
"""Our features are those of torchvision's networks times this: our pixels are 0..255."""


def torchvision_vgg19(weights: Weights) -> nn.Sequential:
    """torchvision's own VGG19 layers, not in place, holding our tensors."""
    from torchvision.models import vgg19  # here, as below, because it takes seconds

    layers: nn.Sequential = vgg19(weights=None).features
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    names = [name.removesuffix(".weight") for name in weights.tensors if name.endswith(".weight")]
    assert len(convolutions) == len(names) == 16
    for convolution, name in zip(convolutions, names, strict=True):
        assert convolution.bias is not None
        convolution.weight.data = torch.tensor(weights.tensors[f"{name}.weight"])
        convolution.bias.data = torch.tensor(weights.tensors[f"{name}.bias"])
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return layers.eval().requires_grad_(False)


def torchvision_features(backbone: str) -> nn.Sequential:
    """The feature layers of torchvision's module, not in place, with random weights that keep features alive."""
    from torchvision.models import get_model

    with torch.device("meta"):
        features: nn.Sequential = get_model(backbone).features
    features.to_empty(device="cpu")
    torch.manual_seed(5)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.uniform_(layer.bias, -0.5, 0.5)
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return features.requires_grad_(False)


def check_features(backbone: str, weights: Weights, theirs: nn.Sequential) -> None:
    """Assert that every layer's features are those of torchvision's module with its normalisation, times UNIT."""
    from torchvision.transforms.functional import normalize

    pictures = torch.rand(1, 3, 64, 69, generator=torch.Generator().manual_seed(3)) * 255
    ours = Backbone(backbone, weights, layer_names(backbone))(pictures)
    x = normalize(pictures / 255, IMAGENET_MEAN, IMAGENET_DEVIATION)
    for name, layer in zip(layer_names(backbone), theirs, strict=True):
        x = layer(x)
        assert ours[name].shape == x.shape, name
        assert (ours[name] - UNIT * x).norm() < 1e-5 * UNIT * x.norm(), name


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


def differentiate(objective: Objective, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The totals (B,) of an objective, and their gradient by autograd."""
    network, recipe = objective.backbone, objective.recipe
    pictures = pictures.clone().requires_grad_()
    x = pictures.expand(-1, 3, -1, -1)
    across, down = (x.diff(dim=dimension).abs().sum((1, 2, 3)) for dimension in (3, 2))
    relative = recipe.loss == "balanced"
    total = recipe.tv_weight * (across + down) / (255 * x[0].numel() if relative else 1)
    x = x - network.mean
    pool = F.max_pool2d if recipe.pooling == "max" else F.avg_pool2d
    for layer in network.layers:
        name, channels = layer.name, layer.channels
        if layer.is_convolution:
            weight, bias = getattr(network, f"{name}_weight"), getattr(network, f"{name}_bias")
            x = F.conv2d(x, weight, bias, layer.stride, layer.padding)
        else:
            x = pool(x, layer.kernel, layer.stride) if layer.is_pooling else F.relu(x)
        positions = x[0, 0].numel()
        if name in recipe.content_layers:
            factors: dict[str, Any] = {"neural-style": 1 / (positions * channels), "gatys2016": 1 / 2}
            factors["balanced"] = 1 / objective.content[name].square().sum((1, 2, 3))
            squares = (x - objective.content[name]).square().sum((1, 2, 3))
            total = total + recipe.content_weight * recipe.content_layers[name] * factors[recipe.loss] * squares
        for region in objective.regions if name in recipe.style_layers else ():
            flat = (x * region.guides.get(name, torch.ones(()))).flatten(2)
            factors = {"neural-style": 1 / channels**4, "gatys2016": 1 / (4 * channels**2)}
            factors["balanced"] = 1 / region.grams[name].square().sum((1, 2))
            weight = recipe.style_layers[name] / (sum(recipe.style_layers.values()) if relative else 1)
            squares = (flat @ flat.mT / positions - region.grams[name]).square().sum((1, 2))
            total = total + recipe.style_weight * weight * factors[recipe.loss] * region.share * squares
    return total.detach(), torch.autograd.grad(total.sum(), pictures)[0]


def written_loss(
    layers: nn.Sequential, picture: Path, content: Path, style: Path, size: int, loss: str = "balanced"
) -> float:
    """The total of a finished picture by the default weights of `loss`, from files."""
    made = np.asarray(Image.open(picture).convert("RGB"), dtype=np.float32)
    pictures = [made, *(fitted(path, size) for path in (content, style))]
    tensors = [torch.from_numpy(p).permute(2, 0, 1)[None] for p in pictures]
    x, c, s = ({k: v[0].double().numpy() for k, v in relu_features(layers, t).items()} for t in tensors)
    content_squares = (x["relu4_2"] - c["relu4_2"]) ** 2
    names = [f"relu{block}_1" for block in range(1, 6)]
    if loss == "balanced":
        grams = [[gram(features[name]) / features[name][0].size for features in (x, s)] for name in names]
        style_loss = np.mean([((g - a) ** 2).sum() / (a**2).sum() for g, a in grams])
        return float(content_squares.sum() / (c["relu4_2"] ** 2).sum() + 10 * style_loss)
    style_loss = sum(np.mean((gram(x[name]) / x[name].size - gram(s[name]) / s[name].size) ** 2) for name in names)
    wide = made.astype(np.float64)
    variation = np.abs(np.diff(wide, axis=0)).sum() + np.abs(np.diff(wide, axis=1)).sum()
    return float(5 * np.mean(content_squares) + 100 * style_loss + 1e-3 * variation)


def fitted(path: Path, size: int) -> NDArray[np.float32]:
    """A picture at its working size, (H, W, 3), RGB, 0..255."""
    image = Image.open(path).convert("RGB")
    scale = size / max(image.size)
    wanted = (round(image.width * scale), round(image.height * scale))
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.float32).copy()
