from __future__ import annotations

import errno
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from batchnst.engine.mixing import mix
from batchnst.errors import DeviceFailed, InputError, OutOfMemory
from batchnst.painting import painter
from batchnst.painting.inputs import Inputs
from batchnst.painting.painter import Group, as_pair_error
from batchnst.painting.tensors import TensorCache
from batchnst.recipe import Recipe
from batchnst.transfer import backbone, stylize
from batchnst.transfer.device import Hardware
from batchnst.transfer.weights import Weights
from tests.helpers import CPU


def while_recording(error: Exception) -> Exception:
    """The error with which the recording of a CUDA graph ends after another one."""
    try:
        try:
            raise error
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as last:
        return last


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("[enforce fail at CPUAllocator.cpp:76] DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        while_recording(torch.OutOfMemoryError("CUDA out of memory")),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_every_way_to_be_refused_memory_is_known(error: Exception) -> None:
    assert isinstance(as_pair_error(error), OutOfMemory)


def test_other_errors_stay_as_they_are() -> None:
    for error in (
        RuntimeError("size mismatch"),
        InputError("cannot allocate memory.jpg: no such file"),
        OSError(5, "x"),
    ):
        assert as_pair_error(error) is error


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx`",
        "cuFFT error: CUFFT_EXEC_FAILED",
    ],
)
def test_a_gpu_that_has_failed_fails_no_pair(monkeypatch: pytest.MonkeyPatch, weights: Weights, message: str) -> None:
    """Its process must end: CUDA refuses everything else from then on, and every pair would fail."""

    def fail(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(painter, "stylize", fail)
    own = painter.Painter(Recipe(size=48), weights, Hardware.here(), TensorCache(CPU))
    inputs = Inputs(np.zeros((48, 48, 3), np.uint8), (np.zeros((48, 48, 3), np.uint8),), (1.0,))
    with pytest.raises(DeviceFailed, match=f"^the GPU failed: {re.escape(message)}$"):
        list(own.paint([inputs] * 2, want_16_bit=[False, False]))


def test_a_gpu_that_fails_while_memory_is_released_fails_no_pair(
    monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    def fail(message: str) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(painter, "stylize", lambda *_: fail("CUDA error: out of memory"))
    monkeypatch.setattr(painter, "release_memory", lambda _: fail("CUDA error: an illegal memory access"))
    own = painter.Painter(Recipe(size=48), weights, Hardware.here(), TensorCache(CPU))
    inputs = Inputs(np.zeros((48, 48, 3), np.uint8), (np.zeros((48, 48, 3), np.uint8),), (1.0,))
    with pytest.raises(DeviceFailed, match="illegal memory access"):
        list(own.paint([inputs] * 2, want_16_bit=[False, False]))


def photo(height: int, width: int, seed: int = 0) -> Inputs:
    """A noisy picture, painted in the style of another one."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    return Inputs(pixels[0], (pixels[1],), (1.0,))


def groups_of(own: painter.Painter, batch: list[Inputs], **options: Any) -> list[Group]:
    """The groups in which a batch is painted, by their indices."""
    events = own.paint(batch, want_16_bit=[True] * len(batch), **options)
    return sorted((event for event in events if isinstance(event, Group)), key=lambda group: group.indices)


def painter_of(weights: Weights, **settings: Any) -> painter.Painter:
    recipe = Recipe.from_settings({"size": 48, "min_size": 24, "steps": 2, "precision": "fp32", **settings})
    return painter.Painter(recipe, weights, Hardware.here(), TensorCache(CPU))


def test_pictures_of_several_sizes_are_painted_together_and_written_in_their_own(weights: Weights) -> None:
    batch = [photo(33, 48), photo(48, 40, 1), photo(20, 48, 2)]  # the last is too thin for two scales
    snapshots = list[tuple[int, ...]]()
    own = painter_of(weights, snapshot_every=1)
    own.on_snapshot = lambda index, step, pixels: snapshots.append((index, step, *pixels.shape))
    groups = groups_of(own, batch, canvas=(48, 64))
    assert [group.indices for group in groups] == [[0, 1], [2]]
    for group in groups:
        assert isinstance(group.result, list)
        for index, painted in zip(group.indices, group.result, strict=True):
            assert painted.pixels.shape == batch[index].content.shape
            assert painted.pixels_16_bit is not None and painted.pixels_16_bit.shape == batch[index].content.shape
            (alone,) = groups_of(painter_of(weights), [batch[index]])
            assert isinstance(alone.result, list)
            np.testing.assert_allclose(painted.losses.total, alone.result[0].losses.total, rtol=1e-3)
    assert (1, 2, 48, 40, 3) in snapshots


def test_in_tiles_and_after_a_failure_pictures_go_on_in_smaller_parts(
    monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    batch = [photo(96, 64), photo(64, 96), photo(96, 64)]
    settings = {"size": 96, "steps": 1, "style_layers": "relu1_1", "content_layers": "relu2_1"}
    in_tiles = painter_of(weights, **settings, tile=64)
    assert [group.indices for group in groups_of(in_tiles, batch)] == [[0, 2], [1]]
    real, canvases = stylize.stylize, list[tuple[int, int]]()

    def short_of_memory(contents: Any, *rest: Any) -> Any:
        canvases.append(rest[-1])
        if len(contents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (yield from real(contents, *rest))

    monkeypatch.setattr(painter, "stylize", short_of_memory)
    groups = groups_of(painter_of(weights, **settings), batch, canvas=(96, 100))
    assert [group.indices for group in groups] == [[0], [1, 2]]
    assert all(isinstance(group.result, list) for group in groups)
    assert canvases == [(100, 96), (96, 64), (100, 96)]


def test_a_small_collection_shows_the_network_few_shapes(monkeypatch: pytest.MonkeyPatch, weights: Weights) -> None:
    """The planner's batches, painted as on a GPU: the shapes that reach the first convolution."""
    monkeypatch.setattr(stylize, "keeps_shapes", lambda _: True)
    sizes = [(48, 32), (48, 31), (48, 27), (32, 48), (27, 48), (48, 48), (48, 34), (36, 48), (48, 36), (43, 48)]
    batch = [photo(height, width, seed) for seed, (width, height) in enumerate(sizes)]
    own, seen = painter_of(weights, style_layers="relu1_1", content_layers="relu1_2", style_scale=0.5), set[object]()
    real = F.conv2d

    def convolve(pictures: Tensor, *rest: Any) -> Tensor:
        seen.add(tuple(pictures.shape))
        result: Tensor = real(pictures, *rest)
        return result

    monkeypatch.setattr(backbone, "_fastest", lambda *_: lambda *arguments: convolve(*arguments).relu_())
    monkeypatch.setattr(F, "conv2d", convolve)
    planned = list(mix(sizes, 48, lambda _: 4))
    for indices, canvas in planned:
        (group,) = groups_of(own, [batch[i] for i in indices], canvas=canvas)
        assert isinstance(group.result, list)
    first = {shape for shape in seen if isinstance(shape, tuple) and shape[1] == 3 and shape[0] > 1}
    finest = {shape for shape in first if max(shape[2:]) == 48}
    assert finest == {(len(indices), 3, height, width) for indices, (width, height) in planned if len(indices) > 1}
    assert len(finest) <= 4 < len(set(sizes))
    assert len(first) == 2 * len(finest)  # scales
