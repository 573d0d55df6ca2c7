"""How busy the scheduling keeps many slots: a million rows, real Ray, and tasks that only sleep (`make scheduling`).

Everything but the painting is what a run does: manifest, plan, blocks, chunks, the window of tasks and their reports.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray.cluster_utils import Cluster as Raylets

from batchnst.engine import ray_cluster, run
from batchnst.engine.events import Event, Finished
from batchnst.engine.plan import Chunk
from batchnst.engine.run import Options, Planned
from batchnst.manifest.reading import read_manifest
from batchnst.progress import Work
from tests.helpers import IMAGES
from tests.processes import task_pids

SECONDS_A_PAIR = 0.5
"""What an H200 might take for a pair of 512 pixels; nothing here depends on it but how often tasks end."""


def sleep(chunk: Chunk, *_: Any) -> Generator[Event, None, None]:
    """In place of `paint_chunk`."""
    for batch in chunk.batches:
        started = time.monotonic()
        time.sleep(SECONDS_A_PAIR * len(batch.jobs))
        yield Work(100, batch.work, time.monotonic() - started)
        for job in batch.jobs:
            yield Finished(job.pair.id, None)


class SleepingWorker(ray_cluster._Worker):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        patch.object(ray_cluster, "paint_chunk", sleep).start()


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
    patch.object(ray_cluster, "_Worker", SleepingWorker).start()
    run._start = lambda options: ray_cluster.Cluster(raylets.address, None, options.max_attempts, options.memory)
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
            if len(task_pids(os.getpid(), "SleepingWorker.paint")) >= slots - 1:
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
