"""Sizes of pictures."""

from __future__ import annotations


def fit(width: int, height: int, size: float) -> tuple[int, int]:
    """Working size (width, height): the longest side becomes `size`; both are rounded and at least 1 pixel."""
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
