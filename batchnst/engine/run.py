"""A run from manifest to ledger: claim OUT, plan, paint, and say what happens meanwhile."""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Literal, Protocol

from batchnst.engine.events import Event, Notice
from batchnst.engine.plan import Batch, Chunk, Plan, expected_dtype, largest_by_recipe, make_batches, make_plan
from batchnst.engine.ray_address import choose
from batchnst.engine.worker import paint_chunk
from batchnst.errors import EngineError, LedgerError, RequestError, StorageError
from batchnst.ledger.claim import SILENCE_SECONDS, Claim, Lease
from batchnst.ledger.out import Out, Outcomes
from batchnst.ledger.schema import RunRow
from batchnst.manifest.manifest import Manifest
from batchnst.painting.ahead import ahead
from batchnst.painting.named_weights import load_networks
from batchnst.progress import Work
from batchnst.storage.files import resolve
from batchnst.transfer.device import Hardware, tune_process
from batchnst.transfer.memory import memory_problem
from batchnst.transfer.weights import Weights

BLOCK = 10_000
"""Jobs that are put into batches together, while those before them are painted."""

MANY_FILES = 100
"""Ledger files that are worth merging when a run ends."""

CHUNK_SECONDS = 60.0
"""What a chunk takes: long beside what starting a task costs, short beside the night."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run; what to paint is in the pairs."""

    out: str
    engine: Literal["ray", "inline"] = "ray"
    address: str | None = None
    batch_size: int | None = None
    gpus_per_task: float | None = None
    max_attempts: int = 3
    retry_failed: bool = False
    limit: int | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Planned:
    """What the run is about to do: the first event of every run, but for notices.

    work: pixel-steps of all jobs, beyond the first block guessed from that. workers: how many will be busy.
    """

    plan: Plan
    work: float
    workers: int


class Engine(Protocol):
    """Something that paints chunks."""

    device_type: str

    @property
    def ready(self) -> bool:
        """Whether there is a worker already."""

    @property
    def workers(self) -> int:
        """How many there are at this moment, one at the least."""

    def memory(self) -> float:
        """Bytes that a worker has."""

    def paint(
        self, chunks: Iterator[Chunk], weights: Mapping[tuple[str, str], Weights], claim: Claim, tasks: int
    ) -> Iterator[Event]:
        """Paint all chunks, each with the weights of its network; yields events as they come.

        tasks: how many there can be at once, at the most.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class Inline:
    """This process and no other."""

    workers, ready = 1, True

    def __init__(self, memory: float | None) -> None:
        tune_process()
        self.hardware = Hardware.here(memory)
        self.device_type = self.hardware.device.type

    def memory(self) -> float:
        """What this process's device has."""
        return self.hardware.memory

    def paint(
        self, chunks: Iterator[Chunk], weights: Mapping[tuple[str, str], Weights], claim: Claim, tasks: int
    ) -> Iterator[Event]:
        """Paint one chunk after the other."""
        for chunk in chunks:
            lease = Lease(claim.run_id)
            yield from paint_chunk(chunk, weights[chunk.network], claim.folder.address, lease, self.hardware)

    def close(self) -> None:
        """Nothing to close."""


def run(pairs: Manifest, options: Options) -> Iterator[Planned | Event]:
    """Paint every pair that OUT does not hold yet; yields Planned, then what happens, as it happens.

    In the end the ledger's small files are merged, if there are many.

    Raises RequestError before anything is painted, StorageError if OUT is lost meanwhile.
    """
    out = Out(options.out)
    weights = load_networks(pairs.networks)
    claim = out.claim(f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}")
    if rival := claim.rival():
        yield Notice(f"{rival} has {out.address}; looking for a sign of life for up to {SILENCE_SECONDS:.0f} s")
    with ExitStack() as stack:
        try:
            stack.enter_context(claim)
        except StorageError as error:
            raise RequestError(f"--out {error}") from None
        out.recover()
        # What is done is read under the claim: nobody else can add to it now.
        plan = plan_run(pairs, out, weights, retry_failed=options.retry_failed, limit=options.limit)
        if not len(plan):
            yield Planned(plan, 0, 0)
            return
        yield from _paint(plan, out, claim, weights, options)
        try:
            out.compact(at_least=MANY_FILES)
        except (LedgerError, StorageError) as error:
            yield Notice(f"the ledger's small files are left as they are: {error}")


