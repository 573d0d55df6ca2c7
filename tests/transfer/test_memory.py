from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchnst.errors import DeviceFailed
from batchnst.recipe import Recipe
from batchnst.transfer import device
from batchnst.transfer.memory import (
    LEAST_HISTORY,
    MOST_POSITIONS,
    Fitting,
    fit_into,
    largest_batch,
    least_memory,
    memory_of,
)
from batchnst.transfer.optimizers import HISTORY

BF16 = torch.bfloat16


@pytest.mark.parametrize("gigabytes", [1.2, 2, 4, 8, 16, 64, 1000])
@pytest.mark.parametrize("size", [(512, 384), (4096, 2731), (8192, 8192)])
@pytest.mark.parametrize("tile", ["auto", "off", "300"])
def test_what_is_chosen_fits_and_nothing_better_would(gigabytes: float, size: tuple[int, int], tile: str) -> None:
    recipe, memory = Recipe.from_settings({"tile": tile}), gigabytes * 1e9
    fitting = fit_into(memory, recipe, size, 1, BF16)
    assert (fitting is None) == (least_memory(recipe, size, BF16) > memory)
    if fitting is None:
        return
    assert fitting.memory == memory_of(fitting, recipe, size, 1, BF16) <= memory
    assert LEAST_HISTORY <= fitting.history <= HISTORY
    # What was granted to a task leads it to the same choice.
    assert fit_into(fitting.memory, recipe, size, 1, BF16) == fitting
    if tile == "auto" and not math.isinf(fitting.tile) and math.prod(size) <= MOST_POSITIONS:
        assert memory_of(Fitting(math.inf), recipe, size, 1, BF16) > memory
    if fitting.history < HISTORY:
        longer = Fitting(fitting.tile, fitting.history + 1)
        assert memory_of(longer, recipe, size, 1, BF16) > memory


def test_a_long_history_is_worth_smaller_tiles_but_not_the_smallest() -> None:
    size = (4096, 4096)
    tiles = {gigabytes: fit_into(gigabytes * 1e9, Recipe(), size, 1, BF16) for gigabytes in (64, 20, 14, 12, 8, 4.1)}
    assert [(own.tile, own.history == HISTORY) for own in tiles.values() if own] == [
        (math.inf, True),
        (2048, True),
        (1024, True),
        (512, True),
        (512, False),
        (256, False),
    ]


def test_what_a_gpu_cannot_count_in_32_bits_is_tiled() -> None:
    boundless = 1e15
    for count, size, whole in [(1, (8192, 4096), True), (1, (8192, 4097), False), (3, (4096, 4096), False)]:
        fitting = fit_into(boundless, Recipe(), size, count, BF16)
        assert fitting is not None
        assert math.isinf(fitting.tile) == whole


