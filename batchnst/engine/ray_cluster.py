"""Paint on a Ray cluster: keep a limited number of tasks in flight, pass on their events, retry lost tasks.

This is the only file that imports Ray.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private.state import state as ray_state
from ray._private.worker import shutdown as ray_shutdown
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchnst.engine import rows
from batchnst.engine.events import Event, Finished, Notice
from batchnst.engine.lost import Retries, unfinished
from batchnst.engine.patience import Stopwatch, Waiting, longest_silence
from batchnst.engine.plan import Chunk, Job
from batchnst.engine.ray_address import LOCAL
from batchnst.engine.worker import paint_chunk
from batchnst.errors import EngineError, OutOfMemory, PairError, WorkerLost
from batchnst.ledger.claim import Claim, Lease
from batchnst.ledger.out import Out
from batchnst.painting.inputs import LoadedStyle, StyleCache, StyleFile, load_style
from batchnst.painting.painter import REPORT_EVERY
from batchnst.progress import Work
from batchnst.redaction import redact_logs
from batchnst.transfer.device import Hardware, free_memory, tune_process, usable_cpus
from batchnst.transfer.weights import Weights

LOST = (WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
"""Errors by which Ray reports that a worker or its node is gone."""

WINDOW = 2
"""Tasks in flight for each worker: one runs, the next one waits for the worker to get free."""

START_SECONDS = 10.0
"""Time in which a cluster that was just started reports its resources, in seconds."""

REFRESH_SECONDS = 5.0
"""Seconds between two counts of the workers."""

MAX_REPORTS_PER_SECOND = 50
"""Reports that all workers together send to the driver; each takes it a millisecond or two."""

CANCEL_SECONDS = 20.0
"""Time in which cancelled tasks commit finished pictures, in seconds."""

UNKNOWN_MEMORY = 1e13
"""Memory assumed for a node that has not reported its own, in bytes."""

NODE_SECONDS = 900.0
"""Longest wait for a node that can run a task, in seconds."""

AUTOSCALER_SECONDS = 3600.0
"""The same on a cluster whose autoscaler can start such a node."""

LOCAL_SECONDS = 30.0
"""The same on a cluster on this machine for this run alone, which no node joins."""

MAX_STYLES = 64
"""Styles kept in the object store for later tasks."""


@dataclass(frozen=True)
class _Started:
    """The first report of a task: the node and the process that run it."""

    node_id: str
    pid: int


# No retries by Ray, which does not count every crash as a try; Retries counts. Without max_calls, Ray would end the
# process of a GPU task, with the network in it, after a single task.
@ray.remote(max_retries=0, max_calls=1000, num_returns="streaming")
def _paint_task(
    chunk: Chunk,
    weights: Weights,
    out: str,
    lease: Lease,
    memory: float | None,
    share: float,
    threads: int,
    interval: float,
    files: list[StyleFile],
    *styles: LoadedStyle,
) -> Iterator[list[Event | _Started]]:
    """Paint `chunk` in a worker; yields its events in lists, at most one list per `interval` seconds.

    `styles` are the loaded `files`; Ray replaces their references by the objects only in top-level arguments. `memory`
    is the most to use, in bytes; `share` is the task's share of its GPU.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    redact_logs()
    torch.set_num_threads(threads)
    tune_process()
    yield [_Started(ray.get_runtime_context().get_node_id(), os.getpid())]
    loaded = dict(zip(files, styles, strict=True))
    reported, events = time.monotonic(), list[Event | _Started]()
    for event in paint_chunk(chunk, weights, out, lease, Hardware.here(memory, share), StyleCache(loaded)):
        events.append(event)
        if time.monotonic() - reported >= interval:
            yield events
            reported, events = time.monotonic(), []
    yield events


@ray.remote(max_retries=3, max_calls=1000)
def _load_style_task(file: StyleFile) -> LoadedStyle:
    return load_style(file)


@ray.remote(max_retries=3, max_calls=1000)
def _memory_task(memory: float | None, share: float) -> float:
    return Hardware.here(memory, share).memory


