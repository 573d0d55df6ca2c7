from __future__ import annotations

import errno
import re

import numpy as np
import pytest
import torch

from batchnst.errors import DeviceFailed, InputError, OutOfMemory
from batchnst.painting import painter
from batchnst.painting.inputs import Inputs
from batchnst.painting.painter import as_pair_error
from batchnst.painting.tensors import TensorCache
from batchnst.recipe import Recipe
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
