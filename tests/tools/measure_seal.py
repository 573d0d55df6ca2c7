"""Measure how long a large made-up ledger takes to seal and to check: `python -m tests.tools.measure_seal FOLDER`."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchnst.ledger import parquet
from batchnst.ledger.keys import make_keys
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS, to_table
from batchnst.recipe import Recipe
from tests.helpers import row
from tests.tools.volume import losses

PAIRS_A_FILE = 5000
"""About what compaction leaves."""


def fill(out: Out, pairs: int, steps: int, pictures: int) -> None:
    """A ledger as compaction leaves it, with `pictures` of a few bytes; all files have the same curves."""
    start, folder = time.perf_counter(), Path(out.address) / "images"
    folder.mkdir(parents=True)
    usual = {"pairs": usual_rows(steps), "losses": losses(np.random.default_rng(0), names_from(0), steps)}
    for first in range(0, pairs, PAIRS_A_FILE):
        names = names_from(first)
        for table, rows in (("pairs", pair_rows(usual["pairs"], names)), ("losses", loss_rows(usual["losses"], names))):
            out.folder.write(f"ledger/{table}/{first:08}.parquet", parquet.encode(rows, table, statistics=True))
        for name in names[: max(0, pictures - first)]:
            (folder / f"{name}.png").write_text(name)
    print(f"{pairs} pairs of {steps} steps, {pictures} pictures, made in {time.perf_counter() - start:.0f} s")


def names_from(first: int) -> list[str]:
    return [
        f"photo-{number:07}--starry-night--{number * 2654435761 % 2**32:08x}"
        for number in range(first, first + PAIRS_A_FILE)
    ]


def usual_rows(steps: int) -> pa.Table:
    usual = row(
        run_id="20261121T210400-fc513a",
        run_number=1,
        recipe=Recipe().json_text,
        steps=steps,
        style_sha256=["5" * 64],
        weights_sha256="7" * 64,
        device="cuda (NVIDIA L4)",
        precision="bf16",
    )
    return to_table([usual] * PAIRS_A_FILE, "pairs")


def pair_rows(usual: pa.Table, names: list[str]) -> pa.Table:
    """Rows that differ where those of a night differ."""
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    numbers = np.random.default_rng(len(names[0])).lognormal(13, 1, len(names))
    values: dict[str, Sequence[Any] | NDArray[Any]] = {
        "pair_id": names,
        "content": [f"s3://bucket/photos/{name}.jpg" for name in names],
        "output": [f"{name}.png" for name in names],
        **dict.fromkeys(("fingerprint", "output_sha256", "content_sha256"), hashes),
        **dict.fromkeys(("initial_total", "total_loss", "content_loss", "style_loss", "tv_loss", "seconds"), numbers),
    }
    for name, column in values.items():
        usual = with_column(usual, "pairs", name, column)
    return usual


def loss_rows(usual: pa.Table, names: list[str]) -> pa.Table:
    return with_column(usual, "losses", "pair_id", np.repeat(names, len(usual) // len(names)))


def with_column(rows: pa.Table, table: str, name: str, values: Sequence[Any] | NDArray[Any]) -> pa.Table:
    field = SCHEMAS[table].field(name)
    return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))


BEGIN = """
import sys
from batchnst.ledger.keys import read_private
from batchnst.ledger.out import Out
from batchnst.ledger.seal import describe, seal
from batchnst.progress import silent
from batchnst.review.audit.findings import Audit
from batchnst.review.audit.seals import seals
out, key, result = Out(sys.argv[1]), sys.argv[2], Audit()
"""

SEAL = """
with out.claim("measured") as claim:
    print(describe(seal(out, claim, read_private(key))).splitlines()[0])
"""

CHECK = """
findings = list(seals(out, f"{key}.pub", None, result, silent))
print(f"{len(findings)} findings, {result.seals} seals, not sealed: {sum(result.unsealed.values())}")
"""
"""Checks the seals alone, without the rest of an audit."""

END = """
import resource
usage = resource.getrusage(resource.RUSAGE_SELF)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(f"{usage.ru_utime + usage.ru_stime:.0f} s of CPU, at most {peak / 1e6:.2f} GB")
"""


def measured(what: str, code: str, *arguments: str) -> None:
    """Run Python in a process of its own, which imports no torch; print what it took."""
    start = time.perf_counter()
    command = [sys.executable, "-c", BEGIN + code + END, *arguments]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"{what:6} {time.perf_counter() - start:5.0f} s, {', '.join(said.splitlines()[::-1])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=int, nargs="?", default=1_000_000)
    parser.add_argument("steps", type=int, nargs="?", default=20)
    parser.add_argument("pictures", type=int, nargs="?", default=0)
    options = parser.parse_args()
    out, key = str(options.folder / "out"), str(options.folder / "key")
    if not options.folder.exists():
        options.folder.mkdir()
        fill(Out(out), options.pairs, options.steps, options.pictures)
        make_keys(key)
    measured("seal", SEAL, out, key)
    measured("check", CHECK, out, key)


if __name__ == "__main__":
    main()
