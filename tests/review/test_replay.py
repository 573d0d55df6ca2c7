from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers import batchnst


@pytest.fixture(scope="module")
def painted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of its own, and an OUT with two pairs painted together and one that failed."""
    folder = tmp_path_factory.mktemp("painted") / "folder"
    folder.mkdir()
    for name in ("coffee.png", "rocket.jpg", "swirls.png"):
        shutil.copy(images / name, folder)
    (folder / "m.csv").write_text(
        "content,style,id,output,seed\ncoffee.png,swirls.png,a,a.jpg,3\nrocket.jpg,swirls.png,b,,\nnone.png,swirls.png,c,,\n"
    )
    options = ["--engine", "inline", "--size", 48, "--steps", 6, "--precision", "fp32", "--init", "noise"]
    assert batchnst("run", folder / "m.csv", "--out", folder / "out", *options).exit_code == 1
    return folder


@pytest.fixture
def folder(painted: Path) -> Iterator[Path]:
    """The folder with the painted OUT, which a test may change: it is put back afterwards."""
    kept = shutil.copytree(painted, painted.with_name("kept"))
    yield painted
    shutil.rmtree(painted)
    kept.rename(painted)


def test_a_pair_painted_again_comes_out_the_same(folder: Path) -> None:
    for pair, name in (("a", "a.jpg"), ("b", "b.png")):
        result = batchnst("replay", folder / "out", pair)
        assert result.exit_code == 0, result.output
        assert "steps    6, as it was; the losses of all the same" in result.stdout
        assert f"picture  images/{name}, every pixel as it was" in result.stdout
        assert "machine  cpu, fp32; all as it was" in result.stdout
        assert result.stdout.endswith("holds: the same loss, to 2%\n")


def test_what_has_changed_is_named_before_anything_is_painted(folder: Path) -> None:
    shutil.copy(folder / "coffee.png", folder / "swirls.png")
    (folder / "rocket.jpg").unlink()
    changed = batchnst("replay", folder / "out", "a")
    assert changed.exit_code == 1
    assert f"style    {folder}/swirls.png has changed: " in changed.stdout
    assert "machine" not in changed.stdout
    assert changed.stdout.endswith("does not hold: style\n")
    gone = batchnst("replay", folder / "out", "b")
    assert gone.exit_code == 1
    assert f"content  {folder}/rocket.jpg: no such file" in gone.stdout


def test_a_row_that_says_otherwise_does_not_hold(folder: Path) -> None:
    for path in (folder / "out" / "ledger" / "pairs").iterdir():
        table = pq.read_table(path)
        rows = [row | {"total_loss": (row["total_loss"] or 0) * 1.1} for row in table.to_pylist()]
        pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    result = batchnst("replay", folder / "out", "a")
    assert result.exit_code == 1
    assert "then: -9.09%" in result.stdout
    assert result.stdout.endswith("does not hold: total\n")


def test_pictures_and_steps_that_are_not_those_of_the_row(folder: Path) -> None:
    picture = folder / "out" / "images" / "a.jpg"
    Image.open(picture).rotate(90).save(picture)
    (folder / "out" / "images" / "b.png").unlink()
    for path in (folder / "out" / "ledger" / "losses").iterdir():
        path.unlink()
    result = batchnst("replay", folder / "out", "a")
    assert result.stdout.endswith("does not hold: steps, picture\n")
    assert "images/a.jpg is not the one that was painted" in result.stdout
    assert "images/b.png is not there" in batchnst("replay", folder / "out", "b").stdout


def test_a_pair_that_cannot_be_painted_again_is_named(folder: Path) -> None:
    unknown = batchnst("replay", folder / "out", "x")
    assert unknown.exit_code == 2
    assert unknown.stderr == f"batchnst: x: no such pair in the ledger of {folder}/out\n"
    failed = batchnst("replay", folder / "out", "c")
    assert failed.exit_code == 2
    assert "c: was never painted: InputError: " in failed.stderr
