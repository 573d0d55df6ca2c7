"""Statistics for the report, from all attempts: runs, workers, rates, losses by style, failures and recipes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.ledger.schema import Versions
from batchnst.pages import short_names

COLUMNS = [
    *("run_id", "pair_id", "attempt", "status", "error_type", "error_message", "content", "styles", "recipe"),
    *("loss_definition", "weights_sha256", "device", "precision", "host", "pid", "steps", "stopped", "total_loss"),
    *("run_number", "started_at", "finished_at", "versions", "width", "height"),
]
"""Columns of `pairs` that the statistics need."""

MOST_WORKERS, MOST_STYLES, MOST_VALUES = 12, 16, 6
"""Workers, styles and recipe values shown one by one; the rest is shown together."""

GAP_SECONDS = 1800.0
"""Breaks longer than this, in seconds, are left out of the charts."""

MOST_BINS = 96
"""Largest number of bars in the chart of pairs an hour."""

BIN_SECONDS = (1, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800)
"""Possible times that a bar covers, in seconds."""

FEWEST_LOSS_BINS, MOST_LOSS_BINS = 16, 48
"""Bounds of the number of bins in the chart of final losses."""

Column = NDArray[np.float64]


def reason(row: dict[str, Any]) -> tuple[str, str]:
    """Type and message of a failure, without the names of its pictures, so that equal failures can be grouped."""
    message = row["error_message"] or ""
    for address in [row["content"], *row["styles"]]:
        message = message.replace(address, "…")
    return row["error_type"] or "", message.removeprefix("…: ")


def reason_text(row: dict[str, Any]) -> str:
    """The reason of a failure as one text."""
    return ": ".join(reason(row))


@dataclass(frozen=True)
class Spans:
    """Start and end of each attempt (N,), in seconds since 1970."""

    start: Column
    end: Column

    @classmethod
    def of(cls, attempts: pa.Table) -> Spans:
        """The spans of the rows of `pairs`."""
        return cls(*(_seconds(attempts[name]) for name in ("started_at", "finished_at")))

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Spans:
        """The spans for which `chosen` is True, or at the places that it has."""
        return Spans(self.start[chosen], self.end[chosen])

    @cached_property
    def busy(self) -> float:
        """Seconds in which at least one attempt was under way."""
        return sum(end - start for start, end in self.periods(0.0))

    def periods(self, gap: float) -> list[tuple[float, float]]:
        """Start and end of each period of work; breaks of at most `gap` seconds belong to a period."""
        order = np.argsort(self.start, kind="stable")
        start, end = self.start[order], np.maximum.accumulate(self.end[order])
        breaks = np.flatnonzero(start[1:] - end[:-1] > gap)
        firsts, lasts = np.append(0, breaks + 1), np.append(breaks, len(end) - 1)
        return list(zip(start[firsts].tolist(), end[lasts].tolist(), strict=True)) if len(start) else []

    def rates(self, edges: Column) -> Column:
        """Attempts an hour between successive `edges` in time, with each attempt spread evenly over its span."""
        seconds = np.maximum(self.end - self.start, 1e-3)
        done = [float(np.clip((edge - self.start) / seconds, 0, 1).sum()) for edge in edges]
        return np.asarray(np.diff(done) / np.diff(edges) * 3600)


def summarize(attempts: pa.Table, current: pa.Table, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All statistics of the page's head.

    attempts: all rows of `pairs`. current: the newest row of each pair. runs: the rows of `runs`.
    """
    failed = int((current["status"].to_numpy() == "failed").sum())
    run_rows = _runs(attempts, runs)
    wall = sum(run["seconds"] for run in run_rows)
    workers = _workers(attempts)
    last = runs[-1] if runs else None
    return {
        "pairs": len(current),
        "failed": failed,
        "ok": len(current) - failed,
        "left": _left(attempts, last),
        "manifest": last and last["manifest"],
        "settings": json.loads(last["settings"] or "{}") if last else {},
        "wall": wall,
        "worker_seconds": sum(worker["busy"] for worker in workers),
        "rate": _rate(sum(run["painted"] for run in run_rows), wall),
        "runs": run_rows,
        "workers": sorted(workers, key=lambda worker: str(worker["name"])),
        "recipe": _recipe(current),
        "made_with": _made_with(current),
    }


def _seconds(column: pa.ChunkedArray) -> Column:
    return np.asarray(column.cast(pa.int64()).to_numpy() / 1e6)


def _rate(pairs: int, seconds: float) -> float | None:
    """Pairs an hour; None if `seconds` is 0."""
    return pairs / seconds * 3600 if seconds else None


