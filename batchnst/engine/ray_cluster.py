"""Paint on a Ray cluster: keep a limited number of tasks in flight, pass on their events, retry lost tasks.

This is the only file that imports Ray.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private.state import state as ray_state
from ray._private.worker import shutdown as ray_shutdown
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchnst.engine import rows
from batchnst.engine.events import Event, Finished, Notice
from batchnst.engine.lost import Retries, unfinished
from batchnst.engine.patience import Stopwatch, Waiting, longest_silence
from batchnst.engine.plan import Chunk, Job
from batchnst.engine.ray_address import LOCAL
from batchnst.engine.worker import paint_chunk
from batchnst.errors import BatchNSTError, DeviceFailed, EngineError, OutOfMemory, PairError, WorkerLost
from batchnst.ledger.claim import Claim, Lease
from batchnst.ledger.out import Out
from batchnst.painting.inputs import LoadedStyle, StyleCache, StyleFile, load_style
from batchnst.painting.painter import REPORT_EVERY
from batchnst.pictures.credentials import ADVICE, Credentials, is_installed
from batchnst.progress import Work
from batchnst.redaction import redact_logs
from batchnst.transfer.device import (
    Hardware,
    best_device,
    free_memory,
    gpu_count,
    has_native_bf16,
    tune_process,
    usable_cpus,
)
from batchnst.transfer.weights import Weights

LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
"""Errors by which Ray reports that a worker or its node is gone."""

WINDOW = 2
"""Tasks of each worker: one paints, the next one loads its first pictures."""

SPACIOUS = 4.0
"""A worker that holds more than this many times the memory that a task needs makes room for smaller workers."""

MOST_FAILURES = 2
"""Failures of a device after which it is left out."""

START_SECONDS = 10.0
"""Time in which a cluster that was just started reports its resources, in seconds."""

NEW_SECONDS = 30.0
"""Time in which a worker starts if there is room for it, in seconds."""

REFRESH_SECONDS = 5.0
"""Seconds between two counts of the workers."""

WATCH_SECONDS = 1.0
"""Seconds between two looks at what hangs or waits, at least: with thousands of tasks a look takes milliseconds."""

GATHER_SECONDS = 2e-5
"""Time for each task in which reports are gathered, in seconds, since Ray looks at all tasks each time."""

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

_IMPORTED_FROM = Path(__file__).parents[2]
"""The folder that batchnst was imported from."""

_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)\s.*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL)
"""The versions of a cluster and of this process in Ray's message that they differ."""

MAX_STYLES = 64
"""Styles kept in the object store for later tasks."""


@dataclass(frozen=True)
class _Home:
    """The node, host, process and GPUs of a worker. `problem` is the reason why it cannot paint; None if it can."""

    node_id: str
    host: str
    pid: int
    gpus: tuple[str, ...]
    problem: str | None

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)} of {self.host}" if self.gpus else f"a worker of {self.host}"


@dataclass(frozen=True)
class _Begun:
    """The first report of a task: its worker has finished the task before, and begins to paint."""


