"""The formats in which a sheet can be written: a page or a picture."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from batchnst.errors import RequestError
from batchnst.layers.page import page
from batchnst.layers.poster import poster
from batchnst.layers.sheet import Sheet
from batchnst.pictures import encode

PAGES = (".html", ".htm")
"""Endings of pages; all other endings are those of pictures."""


def check(name: str) -> None:
    """Raise RequestError if `name` does not end like a page or a picture."""
    if _ending(name) not in (*PAGES, *encode.FORMATS):
        expected = ", ".join((*PAGES, *encode.FORMATS))
        raise RequestError(f"--out {name}: cannot be written; expected a name that ends in {expected}")


def render(sheet: Sheet, name: str) -> bytes:
    """Return the file for `sheet`, in the format of the ending of `name`."""
    if _ending(name) in PAGES:
        return page(sheet)
    pixels = np.asarray(poster(sheet))
    return encode.encode_picture(pixels, name, encode.Finish(sheet.recipe.quality))


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
