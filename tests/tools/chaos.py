"""A run on real raylets in which processes are killed and suspended, clocks are wrong and a web server fails.

Afterwards it is proven that nothing is lost, doubled, torn or wrong. `make chaos` runs it at length;
tests/engine/test_ray_cluster.py a small one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from ray._private.node import Node
from ray.cluster_utils import Cluster

from batchnst.ledger.out import Out
from batchnst.ledger.schema import ATTEMPT, SCHEMAS
from tests.helpers import IMAGES
from tests.processes import descendants, is_running, task_pids
from tests.storage.servers import Background

NODES = 3
STORE = 1 << 30
"""Bytes of each raylet's object store: Ray leaves some behind there of every driver that is killed."""

RECIPE = ["--size", "64", "--set", "min_size=64", "--steps", "20", "--optimizer", "adam", "--precision", "fp32"]
"""Tiny, and of an optimiser that keeps rounding small: what is painted in another batch differs by a level or two."""

SILENCE_SECONDS = 8.0
"""Seconds without a heartbeat after which a run counts as dead here, in place of 60."""

BATCHNST = [
    sys.executable,
    "-c",
    "import batchnst.ledger.claim as claim; "
    f"claim.BEAT_SECONDS, claim.SILENCE_SECONDS = {SILENCE_SECONDS / 6}, {SILENCE_SECONDS}; "
    "from batchnst.cli.main import main; main()",
]
"""The command, with less patience."""

os.environ.setdefault("RAY_worker_niceness", "0")  # else its workers wait for everything else on this machine

KILLS = ("worker", "node", "driver", "term")
"""What is killed: a worker process, a raylet (and a new one joins), the driver, the driver by SIGTERM."""

PAUSES = ("paused worker", "paused driver", "paused compaction")
"""Kinds of processes to suspend: another one takes over as if the first were dead, and later the first one goes on."""

WORKER_SECONDS = 10.0
"""Seconds in which a worker that wakes up may do harm: it ends by itself, or is killed then."""

LONGEST_SLEEP = 10.0
"""Seconds for which a process stays suspended, at most, after another one has taken its place."""

MOST_DRIVERS = 100
"""Drivers after which a storm is given up."""


@dataclass
class Outcome:
    """What a storm has done, and what was found afterwards."""

    events: Counter[str]
    seconds: float
    drivers: int
    web_failures: int
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.torn or self.wrong)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.events.items()))
        return (
            f"{self.events.total()} events ({kinds}) in {self.seconds:.0f} s, {self.drivers} drivers, "
            f"{self.web_failures} failures of the web server\n"
            f"lost {len(self.lost)}, doubled {len(self.doubled)}, torn {len(self.torn)}, wrong {len(self.wrong)}"
        )


class Raylets:
    """A head without CPUs and some nodes with one each: real raylets, all on this machine.

    `clocks` has for each node the environment that sets its clock.
    """

    def __init__(self, clocks: list[dict[str, str]]) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.clocks = clocks
        self.nodes = [self._new(clock) for clock in clocks]

    def _new(self, clock: dict[str, str]) -> Node:
        node: Node = self.cluster.add_node(num_cpus=1, object_store_memory=STORE, env_vars=clock)
        return node

    def replace(self, index: int) -> None:
        """Kill a raylet, and start another one in its place."""
        self.cluster.remove_node(self.nodes[index], allow_graceful=False)
        self.nodes[index] = self._new(self.clocks[index])

    def node_of(self, pid: int) -> int | None:
        """The index of the node on which a process runs; None if its raylet is gone."""
        for index, node in enumerate(self.nodes):
            raylets = node.all_processes["raylet"]
            if any(pid in descendants(raylet.process.pid) for raylet in raylets):
                return index
        return None

    def close(self) -> None:
        self.cluster.shutdown()


class FailingServer(Background):
    """A web server on `folder` that answers a share of all requests with an error."""

    def __init__(self, folder: Path, share: float) -> None:
        super().__init__(partial(_Handler, directory=str(folder)))
        self.share, self.failures = share, 0
        self.chance = random.Random(0)

    def recover(self) -> None:
        """Fail no more."""
        self.share = 0


