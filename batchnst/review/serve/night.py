"""The content of a live page: OUT is read again and again, each ledger file once, also if a compaction merges them."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import takewhile
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from batchnst.ledger import parquet
from batchnst.ledger.out import ORDERED_BY, Out, newest_rows, retry_vanished, sort_rows
from batchnst.ledger.previous import previous_name
from batchnst.ledger.schema import ATTEMPT, without_secrets
from batchnst.pages import clock
from batchnst.review.report import cards, figures
from batchnst.review.report.cards import Card, Row
from batchnst.review.report.curves import Key, key_of
from batchnst.review.report.figures import Spans
from batchnst.review.report.places import Places
from batchnst.review.report.previews import Album, Source
from batchnst.review.status import Status, status_of
from batchnst.review.usual import Groups
from batchnst.storage.files import in_parallel

COLUMNS = (
    *("run_id", "pair_id", *ORDERED_BY, "status", "error_type", "error_message", "error_kind", "content", "styles"),
    *("style_weights", "content_sha256", "style_sha256", "output", "output_sha256", "width", "height", "recipe"),
    *("total_loss", "stopped", "batch_size", "device", "host", "pid", "started_at", "seconds", "batch_seconds"),
)
"""Columns of `pairs` that are kept in memory."""

FILE = pa.field("file", pa.string())
"""A column that rows have until they are added: the name of their file."""

MOST_PAIRS = 5_000
"""Most pairs in one part."""

KEPT_SECONDS = 10.0
"""Seconds for which a listing of the pictures is used."""


class Night:
    """The pairs of OUT and the state of its run, as of the last `look`; safe to use from several threads.

    epoch: tells its pairs from those of others, whose numbers of changes mean nothing here. seq: the number of changes
    so far; each new attempt at a pair is one. remade: number of times that rows had gone, because OUT was removed or
    another one was put in its place. problem: why the last look failed, "" if it did not.
    """

    def __init__(self, out: Out) -> None:
        self.out, self.remade, self.problem = out, 0, ""
        self._lock = threading.Lock()
        self._listed: tuple[float, Places | None] = (0.0, None)  # with the time at which its listing began
        self._read_pictures: dict[tuple[str, int], pa.Table] = {}
        self._added_at = 0.0  # time of the last new rows
        self._forget()

    def _forget(self) -> None:
        """Begin with no pairs."""
        self.epoch, self.seq = secrets.token_hex(4), 0
        self._files = set[str]()  # names of files that were read
        self._known: dict[Key, str] = {}  # name of the file that has an attempt's row now
        self._rows = _slim(parquet.empty("pairs", COLUMNS))
        self._places: dict[str, list[int]] = {}  # rows of each pair, newest last
        self._changes: dict[str, int] = {}  # number of the last change of each pair, in ascending order
        self._pictures: dict[str, Row] = {}  # ok rows by path in OUT of their pictures
        self._groups = Groups()
        self._regrouped: dict[int, int] = {}  # number of the last change of each group
        self._status: Row = {}

    def look(self) -> None:
        """Read what is new; raises LedgerError and StorageError, and keeps what it knew."""
        if self._take(*retry_vanished(self._new_rows)):
            self._take(*retry_vanished(self._new_rows))
        status = self._describe(self._rows)
        with self._lock:
            self._status = status

    def _take(self, new: pa.Table, names: set[str]) -> bool:
        """Add the rows `new`; OUT has files of these `names`. True if known rows have gone, and all are forgotten."""
        with self._lock:
            self._add(new)
            # Rows of a file that a compaction has merged are in another file now.
            gone = bool(self._files - names) and not names.issuperset(self._known.values())
            self._files = names
            if gone:
                self._forget()
                self.remade += 1
            return gone

    def _new_rows(self) -> tuple[pa.Table, set[str]]:
        """The rows of files that were not read yet, with the names of these, and the names of all files."""
        files = self.out.files("pairs")
        new = [info for info in files if info.base_name not in self._files]
        parts = in_parallel(self._rows_of, new, self.out.folder.streams)
        return pa.concat_tables([_empty(), *parts]).combine_chunks(), {info.base_name for info in files}

    def _rows_of(self, info: pafs.FileInfo) -> pa.Table:
        rows = without_secrets(self.out.rows_of([info], "pairs", COLUMNS))
        return _slim(rows.append_column(FILE, pa.repeat(info.base_name, len(rows))))

    def _add(self, rows: pa.Table) -> None:
        """Add those of `rows` that are not known: a compaction writes known ones again, into new files."""
        rows = sort_rows(rows)
        keys = list(zip(*(rows[name].to_pylist() for name in ATTEMPT), strict=True))
        fresh = [i for i, key in enumerate(keys) if key not in self._known]
        self._known.update(zip(keys, rows[FILE.name].to_pylist(), strict=True))
        if not fresh:
            return
        self._added_at = time.monotonic()
        rows = rows.drop_columns([FILE.name]).take(pa.array(fresh))
        first = len(self._rows)
        self._rows = pa.concat_tables([self._rows, rows]).combine_chunks()
        pair_ids = rows["pair_id"].to_pylist()
        for place, pair_id in enumerate(pair_ids, first):
            self._places.setdefault(pair_id, []).append(place)
            self.seq += 1
            self._changes.pop(pair_id, None)
            self._changes[pair_id] = self.seq
        self._order(dict.fromkeys(pair_ids))
        newest = dict.fromkeys(self._places[pair_id][-1] for pair_id in pair_ids)
        changed = self._groups.put(self._rows.take(pa.array(newest)))
        self._regrouped.update(dict.fromkeys(changed, self.seq))
        ok = rows.filter(pc.equal(rows["status"], "ok"))
        for row in ok.select([*ATTEMPT, "output", "output_sha256"]).to_pylist():
            self._pictures[previous_name(row["pair_id"], row["run_id"], row["attempt"], row["output"])] = row
            self._pictures[f"images/{row['output']}"] = row

    def _order(self, pair_ids: Iterable[str]) -> None:
        """Put the rows of each of these pairs in the order of attempts."""
        several = [pair_id for pair_id in pair_ids if len(self._places[pair_id]) > 1]
        places = pa.array([place for pair_id in several for place in self._places[pair_id]], pa.int64())
        ordered = sort_rows(self._rows.take(places).select([*ORDERED_BY]).append_column("place", places))
        rank = {place: number for number, place in enumerate(ordered["place"].to_pylist())}
        for pair_id in several:
            self._places[pair_id].sort(key=rank.__getitem__)

    def part(self, epoch: str, since: int) -> Row:
        """Pairs that have changed since `since`, for `addPairs`: the ones that changed first, at most MOST_PAIRS.

        `next` is the `since` of the next part.
        """
        with self._lock:
            since = since if epoch == self.epoch else 0
            later = list(takewhile(lambda item: item[1] > since, reversed(self._changes.items())))[::-1]
            ids = [pair_id for pair_id, _ in later[:MOST_PAIRS]]
            attempts = self._attempts(ids)
            regrouped = [number for number, change in self._regrouped.items() if change > since]
            group, usual = cards.unusual(self._groups, ids, regrouped)
        places = self.places(fresh=any(len(rows) > 1 for rows in attempts))  # the one before may have moved
        chosen = [_card(rows, places) for rows in attempts]
        album = Album(self.out, places.stored)
        part = cards.part(chosen, album.number, {})
        part["pairs"] |= _all_full(chosen, part["pairs"])
        part["pairs"] |= {"group": group, "loud": [None] * len(ids), "spark": [None] * len(ids)}  # see Measures
        part["usual"] = usual
        part["pictures"] = _pictures(album.sources)
        following = later[len(ids) - 1][1] if ids else since
        return {"part": part, "epoch": self.epoch, "next": following}

    def _attempts(self, pair_ids: Sequence[str]) -> list[list[Row]]:
        """The rows of each of these pairs, newest last."""
        places = [place for pair_id in pair_ids for place in self._places[pair_id]]
        rows = iter(self._rows.take(pa.array(places, pa.int64())).to_pylist())
        return [[next(rows) for _ in self._places[pair_id]] for pair_id in pair_ids]

    def newest(self, pair_ids: Sequence[str]) -> list[Row]:
        """The newest row of each of these pairs that there are, with the name of the file that has it as `file`."""
        with self._lock:
            known = [pair_id for pair_id in dict.fromkeys(pair_ids) if pair_id in self._places]
            rows = [attempts[-1] for attempts in self._attempts(known)]
            return [row | {FILE.name: self._known[key_of(row)]} for row in rows]

    def files_of(self, pair_id: str) -> dict[Key, str]:
        """The attempts at a pair, and the name of the file that has the row of each; {} if there is no such pair."""
        with self._lock:
            rows = self._attempts([pair_id])[0] if pair_id in self._places else []
            return {key_of(row): self._known[key_of(row)] for row in rows}

    def is_file(self, name: str) -> bool:
        """True if a file of `pairs` has this name."""
        return name in self._files

    def places(self, *, fresh: bool = False) -> Places:
        """Where the pictures are, as of the last KEPT_SECONDS; if `fresh`, with those of all rows that are known."""
        listed_at, listed = self._listed
        now = time.monotonic()
        if listed is None or now - listed_at > KEPT_SECONDS or (fresh and listed_at < self._added_at):
            listed = Places(self.out, known=self._read_pictures)
            self._listed = now, listed
        return listed

    def picture(self, path: str) -> Row | None:
        """The key, output and hash of the row whose picture has this `path` in OUT; None if there is no such row."""
        with self._lock:
            return self._pictures.get(path)

    def state(self) -> Row:
        """The state of the run, as the page's function `showState` takes it."""
        damage = self.out.damage.notice(self.out.address) if self.out.damage else ""
        with self._lock:
            numbers = {"epoch": self.epoch, "seq": self.seq, "remade": self.remade}
            return numbers | {"problem": self.problem or damage, **self._status}

    def _describe(self, rows: pa.Table) -> Row:
        """The state of the newest run; {} if there is none yet."""
        runs = self.out.runs()
        if not len(rows) and not runs:
            return {}
        status = status_of(self.out, rows, datetime.now(UTC))
        of_run = newest_rows(rows.filter(pc.equal(rows["run_id"], status.run_id)))
        workers = list(_workers(of_run, status.started_at.timestamp()))
        return _as_json(status) | {"workers": workers}


