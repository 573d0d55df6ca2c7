"""What is to be known of the device that the network runs on. All else in this room is the same on every device."""

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

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Hardware:
    """What a worker paints on: its device, the bytes it may take there, and all devices that are its own."""

    device: torch.device
    memory: float
    devices: tuple[torch.device, ...]

    @classmethod
    def here(cls, memory: float | None = None, share: float = 1.0) -> Hardware:
        """This process's; with so many bytes at the most, and this share of a GPU."""
        device = best_device()
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        devices = (device,) if count == 1 else tuple(torch.device("cuda", i) for i in range(count))
        return cls(devices[0], min(memory or math.inf, free_memory(device, share)), devices)


def best_device() -> torch.device:
    """The GPU of this process if it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tune_process() -> None:
    """Settings of the whole process, for one that does nothing but paint.

    On a GPU, fp32 means TF32, and the fastest convolution for each shape is looked for: shapes repeat. On a CPU,
    memory that is free stays with the process: the next step asks for the same sizes again, and touching new pages
    takes up to a fifth of a step.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    if mallopt := _from_libc("mallopt"):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _from_libc(name: str) -> Callable[..., int] | None:
    """A function of glibc's that not every C library has."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def network_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the network: bf16 where asked for, or on `auto` where the hardware multiplies it natively.

    fp16 is not offered: VGG's unnormalised features and their Gram matrices leave its range (65,504).
    """
    if precision == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def precision_name(dtype: torch.dtype) -> str:
    """The dtype of the network as recipes and the ledger call it."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capabilities or torch.cpu._is_avx512_bf16_supported()


def free_memory(device: torch.device, share: float = 1.0) -> float:
    """Bytes that may be taken on a device, or on a share of it, with some to spare."""
    if device.type == "cuda":
        return 0.8 * share * torch.cuda.mem_get_info(device)[0]
    return 0.9 * min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _granted())


def _granted() -> float:
    """Bytes that containers and batch systems grant this process: by its control group, or one around it."""
    limits = [math.inf]
    with suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                name = "memory.limit_in_bytes" if kinds else "memory.max"
                folder = CGROUPS / kinds / path.lstrip("/")
                limits += [_limit(around / name) for around in (folder, *folder.parents)]
    return min(limits)


def _limit(file: Path) -> float:
    try:
        text = file.read_text().strip()
    except OSError:
        return math.inf
    return float(text) if text.isdecimal() else math.inf


def release_memory(device: torch.device) -> None:
    """Give back what is free, and kept for more of the same."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := _from_libc("malloc_trim"):
        trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held: on a GPU in tensors, elsewhere resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_label(device: torch.device) -> str:
    """The device as the ledger records it: `cpu`, or `cuda (its name)`."""
    return f"cuda ({device_name(device)})" if device.type == "cuda" else "cpu"


def device_name(device: torch.device) -> str:
    """The device as a person knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