@ray.remote(num_cpus=0, max_retries=0)
def _kill_task(pid: int) -> None:
    """Kill the process `pid` of this node if it is one of Ray's that paints."""
    with suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_paint_task"):
            os.kill(pid, signal.SIGKILL)


class Cluster:
    """A Ray cluster to paint on: a running one, or a local one that ends with this object."""

    def __init__(self, address: str, gpus_per_task: float | None, max_attempts: int, memory: float | None) -> None:
        """Connect to `address`, which `choose_address` returned. `memory` is the most for a worker, in bytes.

        Raises EngineError if the cluster cannot be reached or no node can run a task.
        """
        self.address, self.max_attempts, self.memory_limit = address, max_attempts, memory
        self._connect(address)
        self._refreshed, self._running_nodes = -math.inf, list[dict[str, float]]()
        self._submitted = 0
        deadline = time.monotonic() + (0 if address == LOCAL else START_SECONDS)
        while True:
            nodes = _nodes() + _node_groups()  # running nodes, and those that the autoscaler can start
            gpus = sum(node.get("GPU", 0.0) for node in nodes)
            self.gpus_per_task = (1.0 if gpus else 0.0) if gpus_per_task is None else gpus_per_task
            usable = [node for node in nodes if self._tasks_on(node)]
            if usable or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if not usable:
            needed = f"{self.gpus_per_task:g} GPU for a task" if self.gpus_per_task else "a CPU"
            cpus = sum(node.get("CPU", 0.0) for node in nodes)
            raise EngineError(f"the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs, no node has {needed}")
        self.device_type = "cuda" if self.gpus_per_task else "cpu"
        self._memory = min(memory or math.inf, max(node.get("memory", UNKNOWN_MEMORY) for node in usable))

    @property
    def workers(self) -> int:
        """Number of tasks that can run at once on the running nodes, at least 1."""
        return max(1, sum(map(self._tasks_on, self._nodes())))

    @property
    def patience(self) -> float:
        """Longest wait for a node that can run a task, in seconds."""
        if self.address == LOCAL:
            return LOCAL_SECONDS
        return AUTOSCALER_SECONDS if any(map(self._tasks_on, _node_groups())) else NODE_SECONDS

    def can_run(self, resources: Mapping[str, float]) -> bool:
        """True if a running node has these resources, as `resources` returns them, whoever uses them now."""
        names = {"num_gpus": "GPU", "num_cpus": "CPU", "memory": "memory"}
        needed = {names[key]: amount for key, amount in resources.items()}
        return any(all(node.get(name, 0.0) >= amount for name, amount in needed.items()) for node in self._nodes())

    @property
    def share(self) -> float:
        """A task's share of its GPU."""
        return min(1.0, self.gpus_per_task)

    def memory(self) -> Generator[Notice, None, float]:
        """Return the memory of a worker, in bytes; that of the GPU if it has one. Yields notices while none can start.

        Raises EngineError if no node can start one for too long.
        """
        if not self.gpus_per_task:
            return self._memory
        resources = {"num_gpus": self.gpus_per_task, "num_cpus": 1}
        waiting = Waiting(self.patience)
        answer = _memory_task.options(**resources).remote(self.memory_limit, self.share)
        while not ray.wait([answer], timeout=REFRESH_SECONDS)[0]:
            if notice := waiting.look(runs=False, can_run=self.can_run(resources)):
                yield notice
        memory: float = ray.get(answer)
        return memory

    def paint(
        self, chunks: Iterator[Chunk], weights: Mapping[tuple[str, str], Weights], claim: Claim, tasks: int
    ) -> Generator[Event, None, None]:
        """Paint all chunks, at most `tasks` at once; yields the events of all workers as they come."""
        window = _Window(self, chunks, weights, claim, tasks, self._submitted)
        try:
            yield from window.events()
        finally:
            self._submitted = window.submitted  # the numbers of tasks that were given up must not be used again

    def resources(self, chunk: Chunk, tasks: int) -> dict[str, float]:
        """The resources that a task for `chunk` requests from Ray, if at most `tasks` run at once.

        On CPUs a task gets one CPU, and so one thread, which wastes least. It gets more if there are fewer tasks than
        CPUs, or memory for fewer.
        """
        if self.gpus_per_task:
            return {"num_gpus": self.gpus_per_task, "num_cpus": 1}
        cpus = [int(node.get("CPU", 0.0)) for node in _nodes()] or [1]
        memory = min(max(batch.memory_needed(self._memory) for batch in chunk.batches), self._memory)
        at_once = min(tasks, sum(int(node.get("memory", UNKNOWN_MEMORY) / memory) for node in _nodes()))
        return {"num_cpus": max(1, min(max(cpus), sum(cpus) // max(1, at_once))), "memory": memory}

    def close(self) -> None:
        """Disconnect from the cluster; a local one ends."""
        if self.address == LOCAL and not _nodes():
            # Its raylet has died. Ray would end this process at once, before it can say how to go on.
            atexit.unregister(ray_shutdown)
        else:
            ray.shutdown()

    def _nodes(self) -> list[dict[str, float]]:
        """The resources of each running node, at most REFRESH_SECONDS old."""
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._running_nodes, self._refreshed = _nodes(), time.monotonic()
        return self._running_nodes

    def _tasks_on(self, node: Mapping[str, float]) -> int:
        """Number of tasks that can run at once on a node with these resources."""
        cpus = int(node.get("CPU", 0.0))
        return min(cpus, int(node.get("GPU", 0.0) / self.gpus_per_task)) if self.gpus_per_task else cpus

    @staticmethod
    def _connect(address: str) -> None:
        options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
        if address == LOCAL:  # Ray itself sees neither `taskset` nor `ulimit`
            options |= {"num_cpus": usable_cpus(), "_memory": int(free_memory(torch.device("cpu")))}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with _blocked(signal.SIGHUP):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            signal.signal(signal.SIGTERM, handler)  # Ray installs a handler that exits with 15
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "; a cluster with another user's token needs it in RAY_AUTH_TOKEN" if address != LOCAL else ""
            raise EngineError(f"Ray at {address}: cannot be reached: {reason}{hint}") from None


@contextmanager
def _blocked(kind: signal.Signals) -> Iterator[None]:
    """Block a signal in this thread and in the processes that it starts meanwhile.

    A terminal that is closed sends SIGHUP to Ray's processes too; they have to stay until the run has ended.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [kind])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _nodes() -> list[dict[str, float]]:
    """The resources of each running node: CPU, GPU, memory in bytes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _node_groups() -> list[dict[str, float]]:
    """The resources of a node of each group that the autoscaler can start. Ray has no public call for this."""
    config = ray_state.get_cluster_config()
    return [dict(group.resources) for group in config.node_group_configs] if config else []


@dataclass
class _Task:
    """A task that paints `chunk`.

    resources: those that it requests. finished: the ids of the pairs that it has reported. started: its first report.
    silent: seconds since its last one.
    """

    chunk: Chunk
    number: int
    resources: Mapping[str, float] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    started: _Started | None = None
    silent: float = 0.0


class _Window:
    """Keeps as many tasks in flight as the cluster can use, and passes on their events."""

    def __init__(
        self,
        cluster: Cluster,
        chunks: Iterator[Chunk],
        weights: Mapping[tuple[str, str], Weights],
        claim: Claim,
        tasks: int,
        submitted: int = 0,
    ) -> None:
        """`submitted` is the number of tasks of this run that were submitted before."""
        self.cluster, self.chunks, self.weights, self.claim, self.tasks = cluster, chunks, weights, claim, tasks
        self.out = Out(claim.folder.address)
        self.references = {network: ray.put(tensors) for network, tensors in weights.items()}
        self.styles = _Styles()
        self.retries = Retries(cluster.max_attempts)
        self.to_retry: list[Chunk] = []
        self.running: dict[Any, _Task] = {}
        self.submitted = submitted
        self.stopwatch = Stopwatch()
        self.metrics = _Metrics(claim.run_id)

    def events(self) -> Iterator[Event]:
        """Run all tasks; yields the events of all workers as they come."""
        waiting = Waiting(self.cluster.patience)
        try:
            while self._fill():
                ready, _ = ray.wait(list(self.running), num_returns=1, timeout=REFRESH_SECONDS)
                for stream in ready:
                    for event in self._next(stream):
                        self.metrics.count(event)
                        yield event
                yield from self._watch(waiting)
        except RayError as error:
            raise EngineError(f"Ray: {_first_line(error)}") from None
        finally:
            self._cancel()

    def _fill(self) -> bool:
        """Submit tasks until the window is full; returns whether any task is running."""
        while len(self.running) < WINDOW * self.cluster.workers:
            chunk = self.to_retry.pop() if self.to_retry else next(self.chunks, None)
            if chunk is None:
                break
            self.submitted += 1
            task = _Task(chunk, self.submitted, self.cluster.resources(chunk, self.tasks))
            self.running[self._submit(task)] = task
        return bool(self.running)

    def _submit(self, task: _Task) -> Any:
        """Start `task`; returns the stream of its events."""
        chunk, resources, files = task.chunk, task.resources, task.chunk.style_files
        return _paint_task.options(**resources).remote(
            chunk,
            self.references[chunk.network],
            self.out.address,
            self.claim.lease(task.number),
            resources.get("memory", self.cluster.memory_limit),
            self.cluster.share,
            int(resources["num_cpus"]),
            max(REPORT_EVERY, self.cluster.workers / MAX_REPORTS_PER_SECOND),
            files,
            *map(self.styles.reference, files),
        )

    def _next(self, stream: Any) -> Iterator[Event]:
        """Yield the next events of a task; if it has ended, forget it, or retry it if its worker was lost."""
        task = self.running[stream]
        try:
            reports: list[Event | _Started] = ray.get(next(stream))
            task.silent = 0.0
            for report in reports:
                if isinstance(report, _Started):
                    task.started = report
                    continue
                if isinstance(report, Finished):
                    task.finished.add(report.pair_id)
                    if report.unread:
                        self.styles.forget(report.unread.address)
                yield report
        except StopIteration:
            del self.running[stream]
        except LOST as error:
            yield from self._try_again(self.running.pop(stream), error)
        except RayTaskError as error:
            if not isinstance(error.cause, LOST):
                raise error.cause from None
            yield from self._try_again(self.running.pop(stream), error.cause)

    def _watch(self, waiting: Waiting) -> Iterator[Event]:
        """Retry tasks that hang, submit again those that ask for more than there is now, and wait for nodes."""
        seconds = self.stopwatch.tick()
        for stream, task in list(self.running.items()):
            if not task.started:
                self._submit_again(stream, task)
                continue
            task.silent += seconds
            if task.silent > longest_silence(task.chunk) and not ray.wait([stream], timeout=0)[0]:
                self._kill(stream, task.started)
                reason = WorkerLost(f"nothing came from it for {timedelta(seconds=round(task.silent))}")
                yield from self._try_again(self.running.pop(stream), reason)
        tasks = self.running.values()
        runs, can_run = any(task.started for task in tasks), any(self.cluster.can_run(task.resources) for task in tasks)
        if tasks and (notice := waiting.look(runs=runs, can_run=can_run)):
            yield notice

    def _submit_again(self, stream: Any, task: _Task) -> None:
        """Submit a task that has not started again if no node has its resources, but one has those it needs now."""
        if self.cluster.can_run(task.resources):
            return
        if self.cluster.can_run(self.cluster.resources(task.chunk, self.tasks)):
            self.claim.revoke(task.number)
            ray.cancel(stream)
            self.to_retry.append(self.running.pop(stream).chunk)

    @staticmethod
    def _kill(stream: Any, started: _Started) -> None:
        """Kill the process of a task that hangs, also if it cannot answer because it is suspended."""
        there = NodeAffinitySchedulingStrategy(started.node_id, soft=False)
        _kill_task.options(scheduling_strategy=there).remote(started.pid)
        ray.cancel(stream, force=True)

    def _try_again(self, task: _Task, error: RayError | WorkerLost) -> Iterator[Event]:
        """Retry the unfinished pairs of a lost task, except those that were lost too often; these fail."""
        self.claim.revoke(task.number)
        for event in self._committed(task):
            task.finished.add(event.pair_id)
            yield event
        left = unfinished(task.chunk, task.finished)
        if left:
            pairs = sum(len(batch.jobs) for batch in left)
            yield Notice(f"a worker was lost; {pairs} of its pairs are tried again: {_first_line(error)}")
        chunks, given_up = self.retries.reschedule(left, short_of_memory=isinstance(error, OutOfMemoryError))
        self.to_retry += chunks
        for job in given_up:
            yield self._give_up(job, error)

    def _committed(self, task: _Task) -> Iterator[Finished]:
        """The pairs that a lost task committed but had not reported."""
        for pair_id, error in self.out.committed(self.claim.lease(task.number)).items():
            if pair_id not in task.finished:
                yield Finished(pair_id, error)

    def _give_up(self, job: Job, error: RayError | WorkerLost) -> Finished:
        """Write a failed row for a pair whose worker was lost too often."""
        times = f"{self.cluster.max_attempts} times; the last time: {_first_line(error)}"
        lost: PairError = WorkerLost(f"its worker was lost {times}", transient=True)
        if isinstance(error, OutOfMemoryError):
            lost = OutOfMemory(f"its worker's host was out of memory {times}; lower size", transient=True)
        sha256 = self.weights[job.pair.recipe.network].sha256
        row = rows.attempt_row(job, self.claim.lease(), sha256, datetime.now(UTC))
        self.out.commit(self.claim.lease(), {}, [rows.failed(row, lost)], [])
        return Finished(job.pair.id, str(lost), given_up=True)

    def _cancel(self) -> None:
        """Stop all tasks: each drops the batch that it paints and commits finished pictures."""
        for stream in self.running:
            ray.cancel(stream)
        if self.running:
            ended = [stream.completed() for stream in self.running]
            ray.wait(ended, num_returns=len(ended), timeout=CANCEL_SECONDS)


class _Styles:
    """Styles in Ray's object store: each is read once for all tasks."""

    def __init__(self) -> None:
        self._references: OrderedDict[StyleFile, Any] = OrderedDict()

    def reference(self, file: StyleFile) -> Any:
        """A reference to a style; a task loads it if it is not in the store."""
        if file not in self._references:
            self._references[file] = _load_style_task.remote(file)
        self._references.move_to_end(file)
        if len(self._references) > MAX_STYLES:
            self._references.popitem(last=False)
        return self._references[file]

    def forget(self, address: str) -> None:
        """Load the style at `address` again for the next task: it could not be read for a reason that may pass."""
        for file in [file for file in self._references if file.address == address]:
            del self._references[file]


class _Metrics:
    """Counters of a run that Ray exports, for example to Prometheus."""

    def __init__(self, run_id: str) -> None:
        def counter(name: str, description: str, *tags: str) -> metrics.Counter:
            metric = metrics.Counter(f"batchnst_{name}", description, tag_keys=("run_id", *tags))
            metric.set_default_tags({"run_id": run_id})
            return metric

        self._done = counter("pairs_done", "Pairs painted and in the ledger.")
        self._failed = counter("pairs_failed", "Pairs that ended in a failed row.")
        self._steps = counter("steps", "Steps of the optimisation, of all pictures.", "host")

    def count(self, event: Event) -> None:
        """Count `event`."""
        if isinstance(event, Work) and event.steps:
            self._steps.inc(event.steps, {"host": event.host})
        elif isinstance(event, Finished):
            (self._failed if event.error else self._done).inc()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
