"""A run from manifest to ledger: plan, claim OUT, paint, and say what happens meanwhile."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal, Protocol

from batchnst.collection.manifest import Pair
from batchnst.engine.plan import Batch, Plan, make_batches, make_plan
from batchnst.engine.worker import Chunk, Event, paint_chunk
from batchnst.errors import RequestError, StorageError
from batchnst.ledger.store import Out
from batchnst.transfer.device import best_device, largest_batch, tune_process
from batchnst.transfer.weights import Weights, load_weights

LONGEST_CHUNK = 8
"""Batches in a chunk: what a lost worker loses at most."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Planned:
    """What the run is about to do: the first event of every run."""

    plan: Plan
    batches: list[Batch]
    workers: int  # that will be busy

    @cached_property
    def work(self) -> int:
        """Pixel-steps of all batches."""
        return sum(batch.work for batch in self.batches)


class Engine(Protocol):
    """Something that paints chunks."""

    workers: int

    def largest_batch(self) -> int:
        """Pixels of a batch on `auto`; a worker halves one that does not fit all the same."""

    def paint(
        self, chunks: Sequence[Chunk], weights: Mapping[tuple[str, str], Weights], out: str, run_id: str
    ) -> Iterator[Event]:
        """Paint all chunks, each with the weights of its network; yields events as they come."""

    def close(self) -> None:
        """Let go of what it holds."""


class Inline:
    """This process and no other."""

    workers = 1

    def __init__(self) -> None:
        tune_process()
        self.device = best_device()

    def largest_batch(self) -> int:
        """What this process's device has room for."""
        return largest_batch(self.device)

    def paint(
        self, chunks: Sequence[Chunk], weights: Mapping[tuple[str, str], Weights], out: str, run_id: str
    ) -> Iterator[Event]:
        """Paint one chunk after the other."""
        for chunk in chunks:
            yield from paint_chunk(chunk, weights[chunk.network], out, run_id, self.device)

    def close(self) -> None:
        """Nothing to close."""


def run(pairs: Sequence[Pair], options: Options) -> Iterator[Planned | Event]:
    """Paint every pair that OUT does not hold yet; yields Planned, then what happens, as it happens."""
    out = Out(options.out)
    weights = load_all_weights(pairs)
    plan = _plan(pairs, out, weights, options)
    if not plan.jobs:
        yield Planned(plan, [], 0)
        return
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    try:
        out.claim(run_id)
    except StorageError as error:
        raise RequestError(f"--out {error}") from None
    engine = _start(options)
    try:
        # Read the ledger only now: between the claim and this moment the workers of a killed run have had time to
        # end the commit they were in, and cannot begin another.
        plan = _plan(pairs, out, weights, options)
        batches = make_batches(plan.jobs, options.batch_size, engine.workers, engine.largest_batch())
        chunks = make_chunks(batches, engine.workers)
        yield Planned(plan, batches, min(engine.workers, len(chunks)))
        yield from engine.paint(chunks, weights, out.address, run_id)
    finally:
        engine.close()


def make_chunks(batches: Sequence[Batch], workers: int) -> list[Chunk]:
    """Batches of one network together, so that a worker loads the next while it paints, but enough chunks for all."""
    length = max(1, min(LONGEST_CHUNK, len(batches) // (4 * workers)))
    chunks: list[Chunk] = []
    for network in dict.fromkeys(batch.recipe.network for batch in batches):
        members = [batch for batch in batches if batch.recipe.network == network]
        chunks += [Chunk(tuple(members[start : start + length])) for start in range(0, len(members), length)]
    return chunks


def load_all_weights(pairs: Sequence[Pair]) -> dict[tuple[str, str], Weights]:
    """The weights of every network that some pair's recipe names."""
    return {network: load_weights(*network) for network in {pair.recipe.network for pair in pairs}}


def _plan(pairs: Sequence[Pair], out: Out, weights: Mapping[tuple[str, str], Weights], options: Options) -> Plan:
    hashes = {network: own.sha256 for network, own in weights.items()}
    return make_plan(pairs, out.newest(), hashes, retry_failed=options.retry_failed, limit=options.limit)


def _start(options: Options) -> Engine:
    if options.engine == "inline":
        return Inline()
    from batchnst.engine.cluster import Cluster

    return Cluster(options.address, options.gpus_per_task, options.max_attempts)
