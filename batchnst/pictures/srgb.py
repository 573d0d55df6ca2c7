"""Convert the colours of pictures to sRGB: by their ICC profile, or by what the file says of them without one.

Sources: ITU-T H.273 (code points), ITU-R BT.2100 (PQ and HLG), IEC 61966-2-1 (sRGB), Bradford's adaptation (ICC.1).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Values = NDArray[Any]
"""Linear or encoded values of colours, 0..1 for those of sRGB."""

ALIKE = 2
"""A profile that moves no colour by more than this, in 0..255, is taken as sRGB."""

FLAT = 8
"""A profile that makes all colours as near to each other as this, in 0..255, is damaged."""

BLOCK_PIXELS = 1 << 20
"""Pixels that are converted at once."""

WHITE_NITS = 203
"""Brightness of white paper in HDR pictures (ITU-R BT.2408)."""

HLG_NITS = 1000
"""Brightness of the display that HLG is shown on."""

KNEE = 0.75
"""Brightest linear value that tone mapping leaves as it is."""

D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
"""The x and y of whites."""

PRIMARIES: dict[int, tuple[float, ...]] = {
    1: (*D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (0.310, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    10: (1 / 3, 1 / 3, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
"""The x and y of white, red, green and blue by H.273's code points."""

ADOBE_RGB = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
"""The same of Adobe RGB (1998)."""

ADOBE_GAMMA = 563 / 256

UNSPECIFIED = 2
"""Code point of primaries and curves that a file leaves open."""

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def decode_srgb(values: Values) -> Values:
    """Linear values of sRGB's."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encode_srgb(linear: Values) -> Values:
    """SRGB's values of linear ones, which are clipped to 0..1."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode_pq(values: Values) -> Values:
    """Linear values of PQ's (SMPTE ST 2084), 1 at WHITE_NITS."""
    root = values ** (32 / 2523)
    ratio = np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)
    return (1e4 / WHITE_NITS * ratio ** (8192 / 1305)).astype(np.float32)


def decode_hlg(values: Values) -> Values:
    """Light of the scene of HLG's values, 0..1 (ARIB STD-B67)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)


CURVES: dict[int, Callable[[Values], Values]] = {
    **dict.fromkeys((1, 2, 6, 13, 14, 15), decode_srgb),
    4: lambda values: values**2.2,
    5: lambda values: values**2.8,
    7: decode_srgb,
    8: lambda values: values,
    16: decode_pq,
    17: lambda values: values**2.6 * np.float32(52.37 / 48),
    18: decode_hlg,
}
"""Functions from encoded to linear values, by H.273's code points; cameras' curves (1, 6, 14, 15) as sRGB's."""

PQ, HLG = 16, 18
"""Code points of the curves of HDR."""


@dataclass(frozen=True)
class Space:
    """RGB colours: `chromaticities` as in PRIMARIES, `curve` decodes values to linear ones; `name` is for notes.

    hdr: a code point of a curve with values brighter than white, None for other curves. narrow: True if black is 16
    and white is 235.
    """

    name: str
    chromaticities: tuple[float, ...]
    curve: Callable[[Values], Values]
    hdr: int | None = None
    narrow: bool = False

    def matrix(self) -> NDArray[np.float64]:
        """The matrix from linear values to sRGB's linear values; raises LinAlgError if there is none."""
        return np.linalg.inv(_to_xyz(PRIMARIES[1])) @ _to_xyz(self.chromaticities)

    def decode(self) -> Values:
        """The linear value of each of 0..255."""
        values: Values = np.arange(256, dtype=np.float32)
        values = ((values - 16) / 219).clip(0, 1) if self.narrow else values / 255
        return self.curve(values).astype(np.float32)


def _to_xyz(chromaticities: Sequence[float]) -> NDArray[np.float64]:
    """The matrix from linear RGB to XYZ, with white adapted to D65."""
    white, *primaries = zip(chromaticities[::2], chromaticities[1::2], strict=True)
    matrix = np.array([(x, y, 1 - x - y) for x, y in primaries]).T
    return np.asarray(_adaptation(white) @ (matrix * np.linalg.solve(matrix, _xyz(*white))))


def _adaptation(white: tuple[float, ...]) -> NDArray[np.float64]:
    """The matrix that adapts XYZ from `white`, by its x and y, to D65."""
    cones = _BRADFORD @ _xyz(*D65) / (_BRADFORD @ _xyz(*white))
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD)


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    """The XYZ of a white, with Y = 1."""
    return np.array([x / y, 1, (1 - x - y) / y])


