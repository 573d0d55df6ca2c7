"""Measure plans, resumes and reviews of millions of pairs (`make volume`, or `python -m tests.tools.volume_plan ROWS`).

All of it is made up: contents that are not there, and a ledger as compactions leave it. Each command is a process of
its own, whose time, processor time and peak memory are printed.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnst.engine import run as engine_run
from batchnst.engine.events import Event, Finished
from batchnst.engine.plan import Chunk
from batchnst.engine.run import Inline, Options, Planned, run
from batchnst.ledger import parquet
from batchnst.ledger.claim import Claim
from batchnst.ledger.out import Out
from batchnst.ledger.schema import RunRow, to_table
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.reading import read_manifest
from batchnst.painting.named_weights import load_networks
from batchnst.progress import Work
from batchnst.review.audit import pairs as pair_checks
from batchnst.review.audit.findings import Audit
from batchnst.review.audit.steps import losses
from batchnst.transfer.weights import Weights
from tests.helpers import row
from tests.tools.volume import losses as made_up_losses

DONE = 0.99
"""The part of the pairs that is done."""

FILE_PAIRS = 1 << 17
"""Pairs in a file of the ledger."""

LOSS_PAIRS = 1 << 13
"""Pairs whose losses are in a file."""

PAINTED = 1_000_000
"""Pairs that a run paints to see whether its memory grows."""

RUN = "20261121T210400-fc513a"


def write_manifest(path: Path, rows: int) -> str:
    """A manifest of distinct photos in 20 styles: Parquet, or a CSV that has a seed for each row."""
    seeds = path.suffix == ".csv"
    with path.open("wb") as file:
        writer = None if seeds else pq.ParquetWriter(file, pa.schema({"content": pa.string(), "style": pa.string()}))
        if seeds:
            file.write(b"content,style,seed\n")
        for start in range(0, rows, 100_000):
            numbers = range(start, min(rows, start + 100_000))
            photos = [f"photos/{i // 1000:05}/IMG-{i:08}.jpg" for i in numbers]
            styles = [f"styles/painting-{i % 20}.png" for i in numbers]
            if writer:
                writer.write_table(pa.table({"content": photos, "style": styles}))
            else:
                lines = map(",".join, zip(photos, styles, map(str, numbers), strict=True))
                file.write("".join(f"{line}\n" for line in lines).encode())
        if writer:
            writer.close()
    return str(path)


def write_pairs(out: Out, manifest: Manifest) -> list[str]:
    """Rows of the first pairs, DONE of all; returns their ids."""
    hashes = {network: weights.sha256 for network, weights in load_networks(manifest.networks).items()}
    of = row("x", run_id=RUN, run_number=1, status="ok", steps=100, width=512, height=384, output_sha256="a" * 64)
    one, ids, held = to_table([of], "pairs"), list[str](), list[pa.Table]()
    left = round(DONE * len(manifest))
    for block in manifest.blocks():
        pairs = block.slice(0, left - len(ids))
        rows = one.take(pa.array(np.zeros(len(pairs), int)))
        columns = {"pair_id": pairs["id"], "fingerprint": manifest.fingerprints(pairs, hashes)}
        for name, column in (columns | {name: pairs[name] for name in ("output", "content", "styles")}).items():
            rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
        ids += pairs["id"].to_pylist()
        held.append(rows)
        if sum(map(len, held)) >= FILE_PAIRS or len(ids) == left:
            table = pa.concat_tables(held).sort_by("pair_id")
            out.folder.write(f"ledger/pairs/{len(ids)}.parquet", parquet.encode(table, "pairs", statistics=True))
            held = []
        if len(ids) == left:
            break
    begun = RunRow(
        run_id=RUN,
        run_number=1,
        started_at=datetime(2026, 11, 21, 21, 4, tzinfo=UTC),
        manifest=manifest.address,
        settings="{}",
        pairs=len(manifest),
        done=0,
        given_up=0,
        to_paint=len(manifest),
        engine="ray",
        host="h",
        pid=1,
    )
    out.folder.write("ledger/runs/1.parquet", parquet.encode(to_table([begun], "runs"), "runs", statistics=True))
    return ids


def write_losses(out: Out, ids: Sequence[str], steps: int) -> None:
    """Curves of the pairs `ids`, in files as compactions leave them."""
    random = np.random.default_rng(0)
    for start in range(0, len(ids), LOSS_PAIRS):
        rows = made_up_losses(random, sorted(ids[start : start + LOSS_PAIRS]), steps)
        out.folder.write(f"ledger/losses/{start}.parquet", parquet.encode(rows, "losses", statistics=True))


def measured(what: str, code: str) -> None:
    """Run `code` in a Python of its own, and print what it took."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.run([sys.executable, "-c", _PEAK + code], capture_output=True, text=True, check=False)
    wall, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    if child.returncode:
        sys.exit(child.stderr)
    if "pairs after" in child.stdout:
        print(child.stdout, end="")
    peak = int(child.stderr.rpartition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    print(f"{what:44} {wall:7.1f} s {cpu:7.1f} s of CPU {peak:6.2f} GB", flush=True)


_PEAK = """
import atexit, sys
atexit.register(lambda: print([line for line in open("/proc/self/status") if "VmHWM" in line][0], file=sys.stderr))
"""
"""Makes a process tell its own peak memory; what `wait` tells includes that of its parent."""


def command(*arguments: str) -> str:
    """Code that runs a command of batchnst."""
    return f"import runpy\nsys.argv = {['batchnst', *arguments]!r}\nrunpy.run_module('batchnst', run_name='__main__')"


def call(function: str, *arguments: str) -> str:
    """Code that calls a function of this module."""
    return f"from tests.tools import volume_plan\nvolume_plan.{function}(*{arguments!r})"


def first_task(manifest: str, out: str) -> None:
    """A run, until it would start its first task."""
    events = run(read_manifest(manifest, {}, out), Options(out=out, engine="inline"))
    next(event for event in events if isinstance(event, Planned))


class Instant(Inline):
    """An engine whose pictures take no time, and leave nothing in OUT: what is left is the driver's own work."""

    def paint(
        self, chunks: Iterator[Chunk], weights: Mapping[tuple[str, str], Weights], claim: Claim, tasks: int
    ) -> Generator[Event, None, None]:
        """Report each pair as painted."""
        for chunk in chunks:
            for batch in chunk.batches:
                yield Work(100, batch.work, 60.0)
                for job in batch.jobs:
                    yield Finished(job.pair.id, None)


def begun_run(manifest: str, out: str) -> None:
    """The first PAINTED pairs of a run by an instant engine; prints the memory that the driver uses as it goes on."""
    began, painted = time.monotonic(), 0
    with patch.object(engine_run, "_start", lambda options, _: Instant(options.memory, None)):
        for event in run(read_manifest(manifest, {}, out), Options(out=out, engine="inline")):
            painted += isinstance(event, Finished)
            if isinstance(event, Planned) or (isinstance(event, Finished) and painted % (PAINTED // 5) == 0):
                (used,) = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
                print(f"  {painted:,} pairs after {time.monotonic() - began:.0f} s: {int(used) / 1e6:.2f} GB")
            if painted == PAINTED:
                break


def audit_rows(address: str) -> None:
    """The audit of the ledger: all that it does without opening a picture, and without what compares recipes."""
    out = Out(address)
    names = ["run_id", "pair_id", "attempt", "status", "output", "fingerprint", "run_number", "finished_at"]
    outcome = ["steps", "stopped", "initial_total", "total_loss", "content_loss", "style_loss", "tv_loss"]
    rows = out.rows("pairs", [*names, *outcome])
    list(pair_checks.doubled(rows, ()))
    result = Audit()
    sum(1 for _ in losses(out, rows, rows.slice(0, 0), result, lambda *_: None))
    print(result.attempts, result.steps)


def curve(out: str, pair_id: str) -> None:
    """The curve of a pair, by DuckDB."""
    for _ in range(3):
        began = time.monotonic()
        query = f"SELECT step, total FROM '{out}/ledger/losses/*.parquet' WHERE pair_id = '{pair_id}' ORDER BY step"
        rows = duckdb.execute(query).fetchall()
        print(f"one pair's curve, {len(rows)} steps {time.monotonic() - began:35.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--curves", type=int, default=100_000, help="pairs that have losses: 1 GB for 250,000")
    parser.add_argument("--folder", help="where to write; needs some GB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options.rows, options.steps, options.curves)


def measure(folder: Path, rows: int, steps: int, curves: int) -> None:
    manifest = write_manifest(folder / "m.parquet", rows)
    print(f"{rows:,} rows")
    measured("plan, Parquet", command("plan", manifest))
    if rows <= 1_000_000:
        measured("plan, CSV with a seed each", command("plan", write_manifest(folder / "m.csv", rows)))
    measured(f"a run whose first {PAINTED:,} take no time", call("begun_run", manifest, str(folder / "begun")))
    out = Out(str(folder / "out"))
    ids = write_pairs(out, read_manifest(manifest, {}))
    measured("resume, 99 % done, to the first task", call("first_task", manifest, out.address))
    del ids[curves:]
    measured("status", command("status", out.address))
    write_losses(out, ids, steps)
    size = sum(info.size for info in out.files("losses")) / 1e9
    print(f"{len(ids):,} pairs with {steps} steps: {len(out.files('losses'))} files, {size:.1f} GB of losses")
    measured("audit of pairs and losses, without pictures", call("audit_rows", out.address))
    curve(out.address, ids[len(ids) // 2])


if __name__ == "__main__":
    main()
