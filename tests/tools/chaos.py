"""A run on real raylets in which processes die at random, and the proof that nothing is lost, doubled, torn or wrong.

`make chaos` runs it at length; tests/engine/test_ray_cluster.py a small one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from ray._private.node import Node
from ray.cluster_utils import Cluster

from batchnst.ledger.schema import SCHEMAS
from tests.helpers import IMAGES
from tests.processes import task_pids

BATCHNST = Path(sys.executable).with_name("batchnst")
NODES = 3
STORE = 1 << 30
"""Bytes of each raylet's object store: Ray leaves some behind there of every driver that is killed."""

RECIPE = ["--size", "64", "--set", "min_size=64", "--steps", "20", "--optimizer", "adam", "--precision", "fp32"]
"""Tiny, and of an optimiser that keeps rounding small: what is painted in another batch differs by a level or two."""

KINDS = ("worker", "node", "driver", "term")
"""What is killed: a worker process, a raylet (and a new one joins), the driver, the driver by SIGTERM."""


@dataclass
class Outcome:
    """What a storm has done, and what was found afterwards."""

    kills: Counter[str]
    seconds: float
    attempts: int
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.torn or self.wrong)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        return (
            f"kills {self.kills.total()} ({kinds}) in {self.seconds:.0f} s, {self.attempts} drivers\n"
            f"lost {len(self.lost)}, doubled {len(self.doubled)}, torn {len(self.torn)}, wrong {len(self.wrong)}"
        )


