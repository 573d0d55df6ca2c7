"""A simulator of everything that writes to OUT (`make simulate`): the real code, on a store and clocks of its own.

Processes take turns: at every operation on the store a scheduler, driven by a seed, decides who goes on. It may suspend
a process for longer than any silence, crash it, let a write land late or twice, or report a failure of a write that
landed; every host has its own clock. After each change of the store the invariants are checked:

- no committed row vanishes, and readers see each row once;
- a pair that counts as done has the picture of its row;
- nothing outside OUT is touched.

At the end a run without faults must finish what is left, and every counted row must have its losses.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest.mock import patch

import greenlet
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import torch

from batchnst.engine import rows, worker
from batchnst.engine.plan import Job, make_plan, with_previous
from batchnst.errors import BatchNSTError, StorageError
from batchnst.ledger import claim as claims
from batchnst.ledger import out, outcomes, parquet, state
from batchnst.ledger.claim import Claim, Lease
from batchnst.ledger.compaction import current_files
from batchnst.ledger.out import Out
from batchnst.ledger.pictures.form import FormName
from batchnst.ledger.pictures.stored import form_of
from batchnst.ledger.previous import PREVIOUS
from batchnst.ledger.process import Process
from batchnst.ledger.schema import ATTEMPT
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.reading import read_manifest
from batchnst.painting.inputs import Inputs
from batchnst.painting.painter import Curve, Painted
from batchnst.pictures.decode import Pixels
from batchnst.storage import files
from batchnst.storage.files import Folder
from batchnst.storage.stores import Store
from batchnst.transfer.losses import Losses
from batchnst.transfer.memory import UNBOUNDED

ROOT = "bucket/out"
ADDRESS = f"sim://{ROOT}"
WEIGHTS = "w" * 64

PAIRS = ("a", "b", "c")
TASK_SECONDS = 400.0
"""Seconds after which a driver gives a task up as lost."""

CHECKED = ("ledger", "images", "pictures", "previous", "state", "intents")
"""Folders of OUT whose changes may violate an invariant."""

FORMS: tuple[FormName, ...] = ("files", "parquet", "tar")

STEPS = 4_000
"""Operations of one schedule, at most."""


class Crashed(BaseException):
    """The process ends at this operation."""


class Violated(BaseException):
    """An invariant does not hold."""


@dataclass(eq=False)
class Actor:
    """A process on a host, with its threads. `skew` is what its clock is ahead of the true time, in seconds."""

    name: str
    host: str
    skew: float
    threads: list[greenlet.greenlet] = field(default_factory=list)
    suspended_until: float = 0.0
    crashed: bool = False
    error: BaseException | None = None

    @property
    def alive(self) -> bool:
        """True while a thread has not ended."""
        return not self.crashed and any(not thread.dead for thread in self.threads)


@dataclass
class Faults:
    """How often each fault was injected."""

    suspended: int = 0
    crashed: int = 0
    late: int = 0
    twice: int = 0
    unreported: int = 0


class World:
    """The store, the true time, and the processes."""

    def __init__(self, seed: int, forms: Sequence[FormName] = ("files",)) -> None:
        self.random = random.Random(seed)
        self.form_of_run = defaultdict[str, FormName](partial(random.Random(-seed).choice, forms))
        self.fenced: set[str] = set()
        """Files that a compaction has taken from workers whose pictures it removes."""
        self.now = 1_000_000.0
        self.files: dict[str, tuple[bytes, str]] = {}
        self.written = 0
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.wakes: dict[greenlet.greenlet, float] = {}
        self.pending: list[tuple[float, Callable[[], None]]] = []
        self.faults = Faults()
        self.calm = False
        self.observing = 0
        self.steps = 0
        self.hub = greenlet.getcurrent()
        self.known: dict[Any, list[dict[str, Any]]] = {}
        self.latest: state.State | None = None
        self.beats: defaultdict[str, list[float]] = defaultdict(list)
        """True times of each run's heartbeats."""
        self.looked: dict[str, float] = {}
        """True time at which a process last looked for another one's heartbeat."""
        self.committed: dict[str, set[tuple[str, str, int]]] = {"pairs": set(), "losses": set()}

    # Processes -----------------------------------------------------------------------------------------------------

    def start(self, name: str, main: Callable[[], None], host: str | None = None, parent: Actor | None = None) -> Actor:
        """A new process; its main function starts when the scheduler lets it."""
        skew = self.random.choice([0.0, 0.0, -900.0, 600.0, 4000.0])
        actor = Actor(name, host or name, parent.skew if parent else skew)
        self.actors.append(actor)
        self.spawn(actor, main)
        return actor

    def spawn(self, actor: Actor, main: Callable[[], None]) -> greenlet.greenlet:
        """A new thread of a process."""

        def run() -> None:
            try:
                main()
            except Crashed:
                actor.crashed = True
            except Violated:
                raise
            except BaseException as error:  # the process ends with a traceback, or with a line
                actor.error = error

        thread = greenlet.greenlet(run, self.hub)
        actor.threads.append(thread)
        self.wakes[thread] = self.now
        return thread

    def sleep(self, seconds: float) -> None:
        """Let others go on; the current thread goes on after some seconds."""
        if self.observing or greenlet.getcurrent() is self.hub:
            return
        self.wakes[greenlet.getcurrent()] = self.now + seconds
        self.hub.switch()
        assert self.current
        if self.current.crashed:
            raise Crashed

    def run(self) -> None:
        """Let all processes take turns until each has ended."""
        while True:
            self.land()
            for actor in self.actors:
                actor.threads = [thread for thread in actor.threads if not thread.dead]
            ready = [(actor, thread) for actor in self.actors for thread in actor.threads if self.ready(actor, thread)]
            if not ready:
                if not self.skip_time():
                    return
                continue
            actor, thread = self.random.choice(ready)
            self.current = actor
            self.now += self.random.choice([0.001, 0.001, 0.01, 0.5])
            thread.switch()
            self.current = None
            self.steps += 1
            if self.steps > STEPS:
                self.calm = True
            if self.steps > 10 * STEPS:
                raise Violated("the processes never come to an end")

    def ready(self, actor: Actor, thread: greenlet.greenlet) -> bool:
        """True if a thread can go on now."""
        if actor.suspended_until > self.now:
            return False
        return actor.crashed or self.wakes[thread] <= self.now

    def skip_time(self) -> bool:
        """Go on to the next moment at which something happens; False if nothing will."""
        moments = [when for when, _ in self.pending]
        for actor in self.actors:
            for thread in actor.threads:
                moments.append(max(self.wakes[thread], actor.suspended_until))
        if not moments:
            return False
        self.now = max(self.now, min(moments))
        return True

    # The store -----------------------------------------------------------------------------------------------------

    def step(self, suspend: float = 0.004) -> None:
        """Before each operation: the scheduler may take the turn away, suspend the process, or let it crash."""
        if self.observing or greenlet.getcurrent() is self.hub:
            return
        assert self.current
        if not self.calm:
            chance = self.random.random()
            if chance < suspend:
                self.faults.suspended += 1
                self.current.suspended_until = self.now + self.random.choice([5.0, 100.0, 1000.0])
            elif chance < suspend + 0.002:
                self.faults.crashed += 1
                self.current.crashed = True
                raise Crashed
        self.sleep(0)

    def write(self, path: str, effect: Callable[[], None]) -> None:
        """Let a write to `path` land: now, late, twice, or with a failure reported."""
        self.step()

        def effect_and_check() -> None:
            effect()
            if any(f"/{part}/" in path for part in CHECKED):
                self.check()

        chance = 1.0 if self.calm or self.observing else self.random.random()
        if chance < 0.01:
            self.faults.late += 1
            self.pending.append((self.now + self.random.choice([1.0, 50.0, 500.0]), effect_and_check))
            raise ConnectionError("no answer")
        effect_and_check()
        if chance < 0.02:
            self.faults.unreported += 1
            raise ConnectionError("no answer")
        if chance < 0.03:
            self.faults.twice += 1
            self.pending.append((self.now + self.random.choice([1.0, 50.0, 500.0]), effect_and_check))
        self.step()

    def land(self) -> None:
        """Let the late writes land whose time has come."""
        due = [effect for when, effect in self.pending if when <= self.now]
        self.pending = [(when, effect) for when, effect in self.pending if when > self.now]
        for effect in due:
            with suppress(FileExistsError, FileNotFoundError):
                effect()

    def put(self, path: str, data: bytes) -> None:
        """Write a file."""
        if not path.startswith(f"{ROOT}/"):
            raise Violated(f"{path} is outside OUT")
        self.written += 1
        self.files[path] = data, str(self.written)
        if "/ledger/pairs/" in path and not _keys(data):
            self.fenced.add(path)
        name = path.rpartition("/")[2]
        if name.startswith("alive-") and data not in self.known:  # one that lands twice is no new sign of life
            self.known[data] = []
            self.beats[name.removeprefix("alive-")].append(self.now)
        elif "/state/" in path:
            self.check_takeover(data)

    # Invariants ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check all invariants, of the store as it is at this moment."""
        if self.observing:
            return
        self.observing += 1
        try:
            folder = Out(ADDRESS)
            self.check_tables(folder)
            self.check_pictures(folder)
        except BatchNSTError as error:
            raise Violated(f"OUT cannot be read: {error}") from None
        finally:
            self.observing -= 1

    def check_tables(self, folder: Out) -> None:
        """No committed row vanishes, and none is counted twice."""
        for table, committed in self.committed.items():
            for path, (data, _) in self.files.items():
                if path.startswith(f"{ROOT}/ledger/{table}/") and path not in self.fenced:
                    committed |= _keys(data)
            seen = Counter[tuple[str, str, int]]()
            for info in folder.files(table):
                seen.update(_keys(self.files[info.path][0]))
            if lost := committed - seen.keys():
                raise Violated(f"rows of {table} vanished: {sorted(lost)}")
            if doubled := [key for key, count in seen.items() if count > 1]:
                raise Violated(f"rows of {table} counted twice: {doubled}")

    def check_pictures(self, folder: Out) -> None:
        """A pair that counts as done has the picture of its row."""
        done = self.done(folder)
        apart = [row for row in done if self.form_of_run[row["run_id"]] == "files"]
        for row in apart:
            data = self.files.get(f"{ROOT}/images/{row['output']}", (b"", ""))[0]
            if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
                raise Violated(f"{row['output']} belongs to a pair that counts as done, but is another picture")
        if len(apart) < len(done):
            self.check_together(folder, [row for row in done if row not in apart])

    def check_together(self, folder: Out, done: Sequence[dict[str, Any]]) -> None:
        """The picture of a pair that counts as done is in `pictures/` once."""
        found = defaultdict[tuple[str, str, int], list[str]](list)
        for info in current_files(folder.folder, "pictures"):
            for key, sha256 in _pictures(info.base_name, self.files[info.path][0]):
                found[key].append(sha256)
        for row in done:
            key = row["run_id"], row["pair_id"], row["attempt"]
            if found[key] != [row["output_sha256"]]:
                raise Violated(f"{key} counts as done, and has {len(found[key])} pictures")

    def done(self, folder: Out) -> list[dict[str, Any]]:
        """The rows of the pairs that count as done, by the project's own reckoning."""
        intents = folder.intents()
        key = tuple(info.path for info in folder.files("pairs")), repr(intents)
        if key not in self.known:
            newest = out.newest_rows(folder.rows("pairs", [*outcomes.COLUMNS, "run_id", "output_sha256"])).to_pylist()
            positions, found = folder.newest().find([row["pair_id"] for row in newest])
            self.known[key] = [newest[i] for i, outcome in zip(positions, found, strict=True) if outcome.done]
        return self.known[key]

    def check_takeover(self, data: bytes) -> None:
        """Nobody takes OUT from a run that is alive and gave a sign of life lately."""
        new = state._parse(data)
        previous, self.latest = self.latest, new
        if previous is None or previous.holder is None or new.holder is None or previous.run_id == new.run_id:
            return
        alive = any(actor.name == previous.run_id and actor.alive for actor in self.actors)
        looked = self.looked.get(new.run_id, self.now)
        silence = looked - max((beat for beat in self.beats[previous.run_id] if beat <= looked), default=0.0)
        if alive and silence < claims.SILENCE_SECONDS / 2:
            raise Violated(f"{new.run_id} took OUT from {previous.run_id}, which was alive {silence:.0f} s before")


