from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from batchnst import read_ledger
from batchnst.engine.events import Finished
from batchnst.engine.plan import Batch, Chunk, Job
from batchnst.engine.worker import paint_chunk
from batchnst.errors import StorageError, Superseded
from batchnst.ledger.claim import Lease
from batchnst.ledger.out import Out
from batchnst.painting import painter, tensors
from batchnst.pictures import isolated
from batchnst.progress import Work
from batchnst.recipe import Recipe
from batchnst.storage.files import Folder
from batchnst.transfer.device import Hardware
from batchnst.transfer.stylize import Step, Stylized, stylize
from batchnst.transfer.weights import Weights
from tests.helpers import pair, size_of

RECIPE = Recipe(size=48, steps=4)


CPU = Hardware.here()


def job(images: Path, name: str, content: str = "astronaut.png", style: str = "swirls.png") -> Job:
    return Job(pair(name, images / content, images / style, RECIPE), "f", 1)


def paint(jobs: list[Job], weights: Weights, out: Path) -> list[Any]:
    chunk = Chunk((Batch(tuple(jobs), (48, 48)),))
    with Out(str(out)).claim("r1"):
        return list(paint_chunk(chunk, weights, str(out), Lease("r1", 1), CPU))


def rows(out: Path, table: str = "pairs") -> dict[str, dict[str, Any]]:
    found = read_ledger(str(out), table).to_table().to_pylist()
    return {row["pair_id"]: row for row in found}


def test_a_row_says_what_was_painted(images: Path, weights: Weights, tmp_path: Path) -> None:
    events = paint([job(images, "a"), job(images, "b", style="woodcut.png")], weights, tmp_path)
    assert [event for event in events if isinstance(event, Finished)] == [Finished("a", None), Finished("b", None)]
    progress = [event for event in events if isinstance(event, Work)]
    assert sum(event.steps for event in progress) == 8
    assert sum(event.pixel_steps for event in progress) == 8 * 48 * 48
    row = rows(tmp_path)["b"]
    picture = tmp_path / "images" / "b.png"
    assert hashlib.sha256(picture.read_bytes()).hexdigest() == row["output_sha256"]
    assert size_of(picture) == (row["width"], row["height"]) == (48, 48)
    assert row["content_sha256"] == hashlib.sha256((images / "astronaut.png").read_bytes()).hexdigest()
    assert row["style_sha256"] == [hashlib.sha256((images / "woodcut.png").read_bytes()).hexdigest()]
    assert (row["status"], row["stopped"], row["steps"], row["batch_size"]) == ("ok", "steps", 4, 2)
    terms = row["content_loss"] + row["style_loss"] + row["tv_loss"]
    assert row["total_loss"] == pytest.approx(terms, rel=1e-6)
    losses = read_ledger(str(tmp_path), "losses").to_table().to_pylist()
    steps = [step for step in losses if step["pair_id"] == "b"]
    assert [step["step"] for step in steps] == [0, 1, 2, 3]
    assert steps[0]["total"] == row["initial_total"]
    assert steps[-1]["total"] == row["total_loss"]
    mean = np.mean([dict(steps[0]["style_layers"])[name] for name in RECIPE.style_layers])
    assert steps[0]["style"] == pytest.approx(RECIPE.style_weight * mean, rel=1e-5)
    assert [step["seconds"] for step in steps] == sorted(step["seconds"] for step in steps)


