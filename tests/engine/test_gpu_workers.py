"""Workers on GPUs, which Ray is told that this machine has: each keeps its own, and one that fails is left out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from ray.cluster_utils import Cluster as Raylets

from batchnst.engine import ray_cluster
from batchnst.engine.events import Event, Finished, Notice
from batchnst.engine.plan import Batch, Chunk, Job
from batchnst.errors import DeviceFailed, EngineError
from batchnst.ledger.out import Out
from batchnst.transfer.device import Hardware
from tests.helpers import CPU, pair
from tests.tools.chaos import STORE

GPUS = 4

SICK = "2"
"""The GPU that fails for the chunks of `sick` pairs."""


def meet(folder: Path, gpu: str) -> None:
    """Wait until a task has begun on every GPU: workers need different times to start."""
    folder.mkdir(exist_ok=True)
    (folder / gpu).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < GPUS:
        assert time.monotonic() < end, "a GPU gets no task"
        time.sleep(0.01)


def tell(chunk: Chunk, _: Any, out: str, *__: Any) -> Generator[Event, None, None]:
    """In place of `paint_chunk`: tell where it was called."""
    time.sleep(0.3 if chunk.jobs[0].pair.id.startswith("sick") else 0.05)
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    if chunk.jobs[0].pair.id.startswith("meeting"):
        meet(Path(out) / "begun", visible)
    if visible == SICK and chunk.jobs[0].pair.id.startswith("sick"):
        raise DeviceFailed("the GPU failed: CUDA error: an illegal memory access was encountered")
    yield Notice(f"{os.getpid()} {visible!r}")
    yield Finished(chunk.jobs[0].pair.id, None)


class Worker(ray_cluster._Worker):
    """A worker that takes its CPU for the GPU that it was given."""

    def __init__(self, *arguments: Any) -> None:
        patch.object(ray_cluster, "paint_chunk", tell).start()
        with patch.object(Hardware, "here", lambda *_, **options: Hardware(CPU, 1e9, (CPU,), native_bf16=False)):
            super().__init__(*arguments)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    head = {"num_cpus": GPUS, "num_gpus": GPUS, "include_dashboard": False, "object_store_memory": STORE}
    raylets = Raylets(initialize_head=True, head_node_args=head)
    try:
        yield raylets.address
    finally:
        raylets.shutdown()


def paint(address: str, out: Path, kind: str, count: int, gpus: float | None = None) -> list[Event]:
    """The events of a run of chunks of one pair each."""
    chunks = [Chunk((Batch((Job(pair(f"{kind}-{i}"), "f", 1),), (48, 48)),)) for i in range(count)]
    cluster = ray_cluster.Cluster(address, gpus, 3, None)
    try:
        with Out(str(out)).claim("r1") as claim:
            return list(cluster.paint(iter(chunks), {chunks[0].network: Any}, claim, count))  # type: ignore[dict-item]
    finally:
        cluster.close()


def test_every_worker_keeps_its_own_gpu_and_all_are_busy(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_Worker", Worker)
    events = paint(address, tmp_path, "meeting", 32)
    homes = Counter(event.text for event in events if isinstance(event, Notice))
    assert len(homes) == GPUS
    assert {home.split()[1] for home in homes} == {"'0'", "'1'", "'2'", "'3'"}
    assert min(homes.values()) >= 4
    assert len([event for event in events if isinstance(event, Finished)]) == 32


@pytest.mark.slow
def test_a_gpu_that_fails_twice_is_left_out_and_every_pair_is_painted(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_Worker", Worker)
    events = paint(address, tmp_path, "sick", 120)
    done = {event.pair_id for event in events if isinstance(event, Finished) and not event.error}
    assert len(done) == 120
    notices = [event.text for event in events if isinstance(event, Notice)]
    told = sum("illegal memory access" in text for text in notices)
    assert ray_cluster.MOST_FAILURES <= told <= 2 * ray_cluster.MOST_FAILURES  # by the task that was waiting, too
    (left_out,) = [text for text in notices if "is left out" in text]
    assert left_out.startswith("GPU 2 of ")
    assert left_out.endswith("is left out: failed 2 times")


@pytest.mark.slow
def test_workers_without_a_gpu_see_none(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_Worker", Worker)
    events = paint(address, tmp_path, "pair", 8, gpus=0.0)
    assert {event.text.split()[1] for event in events if isinstance(event, Notice)} == {"''"}


def test_a_gpu_that_torch_cannot_use_is_no_reason_to_paint_on_a_cpu(address: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"GPU \d of .*: torch .* finds no GPU that it can use, although one is res"):
        paint(address, tmp_path, "pair", 2)
    cluster = ray_cluster.Cluster(address, None, 3, None)
    try:
        with pytest.raises(EngineError, match="finds no GPU that it can use"):
            list(cluster.hardware())
    finally:
        cluster.close()
