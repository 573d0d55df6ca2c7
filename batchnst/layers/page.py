"""The sheet as one HTML page that needs nothing else: no other file, no script, no network."""

from __future__ import annotations

import base64
import io
from importlib.resources import files

from PIL import Image

from batchnst.layers.contributions import percent
from batchnst.layers.sheet import LEGEND, Sheet
from batchnst.pages import templates

QUALITY = 88
"""Of pictures in the page, 0..100."""

SMALLEST_PHOTO = 48
"""Smaller patches are kept to the last pixel, in pixels of their side."""


def page(sheet: Sheet) -> bytes:
    """The page, UTF-8."""
    environment = templates("batchnst.layers")
    environment.filters.update(source=_source, percent=percent)
    style = (files("batchnst.layers") / "templates" / "sheet.css").read_text("utf-8")
    html = environment.get_template("sheet.html").render(sheet=sheet, legend=LEGEND, style=style)
    return html.encode()


def _source(image: Image.Image) -> str:
    """The picture itself as an address."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=image.width < SMALLEST_PHOTO, quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