def test_a_bad_picture_fails_alone_with_its_reason(images: Path, weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes((images / "coffee.png").read_bytes()[:5000])
    Image.new("RGB", (400, 20)).save(tmp_path / "thin.png")
    bad = [job(tmp_path, "torn", "torn.png", str(images / "swirls.png")), job(images, "gone", "none.png")]
    bad += [job(tmp_path, "thin", "thin.png", str(images / "swirls.png")), job(images, "style", style="no.png")]
    events = paint([job(images, "good"), *bad], weights, tmp_path / "out")
    assert {event.pair_id: event.error is None for event in events if isinstance(event, Finished)} == {
        "torn": False,
        "gone": False,
        "thin": False,
        "style": False,
        "good": True,
    }
    found = rows(tmp_path / "out")
    assert {found[name]["error_type"] for name in ("torn", "gone", "thin", "style")} == {"InputError"}
    assert "torn.png: cannot be decoded" in found["torn"]["error_message"]
    assert found["gone"]["error_message"].endswith("none.png: no such file")
    assert "relu5_1 needs 16 on each side" in found["thin"]["error_message"]
    assert found["good"]["status"] == "ok"
    assert found["good"]["batch_size"] == 1


def out_of_memory_above(pictures: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the optimisation run out of memory for batches larger than this; returns the sizes tried."""
    tried = list[int]()

    def short_of_memory(contents: list[torch.Tensor], *rest: Any) -> Generator[Step, None, Stylized]:
        tried.append(len(contents))
        if len(contents) > pictures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (yield from stylize(contents, *rest))

    monkeypatch.setattr(painter, "stylize", short_of_memory)
    return tried


def test_a_batch_that_does_not_fit_is_halved(
    images: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = out_of_memory_above(2, monkeypatch)
    paint([job(images, name) for name in "abcde"], weights, tmp_path)
    assert tried == [5, 2, 3, 1, 2]
    assert {row["status"] for row in rows(tmp_path).values()} == {"ok"}
    assert len(rows(tmp_path)) == 5


def test_a_pair_that_does_not_fit_alone_says_so(
    images: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(0, monkeypatch)
    paint([job(images, "a")], weights, tmp_path)
    row = rows(tmp_path)["a"]
    assert (row["status"], row["error_type"]) == ("failed", "OutOfMemory")
    assert "lower size" in row["error_message"]


def test_a_picture_without_a_finite_loss_is_a_failed_row_and_its_neighbour_is_painted(
    images: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tensors.TensorCache.contents

    def poisoned(self: tensors.TensorCache, batch: Any) -> list[torch.Tensor]:
        made = real(self, batch)
        made[0][0, 0, 0, 0] = torch.nan
        return made

    monkeypatch.setattr(tensors.TensorCache, "contents", poisoned)
    paint([job(images, "a"), job(images, "b")], weights, tmp_path)
    found = rows(tmp_path)
    assert (found["a"]["status"], found["a"]["error_type"], found["a"]["stopped"]) == ("failed", "Diverged", "diverged")
    assert found["b"]["status"] == "ok"
    assert not (tmp_path / "images" / "a.png").exists()


def test_a_store_that_cannot_be_written_stops_the_worker(
    images: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Folder, path: str, *rest: object, **more: object) -> bool:
        raise StorageError("disk full")

    monkeypatch.setattr(Folder, "replace", full)
    with pytest.raises(StorageError, match="disk full"):
        paint([job(images, "a")], weights, tmp_path)
    assert rows(tmp_path) == {}


def test_a_worker_whose_run_was_superseded_stops(images: Path, weights: Weights, tmp_path: Path) -> None:
    chunk = Chunk((Batch((job(images, "a"),), (48, 48)),))
    with Out(str(tmp_path)).claim("r2") as claim:
        with pytest.raises(Superseded, match="another run"):
            list(paint_chunk(chunk, weights, str(tmp_path), Lease("r1", 1), CPU))
        claim.revoke(7)
        with pytest.raises(Superseded, match="this task was given up as lost"):
            list(paint_chunk(chunk, weights, str(tmp_path), Lease("r2", 1, 7), CPU))
    assert rows(tmp_path) == {}
    assert not (tmp_path / "images").exists()


def test_a_batch_is_committed_while_the_next_is_painted(
    images: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = 0
    second_begun = Event()

    def counted(*arguments: Any) -> Any:
        nonlocal painted
        painted += 1
        if painted == 2:
            second_begun.set()
        return stylize(*arguments)

    def commit(self: Out, *arguments: Any) -> None:
        assert second_begun.wait(60), "the commit was not left to a thread of its own"
        real_commit(self, *arguments)

    real_commit = Out.commit
    monkeypatch.setattr(painter, "stylize", counted)
    monkeypatch.setattr(Out, "commit", commit)
    chunk = Chunk(tuple(Batch((job(images, name),), (48, 48)) for name in "abc"))
    with Out(str(tmp_path)).claim("r1"):
        events = list(paint_chunk(chunk, weights, str(tmp_path), Lease("r1", 1), CPU))
    assert [event.pair_id for event in events if isinstance(event, Finished)] == ["a", "b", "c"]
    assert all(event.seconds > 0 for event in events if isinstance(event, Work))
    assert sorted(rows(tmp_path)) == ["a", "b", "c"]


def test_a_picture_that_cannot_be_encoded_fails_alone_and_the_next_batch_goes_on(
    images: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(pixels: Any, name: str, finish: Any) -> bytes:
        if name == "a.png":
            raise RuntimeError("no such encoder")
        return real_encode(pixels, name, finish)

    real_encode = isolated.encode
    monkeypatch.setattr(isolated, "encode", encode)
    chunk = Chunk((Batch((job(images, "a"), job(images, "b")), (48, 48)), Batch((job(images, "c"),), (48, 48))))
    with Out(str(tmp_path)).claim("r1"):
        list(paint_chunk(chunk, weights, str(tmp_path), Lease("r1", 1), CPU))
    found = {name: (row["status"], row["error_message"]) for name, row in rows(tmp_path).items()}
    assert found == {"a": ("failed", "no such encoder"), "b": ("ok", None), "c": ("ok", None)}


def test_a_pair_for_which_memory_is_short_is_painted_in_less(
    images: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def short_of_memory(*arguments: Any) -> Any:
        tried.append(arguments[5])
        if math.isinf(tried[-1].tile):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stylize(*arguments)

    monkeypatch.setattr(painter, "stylize", short_of_memory)
    recipe = Recipe(size=480, min_size=480, steps=1, precision="bf16", optimizer="sgd")
    wide = replace(job(images, "a"), pair=replace(job(images, "a").pair, recipe=recipe))
    with Out(str(tmp_path)).claim("r1"):
        hardware = replace(CPU, memory=2.4e9)
        list(paint_chunk(Chunk((Batch((wide,), (480, 480)),)), weights, str(tmp_path), Lease("r1", 1), hardware))
    row = rows(tmp_path)["a"]
    assert (row["status"], row["error_message"]) == ("ok", None)
    assert json.loads(row["recipe"])["tile"] == 256
    assert [fitting.tile for fitting in tried] == [math.inf, 256]


def test_a_name_that_the_file_system_refuses_fails_its_pair_alone(
    images: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"long": "l" * 200 + ".png", "folder": "folder.png", "file": "file.png/a.png", "good": "good.png"}
    (tmp_path / "images" / "folder.png").mkdir(parents=True)
    (tmp_path / "images" / "file.png").write_bytes(b"")
    replace_file = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        """Take names of at most 143 bytes, as an encrypted home folder does."""
        if len(Path(target).name) > 143:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return replace_file(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    jobs = [job(images, name) for name in names]
    jobs = [replace(one, pair=replace(one.pair, output=names[one.pair.id])) for one in jobs]
    events = paint(jobs, weights, tmp_path)
    told = {event.pair_id: event.error for event in events if isinstance(event, Finished)}
    for name, reason in {"long": "File name too long", "folder": "Is a directory", "file": "Not a directory"}.items():
        assert str(told[name]).endswith(f"{names[name]}: cannot be written: {reason}"), told[name]
    assert told["good"] is None
    found = rows(tmp_path)
    assert {name: row["error_type"] for name, row in found.items()} == {
        **dict.fromkeys(["long", "folder", "file"], "OutputError"),
        "good": None,
    }
    assert found["good"]["batch_size"] == 4
    assert size_of(tmp_path / "images" / "good.png") == (48, 48)


def test_a_file_in_place_of_the_folder_of_pictures_stops_the_run(
    images: Path, weights: Weights, tmp_path: Path
) -> None:
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        paint([job(images, "a")], weights, tmp_path)
