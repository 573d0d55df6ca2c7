"""The Ray driver: a bounded window of tasks, each streaming its events back; lost ones are tried again.

The only file that imports Ray.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

# Read by Ray as it is imported. Without the mode, a driver does not show its token to a cluster that asks for one.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if "RAY_AUTH_TOKEN" in os.environ or os.path.exists(os.path.expanduser("~/.ray/auth_token")):
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
import torch
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from batchnst.engine import rows
from batchnst.engine.plan import Batch, Job
from batchnst.engine.worker import Chunk, Event, Finished, paint_chunk
from batchnst.errors import EngineError, WorkerLost
from batchnst.ledger.store import Out
from batchnst.transfer.device import best_device, largest_batch, tune_process
from batchnst.transfer.weights import Weights

LOST = (WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
"""How Ray says that a worker, or its node, is gone."""

WINDOW = 2
"""Tasks in flight for each that can run at once: the next one is there when a worker gets free."""


# Ray counts a crash as a try only sometimes, so we count; and without max_calls a GPU task's process, with the
# network in it, would be thrown away after one task.
@ray.remote(max_retries=0, max_calls=1000, num_returns="streaming")
def _paint_task(chunk: Chunk, weights: Weights, out: str, run_id: str, threads: int) -> Iterator[Event]:
    torch.set_num_threads(threads)
    tune_process()
    # Ray sends values into this generator, which `yield from` would pass on to one that does not expect them.
    for event in paint_chunk(chunk, weights, out, run_id, best_device()):  # noqa: UP028
        yield event


@ray.remote(max_retries=3, max_calls=1000)
def _largest_batch_task(share: float) -> int:
    return largest_batch(best_device(), share)


class Cluster:
    """A Ray cluster to paint on: one that runs, or one of this machine's own for as long as this lives."""

    def __init__(self, address: str | None, gpus_per_task: float | None, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._connect(address or os.environ.get("RAY_ADDRESS") or "local")
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.cpus = int(resources.get("CPU", 0))
        self.gpus_per_task = (1.0 if resources.get("GPU", 0) else 0.0) if gpus_per_task is None else gpus_per_task
        self.workers = int(resources.get("GPU", 0) / self.gpus_per_task) if self.gpus_per_task else self.cpus
        if self.workers < 1:
            wanted = f"{self.gpus_per_task:g} GPU for a task" if self.gpus_per_task else "a CPU"
            raise EngineError(
                f"the Ray cluster has {self.cpus} CPUs and {resources.get('GPU', 0):g} GPUs, not {wanted}"
            )

    def largest_batch(self) -> int:
        """Pixels of a batch on `auto`, as a worker's device has room for."""
        if not self.gpus_per_task:
            return largest_batch(torch.device("cpu"))
        task = _largest_batch_task.options(num_gpus=self.gpus_per_task)
        largest: int = ray.get(task.remote(min(1.0, self.gpus_per_task)))
        return largest

    def paint(
        self, chunks: Sequence[Chunk], weights: Mapping[tuple[str, str], Weights], out: str, run_id: str
    ) -> Iterator[Event]:
        """Paint all chunks; yields events as they come, from all workers."""
        return _Window(self, chunks, weights, out, run_id).events()

    def threads_for(self, tasks: int) -> int:
        """CPU threads for each task: one, which wastes least, unless there are fewer tasks than CPUs."""
        return 1 if self.gpus_per_task else max(1, self.cpus // max(1, tasks))

    def close(self) -> None:
        """Leave the cluster; end it if it was this machine's own."""
        ray.shutdown()

    @staticmethod
    def _connect(address: str) -> None:
        own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        _check_reachable(address)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place, which exits with 15
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "; a cluster with another user's token needs it in RAY_AUTH_TOKEN" if address != "local" else ""
            raise EngineError(f"Ray at {address}: cannot be reached: {reason}{hint}") from None


def _check_reachable(address: str) -> None:
    """Raise EngineError at once where nobody listens; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise EngineError(f"Ray at {address}: cannot be reached: {error.strerror or error}") from None


class _Window:
    """The tasks in flight, and what becomes of each."""

    def __init__(
        self,
        cluster: Cluster,
        chunks: Sequence[Chunk],
        weights: Mapping[tuple[str, str], Weights],
        out: str,
        run_id: str,
    ) -> None:
        self.cluster, self.weights, self.out, self.run_id = cluster, weights, Out(out), run_id
        self.waiting = list(reversed(chunks))
        self.threads = cluster.threads_for(len(chunks))
        self.size = WINDOW * cluster.workers
        self.references = {network: ray.put(own) for network, own in weights.items()}
        self.tries: Counter[str] = Counter()
        self.running: dict[Any, Chunk] = {}

    def events(self) -> Iterator[Event]:
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.size:
                    self._submit(self.waiting.pop())
                ready, _ = ray.wait(list(self.running), num_returns=1)
                for stream in ready:
                    yield from self._next(stream)
        finally:
            for stream in self.running:
                ray.cancel(stream)

    def _submit(self, chunk: Chunk) -> None:
        cluster = self.cluster
        self.tries.update(job.pair.id for batch in chunk.batches for job in batch.jobs)
        task = _paint_task.options(num_gpus=cluster.gpus_per_task, num_cpus=self.threads)
        weights = self.references[chunk.network]
        self.running[task.remote(chunk, weights, self.out.address, self.run_id, self.threads)] = chunk

    def _next(self, stream: Any) -> Iterator[Event]:
        """What a task that has something to say says."""
        try:
            yield ray.get(next(stream))
        except StopIteration:
            del self.running[stream]
        except LOST as error:
            yield from self._try_again(self.running.pop(stream), error)
        except RayTaskError as error:
            raise error.cause from None

    def _try_again(self, chunk: Chunk, error: RayError) -> Iterator[Event]:
        """Queue the pairs of a lost chunk, each by itself so that one that kills workers takes no other along."""
        outcomes = self.out.newest(self.run_id)
        for batch in chunk.batches:
            for job in batch.jobs:
                if job.pair.id in outcomes:
                    yield Finished(job.pair.id, None if outcomes[job.pair.id].ok else "failed")
                elif self.tries[job.pair.id] >= self.cluster.max_attempts:
                    yield self._give_up(job, chunk, error)
                else:
                    again = replace(job, attempt=job.attempt + 1)
                    self.waiting.append(Chunk((Batch((again,), batch.size),)))

    def _give_up(self, job: Job, chunk: Chunk, error: RayError) -> Finished:
        reason = str(error).strip().splitlines()[0]
        lost = WorkerLost(f"its worker was lost {self.cluster.max_attempts} times; the last time: {reason}")
        sha256 = self.weights[chunk.network].sha256
        row = rows.pair_row(job, self.run_id, sha256, datetime.now(UTC), "failed", **rows.failure(lost))
        self.out.append(self.run_id, [row], [])
        return Finished(job.pair.id, str(lost))
