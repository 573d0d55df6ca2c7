"""Builds the report: one HTML file that holds everything, so that it can be mailed, moved and opened offline.

The page has a small table of its pairs for search, filters and sorting. Previews and the details of each pair are
stored as blocks of text, which the browser does not parse. The page's script unpacks a block when it is needed.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from plotly.offline import get_plotlyjs

from batchnst.errors import LedgerError
from batchnst.ledger.out import Out, newest_rows, retry_vanished, sort_rows
from batchnst.ledger.schema import row_without_secrets, without_secrets
from batchnst.pages import joined, script_source, short_names, templates
from batchnst.progress import Progress, silent
from batchnst.review.report import curves, figures
from batchnst.review.report.curves import Curve
from batchnst.review.report.previews import Album, Preview, Source
from batchnst.storage.files import is_uri, parent

Row = dict[str, Any]

MOST_CARDS = 10_000
"""Largest number of pairs shown one by one; statistics and charts always cover all."""

SNAPSHOTS, FEWEST_SNAPSHOTS, MOST_SNAPSHOTS = 3_000, 4, 24
"""Snapshots of all pairs together, and the fewest and most of one pair."""

PICTURE_BLOCK, PAIR_BLOCK = 400_000, 32
"""Size of a block of previews, in characters, and of a block of details, in pairs."""

_DETAILS = [
    *("run_id", "attempt", "error_message", "style_weights", "content_masks", "style_masks", "loss_definition"),
    *(
        "content_sha256",
        "style_sha256",
        "mask_sha256",
        "start_sha256",
        "output_sha256",
        "width",
        "height",
        "fingerprint",
        "weights_sha256",
    ),
    *("seed", "device", "precision", "batch_size", "host", "pid", "steps", "stopped", "initial_total"),
    *("content_loss", "style_loss", "tv_loss", "total_loss", "started_at", "finished_at", "seconds"),
    *("peak_memory_bytes", "versions", "extra"),
]
"""Columns that are shown only in the dialog of a pair."""

_EARLIER = ["run_id", "attempt", "status", "error_type", "error_message", "finished_at", "host"]
"""Columns of earlier attempts that are shown in the dialog of a pair."""


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
    cards = _cards(out, current, failures)
    curves_by_key = curves.read(out, {card.key for card in cards}, progress)
    album, addresses = Album(out, [card.row["pair_id"] for card in cards]), _addresses(cards)
    pairs = [_listed(card, album, addresses, curves_by_key) for card in cards]
    previews = album.previews(len(cards), progress)
    blocks = list(_picture_blocks(previews))
    charts = {"throughput": figures.throughput(attempts), "losses": figures.losses_by_style(current)}
    data = {
        "base": _base(out, to),
        "pairs": _columns(pairs),
        "addresses": list(addresses),
        "names": list(short_names(addresses).values()),
        "reasons": [f"{failure['type']}: {failure['message']}" for failure in failures],
        "pictures": _columns([asdict(preview) | {"text": len(preview.text)} for preview in previews]),
        "blocks": [first for first, _ in blocks],
        "pairsABlock": PAIR_BLOCK,
        "charts": charts,
    }
    details = [_details(card, summary["recipe"]["base"], curves_by_key) for card in cards]
    return _render(
        data=data,
        out=out.address,
        now=datetime.now(UTC),
        summary=summary,
        failures=failures,
        losses=charts["losses"]["styles"],
        pairs=len(cards),
        picture_blocks=[text for _, text in blocks],
        pair_blocks=[_packed(json.dumps(part, default=str)) for part in _parts(details, PAIR_BLOCK)],
    )


@dataclass(frozen=True)
class _Card:
    """A pair to show."""

    attempts: list[Row]  # newest last
    reason: int | None  # index of its failure in the list of failures
    snapshots: list[tuple[int, str]]  # step and path in OUT

    @property
    def row(self) -> Row:
        """The newest attempt, which is the one that counts."""
        return self.attempts[-1]

    @property
    def key(self) -> curves.Key:
        """The key of its curve."""
        return self.row["run_id"], self.row["pair_id"], self.row["attempt"]


def _cards(out: Out, current: pa.Table, failures: list[Row]) -> list[_Card]:
    """The pairs to show: failures first, by reason, then rescued pairs, then by the names of their pictures."""
    reasons = {(failure["type"], failure["message"]): i for i, failure in enumerate(failures)}
    attempts, snapshots = _attempts(out, _choose(current)), _snapshots(out)
    cards = []
    for pair_id, rows in attempts.items():
        failed = rows[-1]["status"] == "failed"
        reason = reasons.get(figures.reason(rows[-1])) if failed else None
        cards.append(_Card(rows, reason, [] if failed else snapshots.get(pair_id, [])))
    return sorted(cards, key=_order)


def _order(card: _Card) -> tuple[Any, ...]:
    """Sort key of a card."""
    names = [os.path.basename(address) for address in (card.row["content"], *card.row["styles"])]
    reason = math.inf if card.reason is None else card.reason
    return card.row["status"] != "failed", reason, card.row["stopped"] != "diverged", names, card.row["pair_id"]


def _choose(current: pa.Table) -> list[str]:
    """The ids of at most MOST_CARDS pairs: failed ones first, then painted ones spread evenly over their losses."""
    failed = current.filter(pc.equal(current["status"], "failed"))["pair_id"].to_pylist()[:MOST_CARDS]
    painted = current.filter(pc.equal(current["status"], "ok")).sort_by("total_loss")["pair_id"]
    room = min(len(painted), MOST_CARDS - len(failed))
    positions = np.linspace(0, len(painted) - 1, room).round().astype(np.int64)
    return [*failed, *painted.take(pa.array(positions)).to_pylist()]


def _attempts(out: Out, pair_ids: list[str]) -> dict[str, list[Row]]:
    """All rows of these pairs by id, newest last."""
    rows = sort_rows(without_secrets(out.rows("pairs", matching=pc.field("pair_id").isin(pair_ids))))
    attempts: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows.to_pylist():
        attempts[row["pair_id"]].append(row)
    return attempts


def _snapshots(out: Out) -> dict[str, list[tuple[int, str]]]:
    """Step and path in OUT of each pair's snapshots; evenly thinned out if there are many."""
    snapshots: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for info in out.folder.files("snapshots", "step-", ".jpg"):
        match = re.search(r"([^/]+)/step-(\d+)\.jpg$", info.path)
        if match:
            snapshots[match[1]].append((int(match[2]), f"snapshots/{match[0]}"))
    most = min(MOST_SNAPSHOTS, max(FEWEST_SNAPSHOTS, SNAPSHOTS // max(1, len(snapshots))))
    return {pair_id: _evenly(sorted(steps), most) for pair_id, steps in snapshots.items()}


def _evenly(items: list[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spaced, with the first and the last."""
    positions = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[i] for i in positions]


def _addresses(cards: Sequence[_Card]) -> dict[str, int]:
    """The number of each content and style, by address."""
    addresses = {address: None for card in cards for address in (card.row["content"], *card.row["styles"])}
    return {address: i for i, address in enumerate(addresses)}


def _listed(card: _Card, album: Album, addresses: Mapping[str, int], by_key: Mapping[curves.Key, Curve]) -> Row:
    """The entry of a pair in the page's table of pairs. Adds its pictures to `album`."""
    row, curve = card.row, by_key.get(card.key)
    hashes = row["style_sha256"] or [None] * len(row["styles"])
    return {
        "id": row["pair_id"],
        "reason": card.reason,
        "ok": row["status"] == "ok",
        "rescued": row["stopped"] == "diverged",
        "attempt": max(row["attempt"], len(card.attempts)),
        "error": row["error_message"],
        "content": addresses[row["content"]],
        "styles": [addresses[style] for style in row["styles"]],
        "output": row["output"],
        "place": album.stored.name(row),
        "loss": _finite(row["total_loss"]),
        "seconds": round(row["seconds"], 1),
        "ended": round(row["finished_at"].timestamp()),
        "spark": curve.spark if curve else "",
        "contentPicture": album.number(Source(row["content"], sha256=row["content_sha256"])),
        "stylePictures": [
            album.number(Source(style, sha256=sha256)) for style, sha256 in zip(row["styles"], hashes, strict=False)
        ],
        "result": album.result(row) if row["status"] == "ok" else None,
        "snapshots": [(step, album.number(Source(path, True, reduction=2))) for step, path in card.snapshots],
    }


def _details(card: _Card, base: Row, by_key: Mapping[curves.Key, Curve]) -> Row:
    """The content of a pair's dialog; its recipe is reduced to the keys that differ from the recipe `base`."""
    recipe = json.loads(card.row["recipe"])
    return {
        "row": {name: _finite(card.row[name]) for name in _DETAILS},
        "recipe": {key: value for key, value in recipe.items() if value != base.get(key)},
        "earlier": [{name: row[name] for name in _EARLIER} for row in card.attempts[:-1]],
        "curve": asdict(by_key[card.key]) if card.key in by_key else None,
    }


def _finite(value: Any) -> Any:
    """`value`, or None if it is NaN or infinite, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as columns, which take less text as JSON."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


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
    """Relative URL of the pictures from the page at `to`; None if a browser cannot follow one."""
    if to is None or parent(to) == out.address:
        return "images/"
    if is_uri(to) or not out.folder.local:
        return None
    return quote(os.path.relpath(out.folder.path("images"), parent(to))) + "/"


# The page ----------------------------------------------------------------------------------------------------------


_SCRIPTS = ["data.js", "cards.js", "charts.js", "pair.js"]
"""Files of the page's script, in the order in which they are joined."""


def _render(**values: Any) -> bytes:
    """The page as UTF-8, made from `report.html` with these values."""
    script = joined("batchnst.review.report", _SCRIPTS)
    plotly = get_plotlyjs()
    environment = templates("batchnst.review.report")
    environment.filters.update(time=_time)
    html = environment.get_template("report.html").render(
        style=joined("batchnst.review.report", ["report.css"]),
        script=script,
        plotly=_packed(plotly),
        # The page allows only these two scripts to run, so that no text from the ledger can.
        script_hashes=[script_source(script), script_source(plotly)],
        **values,
    )
    return html.encode()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
