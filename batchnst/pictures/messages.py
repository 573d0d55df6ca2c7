"""Messages between this program and the process that opens pictures: a line of JSON, then the bytes that it announces.

Nothing that arrives is executed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

LONGEST_LINE = 1 << 20
"""Longest line of JSON, in bytes."""


def put(target: IO[bytes], header: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Write a message: `header` and `parts`."""
    sizes = [len(part) for part in parts]
    target.write(json.dumps({**header, "sizes": sizes}).encode() + b"\n")
    for part in parts:
        target.write(part)
    target.flush()


def get(source: IO[bytes], most_bytes: float) -> tuple[dict[str, Any], list[bytes]]:
    """Read a message: its header and parts.

    Raises EOFError if the input ends before, ValueError for anything but a message, or more than `most_bytes`.
    """
    line = source.readline(LONGEST_LINE)
    if not line:
        raise EOFError
    header: dict[str, Any] = json.loads(line)
    sizes: list[int] = header.pop("sizes")
    if sum(sizes) > most_bytes or min(sizes, default=0) < 0:
        raise ValueError("a message is longer than was expected")
    return header, [_read(source, size) for size in sizes]


def _read(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data