def _card(attempts: list[Row], places: Places) -> Card:
    newest = attempts[-1]
    reason = figures.reason_text(newest) if newest["status"] == "failed" else None
    return cards.new_card(attempts, reason, [], places)


def _all_full(chosen: Sequence[Card], pairs: Row) -> Row:
    """Columns of a part with the paths of all full pictures: a server, unlike a page, reads them from any file."""
    before = [
        shown and {**shown, "path": card.before and card.before[1].address}
        for card, shown in zip(chosen, pairs.get("before", ()), strict=True)
    ]
    return {"full": [card.result.address for card in chosen], "before": before}


def _empty() -> pa.Table:
    """No rows, as `look` reads them."""
    rows = parquet.empty("pairs", COLUMNS)
    return _slim(rows.append_column(FILE, pa.array([], pa.string())))


def _slim(rows: pa.Table) -> pa.Table:
    """The rows with each recipe in memory once."""
    place = rows.schema.get_field_index("recipe")
    return rows.set_column(place, "recipe", rows["recipe"].dictionary_encode())


def _as_json(status: Status) -> Row:
    """The fields of `status` that the page shows."""
    holder = status.holder
    kept = ("run_id", "manifest", "pairs", "done", "passing", "left", "rate_now", "rate", "seconds_left")
    return {name: value for name, value in asdict(status).items() if name in kept} | {
        "failed": status.failed.total(),
        "errors": status.failed.most_common(),
        "began": clock(status.started_at),
        "last": clock(status.last_at),
        "alive": holder is not None and holder.alive,
        "silent": holder is not None and not holder.alive,
    }


def _workers(rows: pa.Table, began: float) -> Iterator[Row]:
    """Counts of each worker of a run; `busy` is its share of the time from the run's start to its last pair."""
    if not len(rows):
        return
    spans, ok = Spans.of(rows), rows["status"].to_numpy() == "ok"
    devices = pc.fill_null(rows["device"], "").to_numpy()
    for name, own in figures.by_worker(rows):
        times = spans.where(own)
        device = next(iter(set(devices[own]) - {""}), "")
        share = times.busy / max(float(times.end.max()) - began, 1e-3)
        painted = int(np.count_nonzero(ok[own]))
        counts = {"painted": painted, "failed": len(own) - painted}
        yield {"name": name, "device": device, **counts, "busy": min(1.0, share)}


def _pictures(sources: Sequence[Source]) -> Row:
    """The table of pictures of a part: URLs of previews of those in OUT; no others are served."""
    urls = [
        f"preview/{quote(source.address)}?v={(source.sha256 or '')[:16]}" if source.in_out else "" for source in sources
    ]
    return {"url": urls, "problem": ["" if source.in_out else "only in the report" for source in sources]}
