"""How busy the scheduling keeps many slots: a million rows, real Ray, and tasks that only sleep (`make scheduling`).

Everything but the painting is what a run does: manifest, plan, blocks, chunks, the window of tasks and their reports.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster as Raylets

from batchnst.engine import ray_cluster, run
from batchnst.engine.events import Event, Finished
from batchnst.engine.run import Options, Planned
from batchnst.manifest.reading import read_manifest
from batchnst.painting.painter import REPORT_EVERY
from batchnst.progress import Work
from tests.helpers import IMAGES
from tests.processes import task_pids

SECONDS_A_PAIR = 0.5
"""What an H200 might take for a pair of 512 pixels; nothing here depends on it but how often tasks end."""


@ray.remote(max_retries=0, num_returns="streaming", memory=1)
def _sleep_task(batches: list[tuple[list[str], int]], interval: float) -> Iterator[list[Event]]:
    told, events = time.monotonic(), list[Event]()
    for pair_ids, work in batches:
        started = time.monotonic()
        time.sleep(SECONDS_A_PAIR * len(pair_ids))
        events += [Work(100, work, time.monotonic() - started), *(Finished(pair_id, None) for pair_id in pair_ids)]
        if time.monotonic() - told >= interval:
            yield events
            told, events = time.monotonic(), []
    yield events


class SleepingWindow(ray_cluster._Window):
    def _submit(self, task: Any) -> Any:
        batches = [([job.pair.id for job in batch.jobs], batch.work) for batch in task.chunk.batches]
        interval = max(REPORT_EVERY, self.cluster.workers / ray_cluster.MAX_REPORTS_PER_SECOND)
        return _sleep_task.options(**task.resources).remote(batches, interval)


class Sleepers(ray_cluster.Cluster):
    def paint(self, chunks: Any, weights: Any, claim: Any, tasks: int) -> Generator[Event, None, None]:
        yield from SleepingWindow(self, chunks, weights, claim, tasks).events()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=240)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="batchnst-scheduling-"))
    photos = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    with (folder / "m.csv").open("w") as file:
        file.write("content,style,id\n")
        for i in range(options.rows):
            file.write(f"{IMAGES / photos[i % 4]},{IMAGES / 'swirls.png'},photo-{i:07d}\n")
    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": options.slots, "memory": 10**13})
    run._start = lambda options: Sleepers(raylets.address, None, options.max_attempts, options.memory)
    try:
        measure(folder, options.slots, options.seconds)
    finally:
        raylets.shutdown()


def measure(folder: Path, slots: int, seconds: float) -> None:
    started = time.monotonic()
    manifest = read_manifest(str(folder / "m.csv"), {})
    print(f"manifest   {len(manifest)} rows read in {time.monotonic() - started:.1f} s")
    busy, pairs, first, cpu, looked, all_there = 0.0, 0, 0.0, 0.0, 0.0, 0.0
    for event in run.run(manifest, Options(out=str(folder / "out"))):
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
            if len(task_pids(os.getpid(), "_sleep_task")) >= slots - 1:
                all_there, cpu = now, time.process_time()
                print(f"slots      {slots} of them busy {now - first:.0f} s later")
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
