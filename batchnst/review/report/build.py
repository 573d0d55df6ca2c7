"""Builds the report: one HTML file that holds everything, so that it can be mailed, moved and opened offline.

The page has a small table of its pairs for search, filters and sorting. Previews and the details of each pair are
stored as blocks of text, which the browser does not parse. The page's script unpacks a block when it is needed.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from plotly.offline import get_plotlyjs

from batchnst.backbones import BACKBONES
from batchnst.errors import LedgerError
from batchnst.ledger.out import Out, newest_rows, retry_vanished
from batchnst.ledger.schema import row_without_secrets, without_secrets
from batchnst.pages import joined, script_source, templates
from batchnst.progress import Progress, silent
from batchnst.recipe import LOSSES, recipe_keys
from batchnst.review.report import cards, curves, figures
from batchnst.review.report.cards import Card, Row
from batchnst.review.report.loudness import loudness
from batchnst.review.report.places import Places
from batchnst.review.report.previews import Album, Preview
from batchnst.review.report.redo import as_texts
from batchnst.review.usual import Groups
from batchnst.storage.files import is_uri, parent

PICTURE_BLOCK, PAIR_BLOCK = 400_000, 32
"""Size of a block of previews, in characters, and of a block of details, in pairs."""

SHARED = ["marks.js", "view.js"]
SCRIPTS = [
    *("data.js", "cards.js", "list.js", "filters.js", "marking.js", "redo.js"),
    *("charts.js", "pair.js", "compare.js", "start.js"),
]
LIVE_SCRIPTS = ["live.js", "measures.js"]
"""Files of the page's script, in the order in which they are joined: first those that other pages have too, last those
of a live page alone."""


def build(out: Out, to: str | None = None, progress: Progress = silent) -> bytes:
    """The report on `out` as HTML. `to` is the page's address; None means in OUT itself.

    Raises LedgerError if no attempt at a pair has finished yet.
    """
    return retry_vanished(lambda: _build(out, to, progress))


def _build(out: Out, to: str | None, progress: Progress) -> bytes:
    attempts = without_secrets(out.rows("pairs", figures.COLUMNS))
    if not attempts.num_rows:
        raise LedgerError(f"{out.address}: nothing to report: no attempt at a pair has ended there yet")
    current = newest_rows(attempts)
    summary = figures.summarize(attempts, current, list(map(row_without_secrets, out.runs())))
    failures = figures.failures(current)
    reasons = [failure["reason"] for failure in failures]
    ids = cards.choose(current)
    places = Places(out, ids)
    chosen = cards.ordered(cards.read(out, ids, places), reasons)
    curves_by_key = curves.read(out, {card.key for card in chosen}, progress)
    album = Album(out, places.stored)
    part = cards.part(chosen, album.number, curves_by_key, reasons)
    previews = album.previews(len(chosen), progress)
    part["pictures"] = cards.columns([_picture(preview) for preview in previews])
    groups = Groups()
    groups.put(current)
    part["pairs"]["group"], part["usual"] = cards.unusual(groups, part["pairs"]["id"], groups.usual)
    part["pairs"]["loud"] = _loud(part["pairs"], previews)
    blocks = list(_picture_blocks(previews))
    charts = {"throughput": figures.throughput(attempts), "losses": figures.losses_by_style(current)}
    data = {
        "base": _base(out, to),
        "out": out.address,
        "key": hashlib.sha256(out.address.encode()).hexdigest()[:16],
        "run": summary["runs"][-1]["run_id"],
        "request": as_texts(summary["recipe"]["base"]),
        "recipeKeys": recipe_keys(),
        "defaults": _defaults(),
        "part": part,
        "blocks": [first for first, _ in blocks],
        "pairsABlock": PAIR_BLOCK,
        "charts": charts,
    }
    return _render(
        data=data,
        out=out.address,
        now=datetime.now(UTC),
        summary=summary,
        failures=failures,
        losses=charts["losses"]["styles"],
        pairs=len(chosen),
        picture_blocks=[text for _, text in blocks],
        pair_blocks=_pair_blocks(chosen, summary["recipe"]["base"], curves_by_key),
    )


def _picture(preview: Preview) -> Row:
    """The entry of a picture in the page's table of pictures."""
    return {
        "text": len(preview.text),
        "width": preview.width,
        "height": preview.height,
        "problem": preview.problem,
    }


