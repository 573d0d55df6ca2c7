"""A run from manifest to ledger: claim OUT, plan, paint, and yield events."""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Literal, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from batchnst.engine.back_again import describe_back_again
from batchnst.engine.events import Event, Finished, Notice, Sealed
from batchnst.engine.failing_stores import FailingStores
from batchnst.engine.in_the_way import check_replaces_nothing
from batchnst.engine.newer import describe_newer
from batchnst.engine.plan import Batch, Chunk, Plan, largest_by_recipe, make_batches, make_plan, with_previous
from batchnst.engine.ray_address import choose_address
from batchnst.engine.repaint import Redo, choose, named_rows
from batchnst.engine.worker import paint_chunk
from batchnst.errors import EngineError, LedgerError, RequestError, StorageError
from batchnst.ledger import seal
from batchnst.ledger.claim import SILENCE_SECONDS, Claim
from batchnst.ledger.keys import read_private
from batchnst.ledger.out import Out
from batchnst.ledger.outcomes import Outcomes
from batchnst.ledger.pictures.form import FormName
from batchnst.ledger.pictures.shards import SHARD_SIZE
from batchnst.ledger.schema import RunRow
from batchnst.manifest.manifest import Manifest
from batchnst.painting.ahead import ahead
from batchnst.painting.named_weights import load_networks
from batchnst.pictures.credentials import Credentials, read_credentials
from batchnst.progress import Work
from batchnst.storage.files import resolve
from batchnst.transfer.device import Hardware, keeps_shapes, tune_process
from batchnst.transfer.weights import Weights

BLOCK = 10_000
"""Jobs grouped into batches at a time, while the jobs before them are painted."""

MANY_FILES = 100
"""Number of ledger files from which a run merges them at its end."""

UNKNOWN = 16
"""Most batches of unknown size in a chunk."""

AGAIN_SECONDS = 5.0
"""Pause before pairs that failed for a passing reason are tried again, in seconds."""

CHUNK_SECONDS = 60.0
"""Time that a chunk should take, in seconds: long beside the start of a task, short beside a run."""


_Block = tuple[list[Batch], bool]
"""Batches of a part of the plan, and True if it is the last part."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a run, beside its pairs.

    `address` is that of a Ray cluster. `batch_size` and `gpus_per_task` are chosen automatically if None. `limit` is
    the largest number of pairs to paint. `redo` says which pairs are painted again, as `repaint.choose` does.
    `memory` is the most that a worker may use, in bytes. `seal` is the file of the private key that OUT is sealed with
    at the end, if it is to be. `credentials` is the file of the key and certificates that pictures are signed with, if
    they are to be. `pictures` is the form of the pictures, and `shard_size` the size of the files that they
    are merged into, in bytes.
    """

    out: str
    engine: Literal["ray", "inline"] = "ray"
    address: str | None = None
    batch_size: int | None = None
    gpus_per_task: float | None = None
    max_attempts: int = 3
    redo: tuple[str, ...] = ()
    limit: int | None = None
    memory: float | None = None
    seal: str | None = None
    credentials: str | None = None
    pictures: FormName = "files"
    shard_size: int = SHARD_SIZE


@dataclass(frozen=True)
class Planned:
    """The first event of every run, except for notices: its plan.

    `work` is the pixel-steps of all jobs, extrapolated from the first block. `workers` is the number that will be busy.
    """

    plan: Plan
    work: float
    workers: int
    run_id: str


class Engine(Protocol):
    """Something that paints chunks."""

    @property
    def workers(self) -> int:
        """The current number of workers, at least 1."""

    def hardware(self) -> Generator[Notice, None, Hardware]:
        """Return the hardware of a worker; yields notices while no worker can start."""

    def paint(
        self, chunks: Iterator[Chunk], weights: Mapping[tuple[str, str], Weights], claim: Claim, tasks: int
    ) -> Generator[Event, None, None]:
        """Paint all chunks, each with the weights of its network; yields events as they come.

        `tasks` is the largest number of tasks that can run at once.
        """

    def close(self) -> None:
        """Release the workers."""