class _Handler(SimpleHTTPRequestHandler):
    server: FailingServer

    def send_head(self) -> Any:
        if self.server.chance.random() < self.server.share:
            self.server.failures += 1
            self.send_error(500)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


WRONG_CLOCK = """
import builtins, datetime, os, sys, time

seconds, real, real_import = float(os.environ.get("CHAOS_CLOCK", 0)), datetime.datetime, builtins.__import__
real_time, real_time_ns = time.time, time.time_ns


class Wrong(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(seconds=seconds)


def import_module(name, *rest, **options):
    module = real_import(name, *rest, **options)
    if name.startswith("batchnst"):
        for own in [own for key, own in list(sys.modules.items()) if key.startswith("batchnst.")]:
            if getattr(own, "datetime", None) is real:
                own.datetime = Wrong
    return module


if seconds:
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + int(seconds * 1e9)
    builtins.__import__ = import_module
"""
"""Sets the clock that batchnst reads in a process. libfaketime breaks Python's waits; pandas, pyarrow and Ray end with
errors where `datetime` is another class for them too.
"""


def clocks(folder: Path) -> list[dict[str, str]]:
    """For each node, and for the drivers in turn, the environment that sets its clock: fast, right, slow."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WRONG_CLOCK)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [{"PYTHONPATH": path, "CHAOS_CLOCK": seconds} for seconds in ("600", "0", "-600")]


def make_manifest(photos: Path, folder: Path, pairs: int, web: str) -> Path:
    """Patches of photographs, each to be painted in two styles; every third comes from the web server `web`."""
    chance = np.random.default_rng(0)
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    sources = [np.asarray(Image.open(photos / name).convert("RGB")) for name in names]
    lines = ["content,style,id"]
    for i in range(pairs // 2):
        source = sources[i % len(sources)]
        y, x = chance.integers(0, source.shape[0] - 128), chance.integers(0, source.shape[1] - 128)
        Image.fromarray(source[y : y + 128, x : x + 128]).save(folder / f"{i}.png")
        content = f"{web}/{i}.png" if i % 3 == 0 else f"{i}.png"
        lines += [f"{content},{photos / style}.png,{i}-{style}" for style in ("swirls", "woodcut")]
    (folder / "m.csv").write_text("\n".join(lines) + "\n")
    return folder / "m.csv"


def command(manifest: Path, out: Path, address: str, form: str) -> list[str]:
    run = [*BATCHNST, "run", str(manifest), "--out", str(out), "--address", address, "--pictures", form]
    return [*run, *RECIPE, "--batch-size", "2", "--max-attempts", "10"]


@dataclass
class Sleeper:
    """A suspended process, and when it wakes up: once `until` pairs are done, or after LONGEST_SLEEP.

    A suspended driver keeps the CPUs that Ray has lent it, so that perhaps nothing is done any more.
    """

    kind: str
    pid: int
    until: int
    process: subprocess.Popen[bytes] | None = None
    replaced: float | None = None  # when another process had taken its place


class Storm:
    """Runs until all is done, and meanwhile lets things happen, after equal numbers of pairs."""

    def __init__(
        self, raylets: Raylets, manifest: Path, out: Path, chance: random.Random, log: IO[str], forms: Sequence[str]
    ) -> None:
        self._raylets, self._out, self._chance, self._log = raylets, out, chance, log
        self._commands = [command(manifest, out, raylets.cluster.address, form) for form in forms]
        self._pairs = len(manifest.read_text().splitlines()) - 1
        self._sleepers: list[Sleeper] = []
        self._done: set[tuple[Any, ...]] = set()
        self.drivers = 0
        self.events: Counter[str] = Counter()
        self.vanished: set[tuple[Any, ...]] = set()
        self.intruders: list[str] = []  # suspended processes that did not stop when they woke up

    def rage(self, kinds: list[str], after_last: Callable[[], None]) -> None:
        """Let events of `kinds` happen, in this order; call `after_last` after the last one."""
        # The last one still finds something to be done.
        marks = [int(0.8 * self._pairs * (i + 1) / len(kinds)) for i in range(len(kinds))]
        self._driver = self._drive()
        try:
            while self._driver.poll() != 0:
                if self._driver.returncode is not None:
                    # 1: pairs failed whose pictures the web server did not send; SIGTERM: Python itself was starting
                    expected = (-signal.SIGKILL, -signal.SIGTERM, 130, 1)
                    assert self._driver.returncode in expected, self._driver.returncode
                    self._driver = self._drive()
                done = self._look()
                if kinds and done >= marks[-len(kinds)]:
                    time.sleep(self._chance.uniform(0, 0.5))
                    if self._do(kinds[0], done):
                        self.events[kinds.pop(0)] += 1
                if not kinds:
                    after_last()
                for sleeper in [one for one in self._sleepers if self._is_due(one, done)]:
                    self._wake(sleeper)
                time.sleep(0.1)
        finally:
            for sleeper in list(self._sleepers):
                self._wake(sleeper)
            self._driver.kill()
            self._driver.wait()
        assert not kinds, f"all was done before {kinds} could happen"
        self._look()

    def _start(self, arguments: list[str], clock: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(arguments, stdout=self._log, stderr=self._log, env={**os.environ, **clock})

    def _drive(self) -> subprocess.Popen[bytes]:
        self.drivers += 1
        assert self.drivers <= MOST_DRIVERS
        run = self._commands[self.drivers % len(self._commands)]
        return self._start(run, self._raylets.clocks[self.drivers % NODES])

    def _look(self) -> int:
        """The number of pairs that are done. Rows that were there must still be there."""
        if not (self._out / "ledger" / "pairs").is_dir():
            return 0
        rows = Out(str(self._out)).rows("pairs", ["status", *ATTEMPT]).to_pylist()  # also while files are merged
        keys = {tuple(row[name] for name in ATTEMPT) for row in rows}
        self.vanished |= self._done - keys
        self._done |= keys
        return len({row["pair_id"] for row in rows if row["status"] == "ok"})

    def _do(self, kind: str, done: int) -> bool:
        """Let an event of this kind happen, if it can at this moment."""
        later = done + self._chance.randint(3, 12)
        if kind in ("worker", "paused worker"):
            return self._hit_worker(kind, later)
        if kind == "node":
            self._raylets.replace(self._chance.randrange(NODES))
        elif kind == "paused driver":
            self._driver.send_signal(signal.SIGSTOP)
            self._sleepers.append(Sleeper(kind, self._driver.pid, later, self._driver))
            self._driver = self._drive()
        elif kind == "paused compaction":
            self._driver.kill()
            self._driver.wait()
            self._sleepers.append(self._compact(later))
            self._driver = self._drive()
        else:
            self._driver.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
            self._driver.wait(60)
        return True

    def _hit_worker(self, kind: str, later: int) -> bool:
        pids = [pid for pid in task_pids(os.getpid()) if pid not in {one.pid for one in self._sleepers}]
        if not pids:
            return False
        pid = self._chance.choice(pids)
        if kind == "worker":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return True
        node = self._raylets.node_of(pid)
        if node is None:
            return False
        os.kill(pid, signal.SIGSTOP)
        self._sleepers.append(Sleeper(kind, pid, later))
        self._raylets.replace(node)  # what takes the worker for lost
        return True

    def _compact(self, later: int) -> Sleeper:
        """A compaction that is suspended once it has merged something, or a moment later."""
        process = self._start([*BATCHNST, "ledger", "compact", str(self._out)], {})
        while process.poll() is None and not list((self._out / ".batchnst" / "merged").rglob("*.parquet")):
            time.sleep(0.001)
        time.sleep(self._chance.uniform(0, 0.01))
        process.send_signal(signal.SIGSTOP)
        return Sleeper("paused compaction", process.pid, later, process)

    def _is_due(self, sleeper: Sleeper, done: int) -> bool:
        """True if a suspended process is to wake up; a driver only once another run holds OUT."""
        if sleeper.replaced is None:
            holder = Out(str(self._out)).holder()
            if sleeper.process is None or (holder and holder.pid == self._driver.pid):
                sleeper.replaced = time.monotonic()
            return False
        return done >= sleeper.until or time.monotonic() > sleeper.replaced + LONGEST_SLEEP

    def _wake(self, sleeper: Sleeper) -> None:
        """Let a suspended process go on; a driver must see that it was replaced and end."""
        self._sleepers.remove(sleeper)
        with suppress(ProcessLookupError):
            os.kill(sleeper.pid, signal.SIGCONT)
        if sleeper.process is not None:
            code = sleeper.process.wait(120)
            if code != 1 and (sleeper.kind, code) != ("paused compaction", 0):  # 0: it had ended before
                self.intruders.append(f"{sleeper.kind} ended with {code}")
            return
        end = time.monotonic() + WORKER_SECONDS
        while is_running(sleeper.pid) and time.monotonic() < end:
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.kill(sleeper.pid, signal.SIGKILL)


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
    pictures, calm = Out(str(out)).pictures(), undisturbed / "images"
    for row in tables["pairs"]:
        if row["status"] != "ok":
            continue
        data = pictures.find(row).data or b""
        if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
            outcome.torn.append(row["output"])
        if steps[row["run_id"], row["pair_id"], row["attempt"]] != row["steps"]:
            outcome.torn.append(f"losses of {row['pair_id']}")
        elif not _alike(data, (calm / row["output"]).read_bytes()):
            outcome.wrong.append(row["output"])
    outcome.torn += [path.name for path in (out / ".batchnst" / "tmp").iterdir()]
    strays = {path.name for path in (out / "images").glob("*")} - {f"{pair_id}.png" for pair_id in ids}
    outcome.torn += sorted(strays)
    outcome.doubled += _doubled(pictures.entries["pair_id"].to_pylist())


def _doubled(pair_ids: list[str]) -> list[str]:
    return [f"the picture of {pair_id}" for pair_id, count in Counter(pair_ids).items() if count > 1]


def _alike(data: bytes, other: bytes) -> bool:
    """Whether two pictures are the same but for rounding, which twenty steps let grow to a few levels."""
    first, second = (np.asarray(Image.open(io.BytesIO(file)), np.float64) for file in (data, other))
    difference = np.abs(first - second)
    return bool(difference.mean() < 0.25 and difference.max() <= 16)


def weather(
    photos: Path,
    folder: Path,
    pairs: int,
    kinds: list[str],
    seed: int,
    failing: float = 0,
    forms: Sequence[str] = ("files",),
) -> Outcome:
    """A storm and the same run undisturbed, compared.

    kinds: what happens, in any order. failing: share of the requests that the web server answers with an error. With
    it, clocks are wrong as well. forms: of the pictures; drivers take them in turn.
    """
    chance, server = random.Random(seed), FailingServer(folder, 0)
    chance.shuffle(kinds)
    raylets = Raylets(clocks(folder / "clock") if failing else [{}] * NODES)
    try:
        with server, (folder / "log").open("w") as log:
            manifest, calm = make_manifest(photos, folder, pairs, server.url), folder / "undisturbed"
            undisturbed = command(manifest, calm, raylets.cluster.address, "files")
            subprocess.run(undisturbed, check=True, stdout=log, stderr=log)
            server.share = failing
            started, storm = time.monotonic(), Storm(raylets, manifest, folder / "out", chance, log, forms)
            storm.rage(kinds, after_last=server.recover)
            outcome = Outcome(storm.events, time.monotonic() - started, storm.drivers, server.failures)
    finally:
        raylets.close()
    examine(outcome, manifest, folder / "out", calm)
    outcome.lost += [f"the row {key}" for key in storm.vanished]
    outcome.wrong += storm.intruders
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--pauses", type=int, default=9)
    parser.add_argument("--failing", type=float, default=0.2, help="share of the web server's answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", choices=["files", "parquet", "tar", "mixed"], default="files")
    options = parser.parse_args()
    forms = ["files", "parquet", "tar"] if options.pictures == "mixed" else [options.pictures]
    kinds = [KILLS[i % len(KILLS)] for i in range(options.kills)]
    kinds += [PAUSES[i % len(PAUSES)] for i in range(options.pauses)]
    folder = Path(tempfile.mkdtemp(prefix="batchnst-chaos-"))
    outcome = weather(IMAGES, folder, options.pairs, kinds, options.seed, options.failing, forms)
    print(f"{options.pairs} pairs on {NODES} raylets: {outcome}")
    if not outcome.clean:
        sys.exit(f"{outcome.lost} {outcome.doubled} {outcome.torn} {outcome.wrong}; see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
