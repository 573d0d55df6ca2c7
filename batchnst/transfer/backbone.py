"""The frozen network: pictures in, features of chosen layers out; derivatives of a loss back to the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchnst.backbones import Layer, cut
from batchnst.transfer.canvas import Canvas
from batchnst.transfer.weights import Weights

aten = torch.ops.aten

Place = tuple[Any, slice, slice]
"""Index (..., rows, columns) of a rectangle of positions in features (B, C, h, w) or of pixels in pictures."""

Crops = Mapping[str, list[int]]
"""Layer → [left, right, top, bottom], the columns and rows to cut off its features before the next layer."""


class Pass(NamedTuple):
    """One layer of a forward pass, with all that its derivative needs; `winners` are the indices of the maxima."""

    layer: Layer
    before: Tensor
    after: Tensor
    winners: Tensor | None = None


Convolution = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]
"""A convolution and a ReLU: takes input, weight, bias, stride and padding."""


def _one_after_the_other(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding).relu_()


def _with_onednn(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    convolve = torch.ops.mkldnn._convolution_pointwise
    result: Tensor = convolve(x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], 1, "relu", [], "")
    return result


def _with_cudnn(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    return torch.cudnn_convolution_relu(x, weight, bias, [stride] * 2, [padding] * 2, [1, 1], 1)


@cache
def _fastest(device: torch.device, dtype: torch.dtype) -> Convolution:
    """Return a convolution with its ReLU: in one kernel, if the library has one for this device and dtype."""
    values = torch.linspace(-1, 1, 64 * 64 * 9).view(64, 64, 3, 3)
    values = values.to(device, dtype, memory_format=torch.channels_last)
    arguments = values, values, values[0, :, 0, 0], 1, 1
    convolve = _with_cudnn if values.is_cuda else _with_onednn
    try:
        found, expected = convolve(*arguments), _one_after_the_other(*arguments)
    except (RuntimeError, AttributeError):
        return _one_after_the_other
    alike = found.is_meta or torch.allclose(found, expected, rtol=0.05, atol=0.5)
    return convolve if alike else _one_after_the_other


class Backbone(nn.Module):
    """A frozen network, cut after the last layer in `wanted`.

    `pooling` is max or avg. Convolutions run in `dtype` and channels_last; features come back in `dtype`.
    """

    def __init__(
        self,
        backbone: str,
        weights: Weights,
        wanted: Iterable[str],
        *,
        pooling: str = "max",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.wanted = frozenset(wanted)
        self.dtype = dtype
        self.takes_maxima = pooling == "max"
        self.layers = cut(backbone, list(self.wanted))
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(weights.mean, device=device).view(1, 3, 1, 1), persistent=False)
        for name in (layer.name for layer in self.layers if layer.is_convolution):
            for part in ("weight", "bias"):
                # A copy, because Ray's shared arrays are read-only.
                tensor = torch.tensor(weights.tensors[f"{name}.{part}"]).to(device, dtype)
                if tensor.ndim == 4:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)

    def forward(
        self,
        pictures: Tensor,
        crops: Crops = MappingProxyType({}),
        tape: list[Pass] | None = None,
        canvas: Canvas | None = None,
    ) -> dict[str, Tensor]:
        """Return the features (B, C, h, w) of the wanted layers by name, for `pictures` (B, 3, H, W), RGB, 0..255.

        A `tape` is filled with what `backward` needs. With a `canvas`, each picture's features are those that it has
        alone, with zeros around.
        """
        x = (pictures - self.mean).to(self.dtype, memory_format=torch.channels_last)
        if canvas:
            canvas.pixels.clear_(x)
        convolve, rectified, features = _fastest(x.device, x.dtype), False, {}
        for layer, following in zip_longest(self.layers, self.layers[1:]):
            before, winners = x, None
            if layer.is_convolution:
                weight, bias = getattr(self, f"{layer.name}_weight"), getattr(self, f"{layer.name}_bias")
                rectified = layer.name not in self.wanted
                function = convolve if rectified else F.conv2d
                x = function(x, weight, bias, layer.stride, layer.padding)
            elif not layer.is_pooling:
                x = x if rectified else F.relu(x)
            elif self.takes_maxima:
                x, winners = F.max_pool2d(x, layer.kernel, layer.stride, return_indices=True)
            else:
                x = F.avg_pool2d(x, layer.kernel, layer.stride)
            # No window of a pooling reaches outside, so what it reads is not cleared. The last layer is wanted.
            if canvas and (layer.name in self.wanted or following.is_convolution):
                canvas[layer.name].clear_(x)
            if tape is not None:
                tape.append(Pass(layer, before, x, winners))
            if layer.name in self.wanted:
                features[layer.name] = x
            if layer.name in crops:
                # By negative padding, because a slice is not channels_last.
                x = F.pad(x, [-positions for positions in crops[layer.name]])
        return features

    def backward(
        self,
        tape: list[Pass],
        add: Callable[[str, Tensor, Tensor], None],
        crops: Crops = MappingProxyType({}),
        canvas: Canvas | None = None,
    ) -> Tensor:
        """Return the derivative of a loss with respect to the pictures, (B, 3, H, W), in `dtype`.

        tape: filled by a forward pass with the same `crops` and `canvas`; emptied, so that memory is freed on the way.
        add: called with the name of each wanted layer, its features, and the derivative with respect to them through
        the layers above; adds the loss's own, in place.
        """
        gradient, above = torch.zeros_like(tape[-1].after), None
        while tape:
            layer, before, after, winners = tape.pop()
            if layer.name in crops and above:
                gradient = F.pad(gradient, crops[layer.name])
            if layer.name in self.wanted:
                add(layer.name, after, gradient)
            window = [layer.kernel] * 2, [layer.stride] * 2, [layer.padding] * 2
            if layer.is_convolution:
                weight = getattr(self, f"{layer.name}_weight")
                options = None, *window[1:], [1, 1], False, [0, 0], 1, [True, False, False]
                gradient = aten.convolution_backward(gradient, before, weight, *options)[0]
            elif winners is not None:
                # A window's maximum is its ReLU's if it is positive: masked here, a quarter of the ReLU's positions.
                _mask(gradient, after)
                gradient = aten.max_pool2d_with_indices_backward(gradient, before, *window, [1, 1], False, winners)
            elif layer.is_pooling:
                if canvas:  # no ReLU's mask does it
                    canvas[layer.name].clear_(gradient)
                gradient = aten.avg_pool2d_backward(gradient, before, *window, False, True, None)
            elif layer.name in self.wanted or not (above and above.is_pooling and self.takes_maxima):
                _mask(gradient, after)
            above = layer
        return canvas.pixels.clear_(gradient) if canvas else gradient

    def shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return the shape (C, h, w) of each layer's features, for a picture of `height` × `width` pixels."""
        shapes = {}
        for layer in self.layers:
            height, width = layer.length(height), layer.length(width)
            shapes[layer.name] = layer.channels, height, width
        return shapes


def _mask(gradient: Tensor, features: Tensor) -> None:
    """Set `gradient` to zero, in place, where a ReLU returned zero."""
    aten.threshold_backward(gradient, features, 0, grad_input=gradient)
