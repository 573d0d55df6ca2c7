"""Real pictures for all tests: `make test` puts them in manifests/images."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from PIL import Image

from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.weights import Weights

IMAGES = Path(__file__).parent.parent / "manifests" / "images"


@pytest.fixture(scope="session")
def images() -> Path:
    assert (IMAGES / "woodcut.png").exists(), "the pictures are missing: run `make test`, which makes them"
    return IMAGES


@pytest.fixture(scope="session")
def weights() -> Weights:
    return load_weights("vgg19", "bundled")


@pytest.fixture(scope="session")
def vgg(weights: Weights) -> Backbone:
    """The default recipe's network, fp32, on the CPU."""
    return load_backbone(Recipe(precision="fp32"), weights, torch.device("cpu"))


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file, decoded whole."""
    with Image.open(path) as image:
        image.load()
        return image.size


def in_double(backbone: Backbone) -> Backbone:
    """The same network in float64."""
    exact = deepcopy(backbone).double()
    exact.dtype = torch.float64
    return exact
