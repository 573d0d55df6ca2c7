"""The page of a proof: one HTML file that holds everything, so that it can be mailed, moved and opened offline.

The pictures are in the page's table, so that it can be looked at and printed without its script, which adds the marks
and the side-by-side view.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from batchnst.errors import BatchNSTError
from batchnst.ledger.out import Out
from batchnst.ledger.pictures.stored import Pictures
from batchnst.ledger.schema import times
from batchnst.pages import duration, figure, joined, script_source, short_names, templates
from batchnst.pictures import isolated
from batchnst.pictures.decode import DecodeOptions
from batchnst.progress import Progress, silent
from batchnst.proof.copied import as_options, as_toml, essential
from batchnst.proof.grid import Column
from batchnst.proof.strip import Cell, Row, Strip, folder_of
from batchnst.recipe import Recipe
from batchnst.redaction import public, redact
from batchnst.storage import files
from batchnst.storage.files import resolve
from batchnst.storage.threads import in_threads

MOST_SIDE, MOST_PIXELS = 2048, 150e6
"""Longest side of a picture in the page, and the most pixels of all its pictures together."""

QUALITY = 92
"""WebP quality of the painted pictures, 0..100: compression must not be mistaken for style."""

THUMBNAIL = 320
"""Longest side of a content or style in the page, in pixels."""

READERS = 2 * (os.cpu_count() or 1)
"""Pictures that are read at the same time."""


@dataclass(frozen=True)
class Image:
    """A picture for the page: `source` is a data: URI. `problem` says why there is none."""

    source: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def render(
    strip: Strip,
    settings: Mapping[str, Any],
    page: str,
    with_option: Collection[str],
    *,
    is_half: bool,
    progress: Progress = silent,
) -> bytes:
    """The page of `strip` as HTML, to be written to `page`.

    `settings` are those of recipe file and options. `with_option` are the recipe keys that have an option of their own.
    """
    out, rows, base = Out(strip.folder), strip.rows(), Recipe.from_settings(settings)
    pictures = _painted(out, rows, progress)
    cells = [_cell(*parts, page) for parts in zip(strip.cells, rows, pictures, strict=True)]
    width = len(strip.columns)
    columns = [_column(column, base, with_option) for column in strip.columns]
    pairs = _pairs(strip)
    data = {
        "key": hashlib.sha256(resolve(page, ".").encode()).hexdigest()[:16],
        "pairs": [{"id": pair["id"], "title": pair["title"]} for pair in pairs],
        "columns": columns,
        "cells": [{name: cell[name] for name in ("caption", "shown", "link")} for cell in cells],
    }
    script = joined("batchnst.proof", ["marks.js", "table.js", "view.js"], ["marks.js", "view.js"])
    template = templates("batchnst.proof").get_template("proof.html")
    html = template.render(
        style=joined("batchnst.proof", ["proof.css"]),
        script=script,
        script_source=script_source(script),
        data=data,
        manifest=public(strip.manifest.address),
        others=redact(as_options(essential(base), with_option)),
        columns=columns,
        pairs=pairs,
        cells=[cells[start : start + width] for start in range(0, len(cells), width)],
        failed=sum(cell["error"] is not None for cell in cells),
        row_keys=sorted({key for column in strip.columns for key in column.settings if strip.manifest.sets(key)}),
        is_half=is_half,
        now=datetime.now(UTC),
    )
    return html.encode()


def _column(column: Column, base: Recipe, with_option: Collection[str]) -> dict[str, Any]:
    """A column for the page: its labels, and its settings as options and as a recipe file."""
    settings = essential(column.recipe(base))
    return {
        "labels": [(key, redact(value)) for key, value in column.labels],
        "name": redact(column.name),
        "options": redact(as_options(settings, with_option)),
        "toml": redact(as_toml(settings)),
    }


def _pairs(strip: Strip) -> list[dict[str, Any]]:
    """The pairs for the page, each with the pictures that it is painted from."""
    addresses = list(dict.fromkeys(address for pair in strip.pairs for address in (pair.content, *pair.styles)))
    thumbnails = dict(zip(addresses, in_threads(_thumbnail, addresses, READERS), strict=True))
    names = short_names(map(public, addresses))
    pairs = []
    for pair in strip.pairs:
        styles = " + ".join(names[public(style)] for style in pair.styles)
        inputs = [
            {"kind": kind, "name": names[public(address)], "address": public(address), "image": thumbnails[address]}
            for kind, address in [("Content", pair.content), *(("Style", style) for style in pair.styles)]
        ]
        pairs.append({"id": pair.id, "title": f"{names[public(pair.content)]} × {styles}", "inputs": inputs})
    return pairs


def _thumbnail(address: str) -> Image:
    try:
        data = files.read_at_most(address, DecodeOptions().max_file_bytes, "a preview is made of")
        return _image(data, address, THUMBNAIL)
    except BatchNSTError:
        return Image(problem="cannot be read")


def _painted(out: Out, rows: Sequence[Row | None], progress: Progress) -> list[Image]:
    """The painted picture of each row, in its own size unless that is too large for the page."""
    painted = {row["output"]: row for row in rows if row and row["status"] == "ok"}
    side = min(MOST_SIDE, int(math.sqrt(MOST_PIXELS / max(1, len(rows)))))
    progress(f"reading {len(painted)} pictures", 0, 1)
    result = partial(_result, out.pictures([row["pair_id"] for row in painted.values()]), side)
    images = dict(zip(painted, in_threads(result, list(painted.values()), READERS), strict=True))
    isolated.release()
    return [images[row["output"]] if row and row["status"] == "ok" else Image() for row in rows]


def _result(pictures: Pictures, side: int, row: Row) -> Image:
    try:
        data, output = pictures.find(row).data, row["output"]
        return _image(data, output, side, QUALITY) if data is not None else Image(problem="missing")
    except BatchNSTError:
        return Image(problem="cannot be read")


def _image(data: bytes, name: str, side: int, quality: int = isolated.QUALITY) -> Image:
    small = isolated.preview(data, name, side, quality)
    return Image(f"data:image/webp;base64,{base64.b64encode(small.data).decode()}", small.width, small.height)


def _cell(cell: Cell, row: Row | None, image: Image, page: str) -> dict[str, Any]:
    """A cell for the page. `shown` says how much smaller the page has its picture, and `link` where that is whole."""
    if row is None:
        return {"image": Image(problem="not painted yet"), "error": None, "caption": "", "shown": "", "link": ""}
    if row["status"] != "ok":
        error = (row["error_type"] or "failed", row["error_message"] or "")
        return {"image": image, "error": error, "caption": "", "shown": "", "link": ""}
    reduced = row["width"] > image.width > 0
    folder = os.path.basename(folder_of(page))
    return {
        "image": image,
        "error": None,
        "caption": _caption(row, is_half=bool(cell.half and cell.half.id == row["pair_id"])),
        "shown": f"shown at {image.width} of {row['width']} pixels" if reduced else "",
        "link": quote(f"{folder}/images/{row['output']}") if reduced else "",
    }


def _caption(row: Row, *, is_half: bool) -> str:
    """The losses of a cell, as weighted in the total, and its time."""
    losses = [f"{name} {figure(row[f'{name}_loss'])}" for name in ("content", "style", "tv") if row[f"{name}_loss"]]
    return " · ".join([*(["half size"] if is_half else []), *losses, duration(times(row)[0])])
