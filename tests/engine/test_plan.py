from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from batchnst.engine import run
from batchnst.engine.events import Event, Finished
from batchnst.engine.plan import Chunk, Job, Plan, make_batches, make_plan
from batchnst.engine.repaint import RETRY_FAILED
from batchnst.engine.run import UNKNOWN, Engine, Inline, Options, Planned, make_chunks
from batchnst.ledger.claim import Claim
from batchnst.ledger.outcomes import Outcomes, PairRows
from batchnst.ledger.schema import to_table
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import Pair, fingerprint
from batchnst.manifest.reading import read_manifest
from batchnst.recipe import Recipe
from batchnst.transfer.device import Hardware
from batchnst.transfer.weights import Weights
from tests.helpers import CPU, pair, row

NETWORKS = {("vgg19", "bundled"): "w"}
ROW = {"content": "/a.jpg", "style": "/s.png", "id": "a"}

Asked = Callable[..., Manifest]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Makes a manifest of rows."""

    def make(*rows: dict[str, Any]) -> Manifest:
        path = tmp_path / "m.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_manifest(str(path), {})

    return make


def outcomes(pair: Pair, status: str = "ok", attempt: int = 1, error_kind: str | None = None) -> Outcomes:
    newest = row(
        pair.id,
        run_number=1,
        attempt=attempt,
        status=status,
        error_kind=error_kind,
        fingerprint=fingerprint(pair, "w"),
        output=pair.output,
    )
    return Outcomes(PairRows.of(to_table([newest], "pairs")))


def plan(manifest: Manifest, known: Outcomes, **options: Any) -> Plan:
    return make_plan(manifest, known, NETWORKS, **options)


class Many(Inline):
    """An engine with many workers, which only notes what it is given."""

    workers = 24

    def __init__(self) -> None:
        super().__init__(None, None)
        self.tasks, self.batches = 0, list[int]()

    def paint(
        self, chunks: Iterator[Chunk], weights: Mapping[tuple[str, str], Weights], claim: Claim, tasks: int
    ) -> Generator[Event, None, None]:
        self.tasks = tasks
        for chunk in chunks:
            self.batches += [len(batch.jobs) for batch in chunk.batches]
            yield from (Finished(job.pair.id, None) for batch in chunk.batches for job in batch.jobs)


def test_workers_beyond_the_first_block_get_work_and_its_batches_stay_large(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    settings = {"content": "a.png", "style": "a.png", "size": 64}
    manifest, engine = asked(*({**settings, "id": f"p{number}"} for number in range(240))), Many()
    monkeypatch.setattr(run, "BLOCK", 30)
    monkeypatch.setattr(run, "_start", lambda *_: engine)
    (planned, *_) = list(run.run(manifest, Options(out=str(tmp_path / "out"))))
    assert isinstance(planned, Planned)
    assert planned.workers == 24, "the first block alone keeps three of them busy"
    assert engine.tasks == 24
    assert engine.batches[:3] == [10] * 3
    assert max(engine.batches[-15:]) == 2, "in the end all have something to do"


def test_what_is_done_is_not_done_again_unless_something_changed(asked: Asked) -> None:
    known = outcomes(asked(ROW)[0])
    assert plan(asked(ROW), known).done == 1
    changed: list[dict[str, Any]] = [
        {"content": "/b.jpg"},
        {"style": "/t.png"},
        {"style": ["/s.png", "/t.png"]},
        {"output": "b.png"},
        {"steps": 3},
        {"content_mask": "/m.png"},
    ]
    for change in changed:
        (job,) = plan(asked({**ROW, **change}), known).jobs()
        assert job.attempt == 2
    assert len(make_plan(asked(ROW), known, {("vgg19", "bundled"): "other weights"})) == 1
    assert plan(asked({**ROW, "note": 1}), known).done == 1


def test_a_failed_pair_is_left_alone_until_asked_for(asked: Asked) -> None:
    known = outcomes(asked(ROW)[0], "failed", attempt=2)
    found = plan(asked(ROW, {**ROW, "id": "b"}), known)
    assert (found.failed, found.done, [job.pair.id for job in found.jobs()]) == (1, 0, ["b"])
    again = plan(asked(ROW), known, redo=RETRY_FAILED)
    assert again.jobs()[0].attempt == 3
    assert len(plan(asked({**ROW, "content": "/elsewhere.jpg"}), known)) == 1


def test_a_pair_that_failed_for_a_passing_reason_is_tried_again_unasked(asked: Asked) -> None:
    manifest = asked({**ROW, "id": "b"}, ROW)
    known = outcomes(manifest[1], "failed", attempt=2, error_kind="transient")
    found = plan(manifest, known)
    assert (found.failed, found.again, found.left) == (0, 1, 2)
    assert [(job.pair.id, job.attempt) for job in found.jobs()] == [("b", 1), ("a", 3)]
    lasting = outcomes(manifest[1], "failed", attempt=2, error_kind="permanent")
    assert (plan(manifest, lasting).failed, plan(manifest, lasting).again) == (1, 0)
    assert [(job.pair.id, job.attempt) for job in found.once_more(known, {"a", "b"}).jobs()] == [("a", 3)]
    assert len(found.once_more(known, {"b"})) == len(found.once_more(lasting, {"a", "b"})) == 0


def test_limit_counts_what_is_left(asked: Asked) -> None:
    manifest = asked(*({**ROW, "id": name} for name in "abcd"))
    found = plan(manifest, outcomes(manifest[0]), limit=2)
    assert [job.pair.id for job in found.jobs()] == ["b", "c"]
    assert [job.pair.id for job in found.jobs(slice(1, None))] == ["c"]


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Six wide, three square and one unreadable picture; one of the wide ones with a recipe of its own."""
    found = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        if i < 9:
            Image.new("RGB", (100, 50) if i < 6 else (80, 80)).save(path)
        recipe = Recipe(size=64, seed=1 if i == 0 else 0)
        found.append(Job(pair(str(i), path, recipe=recipe), "f", 1))
    return found