def _loud(pairs: Row, previews: Sequence[Preview]) -> list[float | None]:
    """The loudness of each painting; None if it or its photograph cannot be seen."""
    values = []
    for content, result in zip(pairs["contentPicture"], pairs["result"], strict=True):
        photo, painting = previews[content].gray, None if result is None else previews[result].gray
        values.append(None if photo is None or painting is None else round(loudness(photo, painting), 1))
    return values


def _defaults() -> Row:
    """Recipe keys whose defaults depend on another key: their defaults, by that key and its value."""
    layers = ("content_layers", "style_layers")
    backbones = {
        name: {kind: dict.fromkeys(getattr(backbone, kind), 1.0) for kind in layers}
        for name, backbone in BACKBONES.items()
    }
    return {"loss": LOSSES, "backbone": backbones}


def _pair_blocks(chosen: Sequence[Card], base: Row, by_key: Mapping[curves.Key, curves.Curve]) -> list[str]:
    """Blocks of the details of the pairs."""
    texts = [cards.details(card.attempts, base, by_key.get(card.key)) for card in chosen]
    parts = (texts[start : start + PAIR_BLOCK] for start in range(0, len(texts), PAIR_BLOCK))
    return [_packed(json.dumps(part, default=str)) for part in parts]


def _picture_blocks(previews: Sequence[Preview]) -> Iterator[tuple[int, str]]:
    """Blocks of previews: the number of the first preview in a block, and the texts of the block joined."""
    first, texts, size = 0, list[str](), 0
    for i, preview in enumerate(previews):
        texts.append(preview.text)
        size += len(preview.text)
        if size >= PICTURE_BLOCK or i == len(previews) - 1:
            yield first, "".join(texts)
            first, texts, size = i + 1, [], 0


def _packed(text: str) -> str:
    """`text` compressed by gzip, in base64."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _base(out: Out, to: str | None) -> str | None:
    """Relative URL of OUT from the page at `to`, "" or with a slash at its end; None if a browser cannot follow one."""
    if to is None or parent(to) == out.address:
        return ""
    if is_uri(to) or not out.folder.local:
        return None
    return quote(os.path.relpath(out.address, parent(to))) + "/"


# The page ----------------------------------------------------------------------------------------------------------


def live_page(out: Out) -> bytes:
    """The page that a server sends, as UTF-8. It has no pairs: its script asks for them."""
    nothing = {"addresses": [], "names": [], "reasons": [], "pairs": dict.fromkeys(cards.LISTED, ()), "pictures": {}}
    data = {
        "base": "",
        "out": out.address,
        "key": hashlib.sha256(out.address.encode()).hexdigest()[:16],
        "run": "",
        "request": {},
        "recipeKeys": recipe_keys(),
        "defaults": _defaults(),
        "part": nothing,
        "blocks": [],
        "pairsABlock": 1,
        "charts": {"throughput": {"times": []}},
    }
    return _render(live=True, data=data, out=out.address, now=datetime.now(UTC), picture_blocks=[], pair_blocks=[])


def _render(*, live: bool = False, **values: Any) -> bytes:
    """The page as UTF-8, made from `report.html` with these values."""
    script = joined("batchnst.review.report", [*SCRIPTS, *(LIVE_SCRIPTS if live else [])], SHARED)
    plotly = get_plotlyjs()
    environment = templates("batchnst.review.report")
    environment.filters.update(time=_time)
    html = environment.get_template("report.html").render(
        live=live,
        style=joined("batchnst.review.report", ["report.css", *(["live.css"] if live else [])]),
        script=script,
        plotly=_packed(plotly),
        # The page allows only these two scripts to run, so that no text from the ledger can.
        script_hashes=[script_source(script), script_source(plotly)],
        **values,
    )
    return html.encode()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
