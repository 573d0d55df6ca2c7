"""The size of a JPEG XL picture from its header (ISO/IEC 18181-1): its decoder needs the whole file for that."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 1 << 16
"""Bytes at the beginning of a file that its header is looked for in."""

_BARE, _BOXED = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_LENGTHS = (9, 13, 18, 30)
_SIDEWAYS = range(5, 9)


def is_jxl(head: bytes) -> bool:
    """True if a file that begins with `head` is a JPEG XL."""
    return head.startswith((_BARE, _BOXED))


def upright_size(head: bytes) -> tuple[int, int]:
    """The upright size (width, height) of a picture whose file begins with `head`; raises ValueError without one."""
    at = next((at for at in (0, head.find(b"jxlc") + 4, head.find(b"jxlp") + 8) if head[at : at + 2] == _BARE), None)
    if at is None:
        raise ValueError("no header is found")
    bits = _Bits(int.from_bytes(head[at + 2 : at + 34], "little"))
    is_small = bits.take(1)
    height = _length(bits, is_small)
    ratio = bits.take(3)
    width = height * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1] if ratio else _length(bits, is_small)
    orientation = 1 if bits.take(1) or not bits.take(1) else bits.take(3) + 1
    return (height, width) if orientation in _SIDEWAYS else (width, height)


@dataclass
class _Bits:
    """Bits that are taken from the lowest upwards."""

    left: int

    def take(self, count: int) -> int:
        """The number in the next `count` bits."""
        value, self.left = self.left & ((1 << count) - 1), self.left >> count
        return value


def _length(bits: _Bits, is_small: int) -> int:
    return 8 * (bits.take(5) + 1) if is_small else bits.take(_LENGTHS[bits.take(2)]) + 1
