from __future__ import annotations

import errno

import pytest
import torch

from batchnst.errors import InputError, OutOfMemory
from batchnst.painting.painter import as_pair_error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("[enforce fail at CPUAllocator.cpp:76] DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
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