# Parquet is left out: it takes most of the time, and has tests of its own. Files hold the same rows as Arrow streams.


def encode(rows: pa.Table, table: str, *, statistics: bool) -> bytes:
    """The rows as a file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


@lru_cache(maxsize=4096)
def decode(data: bytes) -> pa.Table:
    """The rows of a file."""
    return pa.ipc.open_stream(data).read_all()


def read(folder: Folder, info: pafs.FileInfo, columns: Any = None, matching: Any = None) -> pa.Table:
    """The rows of a ledger file, or some of their columns."""
    rows = decode(folder.open(info.path, 1).read())
    return rows.select(columns) if columns else rows


@lru_cache(maxsize=4096)
def _keys(data: bytes) -> frozenset[tuple[str, str, int]]:
    """Run, pair and attempt of each row of a ledger file."""
    columns = [column.to_pylist() for column in decode(data).select(ATTEMPT).columns]
    return frozenset(zip(*columns, strict=True))


@lru_cache(maxsize=4096)
def _pictures(name: str, data: bytes) -> list[tuple[tuple[str, str, int], str]]:
    """Run, pair and attempt of each picture in a file, and the hash of its bytes."""
    form = form_of(name)
    entries = form.index(io.BytesIO(data), name).to_pylist()
    pictures = form.read(io.BytesIO(data), name, entries)
    return [
        ((entry["run_id"], entry["pair_id"], entry["attempt"]), hashlib.sha256(picture).hexdigest())
        for entry, picture in zip(entries, pictures, strict=True)
    ]


class SimulatedStore(Store):
    """The store of a World, with conditional writes."""

    world: World

    def __init__(self, world: World) -> None:
        object.__setattr__(self, "world", world)
        super().__init__(pafs.LocalFileSystem(), "sim://", "")

    def path(self, address: str) -> str:
        return address.removeprefix("sim://").strip("/")

    def retry(self, action: Callable[[], Any]) -> Any:
        for attempt in range(3):
            try:
                return action()
            except ConnectionError:
                if attempt == 2:
                    raise
                self.world.sleep(1.0)
        raise AssertionError

    def list(self, path: str) -> list[pafs.FileInfo]:
        self.world.step()
        # A listing is not one moment: it is put together of two halves.
        names = sorted(name for name in self.world.files if name.startswith(f"{path}/"))
        half = names[len(names) // 2] if names and not self.world.observing else ""
        first = [name for name in names if name < half]
        if half:
            self.world.step()
            names = sorted(name for name in self.world.files if name.startswith(f"{path}/"))
        listed = [*first, *(name for name in names if name >= half)]
        sizes = {name: len(self.world.files[name][0]) if name in self.world.files else 1 for name in listed}
        return [pafs.FileInfo(name, pafs.FileType.File, size=size) for name, size in sizes.items()]

    def exists(self, path: str) -> bool:
        self.world.step()
        return path in self.world.files

    def read(self, path: str, *, may_change: bool = False) -> bytes:
        self.world.step()
        if "/alive-" in path and self.world.current:
            self.world.looked[self.world.current.name] = self.world.now
        if path not in self.world.files:
            raise FileNotFoundError(path)
        return self.world.files[path][0]

    def open(self, path: str, buffer: int, *, in_parts: bool = False) -> Any:
        return io.BytesIO(self.read(path))

    def put(self, path: str, data: bytes, temporary: str, before: Callable[[], None] = lambda: None) -> None:
        before()
        self.world.write(path, lambda: self.world.put(path, data))

    def scratch(self, temporary: str) -> BinaryIO:
        return io.BytesIO()

    def put_scratch(self, file: BinaryIO, path: str, temporary: str, before: Callable[[], None]) -> None:
        file.seek(0)
        self.put(path, file.read(), temporary, before)

    def create(self, path: str, data: bytes, temporary: str) -> None:
        def effect() -> None:
            if path in self.world.files:
                raise FileExistsError(path)
            self.world.put(path, data)

        self.world.step(suspend=0.04)  # where it hurts most: between a look at the state and its change
        self.world.write(path, effect)

    def version(self, path: str) -> str | None:
        self.world.step()
        return self.world.files.get(path, (b"", None))[1]

    def replace(self, path: str, data: bytes, temporary: str, version: str | None, before: Callable[[], None]) -> None:
        def effect() -> None:
            if self.world.files.get(path, (b"", None))[1] != version:
                raise FileExistsError(path)
            self.world.put(path, data)

        before()
        self.world.write(path, effect)

    def move(self, source: str, target: str) -> None:
        # As object stores move: a copy, which may land late, and a deletion.
        data = self.read(source)
        self.world.write(target, lambda: self.world.put(target, data))
        self.delete(source)

    def delete(self, path: str) -> None:
        def effect() -> None:
            if self.world.files.pop(path, None) is None:
                raise FileNotFoundError(path)

        self.world.write(path, effect)


# The processes' surroundings ---------------------------------------------------------------------------------------


class SimulatedThread:
    """A thread of the current process."""

    def __init__(self, world: World, target: Callable[[], None]) -> None:
        self.world, self.target = world, target
        self.thread: greenlet.greenlet | None = None

    def start(self) -> None:
        assert self.world.current
        self.thread = self.world.spawn(self.world.current, self.target)

    def join(self) -> None:
        while self.thread and not self.thread.dead:
            self.world.sleep(1.0)


class SimulatedEvent:
    """An event between threads of one process."""

    def __init__(self, world: World) -> None:
        self.world, self.happened = world, False
        self.waiting: list[greenlet.greenlet] = []

    def set(self) -> None:
        self.happened = True
        for thread in self.waiting:
            self.world.wakes[thread] = self.world.now

    def wait(self, seconds: float) -> bool:
        if not self.happened:
            self.waiting = [greenlet.getcurrent()]
            self.world.sleep(seconds)
        return self.happened


@contextmanager
def surroundings(world: World, broken: int = 0) -> Iterator[None]:
    """Replace clocks, threads, the store and the process's identity by the simulated ones."""
    store = SimulatedStore(world)

    def skew() -> float:
        return world.current.skew if world.current else 0.0

    def here() -> Process:
        name, host = (world.current.name, world.current.host) if world.current else ("observer", "observer")
        # All hosts have one name, as containers of one image have; processes have few numbers.
        return Process("host", 7, boot=host, namespace="", started=name)

    def has_exited(self: Process) -> bool:
        if world.current is None or world.current.host != self.boot:
            return False
        return not any(actor.name == self.started and actor.alive for actor in world.actors)

    clock = SimpleNamespace(
        sleep=world.sleep,
        monotonic=lambda: world.now,
        time_ns=lambda: int((world.now + skew()) * 1e9),
    )
    threads = SimpleNamespace(
        Thread=lambda target, daemon: SimulatedThread(world, target), Event=lambda: SimulatedEvent(world)
    )
    calendar = SimpleNamespace(now=lambda zone: datetime.fromtimestamp(world.now + skew(), UTC))
    with ExitStack() as stack:
        for target, name, new in [
            (files, "store_of", lambda address: store),
            (Folder, "streams", 1),
            (claims, "time", clock),
            (state, "time", clock),
            (claims, "threading", threads),
            (Process, "here", here),
            *([] if broken == 5 else [(Process, "has_exited", has_exited)]),
            (rows, "datetime", calendar),
            (parquet, "encode", encode),
            (parquet, "read", read),
        ]:
            stack.enter_context(patch.object(target, name, new))
        yield