class Inline:
    """An engine that paints in this process."""

    workers = 1

    def __init__(self, memory: float | None, credentials: Credentials | None) -> None:
        tune_process()
        self._credentials = credentials
        self._hardware = Hardware.here(memory)

    def hardware(self) -> Generator[Notice, None, Hardware]:
        """Return this process's hardware."""
        yield from ()
        return self._hardware

    def paint(
        self, chunks: Iterator[Chunk], weights: Mapping[tuple[str, str], Weights], claim: Claim, tasks: int
    ) -> Generator[Event, None, None]:
        """Paint one chunk after another."""
        for chunk in chunks:
            out = claim.folder.address
            network, lease = weights[chunk.network], claim.lease()
            yield from paint_chunk(chunk, network, out, lease, self._hardware, credentials=self._credentials)

    def close(self) -> None:
        """Do nothing: there are no workers to release."""


def run(manifest: Manifest, options: Options) -> Iterator[Planned | Event]:
    """Paint every pair of `manifest` that OUT does not have yet; yields Planned, then events as they come.

    At the end the ledger's small files are merged if there are many, and OUT is sealed if the options ask for it.

    Raises RequestError before anything is painted, StorageError if OUT cannot be reached any more.
    """
    out = Out(options.out)
    out.folder.check_writable()
    key = read_private(options.seal) if options.seal else None
    credentials = read_credentials(options.credentials) if options.credentials else None
    named_rows(options.redo, manifest)
    check_replaces_nothing(manifest, out)
    weights = load_networks(manifest.networks)
    claim = out.claim(f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}", options.pictures)
    if rival := claim.rival():
        yield Notice(f"{rival} holds {out.address}; looking for a sign of life for up to {SILENCE_SECONDS:.0f} s")
    with ExitStack() as stack:
        try:
            stack.enter_context(claim)
        except StorageError as error:
            raise RequestError(f"--out {error}") from None
        if rival:
            yield Notice(f"{rival} gave none; end that process if it still exists, it may hold CPUs or GPUs")
        out.recover(claim)
        # Planned under the claim: no other run can finish a pair after this.
        redo = yield from choose(options.redo, manifest, out, hashes_of(weights))
        plan = plan_run(manifest, out, weights, redo=redo, limit=options.limit)
        if back := describe_back_again(plan, out):
            yield Notice(back)
        if out.damage:
            yield Notice(out.damage.notice(options.out))
        if newer := plan.inputs.newer():
            yield Notice(describe_newer(newer, options.out))
        if len(plan):
            yield from _paint(plan, out, claim, weights, options, credentials)
            yield from _compact(out, claim, options.shard_size)
        else:
            yield Planned(plan, 0, 0, claim.run_id)
        if key:
            yield from _seal(out, claim, key)


def _compact(out: Out, claim: Claim, shard_size: int) -> Iterator[Notice]:
    """Merge the small files of ledger and pictures if there are many."""
    if len(out.folder.files("pictures")) >= MANY_FILES:
        yield Notice(f"merging files of pictures in {out.address}")
    try:
        out.compact(claim, at_least=MANY_FILES, shard_size=shard_size)
    except (LedgerError, StorageError) as error:
        yield Notice(f"small files were not merged: {error}")


def _seal(out: Out, claim: Claim, key: Ed25519PrivateKey) -> Iterator[Event]:
    """Seal OUT."""
    yield Notice(f"sealing {out.address}")
    sealed = seal.seal(out, claim, key)
    yield from map(Notice, seal.warnings(sealed))
    yield Sealed(seal.describe(sealed))