def test_batches_have_one_recipe_and_one_size(jobs: list[Job]) -> None:
    batches = make_batches(jobs, 4, workers=1, largest=lambda _: 10**9)
    for batch in batches:
        assert len({job.pair.recipe for job in batch.jobs}) == 1
        assert 1 <= len(batch.jobs) <= 4
    shapes = sorted((batch.size or (0, 0), len(batch.jobs)) for batch in batches)
    assert shapes == [((0, 0), 1), ((64, 32), 1), ((64, 32), 1), ((64, 32), 4), ((64, 64), 3)]
    assert [batch.work for batch in batches] == sorted((batch.work for batch in batches), reverse=True)
    assert sorted(job.pair.id for batch in batches for job in batch.jobs) == sorted("0123456789")


def test_automatic_batches_fill_the_device_but_leave_no_worker_idle(jobs: list[Job]) -> None:
    wide = jobs[1:6]
    assert [len(b.jobs) for b in make_batches(wide, None, workers=1, largest=lambda _: 10**9)] == [5]
    assert [len(b.jobs) for b in make_batches(wide, None, workers=1, largest=lambda _: 4 * 64 * 32)] == [3, 2]
    assert [len(b.jobs) for b in make_batches(wide, None, workers=2, largest=lambda _: 10**9)] == [3, 2]
    assert [len(b.jobs) for b in make_batches(wide, None, workers=99, largest=lambda _: 10**9)] == [1] * 5
    assert [len(b.jobs) for b in make_batches(wide, None, workers=1, largest=lambda _: 1)] == [1] * 5


def test_on_gpus_pictures_of_several_sizes_share_a_batch_if_their_scales_are_the_same(tmp_path: Path) -> None:
    found = []
    for i, size in enumerate([(512, 384), (512, 341), (512, 341), (512, 60)]):  # the last is too thin for 128 pixels
        path = tmp_path / f"{i}.png"
        Image.new("RGB", size).save(path)
        found += [Job(pair(f"{i}{tile}", path, recipe=Recipe(tile=tile)), "f", 1) for tile in ("auto", 64)]
    batches = make_batches(found, None, workers=1, largest=lambda _: 10**9, mixed=True)
    names = {(batch.size, *sorted(job.pair.id for job in batch.jobs)) for batch in batches}
    whole = {((512, 384), "0auto", "1auto", "2auto"), ((512, 60), "3auto")}
    assert names == whole | {((512, 384), "064"), ((512, 341), "164", "264"), ((512, 60), "364")}
    apart = make_batches(found, None, workers=1, largest=lambda _: 10**9)
    assert len(apart) == 6


def test_pictures_of_unknown_size_are_painted_one_by_one_with_all_the_memory_that_there_is(tmp_path: Path) -> None:
    jobs = [Job(pair(str(i), tmp_path / f"{i}.png"), "f", 1) for i in range(3 * UNKNOWN)]
    batches = make_batches(jobs, None, workers=1, largest=lambda _: 10**9)
    assert len(batches) == len(jobs)
    hardware = Hardware(CPU, 5e9, (CPU,), native_bf16=False)
    assert {(batch.size, len(batch.jobs), batch.memory_needed(hardware)) for batch in batches} == {(None, 1, 5e9)}
    chunks = list(make_chunks([(batches, True)], engine(1), (1e9).__mul__))
    assert [len(chunk.batches) for chunk in chunks] == [UNKNOWN] * 3


def engine(workers: int) -> Engine:
    """All that `make_chunks` asks of an engine."""
    return cast(Engine, SimpleNamespace(workers=workers))


def test_chunks_hold_every_batch_once_and_get_smaller_towards_the_end(jobs: list[Job]) -> None:
    batches = make_batches(jobs[1:6], 1, workers=1, largest=lambda _: 10**9)
    blocks = [(batches[:1], False), (batches[1:], True)]

    def lengths(workers: int, batches_a_minute: float) -> list[int]:
        speed = batches_a_minute * batches[0].work / 60
        chunks = [chunk.batches for chunk in make_chunks(blocks, engine(workers), speed.__mul__)]
        assert [batch for chunk in chunks for batch in chunk] == batches
        return [len(chunk) for chunk in chunks]

    assert lengths(1, 0) == [1] * 5
    assert lengths(1, 1) == [1] * 5
    assert lengths(1, 100) == [1, 2, 1, 1]
    assert lengths(100, 100) == [1] * 5
    blocks = [(batches, False)]
    assert lengths(100, 100) == [5]
    assert lengths(100, 2) == [2, 2, 1]


def test_a_batch_that_takes_no_time_is_in_a_chunk_too(jobs: list[Job]) -> None:
    batches = make_batches(jobs, 4, workers=1, largest=lambda _: 10**9)
    chunks = list(make_chunks([(batches, True)], engine(1), (1e9).__mul__))
    assert sorted(job.pair.id for chunk in chunks for batch in chunk.batches for job in batch.jobs) == list(
        "0123456789"
    )
