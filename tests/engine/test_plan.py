from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from batchnst.collection.manifest import Pair
from batchnst.engine.plan import Job, fingerprint, make_batches, make_plan
from batchnst.engine.run import make_chunks
from batchnst.ledger.store import Outcome
from batchnst.recipe import Recipe

NETWORKS = {("vgg19", "bundled"): "w"}


def pair(name: str = "a", content: str = "/a.jpg", **settings: object) -> Pair:
    return Pair(name, content, ("/s.png",), (1.0,), (), (), f"{name}.png", Recipe.from_settings(settings), "{}")


def test_what_is_done_is_not_done_again_unless_something_changed() -> None:
    asked = pair()
    outcomes = {"a": Outcome(True, fingerprint(asked, "w"), 1)}
    assert make_plan([asked], outcomes, NETWORKS).done == 1
    changed = [
        replace(asked, content="/b.jpg"),
        replace(asked, styles=("/t.png",)),
        replace(asked, styles=("/s.png", "/t.png"), style_weights=(0.5, 0.5)),
        replace(asked, output="b.png"),
        replace(asked, recipe=Recipe(steps=3)),
    ]
    for other in changed:
        (job,) = make_plan([other], outcomes, NETWORKS).jobs
        assert job.attempt == 2
    assert len(make_plan([asked], outcomes, {("vgg19", "bundled"): "other weights"}).jobs) == 1
    assert make_plan([replace(asked, extra='{"note": 1}')], outcomes, NETWORKS).done == 1


def test_a_failed_pair_is_left_alone_until_asked_for() -> None:
    asked = pair()
    outcomes = {"a": Outcome(False, fingerprint(asked, "w"), 2)}
    plan = make_plan([asked, pair("b")], outcomes, NETWORKS)
    assert (plan.failed, plan.done, [job.pair.id for job in plan.jobs]) == (1, 0, ["b"])
    again = make_plan([asked], outcomes, NETWORKS, retry_failed=True)
    assert again.jobs[0].attempt == 3
    repaired = replace(asked, content="/elsewhere.jpg")
    assert len(make_plan([repaired], outcomes, NETWORKS).jobs) == 1


def test_limit_counts_what_is_left() -> None:
    pairs = [pair(name) for name in "abcd"]
    outcomes = {"a": Outcome(True, fingerprint(pairs[0], "w"), 1)}
    assert [job.pair.id for job in make_plan(pairs, outcomes, NETWORKS, limit=2).jobs] == ["b", "c"]


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Six wide, three square and one unreadable picture; one of the wide ones with a recipe of its own."""
    found = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        if i < 9:
            Image.new("RGB", (100, 50) if i < 6 else (80, 80)).save(path)
        found.append(Job(pair(str(i), str(path), size=64, seed=1 if i == 0 else 0), "f", 1))
    return found


def test_batches_have_one_recipe_and_one_size(jobs: list[Job]) -> None:
    batches = make_batches(jobs, 4, workers=1, largest=10**9)
    for batch in batches:
        assert len({job.pair.recipe for job in batch.jobs}) == 1
        assert 1 <= len(batch.jobs) <= 4
    shapes = sorted((batch.size or (0, 0), len(batch.jobs)) for batch in batches)
    assert shapes == [((0, 0), 1), ((64, 32), 1), ((64, 32), 1), ((64, 32), 4), ((64, 64), 3)]
    assert [batch.work for batch in batches] == sorted((batch.work for batch in batches), reverse=True)
    assert sorted(job.pair.id for batch in batches for job in batch.jobs) == sorted("0123456789")


def test_automatic_batches_fill_the_device_but_leave_no_worker_idle(jobs: list[Job]) -> None:
    wide = jobs[1:6]
    assert [len(b.jobs) for b in make_batches(wide, None, workers=1, largest=10**9)] == [5]
    assert [len(b.jobs) for b in make_batches(wide, None, workers=1, largest=4 * 64 * 32)] == [3, 2]
    assert [len(b.jobs) for b in make_batches(wide, None, workers=2, largest=10**9)] == [3, 2]
    assert [len(b.jobs) for b in make_batches(wide, None, workers=99, largest=10**9)] == [1] * 5
    assert [len(b.jobs) for b in make_batches(wide, None, workers=1, largest=1)] == [1] * 5


def test_chunks_hold_every_batch_once(jobs: list[Job]) -> None:
    batches = make_batches(jobs, 1, workers=1, largest=10**9)
    for workers in (1, 2, 100):
        chunks = make_chunks(batches, workers)
        assert [batch for chunk in chunks for batch in chunk.batches] == batches
        assert len(chunks) >= min(len(batches), 4 * workers)
