"""batchnst: Gatys et al.'s neural style transfer for whole collections, on Ray, audited in Parquet."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from batchnst.errors import BatchNSTError
from batchnst.recipe import Recipe

if TYPE_CHECKING:
    from batchnst.ledger.out import read_ledger
    from batchnst.painting.single import stylize

__all__ = ["BatchNSTError", "Recipe", "read_ledger", "stylize"]

_LAZY = {"stylize": "batchnst.painting.single", "read_ledger": "batchnst.ledger.out"}


def __getattr__(name: str) -> Any:
    """Import modules that need torch or pyarrow only on first use, so that `batchnst --help` is fast."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'batchnst' has no attribute {name!r}")