# What the processes do ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def manifest(version: int) -> Manifest:
    """Three pairs; those of version 1 are painted otherwise, and c goes to the output of b under another id."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.csv")
        lines = [f"/{name}.jpg,/s.png,{name},{name}.png,{100 + version}" for name in PAIRS[:2]]
        lines.append(f"/c.jpg,/s.png,c{version},c.png,100")
        path.write_text("\n".join(["content,style,id,output,style_weight", *lines]) + "\n")
        return read_manifest(str(path), {})


def painted(job: Job, lease: Lease) -> Painted:
    """A picture that no other attempt paints."""
    digest = hashlib.sha256(f"{lease} {job.pair.id} {job.attempt} {job.fingerprint}".encode()).digest()
    pixels: Pixels = np.frombuffer(digest[:12], np.uint8).reshape(2, 2, 3)
    one = torch.ones(1)
    losses = Losses(one, one, one, {"relu1_1": one})
    return Painted(pixels, None, losses, "steps", Curve([2], [0.0], losses), UNBOUNDED)


def work(lease: Lease, jobs: Sequence[Job]) -> None:
    """What a worker does with a chunk, but for the painting: commit each batch."""
    committer = worker._Committer(Out(ADDRESS), lease, WEIGHTS, torch.device("cpu"), torch.float32, None)
    blank: Pixels = np.zeros((2, 2, 3), np.uint8)
    for job in jobs:
        inputs = Inputs(blank, (blank,), (1.0,), content_sha256="c", style_sha256=("s",))
        started = datetime.fromtimestamp(0, UTC)
        committer.commit([job], [inputs], [painted(job, lease)], started)


def drive(world: World, run_id: str, version: int) -> None:
    """A run: claim, plan, tasks on other hosts, what is lost again, compaction."""
    folder = Out(ADDRESS)
    with folder.claim(run_id, world.form_of_run[run_id]) as claim:
        folder.recover(claim)
        plan = make_plan(manifest(version), folder.newest(), {("vgg19", "bundled"): WEIGHTS})
        left, number = with_previous(plan.jobs(), folder), 0
        while left:
            number += 1
            jobs, left = left[:2], left[2:]
            lease = claim.lease(number)
            task = world.start(f"{run_id}-task-{number}", partial(work, lease, jobs))
            patience = world.now + TASK_SECONDS
            while task.alive and world.now < patience:
                world.sleep(20.0)
            claim.check()
            if isinstance(task.error, StorageError):
                raise task.error
            if task.error:
                raise Violated(f"a worker ended with {task.error!r}")
            if task.alive or task.crashed:
                claim.revoke(number)
                finished = folder.committed(lease)
                left = [replace(job, attempt=job.attempt + 1) for job in jobs if job.pair.id not in finished] + left
        folder.compact(claim)


def merge(run_id: str) -> None:
    """`batchnst ledger compact`."""
    folder = Out(ADDRESS)
    with folder.claim(run_id) as claim:
        folder.compact(claim)


def look(world: World) -> None:
    """A reader: it sees each row once, and all that were committed when it began."""
    for _ in range(6):
        before = set(world.committed["pairs"])
        found = Out(ADDRESS).rows("pairs", ["run_id", "pair_id", "attempt"]).to_pylist()
        keys = Counter((row["run_id"], row["pair_id"], row["attempt"]) for row in found)
        if missing := before - keys.keys():
            raise Violated(f"a reader missed {sorted(missing)}")
        if doubled := [key for key, count in keys.items() if count > 1]:
            raise Violated(f"a reader saw twice {doubled}")
        world.sleep(50.0)


def refused(main: Callable[[], None]) -> Callable[[], None]:
    """Run a process again that was refused, or that stopped with a line, as a person would."""

    def run() -> None:
        with suppress(BatchNSTError, FileNotFoundError):
            main()

    return run


def schedule(seed: int, broken: int = 0, forms: Sequence[FormName] = ("files",)) -> World:
    """One schedule: two runs, a compaction and a reader with faults; then a run without, and an audit.

    Each run writes its pictures in one of `forms`.
    """
    world = World(seed, forms)
    with surroundings(world, broken), BREAKS.get(broken, nullcontext)():
        world.start("run-1", refused(partial(drive, world, "run-1", 0)))
        for name, main, delay in [
            ("run-2", partial(drive, world, "run-2", world.random.choice([0, 0, 1])), 300.0),
            ("merge", partial(merge, "merge"), 200.0),
            ("run-3", partial(drive, world, "run-3", 0), 1500.0),
            ("reader", partial(look, world), 0.0),
        ]:

            def later(main: Callable[[], None] = main, delay: float = delay) -> None:
                world.sleep(world.random.random() * delay)
                refused(main)()

            world.start(name, later)
        world.run()
        world.calm = True
        last = world.start("last", partial(drive, world, "last", 0))
        world.run()
        if last.error:
            raise Violated(f"the last run could not finish: {last.error!r}") from last.error
        end(world)
    return world


def end(world: World) -> None:
    """After the last run everything is done, and each counted row has its losses."""
    world.observing += 1
    folder = Out(ADDRESS)
    plan = make_plan(manifest(0), folder.newest(), {("vgg19", "bundled"): WEIGHTS})
    if len(plan):
        raise Violated(f"the last run left {[job.pair.id for job in plan.jobs()]}")
    hashes = {row["output_sha256"] for row in folder.rows("pairs").to_pylist()}
    together = folder.pictures(tables=[PREVIOUS], claims=True).entries
    apart = [data for path, (data, _) in world.files.items() if fnmatch(path, f"{ROOT}/{PREVIOUS}/*/*")]
    earlier = {hashlib.sha256(data).hexdigest() for data in apart} | set(together["sha256"].to_pylist())
    if not earlier <= hashes:
        raise Violated("a picture of an earlier attempt is not that of a row")
    if alone := world.committed["pairs"] - world.committed["losses"]:
        raise Violated(f"rows without losses: {sorted(alone)}")
    world.observing -= 1


# Faults put back ---------------------------------------------------------------------------------------------------


@contextmanager
def compaction_without_a_decision() -> Iterator[None]:
    """A compaction that was suspended goes on as if nothing had happened."""

    def change(self: Claim, change: Callable[[Any], dict[str, Any]]) -> None:
        state.change_latest(self.folder, change)

    with (
        patch.object(Claim, "change", change),
        patch.object(Claim, "check", lambda self: None),
        patch.object(Folder, "exists", lambda self, relative: True),
    ):
        yield


@contextmanager
def one_check_a_batch() -> Iterator[None]:
    """The claim is checked before a batch, and pictures are written whatever is there."""
    real = Out.commit

    def commit(self: Out, lease: Lease, *rest: Any) -> None:
        self.check(lease)
        with patch.object(Out, "check", lambda self, lease: None):
            real(self, lease, *rest)

    def overwrite(self: SimulatedStore, path: str, data: bytes, temporary: str, version: Any, before: Any) -> None:
        self.put(path, data, temporary)

    with patch.object(Out, "commit", commit), patch.object(SimulatedStore, "replace", overwrite):
        yield


@contextmanager
def newest_by_the_clock() -> Iterator[None]:
    """The row with the latest `finished_at` counts."""

    def order(rows: pa.Table, by: Sequence[str]) -> Any:
        return np.argsort(rows["finished_at" if "finished_at" in rows.column_names else by[-1]].cast("int64"))

    with patch.object(out, "_order", order):
        yield


@contextmanager
def any_ok_row_is_done() -> Iterator[None]:
    """A pair is done by its own rows, whoever has written its output since."""
    with patch.object(outcomes.PairRows, "owners", lambda rows, intents: rows.ok):
        yield


@contextmanager
def others_taken_for_dead() -> Iterator[None]:
    """Every process of the same host name that is not this one has exited."""
    with patch.object(Process, "has_exited", lambda self: True):
        yield


@contextmanager
def rows_before_pictures() -> Iterator[None]:
    """A worker writes its pictures last."""
    real = Folder.write
    late = list[Callable[[], None]]()

    def write(self: Folder, relative: str, *rest: Any, **options: Any) -> None:
        if relative.startswith("pictures/"):
            late.append(partial(real, self, relative, *rest, **options))
        else:
            real(self, relative, *rest, **options)

    real_commit = Out.commit

    def commit(*arguments: Any) -> None:
        real_commit(*arguments)
        while late:
            late.pop()()

    with patch.object(Folder, "write", write), patch.object(Out, "commit", commit):
        yield


BREAKS = {
    1: compaction_without_a_decision,
    2: one_check_a_batch,
    3: newest_by_the_clock,
    4: any_ok_row_is_done,
    5: others_taken_for_dead,
    6: rows_before_pictures,
}
"""Faults, by their numbers, to see that the simulator finds each."""


# The command -------------------------------------------------------------------------------------------------------


def attempt(seed: int, broken: int = 0, forms: Sequence[FormName] = ("files",)) -> tuple[int, Faults, int, str]:
    """A schedule's seed, faults and operations, and what was violated; `broken` is a key of BREAKS."""
    if seed % 500 == 0:
        gc.collect()
    try:
        world = schedule(seed, broken, forms)
    except Violated as violated:
        return seed, Faults(), 0, str(violated)
    return seed, world.faults, world.steps, ""


def main() -> None:
    """Run schedules and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pictures", choices=[*FORMS, "mixed"], default="mixed")
    options = parser.parse_args()
    forms = FORMS if options.pictures == "mixed" else (options.pictures,)
    started, total, steps, violations = time.monotonic(), Counter[str](), 0, list[str]()
    torch.set_num_threads(1)
    gc.disable()  # of cycles there are few, and collecting them takes a third of the time
    seeds = range(options.seed, options.seed + options.schedules)
    with ProcessPoolExecutor(options.processes) as pool:
        for count, (seed, faults, taken, violated) in enumerate(
            pool.map(partial(attempt, forms=forms), seeds, chunksize=20), 1
        ):
            total.update(vars(faults))
            steps += taken
            if violated:
                violations.append(f"seed {seed}: {violated}")
                print(violations[-1], flush=True)
            if count % 5000 == 0:
                print(f"{count} schedules, {time.monotonic() - started:.0f} s", flush=True)
    faults_text = ", ".join(f"{count} {name}" for name, count in total.items())
    print(f"{options.schedules} schedules, {steps} operations; faults: {faults_text}; violations: {len(violations)}")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
