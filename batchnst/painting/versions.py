"""Versions of the software that paints, as the ledger records them."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

import torch

from batchnst.ledger.schema import Versions


@cache
def versions() -> Versions:
    """The versions that this process uses. `cuda` is None without a GPU."""
    return Versions(
        batchnst=version("batchnst"),
        python=platform.python_version(),
        torch=version("torch"),
        pillow=version("pillow"),
        pyarrow=version("pyarrow"),
        cuda=torch.version.cuda if torch.cuda.is_available() else None,
    )
