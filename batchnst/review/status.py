"""The state of a run, read from the ledger alone, while the run goes on or years later."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.errors import StorageError
from batchnst.ledger.claim import Holder
from batchnst.ledger.out import Out, newest_rows, retry_vanished, sort_rows
from batchnst.ledger.previous import PREVIOUS
from batchnst.ledger.schema import times

RECENT = timedelta(minutes=10)
"""Time over which the current rate is measured."""

SLOWEST = 5
"""Number of slowest pairs to list."""

COLUMNS = (
    *("run_id", "pair_id", "status", "error_type", "error_kind", "host", "pid"),
    *("run_number", "attempt", "batch_size", "started_at", "finished_at", "seconds", "batch_seconds"),
)
"""Columns of `pairs` that it needs."""


@dataclass(frozen=True)
class Host:
    """A machine that paints in the newest run, with its number of workers and pairs. `rate_now` is in pairs an hour."""

    name: str
    workers: int
    pairs: int
    rate_now: float


@dataclass(frozen=True)
class Status:
    """State of the newest run, and of all pairs by their newest row.

    `pairs` and `left` count pairs of the newest run's manifest; they are None if the ledger has no `runs`. `done` and
    `failed` (by error type) count pairs of all runs; `passing` is the number of failed ones that the next run tries
    again. Rates are in pairs an hour. `seconds_left` is None if it cannot be estimated.
    """

    run_id: str
    manifest: str | None
    holder: Holder | None
    started_at: datetime
    last_at: datetime
    pairs: int | None
    done: int
    failed: Counter[str]
    passing: int
    left: int | None
    rate_now: float
    rate: float
    seconds_left: float | None
    slowest: list[dict[str, Any]]
    hosts: list[Host]


class Watch:
    """Reads the state of OUT repeatedly; each ledger file is read only once."""

    def __init__(self, out: Out) -> None:
        self.out = out
        self._read_paths: set[str] = set()
        self._rows = out.rows_of([], "pairs", COLUMNS)

    def look(self) -> Status:
        """The current state."""
        retry_vanished(self._read)
        return status_of(self.out, self._rows, datetime.now(UTC))

    def _read(self) -> None:
        files = self.out.files("pairs")
        if not self._read_paths <= {info.path for info in files}:  # a compaction has replaced some
            self._read_paths, self._rows = set(), self._rows.slice(0, 0)
        new = [info for info in files if info.path not in self._read_paths]
        self._rows = pa.concat_tables([self._rows, self.out.rows_of(new, "pairs", COLUMNS)])
        self._read_paths |= {info.path for info in new}


def status_of(out: Out, rows: pa.Table, now: datetime) -> Status:
    """The state of OUT at the time `now`, from all `rows` of `pairs` with COLUMNS; raises IndexError without any."""
    newest = newest_rows(rows)
    run = _newest_run(out, newest)
    rows_of_run = newest.filter(pc.equal(newest["run_id"], run["run_id"]))
    holder = out.holder()
    alive = holder is not None and holder.alive
    finished = rows_of_run["finished_at"].cast(pa.int64()).to_numpy() / 1e6
    started, last = run["started_at"].timestamp(), max(finished, default=run["started_at"].timestamp())
    end = now.timestamp() if alive else last
    window = max(1.0, min(RECENT.total_seconds(), end - started))
    recent = rows_of_run.filter(pa.array((finished > end - window) & alive))
    rate = len(rows_of_run) / max(1.0, end - started) * 3600
    rate_now = len(recent) / window * 3600
    ok, failed = _count(rows_of_run, "ok"), _count(rows_of_run, "failed")
    to_go = run["to_paint"] - len(rows_of_run) if run["to_paint"] is not None else None
    pace = rate_now or rate
    return Status(
        run_id=run["run_id"],
        manifest=run["manifest"],
        holder=holder,
        started_at=run["started_at"],
        last_at=datetime.fromtimestamp(last, UTC),
        pairs=run["pairs"],
        done=run["done"] + ok,
        failed=Counter(newest.filter(pc.equal(newest["status"], "failed"))["error_type"].to_pylist()),
        passing=int(pc.sum(pc.equal(newest["error_kind"], "transient")).as_py() or 0),
        left=None if run["pairs"] is None else run["pairs"] - run["done"] - run["given_up"] - ok - failed,
        rate_now=rate_now,
        rate=rate,
        seconds_left=to_go / pace * 3600 if alive and to_go and pace else None,
        slowest=rows_of_run.sort_by([("seconds", "descending")]).slice(0, SLOWEST).to_pylist(),
        hosts=_hosts(rows_of_run, recent, window),
    )


def _newest_run(out: Out, newest: pa.Table) -> dict[str, Any]:
    """The row of the newest run; if the ledger has no `runs`, as much of it as the rows of `pairs` say."""
    if runs := out.runs():
        return runs[-1]
    last = sort_rows(newest)["run_id"][-1].as_py()
    is_last = pc.equal(newest["run_id"], last)
    unknown = dict.fromkeys(("manifest", "pairs", "to_paint"))
    return {
        "run_id": last,
        "started_at": pc.min(newest.filter(is_last)["started_at"]).as_py(),
        "done": _count(newest.filter(pc.invert(is_last)), "ok"),
        **unknown,
    }


def _hosts(rows: pa.Table, recent: pa.Table, window: float) -> list[Host]:
    """The machines of a run. `recent` are those of its rows that finished in the last `window` seconds."""
    now = Counter(recent["host"].to_pylist())
    groups = rows.group_by("host").aggregate([("pid", "count_distinct"), ("pid", "count")]).sort_by("host")
    return [
        Host(group["host"], group["pid_count_distinct"], group["pid_count"], now[group["host"]] / window * 3600)
        for group in groups.to_pylist()
    ]


def _count(rows: pa.Table, status: str) -> int:
    """Number of rows with this status."""
    return int(pc.sum(pc.equal(rows["status"], status)).as_py() or 0)


def describe(status: Status) -> str:
    """`status` as text, one line for each fact."""
    failed = status.failed.total()
    total = "" if status.pairs is None else f" of {status.pairs}"
    left = "" if status.left is None else f", {status.left} left"
    lines = [f"pairs    {status.done}{total} done, {failed} failed{left}", f"run      {_run(status)}"]
    if status.hosts:
        lines.append(f"rate     {_rates(status)}")
    if failed:
        lines.append("failed   " + " · ".join(f"{count} {kind}" for kind, count in status.failed.most_common()))
    if status.passing:
        lines.append(f"         {status.passing} for a passing reason: the next run tries them again")
    for title, text in zip(["slowest", *[""] * SLOWEST], map(_pair, status.slowest), strict=False):
        lines.append(f"{title:8} {text}")
    for title, text in zip(["workers", *[""] * len(status.hosts)], map(_host, status.hosts), strict=False):
        lines.append(f"{title:8} {text}")
    return "\n".join(lines)


def describe_previous(out: Out) -> str:
    """A line about the room that pictures from before take, which were painted again; "" if there are none."""
    try:
        files = out.folder.files(PREVIOUS)
    except StorageError as error:  # such as a link; the run's state is known all the same
        return f"\nprevious {error}"
    if not files:
        return ""
    size, count = sum(info.size for info in files) / 1e6, "1 file" if len(files) == 1 else f"{len(files)} files"
    where = f"{out.address}/{PREVIOUS}"
    return f"\nprevious {size:.1f} MB in {count} of pictures from before; to make room, remove the folder {where}"


def _run(status: Status) -> str:
    holder, began = status.holder, f"began {status.started_at:%Y-%m-%d %H:%M:%S} UTC"
    if holder is None:
        return f"{status.run_id}, {began}, last pair {status.last_at:%Y-%m-%d %H:%M:%S}; nobody is painting now"
    where = f"on {holder.host} (process {holder.pid})"
    if holder.alive:
        return f"{holder.run_id} {where}, {began}, last sign of life {holder.silent:.0f} s ago"
    return (
        f"{holder.run_id} {where}, {began}, gave no sign of life for {_duration(holder.silent)}: "
        "it is dead or cut off; run the same command again to go on"
    )


def _rates(status: Status) -> str:
    overall = f"{status.rate:.0f} pairs an hour"
    if status.holder is None or not status.holder.alive:
        return overall
    to_go = f"; about {_duration(status.seconds_left)} to go" if status.seconds_left else ""
    return f"{status.rate_now:.0f} pairs an hour now, {status.rate:.0f} overall{to_go}"


def _pair(row: dict[str, Any]) -> str:
    share, whole = times(row)
    is_shared = (row["batch_size"] or 1) > 1
    batch = f", its share of {_duration(whole)} in a batch of {row['batch_size']}," if is_shared else ""
    return f"{row['pair_id']} {_duration(share)}{batch} on {row['host']}"


def _host(host: Host) -> str:
    workers = "1 worker" if host.workers == 1 else f"{host.workers} workers"
    pairs = "1 pair" if host.pairs == 1 else f"{host.pairs} pairs"
    return f"{host.name}: {workers}, {pairs}" + (f", {host.rate_now:.0f} an hour now" if host.rate_now else "")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