def _run_row(plan: Plan, run_id: str, engine: str) -> RunRow:
    return RunRow(
        run_id=run_id,
        started_at=datetime.now(UTC),
        manifest=resolve(plan.manifest.address, "."),
        settings=json.dumps(plan.manifest.settings, sort_keys=True),
        pairs=plan.pairs,
        done=plan.done,
        given_up=plan.failed,
        to_paint=len(plan),
        engine=engine,
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def _paint(
    plan: Plan, out: Out, claim: Claim, weights: Mapping[tuple[str, str], Weights], options: Options
) -> Iterator[Planned | Event]:
    """Paint all jobs of a plan."""
    engine = _start(options)
    try:
        if not engine.ready:
            yield Notice("waiting for the cluster to start a node")
        memory = engine.memory()
        blocks = _blocks(plan, options.batch_size, engine, memory)
        first, last = next(blocks)
        _check_memory(first, memory)
        out.begin(_run_row(plan, claim.run_id, options.engine))  # from here on, the request is a run
        share = sum(len(batch.jobs) for batch in first) / len(plan)
        yield Planned(plan, sum(batch.work for batch in first) / share, min(engine.workers, len(first)))
        pace = _Pace()
        chunks = make_chunks(chain([(first, last)], blocks), engine, pace.work_in)
        for event in engine.paint(chunks, weights, claim, len(first)):
            pace.add(event)
            yield event
    finally:
        engine.close()


def plan_run(
    pairs: Manifest,
    out: Out | None,
    weights: Mapping[tuple[str, str], Weights],
    *,
    retry_failed: bool,
    limit: int | None,
) -> Plan:
    """What is left of the manifest to be painted into OUT."""
    hashes = {network: own.sha256 for network, own in weights.items()}
    return make_plan(pairs, out.newest() if out else Outcomes(), hashes, retry_failed=retry_failed, limit=limit)


def _blocks(plan: Plan, batch_size: int | None, engine: Engine, memory: float) -> Iterator[tuple[list[Batch], bool]]:
    """The plan's batches, a block at a time, and whether it is the last; each is made in a thread, ahead of its use."""
    largest = largest_by_recipe(memory, engine.device_type)
    parts = [slice(start, start + BLOCK) for start in range(0, len(plan), BLOCK)]
    for part, batches in ahead(lambda part: make_batches(plan.jobs(part), batch_size, engine.workers, largest), parts):
        yield batches, part is parts[-1]


def _check_memory(batches: Sequence[Batch], memory: float) -> None:
    """Raise EngineError, naming a pair, where no worker has the memory for one by itself."""
    for batch in batches:
        if batch.size and not batch.fitting(memory, 1):
            problem = memory_problem(memory, batch.recipe, batch.size, expected_dtype(batch.recipe))
            raise EngineError(f"{batch.jobs[0].pair.id}: {problem}")


def make_chunks(
    blocks: Iterable[tuple[Sequence[Batch], bool]], engine: Engine, work_in: Callable[[float], float]
) -> Iterator[Chunk]:
    """Batches of one network together, so that a worker loads the next while it paints.

    As many as take CHUNK_SECONDS, `work_in` being the pixel-steps a worker does in so many seconds, but fewer and fewer
    in the last block, so that all workers end together.
    """
    for block, last in blocks:
        left = sum(batch.work for batch in block) if last else math.inf
        for network in dict.fromkeys(batch.recipe.network for batch in block):
            members: list[Batch] = []
            work = 0
            for batch in block:
                if batch.recipe.network != network:
                    continue
                most = min(work_in(CHUNK_SECONDS), (work + left) / (2 * engine.workers))
                if members and work + batch.work > most:
                    yield Chunk(tuple(members))
                    members, work = [], 0
                members.append(batch)
                work += batch.work
                left -= batch.work
            yield Chunk(tuple(members))


class _Pace:
    """How fast a worker of this run paints, from what they all report."""

    def __init__(self) -> None:
        self._work, self._seconds = 0, 0.0

    def add(self, event: Event) -> None:
        """Count what was done."""
        if isinstance(event, Work):
            self._work, self._seconds = self._work + event.pixel_steps, self._seconds + event.seconds

    def work_in(self, seconds: float) -> float:
        """Pixel-steps that a worker does in so many seconds; none as long as nothing is known."""
        return seconds * self._work / self._seconds if self._seconds else 0.0


def _start(options: Options) -> Engine:
    if options.engine == "inline":
        return Inline(options.memory)
    address = choose(options.address)
    from batchnst.engine.ray_cluster import Cluster

    return Cluster(address, options.gpus_per_task, options.max_attempts, options.memory)
