"""Apple's and Intel's GPUs, as far as they can be faked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from batchnst.recipe import Recipe
from batchnst.transfer import color, device, optimizers
from batchnst.transfer.memory import GPU_BATCH, largest_batch
from batchnst.transfer.optimizers import OPTIMIZERS


def fake(monkeypatch: pytest.MonkeyPatch, kind: str, **answers: Any) -> list[str]:
    """Make torch believe in a GPU of this kind, whose library gives these answers; returns the calls."""
    calls: list[str] = []

    def function(name: str, answer: Any) -> Any:
        def call(*_: object) -> Any:
            calls.append(name)
            return answer

        return call

    library = SimpleNamespace(**{name: function(name, answer) for name, answer in answers.items()})
    monkeypatch.setattr(torch, kind, library)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    return calls


def test_apples_gpu_is_used_within_the_memory_it_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake(monkeypatch, "mps", recommended_max_memory=20e9, current_allocated_memory=4e9, empty_cache=None)
    hardware = device.Hardware.here(gpus=True)
    assert (hardware.device.type, hardware.native_bf16) == ("mps", False)
    assert hardware.memory == pytest.approx(0.8 * 16e9)
    assert hardware.network_dtype("auto") == torch.float32
    assert device.device_label(hardware.device).startswith("mps (")
    device.release_memory(hardware.device)
    assert calls[-1] == "empty_cache"


def test_intels_gpu_is_used_with_bf16_and_its_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake(
        monkeypatch,
        "xpu",
        is_bf16_supported=True,
        mem_get_info=(10e9, 16e9),
        memory_reserved=3e9,
        memory_allocated=1e9,
        set_per_process_memory_fraction=None,
        get_device_name="Arc",
        max_memory_allocated=7,
    )
    hardware = device.Hardware.here(share=0.5)
    assert hardware.device.type == "xpu"
    assert hardware.memory == pytest.approx(0.8 * 8e9)
    assert hardware.network_dtype("auto") == torch.bfloat16
    assert device.device_label(hardware.device) == "xpu (Arc)"
    assert device.peak_memory_bytes(hardware.device) == 7
    assert "set_per_process_memory_fraction" in calls
    assert largest_batch(1e12, Recipe(), "xpu", torch.bfloat16) == GPU_BATCH


def test_a_worker_without_a_gpu_leaves_it_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "mps", recommended_max_memory=20e9, current_allocated_memory=0)
    assert device.Hardware.here(gpus=False).device.type == "cpu"


class WithoutFloat64(TorchDispatchMode):
    """Apple's GPUs have no float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), func
        return result


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_need_no_float64_where_there_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(optimizers, "exact_dtype", lambda _: torch.float32)
    pictures = 255 * torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    target = pictures.flip(3)
    with WithoutFloat64():
        optimizer = OPTIMIZERS[name](pictures)
        first = (optimizer.trial - target).square().sum((1, 2, 3))
        for _ in range(8):
            misses = optimizer.trial - target
            optimizer.observe(misses.square().sum((1, 2, 3)), 2 * misses)
    assert ((optimizer.best - target).square().sum((1, 2, 3)) < first).all()


def test_histograms_need_no_float64_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(color, "exact_dtype", lambda _: torch.float32)
    style, content = 255 * torch.rand(2, 1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with WithoutFloat64():
        matched = color.match_histogram(style, content)
    torch.testing.assert_close(matched.mean(), content.mean(), rtol=0.05, atol=0)