def lab_to_linear(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """SRGB's linear values of CIE 1976 L*a*b* of D50, (…, 3): L* is 0..100."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _xyz(*D50)
    return np.asarray(xyz @ (np.linalg.inv(_to_xyz(PRIMARIES[1])) @ _adaptation(D50)).T)


def coded_space(primaries: int, curve: int, narrow: bool = False) -> Space | None:
    """The colours of H.273's code points; None if they are sRGB's, or unspecified. Raises KeyError for unknown ones."""
    primaries, curve = (1 if code == UNSPECIFIED else code for code in (primaries, curve))
    chromaticities, decode = PRIMARIES[primaries], CURVES[curve]
    if chromaticities == PRIMARIES[1] and decode is decode_srgb and not narrow:
        return None
    name = {PQ: "PQ", HLG: "HLG"}.get(curve, "")
    return Space(name, chromaticities, decode, curve if name else None, narrow)


def power_space(chromaticities: tuple[float, ...], gamma: float | None) -> Space | None:
    """The colours of chromaticities, sRGB's if empty, and of a power curve, sRGB's if `gamma` is None.

    None for sRGB, of which a gamma of about 2.2 is the usual description.
    """
    chromaticities = chromaticities or PRIMARIES[1]
    is_srgb = np.abs(np.subtract(chromaticities, PRIMARIES[1])).max() < 0.002
    if is_srgb and (gamma is None or abs(gamma - 2.2) < 0.05):
        return None
    return Space("", chromaticities, decode_srgb if gamma is None else partial(_power, gamma=gamma))


def _power(values: Values, gamma: float) -> Values:
    return values**gamma


def profile_space(icc: bytes) -> Space | None:
    """The HDR colours that an ICC profile tells by code points (ICC.1:2022, cicpTag); None for other profiles."""
    for at in range(132, min(132 + 12 * int.from_bytes(icc[128:132]), len(icc)), 12):
        if icc[at : at + 4] == b"cicp":
            start = int.from_bytes(icc[at + 4 : at + 8])
            primaries, curve = (*icc[start + 8 : start + 10], 0, 0)[:2]
            return coded_space(primaries, curve) if curve in (PQ, HLG) and primaries in PRIMARIES else None
    return None


def from_space(image: Image.Image, space: Space) -> Image.Image:
    """Convert `image`, RGB, from `space` to sRGB. Raises LinAlgError if the space's chromaticities are impossible."""
    pixels = np.array(image)
    decoded, matrix = space.decode(), space.matrix().astype(np.float32).T
    peak = max(1.0, float(decoded[pixels.max()]) * (HLG_NITS / WHITE_NITS if space.hdr == HLG else 1))
    rows = max(1, BLOCK_PIXELS // image.width)
    for start in range(0, image.height, rows):
        linear = decoded[pixels[start : start + rows]]
        if space.hdr == HLG:
            linear = _on_display(linear)
        linear = np.maximum(linear @ matrix, 0)
        if space.hdr:
            linear = tone_mapped(linear, peak)
        pixels[start : start + rows] = _ENCODED[(linear.clip(0, 1) * (len(_ENCODED) - 1)).round().astype(np.uint16)]
    return Image.fromarray(pixels)


def _on_display(scene: Values) -> Values:
    """Light of a display, 1 at WHITE_NITS, for light of the scene, (…, 3): HLG's OOTF."""
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    return np.asarray(scene * (luminance**0.2)[..., None] * np.float32(HLG_NITS / WHITE_NITS))


def tone_mapped(linear: Values, peak: float) -> Values:
    """Compress linear values (…, 3) of up to `peak` to 0..1; colours below KNEE stay as they are (Reinhard 2002)."""
    if peak <= 1:
        return linear
    brightest = linear.max(axis=-1, keepdims=True)
    above, most = (brightest - KNEE) / (1 - KNEE), (peak - KNEE) / (1 - KNEE)
    mapped = KNEE + (1 - KNEE) * above * (1 + above / most**2) / (1 + np.maximum(above, 0))
    return np.where(brightest > KNEE, linear * mapped / np.maximum(brightest, KNEE), linear)


def from_profile(image: Image.Image, icc: bytes, notes: list[str]) -> Image.Image | None:
    """Convert `image`, in a mode that profiles apply to, to sRGB by its ICC profile.

    None if it is sRGB as it is. A profile of no use is told in `notes`.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except (ImageCms.PyCMSError, OSError):
        notes.append("its colour profile cannot be read; taken as sRGB")
        return None
    try:
        if _is_flat(icc, image.mode):
            notes.append("its colour profile makes all colours one, and was ignored")
            return None
        return None if image.mode == "RGB" and is_srgb(icc) else _transformed(image, profile)
    except ImageCms.PyCMSError:
        notes.append("its colour profile does not fit its colours and was ignored")
        return None


@lru_cache(maxsize=8)
def is_srgb(icc: bytes) -> bool:
    """True if an RGB profile moves no colour by more than ALIKE; raises PyCMSError if it is no RGB profile."""
    steps = np.arange(0, 256, 15).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    grays = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, -1, 3)
    before = np.concatenate([colours, grays], axis=1)
    after = np.asarray(_transformed(Image.fromarray(before), ImageCms.ImageCmsProfile(io.BytesIO(icc))))
    return bool(np.abs(after.astype(int) - before).max() <= ALIKE)


@lru_cache(maxsize=8)
def _is_flat(icc: bytes, mode: str) -> bool:
    """True if a profile for pictures in `mode` tells no colours apart; raises PyCMSError if it is for another mode."""
    levels = np.arange(0, 256, 15).astype(np.uint8)
    channels = {"L": 1, "CMYK": 4}.get(mode, 3)
    colours = np.stack(np.meshgrid(*[levels[::channels]] * channels), axis=-1).reshape(1, -1, channels)
    image = Image.frombytes(mode, (colours.shape[1], 1), colours.tobytes())
    after = np.asarray(_transformed(image, ImageCms.ImageCmsProfile(io.BytesIO(icc)))).astype(int)
    return bool(np.ptp(after, axis=1).max() <= FLAT)


def from_lab(image: Image.Image) -> Image.Image:
    """Convert a picture in mode LAB to sRGB."""
    return _transformed(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))


def _transformed(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, _SRGB, outputMode="RGB")
    assert converted is not None  # it is None only for a conversion in place
    return converted


_ENCODED = (255 * encode_srgb(np.linspace(0, 1, 1 << 14, dtype=np.float32))).round().astype(np.uint8)
"""SRGB's bytes of linear values, by 2¹⁴ steps."""
