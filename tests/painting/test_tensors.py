from __future__ import annotations

import numpy as np
import torch

from batchnst.painting.inputs import Inputs
from batchnst.painting.tensors import TensorCache
from batchnst.pictures.decode import Pixels
from tests.helpers import CPU


def test_arrays_that_come_again_are_the_same_tensors_up_to_a_bound() -> None:
    cache = TensorCache(CPU)
    content = np.zeros((4, 4, 3), np.uint8)
    styles = [np.full((4, 4, 3), i, np.uint8) for i in range(TensorCache.capacity + 1)]

    def tensor_of(style: Pixels) -> torch.Tensor:
        return cache.guides([Inputs(content, (style,), (1.0,))])[0][0].styles[0]

    first = tensor_of(styles[0])
    assert tensor_of(styles[0]) is first
    for style in styles[1:]:
        tensor_of(style)
    assert tensor_of(styles[-1]) is tensor_of(styles[-1])
    assert tensor_of(styles[0]) is not first
