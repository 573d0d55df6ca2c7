"""What a sheet can be written as."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from batchnst.collection import outputs
from batchnst.engine.sheet.poster import poster
from batchnst.engine.sheet.sheet import Sheet
from batchnst.engine.sheet.web import page
from batchnst.errors import RequestError

PAGES = (".html", ".htm")
"""Endings of pages; all others are those of pictures."""


def check(name: str) -> None:
    """Raise RequestError for a name that does not end like a page or a picture."""
    if _ending(name) not in (*PAGES, *outputs.FORMATS):
        expected = ", ".join((*PAGES, *outputs.FORMATS))
        raise RequestError(f"--out {name}: cannot be written; expected a name that ends in {expected}")


def render(sheet: Sheet, name: str) -> bytes:
    """The sheet's file, as the ending of its name asks."""
    if _ending(name) in PAGES:
        return page(sheet)
    pixels = np.asarray(poster(sheet))
    return outputs.encode(pixels, name, outputs.Finish(sheet.recipe.quality))


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
