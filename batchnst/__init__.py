"""batchnst: Gatys et al.'s neural style transfer for whole collections, on Ray, audited in Parquet."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchnst.errors import BatchNSTError
    from batchnst.ledger.out import read_ledger
    from batchnst.painting.single import stylize
    from batchnst.recipe import Recipe

__all__ = ["BatchNSTError", "Recipe", "read_ledger", "stylize"]

_MODULES = {
    "BatchNSTError": "batchnst.errors",
    "Recipe": "batchnst.recipe",
    "read_ledger": "batchnst.ledger.out",
    "stylize": "batchnst.painting.single",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use: the command catches signals before it imports anything that takes long."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'batchnst' has no attribute {name!r}")