class Raylets:
    """A head without CPUs and some nodes with one each: real raylets, all on this machine."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._new() for _ in range(NODES)]

    def _new(self) -> Node:
        node: Node = self.cluster.add_node(num_cpus=1, object_store_memory=STORE)
        return node

    def replace_one(self, chance: random.Random) -> None:
        self.cluster.remove_node(self.nodes.pop(chance.randrange(NODES)), allow_graceful=False)
        self.nodes.append(self._new())

    def close(self) -> None:
        self.cluster.shutdown()


def make_manifest(photos: Path, folder: Path, pairs: int) -> Path:
    """Patches of photographs, each to be painted in two styles."""
    chance = np.random.default_rng(0)
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    sources = [np.asarray(Image.open(photos / name).convert("RGB")) for name in names]
    lines = ["content,style,id"]
    for i in range(pairs // 2):
        source = sources[i % len(sources)]
        y, x = chance.integers(0, source.shape[0] - 128), chance.integers(0, source.shape[1] - 128)
        Image.fromarray(source[y : y + 128, x : x + 128]).save(folder / f"{i}.png")
        lines += [f"{i}.png,{photos / style}.png,{i}-{style}" for style in ("swirls", "woodcut")]
    (folder / "m.csv").write_text("\n".join(lines) + "\n")
    return folder / "m.csv"


def command(manifest: Path, out: Path, address: str) -> list[str]:
    run = [str(BATCHNST), "run", str(manifest), "--out", str(out), "--address", address]
    return [*run, *RECIPE, "--batch-size", "2", "--max-attempts", "10"]


def storm(raylets: Raylets, manifest: Path, out: Path, kills: int, chance: random.Random, log: Path) -> Outcome:
    """Run until all is done, and meanwhile kill something `kills` times, after equal numbers of finished batches."""
    address = raylets.cluster.address
    pairs = len(manifest.read_text().splitlines()) - 1
    killed: Counter[str] = Counter()
    plan = [kind for kind, _ in zip(KINDS * kills, range(kills), strict=False)]
    chance.shuffle(plan)
    marks = [pairs // 2 * (i + 1) // (kills + 1) for i in range(kills)]  # in files of two rows
    started, drivers = time.monotonic(), 1
    with log.open("w") as sink:

        def drive() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command(manifest, out, address), stdout=sink, stderr=sink)

        driver = drive()
        try:
            while driver.poll() != 0:
                if driver.poll() is not None:
                    assert driver.returncode in (-signal.SIGKILL, 130), log.read_text()
                    driver, drivers = drive(), drivers + 1
                if plan and _finished(out) >= marks[len(marks) - len(plan)]:
                    time.sleep(chance.uniform(0, 0.5))
                    kind = plan.pop()
                    if _kill(kind, raylets, driver, chance):
                        killed[kind] += 1
                    else:
                        plan.append(kind)
                time.sleep(0.05)
        finally:
            driver.kill()
            driver.wait()
    assert not plan, f"all was done before {plan} could be killed"
    return Outcome(killed, time.monotonic() - started, drivers)


def _kill(kind: str, raylets: Raylets, driver: subprocess.Popen[bytes], chance: random.Random) -> bool:
    """Kill something of that kind, if there is one."""
    if kind == "worker":
        pids = task_pids(os.getpid())
        if pids:
            os.kill(chance.choice(pids), signal.SIGKILL)
        return bool(pids)
    if kind == "node":
        raylets.replace_one(chance)
        return True
    driver.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
    driver.wait(60)
    return True


def _finished(out: Path) -> int:
    return len(list((out / "ledger" / "pairs").glob("*.parquet")))


def examine(outcome: Outcome, manifest: Path, out: Path, undisturbed: Path) -> None:
    """Look for what a storm may have done to OUT: each finding is added to the outcome."""
    ids = [line.rpartition(",")[2] for line in manifest.read_text().splitlines()[1:]]
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
    for name, rows in tables.items():
        for path in (out / "ledger" / name).iterdir():
            try:
                rows += pq.read_table(path).to_pylist()
            except Exception:
                outcome.torn.append(path.name)
    done = Counter(row["pair_id"] for row in tables["pairs"] if row["status"] == "ok")
    outcome.lost = [pair_id for pair_id in ids if not done[pair_id]]
    outcome.doubled = [pair_id for pair_id, count in done.items() if count > 1]
    steps = Counter((row["run_id"], row["pair_id"], row["attempt"]) for row in tables["losses"])
    for row in tables["pairs"]:
        if row["status"] != "ok":
            continue
        data = (out / "images" / row["output"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
            outcome.torn.append(row["output"])
        if steps[row["run_id"], row["pair_id"], row["attempt"]] != row["steps"]:
            outcome.torn.append(f"losses of {row['pair_id']}")
        if not _alike(out / "images" / row["output"], undisturbed / "images" / row["output"]):
            outcome.wrong.append(row["output"])
    outcome.torn += [path.name for path in (out / ".batchnst" / "tmp").iterdir()]
    strays = {path.name for path in (out / "images").iterdir()} - {f"{pair_id}.png" for pair_id in ids}
    outcome.torn += sorted(strays)


def _alike(path: Path, other: Path) -> bool:
    """Whether two pictures are the same but for rounding, which twenty steps let grow to a few levels."""
    first, second = (np.asarray(Image.open(name), np.float64) for name in (path, other))
    difference = np.abs(first - second)
    return bool(difference.mean() < 0.25 and difference.max() <= 16)


def weather(photos: Path, folder: Path, pairs: int, kills: int, seed: int) -> Outcome:
    """A storm and the same run undisturbed, compared."""
    manifest = make_manifest(photos, folder, pairs)
    raylets = Raylets()
    try:
        calm = folder / "undisturbed"
        subprocess.run(command(manifest, calm, raylets.cluster.address), check=True, capture_output=True)
        outcome = storm(raylets, manifest, folder / "out", kills, random.Random(seed), folder / "log")
    finally:
        raylets.close()
    examine(outcome, manifest, folder / "out", calm)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="batchnst-chaos-"))
    outcome = weather(IMAGES, folder, options.pairs, options.kills, options.seed)
    print(f"{options.pairs} pairs on {NODES} raylets: {outcome}")
    if not outcome.clean:
        sys.exit(f"{outcome.lost} {outcome.doubled} {outcome.torn} {outcome.wrong}; see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
