"""The sheet as one self-contained HTML page: no other file, no script, no network."""

from __future__ import annotations

import base64
import io
from importlib.resources import files

from PIL import Image

from batchnst.layers.contributions import percent
from batchnst.layers.sheet import LEGEND, Sheet
from batchnst.pages import templates

QUALITY = 88
"""WebP quality of the pictures in the page, 0..100."""

SMALLEST_PHOTO = 48
"""Width in pixels below which a picture is stored without loss."""


def page(sheet: Sheet) -> bytes:
    """Return the page, UTF-8."""
    environment = templates("batchnst.layers")
    environment.filters.update(source=_source, percent=percent)
    style = (files("batchnst.layers") / "templates" / "sheet.css").read_text("utf-8")
    html = environment.get_template("sheet.html").render(sheet=sheet, legend=LEGEND, style=style)
    return html.encode()


def _source(image: Image.Image) -> str:
    """Return `image` as a data: URI."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=image.width < SMALLEST_PHOTO, quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
