"""The device that the network runs on: its memory, precision, settings and name.

Everything else in `transfer` is the same on every device.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from batchnst.errors import DeviceFailed

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

CGROUPS, PROCESS_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Folder of all control groups; list of the groups that this process is in."""


PROCESS_STATUS = Path("/proc/self/status")
"""File that says how much address space this process has."""

PROCESS_BYTES = 850e6
"""Memory of a process before it paints, in bytes."""


@dataclass(frozen=True)
class Hardware:
    """The hardware of one worker.

    device: the device it paints on. memory: bytes it may use there. devices: all devices reserved for it, `device`
    first. native_bf16: whether it multiplies bf16 natively.
    """

    device: torch.device
    memory: float
    devices: tuple[torch.device, ...]
    native_bf16: bool

    @classmethod
    def here(cls, memory: float | None = None, share: float = 1.0, *, gpus: bool | None = None) -> Hardware:
        """Return this process's hardware, with at most `memory` bytes and a `share` (0..1) of a GPU's memory.

        gpus: True if GPUs are reserved for this process, False if they are for others, None if all are its own. Raises
        DeviceFailed if it cannot use those that are reserved for it, instead of painting on a CPU.
        """
        device = torch.device("cpu") if gpus is False else best_device()
        if gpus and device.type == "cpu":
            raise DeviceFailed(
                f"torch {torch.__version__} finds no GPU that it can use, although one is reserved; "
                "compare its driver (nvidia-smi) with the CUDA version of torch"
            )
        try:
            count = gpu_count() if device.type != "cpu" else 1
            devices = (device,) if count == 1 else tuple(torch.device(device.type, i) for i in range(count))
            if device.type != "cpu" and share < 1:
                getattr(torch, device.type).set_per_process_memory_fraction(share, *devices[: device.type != "mps"])
            limit = min(memory or math.inf, free_memory(device, share))
            return cls(devices[0], limit, devices, has_native_bf16(device))
        except RuntimeError as error:
            raise DeviceFailed(f"its GPU cannot be used: {str(error).partition(chr(10))[0]}") from None

    def network_dtype(self, precision: str) -> torch.dtype:
        """Return the network's dtype on it for a recipe's `precision`."""
        return _dtype(precision, self.native_bf16)


def best_device() -> torch.device:
    """Return the GPU of this process if it has one, NVIDIA's, AMD's, Apple's or Intel's; else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def gpu_count() -> int:
    """Return the number of GPUs that this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else torch.accelerator.device_count()


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for small sums that need many digits: float64, where `device` has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def keeps_shapes(device: torch.device) -> bool:
    """Return True if batches on `device` should have few shapes: a GPU searches algorithms anew for each shape."""
    return device.type != "cpu"


def tune_process() -> None:
    """Change settings of the whole process; call it only in a process that does nothing but paint.

    It uses no more threads than this process may use CPUs. On a GPU, fp32 is not shortened to TF32, and cuDNN searches
    the fastest convolution for each shape, which pays because shapes repeat. On a CPU, freed memory stays with the
    process: the next step needs the same sizes again, and touching new pages takes up to a fifth of a step.
    """
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
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
    return _dtype(precision, precision == "auto" and has_native_bf16(device))


def _dtype(precision: str, native_bf16: bool) -> torch.dtype:
    automatic = torch.bfloat16 if native_bf16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": automatic}[precision]


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of `dtype` in recipes and in the ledger."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def has_native_bf16(device: torch.device) -> bool:
    """Return whether `device` multiplies bf16 natively."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return device.type == "xpu" and torch.xpu.is_bf16_supported()
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capabilities or torch.cpu._is_avx512_bf16_supported()


def free_memory(device: torch.device, share: float = 1.0) -> float:
    """Return the bytes that painting may use on `device`, or on a `share` (0..1) of a GPU, less a reserve.

    What this process has freed, but keeps for reuse, is free.
    """
    if device.type == "mps":  # shares the memory of the system
        limit, used = torch.mps.recommended_max_memory(), torch.mps.current_allocated_memory()
        return 0.8 * (share * limit - used)
    if device.type != "cpu":
        library = getattr(torch, device.type)
        free, total = library.mem_get_info(device)
        free += library.memory_reserved(device) - library.memory_allocated(device)
        return 0.8 * float(min(free, share * total))
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0.9 * min(installed, _cgroup_limit(), _process_limit())


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1.

    `taskset` and batch systems allow only some of the machine's CPUs, containers only a share of their time.
    """
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(min(allowed, _cgroup_cpus()))))


