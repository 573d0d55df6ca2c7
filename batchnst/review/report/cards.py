"""The pairs of the report, one by one: which are shown, and what the page knows of each.

`part` makes the data that the page's function `addPairs` takes. The page has one part for all of its pairs; a live page
gets others later, with new pairs or with newer attempts.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnst.chains import path_of
from batchnst.ledger.out import Out, sort_rows
from batchnst.ledger.schema import times, without_secrets
from batchnst.pages import short_names
from batchnst.recipe import picture_settings
from batchnst.review.report import curves, figures
from batchnst.review.report.curves import Curve
from batchnst.review.report.places import Places
from batchnst.review.report.previews import Source
from batchnst.review.report.redo import request
from batchnst.review.usual import Groups

Row = dict[str, Any]

MOST_CARDS = 10_000
"""Largest number of pairs shown one by one; statistics and charts always cover all."""

SNAPSHOTS, FEWEST_SNAPSHOTS, MOST_SNAPSHOTS = 3_000, 4, 24
"""Snapshots of all pairs together, and the fewest and most of one pair."""

_DETAILS = [
    *("run_id", "attempt", "error_message", "style_weights", "content_masks", "style_masks", "loss_definition"),
    *("content_sha256", "style_sha256", "mask_sha256", "start_sha256", "output_sha256", "width", "height"),
    *("fingerprint", "weights_sha256"),
    *("seed", "device", "precision", "batch_size", "host", "pid", "steps", "stopped", "initial_total"),
    *("content_loss", "style_loss", "tv_loss", "total_loss", "started_at", "finished_at"),
    *("peak_memory_bytes", "versions", "extra"),
]
"""Columns that are shown only in the dialog of a pair."""

LISTED = [
    *("id", "reason", "ok", "rescued", "attempt", "error", "content", "styles", "output", "full", "place", "loss"),
    *("made", "width", "height", "noise", "seconds", "ended", "spark", "contentPicture", "stylePictures"),
    *("result", "before", "snapshots", "group", "loud"),
]
"""Columns of the pairs of a part. Its caller adds `group` and `loud`, see `unusual` and loudness.py."""

_EARLIER = ["run_id", "attempt", "status", "error_type", "error_message", "finished_at", "host"]
"""Columns of earlier attempts that are shown in the dialog of a pair."""


@dataclass(frozen=True)
class Card:
    """A pair to show.

    `reason` is that of its failure. `snapshots` are steps and paths in OUT. `result` is the picture of the newest
    attempt, and `place` its name for people. `before` is the last attempt before it whose picture is kept, with that
    picture; None if there is none.
    """

    attempts: list[Row]  # newest last
    reason: str | None
    snapshots: list[tuple[int, str]]
    result: Source
    place: str
    before: tuple[Row, Source] | None

    @property
    def row(self) -> Row:
        """The newest attempt, which is the one that counts."""
        return self.attempts[-1]

    @property
    def key(self) -> curves.Key:
        """The key of its curve."""
        return curves.key_of(self.row)


def choose(current: pa.Table) -> list[str]:
    """The ids of at most MOST_CARDS pairs: failed ones first, then painted ones spread evenly over their losses."""
    failed = current.filter(pc.equal(current["status"], "failed"))["pair_id"].to_pylist()[:MOST_CARDS]
    painted = current.filter(pc.equal(current["status"], "ok")).sort_by("total_loss")["pair_id"]
    room = min(len(painted), MOST_CARDS - len(failed))
    positions = np.linspace(0, len(painted) - 1, room).round().astype(np.int64)
    return [*failed, *painted.take(pa.array(positions)).to_pylist()]


def read(out: Out, pair_ids: Sequence[str], places: Places) -> list[Card]:
    """The cards of these pairs, in no order; `places` has their pictures."""
    attempts, snapshots = _attempts(out, pair_ids), _snapshots(out)
    cards = []
    for pair_id, rows in attempts.items():
        failed = rows[-1]["status"] == "failed"
        reason = figures.reason_text(rows[-1]) if failed else None
        shown = [] if failed else snapshots.get(pair_id, [])
        cards.append(new_card(rows, reason, shown, places))
    return cards


def new_card(attempts: list[Row], reason: str | None, snapshots: list[tuple[int, str]], places: Places) -> Card:
    """The card of a pair with these `attempts`, newest last, whose pictures are in `places`."""
    newest = attempts[-1]
    return Card(attempts, reason, snapshots, places.newest(newest), places.name(newest), replaced(attempts, places))


def replaced(attempts: Sequence[Row], places: Places) -> tuple[Row, Source] | None:
    """The last ok attempt before the newest whose picture is kept, with that picture; None if there is none."""
    earlier = ((row, places.earlier(row)) for row in reversed(attempts[:-1]) if row["status"] == "ok")
    return next(((row, source) for row, source in earlier if source), None)


def ordered(cards: Sequence[Card], reasons: Sequence[str]) -> list[Card]:
    """The cards: failures first, in the order of `reasons`, then rescued pairs, then by the names of their pictures."""
    places = {reason: i for i, reason in enumerate(reasons)}

    def key(card: Card) -> tuple[Any, ...]:
        names = [os.path.basename(path_of(address)) for address in (card.row["content"], *card.row["styles"])]
        place = math.inf if card.reason is None else places.get(card.reason, math.inf)
        return card.row["status"] != "failed", place, card.row["stopped"] != "diverged", names, card.row["pair_id"]

    return sorted(cards, key=key)


def part(
    cards: Sequence[Card],
    picture: Callable[[Source], int],
    curves_by_key: Mapping[curves.Key, Curve],
    reasons: Sequence[str] = (),
) -> Row:
    """The cards as `addPairs` takes them, but for the column tables `pictures`, which the caller adds.

    `picture` gives the number of a picture in `pictures`. `reasons` are put first among those of the failures. Columns
    of pairs refer to `addresses` and `reasons` of the same part by number.
    """
    addresses = list(dict.fromkeys(address for card in cards for address in (card.row["content"], *card.row["styles"])))
    all_reasons = list(dict.fromkeys([*reasons, *(card.reason for card in cards if card.reason is not None)]))
    tables = _Tables(_numbered(addresses), _numbered(all_reasons))
    pairs = [_listed(card, picture, tables, curves_by_key) for card in cards]
    names = short_names(addresses)
    return {
        "addresses": addresses,
        "names": [names[address] for address in addresses],
        "reasons": all_reasons,
        "pairs": columns(pairs),
    }


@dataclass(frozen=True)
class _Tables:
    """Numbers of the addresses and reasons of a part."""

    addresses: Mapping[str, int]
    reasons: Mapping[str, int]


def _numbered(texts: Sequence[str]) -> dict[str, int]:
    return {text: i for i, text in enumerate(texts)}


def _attempts(out: Out, pair_ids: Sequence[str]) -> dict[str, list[Row]]:
    """All rows of these pairs by id, newest last."""
    rows = sort_rows(without_secrets(out.rows("pairs", matching=pc.field("pair_id").isin(list(pair_ids)))))
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


def _listed(card: Card, picture: Callable[[Source], int], tables: _Tables, by_key: Mapping[curves.Key, Curve]) -> Row:
    """The entry of a pair in the page's table of pairs."""
    row, recipe, curve = card.row, json.loads(card.row["recipe"]), by_key.get(card.key)
    hashes = row["style_sha256"] or [None] * len(row["styles"])
    return {
        "id": row["pair_id"],
        "reason": None if card.reason is None else tables.reasons[card.reason],
        "ok": row["status"] == "ok",
        "rescued": row["stopped"] == "diverged",
        "attempt": max(row["attempt"], len(card.attempts)),
        "error": row["error_message"],
        "content": tables.addresses[row["content"]],
        "styles": [tables.addresses[style] for style in row["styles"]],
        "output": row["output"],
        "full": _full(card.result),
        "place": card.place,
        "loss": _finite(row["total_loss"]),
        "made": made(row),
        "width": row["width"],
        "height": row["height"],
        "noise": recipe.get("init") == "noise",
        "seconds": round(times(row)[0], 1),
        "ended": round(row["finished_at"].timestamp()),
        "spark": curve.spark if curve else "",
        "contentPicture": picture(Source(row["content"], sha256=row["content_sha256"])),
        "stylePictures": [
            picture(Source(style, sha256=sha256)) for style, sha256 in zip(row["styles"], hashes, strict=False)
        ],
        "result": picture(card.result) if row["status"] == "ok" else None,
        "before": _before(card, picture),
        "snapshots": [(step, picture(Source(path, True, reduction=2))) for step, path in card.snapshots],
    }


