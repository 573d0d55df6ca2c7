"""The device that the network runs on: its memory, precision, settings and name.

Everything else in `transfer` is the same on every device.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

CGROUPS, PROCESS_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Folder of all control groups; list of the groups that this process is in."""


@dataclass(frozen=True)
class Hardware:
    """The hardware of one worker.

    device: the device it paints on. memory: bytes it may use there. devices: all devices reserved for it, `device`
    first.
    """

    device: torch.device
    memory: float
    devices: tuple[torch.device, ...]

    @classmethod
    def here(cls, memory: float | None = None, share: float = 1.0) -> Hardware:
        """Return this process's hardware, with at most `memory` bytes and a `share` (0..1) of a GPU's memory."""
        device = best_device()
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        devices = (device,) if count == 1 else tuple(torch.device("cuda", i) for i in range(count))
        return cls(devices[0], min(memory or math.inf, free_memory(device, share)), devices)


def best_device() -> torch.device:
    """Return the GPU of this process if it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tune_process() -> None:
    """Change settings of the whole process; call it only in a process that does nothing but paint.

    On a GPU, fp32 means TF32, and cuDNN searches the fastest convolution for each shape, which pays because shapes
    repeat. On a CPU, freed memory stays with the process: the next step needs the same sizes again, and touching new
    pages takes up to a fifth of a step.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    if mallopt := _from_libc("mallopt"):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _from_libc(name: str) -> Callable[..., int] | None:
    """Return a function of glibc, or None if this system's C library lacks it."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def network_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the network's dtype for a recipe's `precision`: fp32, bf16 or auto.

    auto is bf16 if `device` multiplies it natively, else fp32. fp16 is not offered: VGG's unnormalised features and
    their Gram matrices leave its range (65,504).
    """
    if precision == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of `dtype` in recipes and in the ledger."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capabilities or torch.cpu._is_avx512_bf16_supported()


def free_memory(device: torch.device, share: float = 1.0) -> float:
    """Return the bytes that painting may use on `device`, or on a `share` (0..1) of a GPU, less a reserve."""
    if device.type == "cuda":
        return 0.8 * share * torch.cuda.mem_get_info(device)[0]
    return 0.9 * min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _cgroup_limit())


def _cgroup_limit() -> float:
    """Return the memory limit in bytes that a container or a batch system sets for this process; inf if none.

    It is the least limit of the process's control groups and of the groups around them.
    """
    limits = [math.inf]
    with suppress(OSError):
        for line in PROCESS_CGROUP.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                name = "memory.limit_in_bytes" if kinds else "memory.max"
                folder = CGROUPS / kinds / path.lstrip("/")
                limits += [_read_limit(group / name) for group in (folder, *folder.parents)]
    return min(limits)


def _read_limit(file: Path) -> float:
    """Return the limit in bytes that `file` holds; inf if it cannot be read or sets none."""
    try:
        text = file.read_text().strip()
    except OSError:
        return math.inf
    return float(text) if text.isdecimal() else math.inf


def release_memory(device: torch.device) -> None:
    """Return memory that the process has freed, but kept for reuse, to the device or the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := _from_libc("malloc_trim"):
        trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the process's peak memory in bytes: that of its tensors on a GPU, resident memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished all queued work; to be called before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_label(device: torch.device) -> str:
    """Return the device as the ledger records it: `cpu`, or `cuda (NAME)`."""
    return f"cuda ({device_name(device)})" if device.type == "cuda" else "cpu"


def device_name(device: torch.device) -> str:
    """Return the product name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
