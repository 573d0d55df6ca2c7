from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from batchnst.engine.patience import MAX_TICK, Stopwatch, Waiting, longest_silence
from batchnst.engine.plan import Batch, Chunk, Job
from batchnst.errors import EngineError
from tests.helpers import pair

CLOCK = "batchnst.engine.patience.time"


@pytest.fixture
def each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds pass between two looks at the clock."""
    monkeypatch.setattr(CLOCK, SimpleNamespace(monotonic=itertools.count(0, 10).__next__))


def test_what_a_task_is_given_grows_with_its_batches() -> None:
    def silence(pairs: int, size: tuple[int, int] | None) -> float:
        jobs = tuple(Job(pair(str(number)), "f", 1) for number in range(pairs))
        return longest_silence(Chunk((Batch(jobs[:1], (48, 48)), Batch(jobs, size))))

    assert silence(1, None) == pytest.approx(600 + 60, abs=1)
    assert silence(4, (512, 512)) == pytest.approx(600 + 240 + 105, abs=1)
    assert silence(1, (10_000, 10_000)) > 2 * 3600  # a step of it in tiles takes 86 s on two CPUs


@pytest.mark.usefixtures("each_look")
def test_without_a_node_it_is_told_at_once_and_now_and_then_and_given_up() -> None:
    waiting, told = Waiting(seconds=900), list[tuple[int, str]]()
    with pytest.raises(EngineError, match=r"^no node could run a task for 0:15:00; start nodes$"):
        for look in range(1000):
            if notice := waiting.look(runs=False, can_run=False):
                told.append((10 * look, notice.text))
    assert [seconds for seconds, _ in told] == [0, 300, 600]
    text = "no node can run a task; waiting for the cluster to start a node, for up to "
    assert [line for _, line in told] == [f"{text}{left}" for left in ("0:15:00", "0:10:00", "0:05:00")]


@pytest.mark.usefixtures("each_look")
def test_the_patience_begins_anew_when_a_node_is_back() -> None:
    waiting = Waiting(seconds=100)
    for _ in range(5):
        assert [waiting.look(runs=False, can_run=False) is None for _ in range(10)] == [False, *[True] * 9]
        assert waiting.look(runs=True, can_run=True) is None


@pytest.mark.usefixtures("each_look")
def test_busy_nodes_are_told_and_waited_for() -> None:
    waiting = Waiting(seconds=100)
    told = [notice.text for _ in range(100) if (notice := waiting.look(runs=False, can_run=True))]
    assert told[0] == "all nodes are busy with other work for 0:01:00; waiting until one is free"
    assert len(told) == 4


def test_the_time_of_a_suspended_driver_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 5.0, 5000.0, 5001.0])
    monkeypatch.setattr(CLOCK, SimpleNamespace(monotonic=lambda: next(now)))
    stopwatch = Stopwatch()
    assert [stopwatch.tick() for _ in range(3)] == [5.0, MAX_TICK, 1.0]
