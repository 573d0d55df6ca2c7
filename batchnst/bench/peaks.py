"""Published peaks of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from batchnst.errors import RequestError


@dataclass(frozen=True)
class Peaks:
    """Peaks of a GPU: FLOP/s of dense matrices in bf16 and for fp32, FLOP/s of other fp32, bytes a second.

    bf16 is None where the GPU lacks it. Matrices "for fp32" are multiplied in TF32 where the GPU has that.
    """

    bf16: float | None
    matrices: float
    fp32: float
    bytes: float


DEVICES = {
    "a10": Peaks(125e12, 62.5e12, 31.2e12, 600e9),
    "a100": Peaks(312e12, 156e12, 19.5e12, 2039e9),  # 80 GB, SXM
    "b200": Peaks(2250e12, 1125e12, 75e12, 8000e9),
    "h100": Peaks(989e12, 494e12, 67e12, 3350e9),  # SXM
    "h200": Peaks(989e12, 494e12, 67e12, 4800e9),
    "l4": Peaks(121e12, 60e12, 30.3e12, 300e9),
    "l40s": Peaks(362e12, 183e12, 91.6e12, 864e9),
    "t4": Peaks(None, 8.1e12, 8.1e12, 300e9),
    "v100": Peaks(None, 15.7e12, 15.7e12, 900e9),  # SXM2
}
"""Peaks by name, from NVIDIA's data sheets; where these give figures with sparsity, half of them."""


def peaks_of(device: str) -> Peaks:
    """The peaks of `device`, a key of DEVICES."""
    if device not in DEVICES:
        raise RequestError(f"--device {device}: not known; expected one of {', '.join(DEVICES)}")
    return DEVICES[device]
