"""How busy the scheduling keeps many slots: a million rows, real Ray, and tasks that only sleep (`make scheduling`).

Everything but the painting is what a run does: manifest, plan, blocks, chunks, the window of tasks and their reports.
With `--processes`, so many processes stand for all slots, each of which is a thread: thousands of processes do not fit
on a small machine. For the driver all slots are workers of their own.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import ray
from ray.cluster_utils import Cluster as Raylets

from batchnst.engine import ray_cluster, run
from batchnst.engine.events import Event, Finished
from batchnst.engine.plan import Chunk
from batchnst.engine.run import Options, Planned
from batchnst.manifest.reading import read_manifest
from batchnst.progress import Work
from tests.helpers import IMAGES
from tests.processes import task_pids

FILL_SECONDS = 120.0
"""Time in which threads that stand for slots all get their tasks, in seconds."""

seconds_a_pair = 0.5
"""What an H200 might take for a pair of 512 pixels; `--pair-seconds`."""


def sleep(chunk: Chunk, *_: Any) -> Generator[Event, None, None]:
    """In place of `paint_chunk`."""
    for batch in chunk.batches:
        started = time.monotonic()
        time.sleep(seconds_a_pair * len(batch.jobs))
        yield Work(100, batch.work, time.monotonic() - started)
        for job in batch.jobs:
            yield Finished(job.pair.id, None)


class SleepingWorker(ray_cluster._Worker):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        patch.object(ray_cluster, "paint_chunk", sleep).start()


class Host:
    """A process that stands for many workers."""

    def __init__(self, slots: int, pair_seconds: float) -> None:
        globals()["seconds_a_pair"] = pair_seconds
        self._turns = [threading.Lock() for _ in range(slots)]

    @ray.method(concurrency_group="control")
    def home(self) -> ray_cluster._Home:
        return ray_cluster._Home(ray.get_runtime_context().get_node_id(), "here", os.getpid(), (), None)

    @ray.method(num_returns="streaming")
    def paint(
        self, slot: int, chunk: Chunk, weights: Any, out: str, lease: Any, interval: float, *_: Any
    ) -> Iterator[list[Event | ray_cluster._Begun]]:
        """As a worker does."""
        with self._turns[slot]:
            yield [ray_cluster._Begun()]
            reported, told = time.monotonic(), list[Event | ray_cluster._Begun]()
            for event in sleep(chunk):
                told.append(event)
                if time.monotonic() - reported >= interval:
                    yield told
                    reported, told = time.monotonic(), []
            yield told


@dataclass(frozen=True)
class Call:
    """A method of a slot, called as that of an actor."""

    method: Any
    arguments: tuple[Any, ...]

    def remote(self, *arguments: Any) -> Any:
        return self.method.remote(*self.arguments, *arguments)


class Slot:
    """One of a host's slots, in place of an actor."""

    def __init__(self, host: Any, number: int) -> None:
        self.paint, self.stop = Call(host.paint, (number,)), Call(host.home, ())


class ManySlots(ray_cluster._Crew):
    """The workers of a run, which are slots of a few processes."""

    hosts: ClassVar[list[Any]] = []
    started = 0

    def _start(self, resources: Mapping[str, float]) -> ray_cluster._Member:
        host, number = self.hosts[self.started % len(self.hosts)], self.started // len(self.hosts)
        ManySlots.started += 1
        return ray_cluster._Member(Slot(host, number), resources, host.home.remote())

    def dismiss(self, member: ray_cluster._Member) -> None:
        self.members.remove(member)

    def close(self) -> None:
        for host in self.hosts:
            ray.kill(host)


def start_hosts(processes: int, slots: int, pair_seconds: float) -> None:
    """Start `processes` that stand for `slots`."""
    each = -(-slots // processes)
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 2 * each, "concurrency_groups": {"control": 1}}
    kind = ray.remote(**options)(Host)
    ManySlots.hosts = [kind.remote(each, pair_seconds) for _ in range(processes)]
    patch.object(ray_cluster, "_Crew", ManySlots).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--pair-seconds", type=float, default=0.5)
    parser.add_argument("--processes", type=int, default=0, help="for all slots; 0 is one for each")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="batchnst-scheduling-"))
    photos = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    with (folder / "m.csv").open("w") as file:
        file.write("content,style,id\n")
        for i in range(options.rows):
            file.write(f"{IMAGES / photos[i % 4]},{IMAGES / 'swirls.png'},photo-{i:07d}\n")
    os.environ.setdefault("RAY_worker_niceness", "0")  # the workers of a cluster do not wait for its driver
    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": options.slots, "memory": 10**13})
    patch.object(ray_cluster, "_Worker", SleepingWorker).start()
    globals()["seconds_a_pair"] = options.pair_seconds

    def start(of: Options, *_: Any) -> run.Engine:
        cluster = ray_cluster.Cluster(raylets.address, None, of.max_attempts, of.memory)
        if options.processes:
            start_hosts(options.processes, options.slots, options.pair_seconds)
        return cluster

    patch.object(run, "_start", start).start()
    try:
        measure(folder, options.slots, options.seconds, one_process_each=not options.processes)
    finally:
        raylets.shutdown()


def measure(folder: Path, slots: int, seconds: float, *, one_process_each: bool) -> None:
    started = time.monotonic()
    manifest = read_manifest(str(folder / "m.csv"), {})
    print(f"manifest   {len(manifest)} rows read in {time.monotonic() - started:.1f} s")
    busy, pairs, first, cpu, looked, all_there = 0.0, 0, 0.0, 0.0, 0.0, 0.0
    events = run.run(manifest, Options(out=str(folder / "out")))
    for event in events:  # not closed before the end is measured: that takes long
        now = time.monotonic()
        if isinstance(event, Planned):
            print(f"plan       first task {now - started:.1f} s after the start, {peak():.2f} GB")
        elif not first:
            first = now
        elif not all_there:
            # The time in which all these processes start on a few cores does not count.
            if now - looked < 2:
                continue
            looked = now
            is_full = now - first > FILL_SECONDS
            if is_full if not one_process_each else len(task_pids(os.getpid(), "SleepingWorker.paint")) >= slots - 1:
                all_there, cpu = now, time.process_time()
                print(f"slots      {slots} of them busy {now - first:.0f} s later, {peak():.2f} GB", flush=True)
        elif now - all_there > seconds:
            break
        elif isinstance(event, Work):
            busy += event.seconds
        elif isinstance(event, Finished):
            pairs += 1
    wall = time.monotonic() - all_there
    print(f"busy       {busy / wall / slots:.1%} of {slots} slots for {wall:.0f} s, {pairs} pairs")
    print(f"driver     {(time.process_time() - cpu) / wall:.0%} of a core, {peak():.2f} GB")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