def _run_row(plan: Plan, claim: Claim, engine: str) -> RunRow:
    """The ledger row of a run that starts now, on this host."""
    return RunRow(
        run_id=claim.run_id,
        run_number=claim.run_number,
        started_at=datetime.now(UTC),
        manifest=resolve(plan.manifest.address, "."),
        settings=json.dumps(plan.manifest.settings, sort_keys=True),
        pairs=plan.pairs,
        done=plan.done,
        given_up=plan.failed,
        to_paint=len(plan),
        redo=list(plan.redo.values),
        redo_since=plan.redo.since or (claim.run_number if plan.redo.names else None),
        engine=engine,
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def _paint(
    plan: Plan,
    out: Out,
    claim: Claim,
    weights: Mapping[tuple[str, str], Weights],
    options: Options,
    credentials: Credentials | None,
) -> Iterator[Planned | Event]:
    """Paint all jobs of `plan`."""
    engine = _start(options, credentials)
    try:
        hardware = yield from engine.hardware()
        blocks = _check_memory(plan, hardware, _blocks(plan, out, options.batch_size, engine, hardware))
        first, last = next(blocks)
        # Only now, after all checks: a request that is refused leaves no run in the ledger.
        out.begin(_run_row(plan, claim, options.engine))
        share = sum(len(batch.jobs) for batch in first) / len(plan)
        fitting = [batch for batch in first if not batch.memory_problem(hardware)]
        yield Planned(
            plan,
            sum(batch.work for batch in fitting) / share,
            min(engine.workers, _all_batches(first, len(plan))),
            claim.run_id,
        )
        results = _Results()
        yield from _paint_blocks(chain([(first, last)], blocks), len(plan), engine, weights, claim, results)
        again = _failed_in_passing(plan, out, results.failed)
        if len(again):
            yield Notice(f"{_pairs(len(again))} failed for a reason that may have passed: tried once more")
            time.sleep(AGAIN_SECONDS)
            blocks = _blocks(again, out, options.batch_size, engine, hardware)
            yield from _paint_blocks(blocks, len(again), engine, weights, claim, results)
    finally:
        engine.close()


def _all_batches(first: Sequence[Batch], pairs: int) -> int:
    """The number of batches that `pairs` pairs make, if all blocks are like the `first`."""
    return round(len(first) * pairs / sum(len(batch.jobs) for batch in first))


def _paint_blocks(
    blocks: Iterator[_Block],
    pairs: int,
    engine: Engine,
    weights: Mapping[tuple[str, str], Weights],
    claim: Claim,
    results: _Results,
) -> Iterator[Event]:
    """Paint all jobs of `blocks`, which are `pairs` pairs; raises StorageError if a store of inputs is gone."""
    first, last = next(blocks)
    chunks = make_chunks(chain([(first, last)], blocks), engine, results.speed.work_in)
    events = engine.paint(chunks, weights, claim, _all_batches(first, pairs))
    try:
        for event in events:
            yield event
            results.add(event)
    finally:
        events.close()  # before the engine


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


def _failed_in_passing(plan: Plan, out: Out, failed: set[str]) -> Plan:
    """A plan for those of the pairs with the ids `failed` that failed for a reason that may have passed."""
    return plan.once_more(out.newest() if failed else Outcomes(), failed)


def plan_run(
    manifest: Manifest,
    out: Out | None,
    weights: Mapping[tuple[str, str], Weights],
    *,
    redo: Redo | None,
    limit: int | None,
) -> Plan:
    """Plan the pairs of `manifest` that `out` does not have yet; all pairs if `out` is None."""
    outcomes = out.newest() if out else Outcomes()
    return make_plan(manifest, outcomes, hashes_of(weights), redo=redo, limit=limit)


def hashes_of(weights: Mapping[tuple[str, str], Weights]) -> dict[tuple[str, str], str]:
    """The hash of the weights of each network."""
    return {network: tensors.sha256 for network, tensors in weights.items()}


def _blocks(plan: Plan, out: Out, batch_size: int | None, engine: Engine, hardware: Hardware) -> Iterator[_Block]:
    """Yield the batches of each block of the plan, and True with the last; blocks are made ahead, in a thread."""
    largest, mixed = largest_by_recipe(hardware), keeps_shapes(hardware.device)
    parts = [slice(start, start + BLOCK) for start in range(0, len(plan), BLOCK)]

    def batches_of(part: slice) -> list[Batch]:
        jobs = with_previous(plan.jobs(part), out)
        workers = math.ceil(engine.workers * len(jobs) / (len(plan) - part.start))  # the others paint later blocks
        return make_batches(jobs, batch_size, workers, largest, mixed=mixed)

    for part, batches in ahead(batches_of, parts):
        yield batches, part is parts[-1]


def _check_memory(plan: Plan, hardware: Hardware, blocks: Iterator[_Block]) -> Iterator[_Block]:
    """Return `blocks`; raise EngineError, naming a pair, if no pair of the manifest fits on `hardware`.

    If some fit, the others become failed rows, wherever they are in the manifest.
    """
    seen = list[_Block]()
    for batches, last in blocks:
        seen.append((batches, last))
        if len(plan) < plan.pairs or not all(batch.memory_problem(hardware) for batch in batches):
            return chain(seen, blocks)
    batch = seen[0][0][0]
    raise EngineError(f"{batch.jobs[0].pair.id}: {batch.memory_problem(hardware)}")


def make_chunks(
    blocks: Iterable[tuple[Sequence[Batch], bool]], engine: Engine, work_in: Callable[[float], float]
) -> Iterator[Chunk]:
    """Group batches of one network into chunks, so that a worker loads the next batch while it paints.

    `blocks` are batches, and True with the last block. `work_in(seconds)` is the pixel-steps that a worker does in that
    time. A chunk takes about CHUNK_SECONDS; in the last block chunks get smaller, so that all workers end together.
    Batches of unknown size have chunks of their own: they may be quick to fail, or ask for much memory.
    """
    for block, last in blocks:
        left, workers = sum(batch.work for batch in block) if last else math.inf, engine.workers
        for network in dict.fromkeys(batch.recipe.network for batch in block):
            members: list[Batch] = []
            work = 0
            for batch in block:
                if batch.recipe.network != network:
                    continue
                max_work = min(work_in(CHUNK_SECONDS), (work + left) / (2 * workers))
                apart = members and not batch.size and (members[-1].size or len(members) >= UNKNOWN)
                if members and (apart or work + batch.work > max_work):
                    yield Chunk(tuple(members))
                    members, work = [], 0
                members.append(batch)
                work += batch.work
                left -= batch.work
            yield Chunk(tuple(members))


class _Results:
    """Knowledge from the events of a run: speed, failing stores, and ids of failed pairs that may be tried again."""

    def __init__(self) -> None:
        self.speed, self.failed = _WorkerSpeed(), set[str]()
        self._stores = FailingStores()

    def add(self, event: Event) -> None:
        """Learn from `event`; raises StorageError if a store of inputs is gone."""
        self.speed.add(event)
        if isinstance(event, Finished):
            if event.error is not None and not event.given_up:
                self.failed.add(event.pair_id)
            self._stores.add(event)


class _WorkerSpeed:
    """The average speed of a worker in this run, from the reports of all workers."""

    def __init__(self) -> None:
        self._work, self._seconds = 0, 0.0

    def add(self, event: Event) -> None:
        """Count the work in `event`, if it is a report of work."""
        if isinstance(event, Work):
            self._work, self._seconds = self._work + event.pixel_steps, self._seconds + event.seconds

    def work_in(self, seconds: float) -> float:
        """Pixel-steps that a worker does in `seconds`; 0 before the first report."""
        return seconds * self._work / self._seconds if self._seconds else 0.0


def _start(options: Options, credentials: Credentials | None) -> Engine:
    """The engine that `options` ask for."""
    if options.engine == "inline":
        return Inline(options.memory, credentials)
    address = choose_address(options.address)
    from batchnst.engine.ray_cluster import Cluster

    return Cluster(address, options.gpus_per_task, options.max_attempts, options.memory, credentials)
