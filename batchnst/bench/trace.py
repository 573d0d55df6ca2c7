"""Count the work of one step on a GPU, on any machine: FLOPs, bytes and kernels.

A batch of noise is painted with tensors that have shapes and no values, and claim to be on a GPU. Every operation that
torch dispatches is counted by the rules in kernels.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from batchnst.bench.kernels import Kernel, Kind, aten, kernels, storage_of, tensors_in
from batchnst.bench.peaks import Peaks, peaks_of
from batchnst.bench.speed import NoisePainting
from batchnst.recipe import Recipe
from batchnst.transfer.memory import GPU_BATCH
from batchnst.transfer.optimizers import HISTORY
from batchnst.transfer.stylize import CHECK_EVERY

CATEGORIES = ("convolutions", "elementwise", "grams", "optimizer")
"""Parts of a step. optimizer: everything outside the objective. grams: its matrix products, and what is done to
matrices of channels. elementwise: everything else in the objective.
"""

Launch = tuple[str, Kernel]
"""A kernel and its category."""


def trace(recipe: Recipe, device: str | None = None) -> dict[str, Any]:
    """Count a step of a batch of the recipe's size in the ratio 4:3; the times that `device` needs at least are added.

    A precision "auto" means bf16, unless `device` lacks it. L-BFGS's history is full.
    """
    peaks = peaks_of(device) if device else None
    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": "fp32" if peaks and peaks.bf16 is None else "bf16"})
    width, height = recipe.pixels, recipe.pixels * 3 // 4
    batch = max(1, GPU_BATCH // (width * height))
    inside, outside = _count(recipe, batch)
    launches = inside + outside
    flops = {name: sum(kernel.flops for category, kernel in launches if category == name) for name in CATEGORIES}
    moved = {name: sum(kernel.bytes for category, kernel in launches if category == name) for name in CATEGORIES}
    pixels = batch * width * height
    per_pixel = {name: round(count / pixels, 1) for name, count in moved.items()}
    others = sum(count for name, count in moved.items() if name != "convolutions")
    shape = {"width": width, "height": height, "batch": batch, "precision": recipe.precision, "torch": version("torch")}
    counts = {
        "flops_per_pixel": round(sum(flops.values()) / pixels, 1),
        "bytes_per_pixel": {**per_pixel, "outside_convolutions": round(others / pixels, 1)},
        "launches": {"all": len(launches), "outside_graphs": len(outside)},
    }
    return shape | counts | (_bounds(device, peaks, recipe.precision, flops, moved) if device and peaks else {})


def _bounds(
    device: str, peaks: Peaks, precision: str, flops: dict[str, float], moved: dict[str, int]
) -> dict[str, Any]:
    """The least time of a step on `device`: in each category the longer of computing and moving bytes."""
    network = (peaks.bf16 or peaks.fp32) if precision == "bf16" else peaks.fp32
    speeds = {name: peaks.fp32 if name == "optimizer" else network for name in CATEGORIES}
    bounds = {name: 1000 * max(flops[name] / speeds[name], moved[name] / peaks.bytes) for name in CATEGORIES}
    return {
        "device": device,
        "bound_ms_per_step": round(sum(bounds.values()), 3),
        "bound_ms_by_category": {name: round(bound, 3) for name, bound in bounds.items()},
    }


def _count(recipe: Recipe, batch: int) -> tuple[list[Launch], list[Launch]]:
    """The kernels of a step with full history: those in CUDA graphs, and those outside."""
    recorder = Recorder()
    with recorder, pretended_gpu(recorder):
        painting = NoisePainting(recipe, torch.device("meta"), recipe.pixels, batch)
        done = HISTORY + 2  # L-BFGS has one more slot than HISTORY, and clears each before it is first used
        done += done % CHECK_EVERY == 0  # the check for pictures that have stopped is no part of a step
        for _ in range(done - 1):  # the painting began with a step
            painting.step()
        recorder.clear()
        painting.step()
    return recorder.inside, recorder.outside


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the kernels of every operation: `outside` graphs, and `inside` graphs that are replayed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside: list[Launch] = []
        self.outside: list[Launch] = []
        self._target = self.outside
        self._scopes: list[str] = []
        self._shapes: dict[int, torch.Size] = {}  # storage → shape of its first tensor

    def clear(self) -> None:
        """Forget what was recorded."""
        self.inside.clear()
        self.outside.clear()

    @contextmanager
    def capture(self, graph: Graph, **_: Any) -> Iterator[None]:
        """Record into `graph`, like `torch.cuda.graph`."""
        self._target = graph.launches
        yield
        self._target = self.outside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and record its kernels."""
        options = kwargs or {}
        result = func(*args, **options)
        if func is torch.ops.profiler._record_function_enter_new.default:
            self._scopes.append(args[0])
        elif func is torch.ops.profiler._record_function_exit._RecordFunction:
            self._scopes.pop()
        elif func is aten.convolution.default:
            result = _as_cudnn(result, *args[:2])
        known = {storage_of(tensor) for tensor in tensors_in((args, options))}
        for tensor in tensors_in(result):
            if storage_of(tensor) not in known:
                self._shapes[storage_of(tensor)] = tensor.shape
        self._target += [(self._category(kernel), kernel) for kernel in kernels(func, args, options, result)]
        return result

    def _category(self, kernel: Kernel) -> str:
        if "objective" not in self._scopes:
            return "optimizer"
        if kernel.kind is Kind.CONVOLUTION:
            return "convolutions"
        return "grams" if kernel.kind is Kind.PRODUCT or self._is_of_channels(kernel.largest) else "elementwise"

    def _is_of_channels(self, tensor: Tensor) -> bool:
        """True for matrices (…, C, C); features are never square, because the pictures are 4:3."""
        shape = self._shapes.get(storage_of(tensor), tensor.shape)
        return len(shape) > 2 and shape[-1] == shape[-2]


class Graph:
    """A CUDA graph that records kernels."""

    def __init__(self, recorder: Recorder) -> None:
        self.launches: list[Launch] = []
        self._recorder = recorder

    def replay(self) -> None:
        """Start the recorded kernels."""
        self._recorder.inside += self.launches


def _as_cudnn(result: Tensor, *inputs: Tensor) -> Tensor:
    """Give a convolution's `result` the memory format that cuDNN gives it; without a device torch does not know it."""
    if any(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in inputs):
        return result.contiguous(memory_format=torch.channels_last)
    return result


def _without_values(
    x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """The result of `cudnn_convolution_relu`, which torch knows on a GPU alone."""
    result = aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return _as_cudnn(result, x, weight)


class _OnGpu(TorchFunctionMode):
    """Has tensors claim to be on a GPU, and the host read zeros from them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if func is torch.Tensor.tolist:
            return torch.zeros(args[0].shape, dtype=args[0].dtype).tolist()
        return func(*args, **(kwargs or {}))


@contextmanager
def pretended_gpu(recorder: Recorder) -> Iterator[None]:
    """A GPU without values, whose graphs `recorder` records. The host reads zeros from it, and finds masks all true."""
    with ExitStack() as stack:
        stack.enter_context(_OnGpu())
        stack.enter_context(fx_config.patch(meta_nonzero_assume_all_nonzero=True))  # type: ignore[attr-defined]
        library = stack.enter_context(torch.library._scoped_library("aten", "IMPL"))
        library.impl("cudnn_convolution_relu", _without_values, "Meta")
        stack.enter_context(mock.patch.object(torch.cuda, "CUDAGraph", lambda: Graph(recorder)))
        stack.enter_context(mock.patch.object(torch.cuda, "graph", recorder.capture))
        yield