def made(row: Row) -> str:
    """The name of an attempt among those at its pair; marks and measures belong to one."""
    return f"{row['run_id']}-{row['attempt']}"


def _before(card: Card, picture: Callable[[Source], int]) -> Row | None:
    """The picture that the newest attempt has replaced: its number, its path in OUT and its size, and what changed."""
    if card.before is None:
        return None
    before, source = card.before
    return {
        "picture": picture(source),
        "path": _full(source),
        "width": before["width"],
        "height": before["height"],
        "changes": _changes(before, card.row),
    }


def _full(source: Source) -> str | None:
    """The path in OUT of a picture; None if it is no file of its own, to which a page could lead."""
    return None if source.attempt else source.address


def _changes(before: Row, after: Row) -> list[tuple[str, Any, Any]]:
    """The settings in which two attempts at a pair differ: key, value before, value after."""
    asked = []
    for row in (before, after):
        names = " + ".join(os.path.basename(path_of(style)) for style in row["styles"])
        recipe = picture_settings(json.loads(row["recipe"]))
        asked.append({"style": names, "style_weights": row["style_weights"], "output": row["output"], **recipe})
    old, new = asked
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def unusual(groups: Groups, pair_ids: Sequence[str], changed: Iterable[int]) -> tuple[list[int | None], Row]:
    """By which the page tells how unusual a loss is: the group of each pair, and the statistics of `changed` groups.

    The statistics are by the number of the group: median and factor as in Usual, or None for too few pairs.
    """
    return [groups.of.get(pair_id) for pair_id in pair_ids], {
        str(number): (usual := groups.usual[number]) and [usual.median, usual.factor] for number in changed
    }


def details(attempts: Sequence[Row], base: Row, curve: Curve | None) -> Row:
    """The content of a pair's dialog, from all its rows, newest last, and the curve of the newest.

    Its recipe is reduced to the keys that differ from the recipe `base`.
    """
    newest, recipe = attempts[-1], json.loads(attempts[-1]["recipe"])
    return {
        "row": {name: _finite(newest[name]) for name in _DETAILS}
        | dict(zip(("seconds", "batch_seconds"), times(newest), strict=True)),
        "recipe": {key: recipe.get(key) for key in {**base, **recipe} if recipe.get(key) != base.get(key)},
        "earlier": [{name: row[name] for name in _EARLIER} for row in attempts[:-1]],
        "curve": curve and asdict(curve),
        "request": request(newest, base),
    }


def _finite(value: Any) -> Any:
    """`value`, or None if it is NaN or infinite, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as columns, which take less text as JSON."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