class _Worker:
    """A process that paints chunks on its own device for the whole run, and keeps network, graphs and memory.

    Ray tells a process once which GPUs are its own, and CUDA reads it once. Two tasks may run at the same time: one
    paints while the next one loads its first batch. All painting happens in one thread, because CUDA's libraries keep
    what they have prepared for each thread.
    """

    def __init__(
        self, memory: float | None, share: float, threads: int, gpus: float, credentials: Credentials | None
    ) -> None:
        """`memory` is the most to use, in bytes; `share` is this worker's share of its GPU."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        redact_logs()
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all of them visible
        torch.set_num_threads(threads)
        tune_process()
        self._painter = ThreadPoolExecutor(1)
        self._turn, self._stopped = threading.Lock(), threading.Event()
        self._credentials = credentials
        self._problem = ADVICE if credentials and not is_installed() else None
        try:
            self._hardware = Hardware.here(memory, share, gpus=bool(gpus))
        except DeviceFailed as error:
            self._problem = str(error)

    @ray.method(concurrency_group="control")
    def home(self) -> _Home:
        """Return this worker's home, with the reason if it cannot paint."""
        context = ray.get_runtime_context()
        gpus = tuple(map(str, context.get_accelerator_ids().get("GPU", [])))
        return _Home(context.get_node_id(), socket.gethostname(), os.getpid(), gpus, self._problem)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Make the running tasks drop the batch that they paint, and commit finished pictures."""
        self._stopped.set()

    @ray.method(num_returns="streaming")
    def paint(
        self,
        chunk: Chunk,
        weights: Weights,
        out: str,
        lease: Lease,
        interval: float,
        files: list[StyleFile],
        *styles: LoadedStyle,
    ) -> Iterator[list[Event | _Begun]]:
        """Paint `chunk`; yields its events in lists, at most one list per `interval` seconds.

        `styles` are the loaded `files`; Ray replaces their references by the objects only in top-level arguments.
        """
        get_style = StyleCache(dict(zip(files, styles, strict=True)))
        events = paint_chunk(chunk, weights, out, lease, self._hardware, get_style, self._credentials)
        with self._turn:
            yield [_Begun()]
            reported, told = time.monotonic(), list[Event | _Begun]()
            try:
                while not self._stopped.is_set() and (event := self._painter.submit(next, events, None).result()):
                    told.append(event)
                    if time.monotonic() - reported >= interval:
                        yield told
                        reported, told = time.monotonic(), []
            finally:
                self._painter.submit(events.close).result()
            yield told


# The workers hold all CPUs for the whole run.
@ray.remote(num_cpus=0, max_retries=3, max_calls=1000)
def _load_style_task(file: StyleFile) -> LoadedStyle:
    return load_style(file)


@ray.remote(max_retries=3, max_calls=1)
def _hardware_task(memory: float | None, share: float) -> Hardware:
    return Hardware.here(memory, share, gpus=True)


@ray.remote(num_cpus=0, max_retries=0)
def _kill_task(pid: int) -> None:
    """Kill the process `pid` of this node if it is one of Ray's that paints."""
    with suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_Worker"):
            os.kill(pid, signal.SIGKILL)


