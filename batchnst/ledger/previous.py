"""Pictures that were painted again: the one before is kept in OUT, to show before and after."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass

from batchnst.storage.files import Folder

PREVIOUS = "previous"
"""Folder of these pictures in OUT."""


@dataclass(frozen=True, slots=True)
class Previous:
    """The newest ok attempt at a pair before the present one; `sha256` is that of its picture, in hexadecimal."""

    run_id: str
    attempt: int
    sha256: str


def previous_name(pair_id: str, run_id: str, attempt: int, output: str) -> str:
    """Path in OUT of the picture of an earlier attempt at a pair; `output` is that of the attempt's row."""
    return f"{PREVIOUS}/{pair_id}/{run_id}-{attempt}{posixpath.splitext(output)[1]}"


def keep(folder: Folder, pair_id: str, output: str, previous: Previous, before: Callable[[], None]) -> None:
    """Copy the picture at `output`, which is about to be replaced, if it is that of the attempt `previous`.

    A picture that was changed since then is not kept. The copy is whole and always the same, so it does no harm if
    this process ends before the picture is replaced, or if two processes do it. `before` as in `Folder.write`.
    Raises StorageError.
    """
    data = folder.read(f"images/{output}")
    if data is not None and hashlib.sha256(data).hexdigest() == previous.sha256:
        folder.write(previous_name(pair_id, previous.run_id, previous.attempt, output), data, before=before)