def _cgroup_limit() -> float:
    """Return the memory limit in bytes that a container or a batch system sets for this process; inf if none."""
    files = {True: "memory.limit_in_bytes", False: "memory.max"}
    return min([math.inf, *(_read_limit(group / files[old]) for group, old in _control_groups("memory"))])


def _cgroup_cpus() -> float:
    """Return the number of CPUs whose time a container grants to this process; inf if there is no such limit."""
    limits = [math.inf]
    for group, old in _control_groups("cpu"):
        if old:
            limits.append(_read_limit(group / "cpu.cfs_quota_us") / _read_limit(group / "cpu.cfs_period_us"))
        else:
            limits.append(_read_limit(group / "cpu.max") / _read_limit(group / "cpu.max", 1))
    return min(limit for limit in limits if limit > 0)


def _control_groups(kind: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the control groups that limit `kind` for this process, the groups around them included.

    True comes with groups of version 1. Limits of all groups hold, so that the least one counts.
    """
    with suppress(OSError):
        for line in PROCESS_CGROUP.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds or kind in kinds.split(","):
                folder = CGROUPS / kinds / path.lstrip("/")
                yield from ((group, bool(kinds)) for group in (folder, *folder.parents))


@lru_cache(maxsize=1)
def _process_limit() -> float:
    """Return the memory in bytes that the limits of this process (`ulimit -v`, `ulimit -d`) leave; inf if none.

    They count addresses, also those of libraries and of reserves that are never touched. What the process has of these
    before it paints is no part of an estimate, which is why this is measured once, before the first picture.
    """
    limits = [math.inf]
    with suppress(OSError):
        status = dict(line.split(":", 1) for line in PROCESS_STATUS.read_text().splitlines())
        for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            limit, _ = resource.getrlimit(kind)
            if limit != resource.RLIM_INFINITY:
                limits.append(max(0.0, limit - 1024 * float(status[name].split()[0]) + PROCESS_BYTES))
    return min(limits)


def _read_limit(file: Path, position: int = 0) -> float:
    """Return the number at `position` in the line that `file` holds; inf if it cannot be read or is no number."""
    try:
        text = file.read_text().split()[position]
    except (OSError, IndexError):
        return math.inf
    return float(text) if text.isdecimal() else math.inf


def device_failure(error: BaseException) -> DeviceFailed | None:
    """Return the failure of a GPU that `error` reports, after which CUDA refuses everything else; None for others.

    Only to be asked about errors that are not a lack of memory.
    """
    is_failure = isinstance(error, torch.AcceleratorError) or _FAILURES.search(str(error))
    if isinstance(error, RuntimeError) and is_failure:
        return DeviceFailed(f"the GPU failed: {str(error).partition(chr(10))[0]}")
    return None


_FAILURES = re.compile(
    r"(CUDA|HIP|XPU) (driver )?error"
    r"|CU(BLAS|DNN|FFT|SOLVER)_(STATUS_)?(NOT_INITIALIZED|EXEC(UTION)?_FAILED|INTERNAL_ERROR)"
)
"""Messages of the errors of a GPU and of the libraries that use it."""


def release_memory(device: torch.device) -> None:
    """Return memory that the process has freed, but kept for reuse, to the device or the system."""
    if device.type != "cpu":
        getattr(torch, device.type).empty_cache()
    elif trim := _from_libc("malloc_trim"):
        trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the process's peak memory in bytes: that of its tensors on a GPU, resident memory elsewhere."""
    if device.type not in ("cpu", "mps"):
        peak_bytes: int = getattr(torch, device.type).max_memory_allocated(device)
        return peak_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished all queued work; to be called before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_label(device: torch.device) -> str:
    """Return the device as the ledger records it: `cpu`, or its type and name, such as `cuda (NAME)`."""
    return "cpu" if device.type == "cpu" else f"{device.type} ({device_name(device)})"


def device_name(device: torch.device) -> str:
    """Return the product name of the GPU or the processor."""
    if device.type not in ("cpu", "mps"):
        name: str = getattr(torch, device.type).get_device_name(device)
        return name
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