class FakeCuda:
    """A GPU of 16 GB of which this process keeps 9 GB that it has freed, and another one uses 1 GB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fractions: list[float] = []
        for name, answer in {
            "is_available": True,
            "device_count": 1,
            "mem_get_info": (4e9, 16e9),
            "memory_reserved": 11e9,
            "memory_allocated": 2e9,
            "get_device_capability": (8, 0),
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        monkeypatch.setattr(
            torch.cuda, "set_per_process_memory_fraction", lambda share, _: self.fractions.append(share)
        )


def test_what_this_process_has_freed_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    assert device.Hardware.here().memory == pytest.approx(0.8 * 13e9)


def test_a_share_of_a_gpu_is_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCuda(monkeypatch)
    assert device.Hardware.here(share=0.25).memory == pytest.approx(0.8 * 4e9)
    assert gpu.fractions == [0.25]


def test_a_gpu_without_an_answer_is_no_gpu_and_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    with pytest.raises(
        DeviceFailed, match=r"^its GPU cannot be used: CUDA error: uncorrectable ECC error encountered$"
    ):
        device.Hardware.here(gpus=True)


def test_a_reserved_gpu_that_torch_cannot_use_is_an_error() -> None:
    with pytest.raises(DeviceFailed, match="finds no GPU that it can use"):
        device.Hardware.here(gpus=True)


def test_the_workers_precision_counts_and_not_the_drivers() -> None:
    cpu = torch.device("cpu")
    ampere, turing = (device.Hardware(cpu, 1e9, (cpu,), native_bf16=bf16) for bf16 in (True, False))
    assert (ampere.network_dtype("auto"), turing.network_dtype("auto")) == (torch.bfloat16, torch.float32)
    assert ampere.network_dtype("fp32") == torch.float32


def test_a_shorter_history_is_told() -> None:
    recipe = Recipe()
    assert Fitting(512, 7).notes(recipe) == ["L-BFGS remembers 7 steps, not 20: memory"]
    assert Fitting(512).notes(recipe) == []
    assert Fitting(512, 7).notes(Recipe(optimizer="adam")) == []
    assert [Fitting(tile).recipe_tile for tile in (math.inf, 512)] == ["off", 512]


def test_batches_are_bounded_by_memory_and_by_use() -> None:
    recipe = Recipe()
    assert largest_batch(1e12, recipe, "cpu", BF16) == 4 * 256 * 256
    assert largest_batch(1e12, recipe, "cuda", BF16) == 16 * 512 * 512
    pixels = largest_batch(2e9, recipe, "cuda", BF16)
    assert 400_000 < pixels < 600_000
    # A lighter network, or wider numbers.
    assert largest_batch(2e9, Recipe.from_settings({"backbone": "alexnet"}), "cuda", BF16) > pixels
    assert largest_batch(2e9, recipe, "cuda", torch.float32) < pixels


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/", {}, math.inf),
        ("0::/job/step", {"job/memory.max": "4000000000", "job/step/memory.max": "max"}, 4e9),
        ("0::/job/step", {"job/step/memory.max": "3000000000", "job/memory.max": "4000000000"}, 3e9),
        ("4:memory:/pod\n3:cpu:/other", {"memory/pod/memory.limit_in_bytes": "5000000000"}, 5e9),
        ("4:memory:/elsewhere", {"memory/memory.limit_in_bytes": "6000000000"}, 6e9),
    ],
)
def test_what_a_control_group_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], limit: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(own + "\n")
    monkeypatch.setattr(device, "PROCESS_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(device, "CGROUPS", tmp_path)
    assert device._cgroup_limit() == limit
    assert device.free_memory(torch.device("cpu")) <= 0.9 * limit


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("0::/", {}, math.inf),
        ("0::/job", {"job/cpu.max": "150000 100000", "cpu.max": "max 100000"}, 1.5),
        ("0::/pod/step", {"pod/step/cpu.max": "max 100000", "pod/cpu.max": "50000 100000"}, 0.5),
        ("5:cpu,acct:/", {"cpu,acct/cpu.cfs_quota_us": "-1", "cpu,acct/cpu.cfs_period_us": "100000"}, math.inf),
        ("5:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_the_cpus_that_a_control_group_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], cpus: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(own + "\n")
    monkeypatch.setattr(device, "PROCESS_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(device, "CGROUPS", tmp_path)
    assert device._cgroup_cpus() == cpus
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert device.usable_cpus() == (8 if cpus == math.inf else math.ceil(cpus))


def test_the_cpus_that_taskset_leaves_count() -> None:
    script = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    script += "from batchnst.transfer.device import tune_process, usable_cpus\n"
    script += "import torch; torch.set_num_threads(4); tune_process(); print(usable_cpus(), torch.get_num_threads())"
    assert subprocess.run([sys.executable, "-c", script], stdout=-1, text=True, check=True).stdout == "1 1\n"


@pytest.mark.parametrize("kind", ["RLIMIT_AS", pytest.param("RLIMIT_DATA", marks=pytest.mark.slow)])
def test_the_memory_that_ulimit_leaves_counts_and_its_end_is_out_of_memory(kind: str) -> None:
    script = (
        f"import resource; resource.setrlimit(resource.{kind}, (6_000_000_000,) * 2)\n"
        + """
import numpy, torch
from batchnst.painting.painter import as_pair_error
from batchnst.transfer.device import Hardware
print(Hardware.here().memory)
for allocate in (torch.empty, numpy.empty, bytes):
    try:
        allocate(7_000_000_000)
    except Exception as error:
        print(type(as_pair_error(error)).__name__)
"""
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=-1, text=True, check=True)
    memory, *errors = done.stdout.splitlines()
    assert 1e9 < float(memory) < 6e9
    assert errors == ["OutOfMemory"] * 3