class Cluster:
    """A Ray cluster to paint on: a running one, or a local one that ends with this object."""

    def __init__(
        self,
        address: str,
        gpus_per_task: float | None,
        max_attempts: int,
        memory: float | None,
        credentials: Credentials | None = None,
    ) -> None:
        """Connect to `address`, which `choose_address` returned. `memory` is the most for a worker, in bytes.

        Raises EngineError if the cluster cannot be reached or no node can run a task.
        """
        self.address, self.max_attempts, self.memory_limit = address, max_attempts, memory
        self.credentials = credentials
        self._connect(address)
        self._refreshed, self._running_nodes, self._groups = -math.inf, list[dict[str, float]](), 0
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
        cpu, most = torch.device("cpu"), max(node.get("memory", UNKNOWN_MEMORY) for node in usable)
        self._cpu = Hardware(cpu, min(memory or math.inf, most), (cpu,), has_native_bf16(cpu))

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
        needed = _by_node_names(resources)
        return any(all(node.get(name, 0.0) >= amount for name, amount in needed.items()) for node in self._nodes())

    def capacity(self, resources: Mapping[str, float]) -> int:
        """Number of workers with these resources to start: as many as the running nodes hold, at least 1.

        Twice as many if an autoscaler can start nodes: those that wait tell it that more are needed.
        """
        held = sum(
            int(min(node.get(name, 0.0) / amount for name, amount in _by_node_names(resources).items()))
            for node in self._nodes()
        )
        return max(1, held) * (2 if self._groups else 1)

    @property
    def share(self) -> float:
        """A task's share of its GPU."""
        return min(1.0, self.gpus_per_task)

    def hardware(self) -> Generator[Notice, None, Hardware]:
        """Return the hardware of a worker: that with most memory, or a GPU. Yields notices while none can start.

        Raises EngineError if no node can start one for too long, or its GPU cannot be used.
        """
        if not self.gpus_per_task:
            return self._cpu
        resources = {"num_gpus": self.gpus_per_task, "num_cpus": 1}
        waiting = Waiting(self.patience)
        answer = _hardware_task.options(**resources).remote(self.memory_limit, self.share)
        while not ray.wait([answer], timeout=REFRESH_SECONDS)[0]:
            if notice := waiting.look(runs=False, can_run=self.can_run(resources)):
                yield notice
        try:
            hardware: Hardware = ray.get(answer)
        except RayTaskError as error:
            raise EngineError(str(error.cause)) from None
        return hardware

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
        cpus = [int(node.get("CPU", 0.0)) for node in self._nodes()] or [1]
        needed = max(batch.memory_needed(self._cpu) for batch in chunk.batches)
        memory = min(2.0 ** math.ceil(math.log2(needed)), self._cpu.memory)  # few different amounts: workers stay
        at_once = min(tasks, sum(int(node.get("memory", UNKNOWN_MEMORY) / memory) for node in self._nodes()))
        return {"num_cpus": max(1, min(max(cpus), sum(cpus) // max(1, at_once))), "memory": memory}

    def close(self) -> None:
        """Disconnect from the cluster; a local one ends."""
        if self.address == LOCAL and not _nodes():
            # Its raylet has died. Ray would end this process at once, before it can say how to go on.
            atexit.unregister(ray_shutdown)
        else:
            ray.shutdown()

    def _nodes(self) -> list[dict[str, float]]:
        """The resources of each running node, at most REFRESH_SECONDS old, as is the number of the node groups."""
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._running_nodes, self._groups, self._refreshed = _nodes(), len(_node_groups()), time.monotonic()
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
            if best_device().type == "mps":  # Ray finds the GPUs of all other makers
                options["num_gpus"] = gpu_count()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            # Ray lets workers import from the current folder: not from the user's, which may hold anybody's files.
            with _blocked(signal.SIGHUP), chdir(_IMPORTED_FROM):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            signal.signal(signal.SIGTERM, handler)  # Ray installs a handler that exits with 15
        except (RayError, RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"Ray at {address}: {_connection_problem(error, address)}") from None


def _connection_problem(error: Exception, address: str) -> str:
    """Why Ray cannot be started or reached, in a line."""
    if versions := _VERSIONS.search(str(error)):
        text = "the cluster has Ray {} on Python {}, this machine Ray {} on Python {}; install the same on both"
        return text.format(*versions.groups())
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if address == LOCAL:
        return f"cannot be started: {reason}"
    return f"cannot be reached: {reason}; a cluster with another user's token needs it in RAY_AUTH_TOKEN"


def _by_node_names(resources: Mapping[str, float]) -> dict[str, float]:
    """Resources by the names that nodes use; none that are zero."""
    names = {"num_gpus": "GPU", "num_cpus": "CPU", "memory": "memory"}
    return {names[key]: amount for key, amount in resources.items() if amount}


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


@dataclass(eq=False)
class _Task:
    """A task that paints `chunk`.

    member: the worker that runs it. alone: no other task may run there. patience: its longest silence, in seconds.
    finished: the ids of the pairs that it has reported. begun: whether it paints. silent: seconds since its last
    report.
    """

    chunk: Chunk
    number: int
    member: _Member
    alone: bool = False
    patience: float = math.inf
    finished: set[str] = field(default_factory=set)
    begun: bool = False
    silent: float = 0.0


@dataclass(eq=False)
class _Member:
    """A worker of this run. resources: those that it holds. starting: the answer of its `home`, until it has come."""

    actor: Any
    resources: Mapping[str, float]
    starting: Any
    hired: float = field(default_factory=time.monotonic)
    home: _Home | None = None
    tasks: list[_Task] = field(default_factory=list)

    @property
    def is_new(self) -> bool:
        """True if it has not started yet, but probably will soon."""
        return self.home is None and time.monotonic() < self.hired + NEW_SECONDS

    @property
    def is_idle(self) -> bool:
        """True if it could paint, but has nothing to do."""
        return self.home is not None and not self.home.problem and not self.tasks

    def suits(self, resources: Mapping[str, float], *, alone: bool = False) -> bool:
        """True if it can run one more task with `resources`, and does not hold much more memory than that.

        alone: no other task may run there.
        """
        if self.home is None or self.home.problem:
            return False
        if len(self.tasks) >= (1 if alone else WINDOW) or any(task.alone for task in self.tasks):
            return False
        if "memory" not in resources:
            return True
        return resources["memory"] <= self.resources["memory"] <= SPACIOUS * resources["memory"]


class _Crew:
    """The workers of a run: as many as the cluster can hold."""

    def __init__(self, cluster: Cluster, tasks: int) -> None:
        """`tasks` is the largest number of tasks that can run at once."""
        self.cluster, self.tasks = cluster, tasks
        self.members: list[_Member] = []
        self._failures: Counter[tuple[str, tuple[str, ...]]] = Counter()  # by node and GPUs

    @property
    def starting(self) -> list[Any]:
        """The answers of the workers that are still starting."""
        return [member.starting for member in self.members if member.home is None]

    def find(self, resources: Mapping[str, float], *, alone: bool) -> _Member | None:
        """The worker with the fewest tasks that can run one with `resources`; None if it has to wait for one.

        Starts workers as long as the cluster can hold more; idle ones that do not suit make room for them.
        """
        free = (member for member in self.members if len(member.tasks) < WINDOW)
        suitable = [member for member in free if member.suits(resources, alone=alone)]
        if not suitable:
            self.dismiss_idle()
        wanted = min(self.cluster.capacity(resources), self.tasks)
        self.members += [self._start(resources) for _ in range(wanted - len(self.members))]
        found = min(suitable, key=lambda member: len(member.tasks), default=None)
        if found and found.tasks and any(member.is_new for member in self.members):
            return None  # a new one will be there sooner than that one is free
        return found

    def _start(self, resources: Mapping[str, float]) -> _Member:
        memory, gpus = resources.get("memory", self.cluster.memory_limit), resources.get("num_gpus", 0.0)
        # No retries by Ray, which does not count every crash as a try; Retries counts.
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, **resources}
        options |= {"max_concurrency": WINDOW, "concurrency_groups": {"control": 1}}
        worker, threads = ray.remote(**options)(_Worker), int(resources["num_cpus"])
        actor = worker.remote(memory, self.cluster.share, threads, gpus, self.cluster.credentials)
        return _Member(actor, resources, actor.home.remote())

    def has_started(self, starting: Any) -> Iterator[Notice]:
        """Note where a worker runs. One whose GPU cannot be used keeps it, so that no other worker gets it."""
        found = [member for member in self.members if member.starting == starting]
        if not found:
            return  # it was dismissed meanwhile
        (member,) = found
        try:
            home: _Home = ray.get(starting)
        except LOST as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise
            self.members.remove(member)  # another one is started in its place
            return
        if not home.problem and self._failures[home.node_id, home.gpus] >= MOST_FAILURES:
            home = replace(home, problem=f"failed {MOST_FAILURES} times")
        member.home = home
        if home.problem:
            yield Notice(f"{home} is left out: {home.problem}")
            if all(other.home and other.home.problem for other in self.members):
                raise EngineError(f"no worker can paint: {home}: {home.problem}")

    def has_failed(self, member: _Member) -> None:
        """Count a failure of a worker's device."""
        if member.home:
            self._failures[member.home.node_id, member.home.gpus] += 1

    def dismiss(self, member: _Member) -> None:
        """End a worker's process."""
        if member in self.members:
            self.members = [other for other in self.members if other is not member]
            if member.tasks and member.home:  # it may hang, or be suspended
                there = NodeAffinitySchedulingStrategy(member.home.node_id, soft=False)
                _kill_task.options(scheduling_strategy=there).remote(member.home.pid)
            ray.kill(member.actor)

    def dismiss_idle(self) -> None:
        """End the workers that have nothing to do, and give their resources back."""
        for member in self.members:
            if member.is_idle:
                self.dismiss(member)

    def close(self) -> None:
        """End all workers."""
        for member in self.members:
            ray.kill(member.actor)


class _Window:
    """Keeps all workers busy, and passes on their events."""

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
        self.crew = _Crew(cluster, tasks)
        self.to_retry: list[Chunk] = []
        self.next_chunk: Chunk | None = None
        self.running: dict[Any, _Task] = {}
        self.submitted = submitted
        self.stopwatch = Stopwatch()
        self.metrics = _Metrics(claim.run_id)

    def events(self) -> Iterator[Event]:
        """Run all tasks; yields the events of all workers as they come."""
        waiting, watched = Waiting(self.cluster.patience), -math.inf
        try:
            while self._fill():
                for answer in _gather([*self.running, *self.crew.starting]):
                    for event in self._next(answer) if answer in self.running else self.crew.has_started(answer):
                        self.metrics.count(event)
                        yield event
                if time.monotonic() - watched >= WATCH_SECONDS:
                    yield from self._watch(waiting)
                    watched = time.monotonic()
        except RayError as error:
            raise EngineError(f"Ray: {_first_line(error)}") from None
        finally:
            self._stop()

    def _fill(self) -> bool:
        """Give every worker something to do; returns whether anything is left to be done."""
        while chunk := self._waiting():
            # What was lost is tried alone, so that nothing else is lost with it.
            alone = bool(self.to_retry)
            member = self.crew.find(self.cluster.resources(chunk, self.tasks), alone=alone)
            if member is None:
                return True
            if alone:
                self.to_retry.pop()
            else:
                self.next_chunk = None
            self.submitted += 1
            task = _Task(chunk, self.submitted, member, alone, longest_silence(chunk))
            member.tasks.append(task)
            self.running[self._submit(task, member)] = task
        self.crew.dismiss_idle()
        return bool(self.running)

    def _waiting(self) -> Chunk | None:
        """The chunk to paint next; None if all are painted or being painted."""
        if self.to_retry:
            return self.to_retry[-1]
        self.next_chunk = self.next_chunk or next(self.chunks, None)
        return self.next_chunk

    def _submit(self, task: _Task, member: _Member) -> Any:
        """Start `task` on a worker; returns the stream of its events."""
        chunk, files = task.chunk, task.chunk.style_files
        return member.actor.paint.remote(
            chunk,
            self.references[chunk.network],
            self.out.address,
            self.claim.lease(task.number),
            max(REPORT_EVERY, self.cluster.workers / MAX_REPORTS_PER_SECOND),
            files,
            *map(self.styles.reference, files),
        )

    def _next(self, stream: Any) -> Iterator[Event]:
        """Yield the next events of a task; if it has ended, forget it, or retry it if its worker was lost."""
        task = self.running[stream]
        try:
            reports: list[Event | _Begun] = ray.get(next(stream))
            task.silent = 0.0
            yield from self._note(task, reports)
        except StopIteration:
            del self.running[stream]
            task.member.tasks.remove(task)
        except LOST as error:
            yield from self._lose(task, error)
        except RayTaskError as error:
            if isinstance(error.cause, DeviceFailed):
                self.crew.has_failed(task.member)
            elif not isinstance(error.cause, LOST):
                raise error.cause from None
            yield from self._lose(task, error.cause)

    def _note(self, task: _Task, reports: Sequence[Event | _Begun]) -> Iterator[Event]:
        """Note what a task has reported, and pass on its events."""
        for report in reports:
            if isinstance(report, _Begun):
                task.begun = True
                continue
            if isinstance(report, Finished):
                task.finished.add(report.pair_id)
                if report.unread:
                    self.styles.forget(report.unread.address)
            yield report

    def _watch(self, waiting: Waiting) -> Iterator[Event]:
        """Retry tasks that hang, replace workers that ask for more than there is now, and wait for nodes."""
        seconds = self.stopwatch.tick()
        for stream, task in list(self.running.items()):
            if not task.begun or stream not in self.running:
                continue
            task.silent += seconds
            if task.silent > task.patience and not ray.wait([stream], timeout=0)[0]:
                yield from self._lose(task, WorkerLost(f"nothing came from it for {_duration(task.silent)}"))
        starting = [member for member in self.crew.members if member.home is None]
        hopeless = [member for member in starting if not self.cluster.can_run(member.resources)]
        chunk = self._waiting() if hopeless else None
        if chunk and self.cluster.can_run(self.cluster.resources(chunk, self.tasks)):
            for member in hopeless:
                self.crew.dismiss(member)
        runs = any(task.begun for task in self.running.values())
        can_run = any(self.cluster.can_run(member.resources) for member in self.crew.members)
        if self.crew.members and (notice := waiting.look(runs=runs, can_run=can_run)):
            yield notice

    def _lose(self, task: _Task, error: BatchNSTError | RayError) -> Iterator[Event]:
        """Retry the tasks of the worker of `task`, which is lost; its process is ended if it still exists."""
        self.crew.dismiss(task.member)
        self.running = {stream: other for stream, other in self.running.items() if other.member is not task.member}
        lost = task.member.tasks
        for one in lost:
            if one.begun or not any(other.begun for other in lost):
                yield from self._try_again(one, error)
            else:
                self.claim.revoke(one.number)
                self.to_retry.append(one.chunk)  # it was only loading

    def _try_again(self, task: _Task, error: BatchNSTError | RayError) -> Iterator[Event]:
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

    def _give_up(self, job: Job, error: BatchNSTError | RayError) -> Finished:
        """Write a failed row for a pair whose worker was lost too often."""
        times = f"{self.cluster.max_attempts} times; the last time: {_first_line(error)}"
        lost: PairError = WorkerLost(f"its worker was lost {times}", transient=True)
        if isinstance(error, OutOfMemoryError):
            lost = OutOfMemory(f"its worker's host was out of memory {times}; lower size", transient=True)
        sha256 = self.weights[job.pair.recipe.network].sha256
        row = rows.attempt_row(job, self.claim.lease(), sha256, datetime.now(UTC))
        self.out.commit(self.claim.lease(), {}, [rows.failed(row, lost)], [])
        return Finished(job.pair.id, str(lost), given_up=True)

    def _stop(self) -> None:
        """Stop all tasks: each drops the batch that it paints and commits finished pictures."""
        for member in self.crew.members:
            member.actor.stop.remote()
        if self.running:
            ended = [stream.completed() for stream in self.running]
            ray.wait(ended, num_returns=len(ended), timeout=CANCEL_SECONDS)
        self.crew.close()


def _gather(answers: list[Any]) -> list[Any]:
    """Those of `answers` that have come, after a wait for the first of them."""
    if not ray.wait(answers, num_returns=1, timeout=REFRESH_SECONDS)[0]:
        return []
    time.sleep(GATHER_SECONDS * len(answers))
    return list(ray.wait(answers, num_returns=len(answers), timeout=0)[0])


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


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _first_line(error: Exception) -> str:
    """The reason in a message; that of Ray for the end of a worker is in its last lines."""
    if isinstance(error, RayActorError) and (reason := re.search(r"because (its [^.\n]*)", str(error))):
        return reason[1]
    return str(error).strip().partition("\n")[0] or type(error).__name__