def _runs(attempts: pa.Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Statistics of each run, oldest first, including runs that ended before their first pair.

    `rows` are those of `runs`, which may lack a run of an old ledger.
    """
    spans, ids = Spans.of(attempts), attempts["run_id"].to_numpy()
    by_id = {run["run_id"]: run for run in rows}
    runs = [_run(run_id, attempts, spans, ids == run_id, by_id.get(run_id)) for run_id in {*ids.tolist(), *by_id}]
    return sorted(runs, key=lambda run: (run["start"], run["run_id"]))


def _run(
    run_id: str, attempts: pa.Table, spans: Spans, mask: NDArray[np.bool_], row: dict[str, Any] | None
) -> dict[str, Any]:
    """Statistics of one run, whose attempts are those where `mask` is True; `row` is its row of `runs`, if any."""
    attempts, spans = attempts.filter(pa.array(mask)), spans.where(mask)
    start = row["started_at"].timestamp() if row else spans.start.min()
    seconds = max(0.0, float(spans.end.max(initial=start) - start))
    painted = int((attempts["status"].to_numpy() == "ok").sum())
    return {
        "run_id": run_id,
        "start": float(start),
        "seconds": seconds,
        "end": float(start) + seconds,
        "hosts": sorted(set(attempts["host"].to_pylist())),
        "workers": len(_worker_names(attempts).unique()),
        "painted": painted,
        "failed": len(attempts) - painted,
        "rate": _rate(painted, seconds),
        "engine": row["engine"] if row else None,
    }


def _left(attempts: pa.Table, run: dict[str, Any] | None) -> int | None:
    """Number of pairs that the newest run has not finished; None if the ledger has no row of it."""
    if run is None:
        return None
    finished = pc.count_distinct(attempts.filter(pc.equal(attempts["run_id"], run["run_id"]))["pair_id"]).as_py()
    left: int = run["pairs"] - run["done"] - run["given_up"] - finished
    return max(0, left)


def _worker_names(attempts: pa.Table) -> pa.Array:
    """Host and process of each attempt."""
    names = pc.binary_join_element_wise(attempts["host"], pc.cast(attempts["pid"], pa.string()), " · ")
    return names.combine_chunks()


def by_worker(attempts: pa.Table) -> list[tuple[str, NDArray[np.int64]]]:
    """The name of each worker and the places of its attempts, sorted by name."""
    names = _worker_names(attempts).dictionary_encode()
    codes = names.indices.to_numpy()
    places = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return sorted(zip(names.dictionary.to_pylist(), places, strict=False), key=lambda worker: worker[0])


def _workers(attempts: pa.Table) -> list[dict[str, Any]]:
    """Statistics of each worker; `busy` is in seconds, `rate` in pairs an hour."""
    spans, ok = Spans.of(attempts), attempts["status"].to_numpy() == "ok"
    workers = []
    for name, own in by_worker(attempts):
        painted, busy = int(ok[own].sum()), spans.where(own).busy
        workers.append(
            {"name": name, "painted": painted, "failed": len(own) - painted, "busy": busy}
            | {"rate": _rate(painted, busy)}
        )
    return workers


def throughput(attempts: pa.Table) -> dict[str, Any]:
    """Painted pairs an hour over time, by worker, or by host if there are many workers. Long breaks are left out."""
    painted = attempts.filter(pc.equal(attempts["status"], "ok"))
    spans = Spans.of(painted)
    names = np.array(_worker_names(painted).to_pylist())
    if len(set(names.tolist())) > MOST_WORKERS:
        names = painted["host"].to_numpy()
    common = [name for name, _ in Counter(names.tolist()).most_common()]
    shown = common if len(common) <= MOST_WORKERS else common[: MOST_WORKERS - 1]
    periods = spans.periods(GAP_SECONDS)
    width = _bin_width(sum(end - start for start, end in periods))
    edges = [np.arange(np.floor(start / width), np.ceil(end / width) + 1) * width for start, end in periods]
    groups = {name: names == name for name in sorted(shown)}
    if len(common) > len(shown):
        groups[f"{len(common) - len(shown)} others"] = ~np.isin(names, shown)
    return {
        "width": width,
        "times": [time for part in edges for time in part[:-1].tolist()],
        "breaks": np.cumsum([len(part) - 1 for part in edges[:-1]]).tolist(),
        "workers": [
            {"name": name, "rates": [round(rate, 2) for part in edges for rate in spans.where(mask).rates(part)]}
            for name, mask in groups.items()
        ],
    }


def _bin_width(seconds: float) -> int:
    """Smallest of BIN_SECONDS that divides `seconds` into at most MOST_BINS."""
    return next((width for width in BIN_SECONDS if seconds / width <= MOST_BINS), BIN_SECONDS[-1])


def losses_by_style(current: pa.Table) -> dict[str, Any]:
    """Histogram and quantiles of the final losses by style or combination of styles; rare ones are put together."""
    painted = current.filter(pc.greater(current["total_loss"], 0))
    painted = painted.filter(pc.is_finite(painted["total_loss"]))
    losses, styles = painted["total_loss"].to_numpy(), [tuple(styles) for styles in painted["styles"].to_pylist()]
    if not len(losses):
        return {"edges": [], "styles": []}
    names = short_names({style for combination in styles for style in combination})
    labels = np.array([" + ".join(names[style] for style in combination) for combination in styles], dtype=object)
    common = [label for label, _ in Counter(labels.tolist()).most_common()]
    if len(common) > MOST_STYLES:
        labels[~np.isin(labels, common[: MOST_STYLES - 1])] = f"{len(common) - MOST_STYLES + 1} others"
    bins = int(np.clip(2 * np.sqrt(len(losses)), FEWEST_LOSS_BINS, MOST_LOSS_BINS))
    edges = np.geomspace(losses.min() * 0.99, losses.max() * 1.01, bins + 1)
    distributions = [_distribution(label, losses[labels == label], edges) for label in set(labels.tolist())]
    return {"edges": edges.tolist(), "styles": sorted(distributions, key=lambda style: style["median"])}


def _distribution(name: str, losses: Column, edges: Column) -> dict[str, Any]:
    least, tenth, median, ninetieth, most = np.quantile(losses, (0, 0.1, 0.5, 0.9, 1)).tolist()
    quantiles = {"least": least, "tenth": tenth, "median": median, "ninetieth": ninetieth, "most": most}
    return {"name": name, "pairs": len(losses), "counts": np.histogram(losses, edges)[0].tolist()} | quantiles


def failures(current: pa.Table) -> list[dict[str, Any]]:
    """Reasons of failure with their number of pairs, most common first."""
    failed = current.filter(pc.equal(current["status"], "failed"))
    rows = failed.select(["pair_id", "error_type", "error_message", "content", "styles"]).to_pylist()
    groups: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[reason(row)].append(row)
    by_number = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {"type": kind, "message": message, "reason": f"{kind}: {message}", "pairs": len(rows)}
        for (kind, message), rows in by_number
    ]


def _recipe(current: pa.Table) -> dict[str, Any]:
    """The most common recipe as `base`, and the keys that differ between pairs with their values as `varied`."""
    recipes = [(json.loads(text), count) for text, count in _counts(current["recipe"])]
    base: dict[str, Any] = recipes[0][0]
    keys = sorted({key for recipe, _ in recipes for key in recipe if recipe[key] != base.get(key)})
    return {"base": base, "varied": [(key, _values(recipes, key)) for key in keys]}


def _values(recipes: Sequence[tuple[dict[str, Any], int]], key: str) -> list[tuple[Any, int]]:
    """Values of a recipe key with their number of pairs, most common first, the rarest together."""
    counts: Counter[str] = Counter()
    for recipe, count in recipes:
        counts[json.dumps(recipe.get(key))] += count
    shown = [(json.loads(text), count) for text, count in counts.most_common(MOST_VALUES)]
    rest = counts.total() - sum(count for _, count in shown)
    return [*shown, (f"{len(counts) - MOST_VALUES} other values", rest)] if rest else shown


def _counts(column: pa.ChunkedArray) -> list[tuple[Any, int]]:
    """The values of a column with their counts, most common first."""
    counts = [(item["values"], item["counts"]) for item in pc.value_counts(column.drop_null()).to_pylist()]
    return sorted(counts, key=lambda item: (-item[1], str(item[0])))


def _made_with(current: pa.Table) -> list[tuple[str, list[tuple[str, int]]]]:
    """Devices, precisions, losses, weights and versions, each with its number of pairs."""
    columns = [("device", "device"), ("precision", "precision"), ("loss", "loss_definition")]
    facts = [(label, _counts(current[name])) for label, name in columns]
    facts.append(("weights", [(sha[:12], count) for sha, count in _counts(current["weights_sha256"])]))
    versions = current["versions"]
    facts += [(field.name, _counts(pc.struct_field(versions, field.name))) for field in fields(Versions)]
    return [(label, counts) for label, counts in facts if counts]
