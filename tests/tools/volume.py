"""Measure the size and speed of a large run's ledger: `make volume`, or `python -m tests.tools.volume PAIRS STEPS`."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchnst import read_ledger
from batchnst.ledger import parquet
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS, to_table
from batchnst.review.audit.steps import summarize
from tests.helpers import row

BATCH = 4
"""Pairs whose rows are written together."""

LAYERS = [f"relu{block}_1" for block in range(1, 6)]


def losses(random: np.random.Generator, names: list[str], steps: int) -> pa.Table:
    """Curves that fall by power laws, with noise: as hard to compress as those of real pictures, which are fp32 too."""
    pairs = len(names)

    def curve(level: float) -> NDArray[np.float64]:
        fall = (np.arange(steps) + 1.0) ** -random.uniform(0.3, 0.8, (pairs, 1)) + random.uniform(0.01, 0.1, (pairs, 1))
        noise = np.exp(random.normal(0, 1e-3, (pairs, steps)))
        return (np.exp(random.normal(level, 0.5, (pairs, 1))) * fall * noise).astype(np.float32).astype(float).ravel()

    content, style, tv = curve(13), curve(14), curve(8)
    layers = np.stack([curve(10) for _ in LAYERS], axis=1).ravel()
    seconds = np.round(np.cumsum(random.normal(0.3, 0.01, steps)) * 1024) / 1024
    count = pairs * steps
    columns = {
        "run_id": pa.array(["20261121T210400-fc513a"] * count),
        "pair_id": pa.array(np.repeat(names, steps)),
        "attempt": np.ones(count, int),
        "step": np.tile(np.arange(steps), pairs),
        "scale": np.tile(np.where(np.arange(steps) < steps // 5, 256, 512), pairs),
        "total": (content + style + tv).astype(np.float32).astype(float),
        "content": content,
        "style": style,
        "tv": tv,
        "style_layers": pa.MapArray.from_arrays(np.arange(count + 1, dtype=np.int32) * 5, LAYERS * count, layers),
        "seconds": np.tile(seconds, pairs),
    }
    return pa.table(columns, schema=SCHEMAS["losses"])


def write(out: Out, pairs: int, steps: int) -> None:
    """As the workers of a night leave it: a file of each table for every batch."""
    random = np.random.default_rng(0)
    for start in range(0, pairs, BATCH):
        names = [
            f"photo-{number:05}--starry-night--{number * 2654435761 % 2**32:08x}"
            for number in range(start, start + BATCH)
        ]
        curves = losses(random, names, steps)
        out.folder.write(f"ledger/losses/{start}.parquet", parquet.encode(curves, "losses", statistics=False))
        rows = [
            row(
                of["pair_id"],
                status="failed" if number % 997 == 0 else "ok",
                steps=steps,
                output=f"{of['pair_id']}.png",
            )
            for number, of in enumerate(summarize(curves).to_pylist(), start)
        ]
        table = to_table([replace(one, run_id="20261121T210400-fc513a") for one in rows], "pairs")
        out.folder.write(f"ledger/pairs/{start}.parquet", parquet.encode(table, "pairs", statistics=False))


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what:48} {time.perf_counter() - start:8.2f} s")


def best(question: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        question()
        times.append(time.perf_counter() - start)
    return sorted(times)[2]


def peak_memory() -> float:
    """Of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def describe(out: Out, pair: str) -> None:
    for table in ("pairs", "losses"):
        files = out.files(table)
        print(f"{table:8} {len(files):6} files {sum(info.size for info in files) / 1e6:8.1f} MB")
    folder = Path(out.address) / "ledger"
    curve = f"SELECT step, total FROM '{folder}/losses/*.parquet' WHERE pair_id = '{pair}' ORDER BY step"
    failed = f"SELECT pair_id, error_message FROM '{folder}/pairs/*.parquet' WHERE status = 'failed'"
    for what, query in {"a pair's curve": curve, "all failures": failed}.items():
        seconds = best(lambda query=query: duckdb.execute(query).fetchall())  # type: ignore[misc]
        print(f"DuckDB: {what}, {len(duckdb.execute(query).fetchall())} rows, median of 5 {seconds:15.3f} s")
    with timed("read_ledger, losses, number of rows"):
        read_ledger(out.address, "losses").count_rows()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=int, nargs="?", default=10_000)
    parser.add_argument("steps", type=int, nargs="?", default=500)
    options = parser.parse_args()
    measure(options.pairs, options.steps)


def measure(pairs: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Out(folder)
        write(out, pairs, steps)
        pair = out.rows("pairs", ["pair_id"])["pair_id"][pairs // 2].as_py()
        print(f"{pairs} pairs of {steps} steps, as the workers leave them")
        describe(out, pair)
        before = peak_memory()
        with timed("compaction"), out.claim("compaction") as claim:
            out.compact(claim)
        print(f"peak memory {before:.1f} GB before it, {peak_memory():.1f} GB after")
        describe(out, pair)


if __name__ == "__main__":
    main()
