"""ICC profiles made by hand from primaries and a gamma (ICC.1:2001-04), and the same conversion by formulas."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

# Columns: the primaries' XYZ, adapted to D50 by Bradford's matrix.
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 563 / 256  # of Adobe RGB (1998)


def rgb_profile() -> bytes:
    """Adobe RGB (1998), as a camera would embed it."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(GAMMA * 256)) + bytes(2)
    tags = {b"desc": _text("A wide gamut"), b"wtpt": _xyz(0.9642, 1.0, 0.8249), b"cprt": b"text" + bytes(4) + b"none\0"}
    tags |= {name: _xyz(*ADOBE_RGB[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def gray_profile(gamma: float) -> bytes:
    """Gray of a gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"desc": _text("Gray"), b"wtpt": _xyz(0.9642, 1.0, 0.8249), b"cprt": b"text" + bytes(4) + b"none\0"}
    return _profile(b"GRAY", tags | {b"kTRC": curve})


def adobe_to_srgb(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Adobe RGB to sRGB, (…, 3), 0..255, by matrices and curves."""
    linear = (values / 255) ** GAMMA @ (np.linalg.inv(SRGB) @ ADOBE_RGB).T
    return 255 * srgb_curve(linear)


def lab_to_srgb(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIE 1976 L*a*b* of D50, as Pillow stores it, to sRGB, (…, 3), 0..255."""
    lightness, a, b = values[..., 0] / 255 * 100, *(values[..., i].astype(np.int8).astype(float) for i in (1, 2))
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    return 255 * srgb_curve(xyz @ np.linalg.inv(SRGB).T)


def srgb_curve(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, offset + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    size = offset + len(data)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _text(text: str) -> bytes:
    return b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text.encode() + b"\0" + bytes(78)
