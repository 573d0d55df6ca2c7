"""Names that begin with `.` or `_` are not ours, wherever they lie: everything passes them over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from batchnst import read_ledger
from batchnst.layers.contributions import contributions
from batchnst.ledger.out import Out
from batchnst.manifest.collecting import list_pictures
from tests.helpers import batchnst, scene

JUNK = b"\0\5\26\7\0\2\0\0Mac OS X        "
"""The beginning of the file that macOS writes beside each file of a network disk."""

OPTIONS = ["--engine", "inline", "--size", "48", "--steps", "3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest and its OUT, half painted; beside each file there, and in folders aside, one that is not ours."""
    scene(48, 48).save(tmp_path / "a.png")
    scene(48, 48).rotate(90).save(tmp_path / "s.png")
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text("content,style,id,snapshot_every\na.png,s.png,_a,1\na.png,s.png,b,1\n")
    result = batchnst("run", manifest, "--out", out, *OPTIONS, "--limit", "1")
    assert result.exit_code == 0, result.output
    for folder in [path for path in out.rglob("*") if path.is_dir()]:
        for file in [path for path in folder.iterdir() if path.is_file()]:
            (folder / f"._{file.name}").write_bytes(JUNK)
            (folder / f"_{file.name}").write_bytes(JUNK)
        (folder / ".DS_Store").write_bytes(JUNK)
        (folder / ".snapshot").mkdir()
        for ending in ("parquet", "json", "png", "jpg"):
            (folder / ".snapshot" / f"step-00001.{ending}").write_bytes(JUNK)
    (out / ".batchnst" / "intents").mkdir(exist_ok=True)
    (out / ".batchnst" / "intents" / "._x.json").write_bytes(JUNK)
    return tmp_path


def test_every_command_passes_them_over(folder: Path) -> None:
    manifest, out = folder / "m.csv", folder / "out"
    assert "1 of 2 done, 0 failed, 1 left" in batchnst("status", out).stdout
    again = batchnst("run", manifest, "--out", out, *OPTIONS)
    assert again.exit_code == 0, again.output
    assert "2 of 2 pairs done (1 now" in again.stdout
    audit = batchnst("audit", out, "--json", "--deep", "--manifest", manifest)
    assert json.loads(audit.stdout)["findings"] == []
    assert batchnst("report", out).exit_code == 0
    assert set(read_ledger(str(out), "pairs").to_table()["pair_id"].to_pylist()) == {"_a", "b"}
    assert contributions(Out(str(out)), None, "vgg19")["relu1_1"].after > 0
    assert batchnst("ledger", "compact", out).exit_code == 0
    assert "2 of 2 done" in batchnst("status", out).stdout
    assert batchnst("replay", out, "_a").exit_code == 0
    assert (out / "ledger" / "pairs" / ".snapshot" / "step-00001.parquet").read_bytes() == JUNK


def test_a_picture_of_ours_may_have_such_a_name(folder: Path) -> None:
    out = folder / "out"
    assert (out / "images" / "_a.png").exists()
    (out / "images" / "_a.png").unlink()
    findings = json.loads(batchnst("audit", out, "--json").stdout)["findings"]
    assert [(finding["kind"], finding["pair_id"]) for finding in findings] == [("picture-missing", "_a")]


def test_a_collection_has_no_hidden_pictures(tmp_path: Path) -> None:
    photos = tmp_path / ".photos"
    for name in ("a.jpg", "_DSC0001.jpg", "._a.jpg", ".trash/b.jpg", "deep/c.png", "deep/._c.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    listed = [str(photos / name) for name in ("_DSC0001.jpg", "a.jpg", "deep/c.png")]
    assert list_pictures(str(photos)) == list_pictures(f"{photos}/**") == listed
    assert list_pictures(f"{photos}/*.jpg") == listed[:2]
    assert list_pictures(f"{photos}/.trash/*") == [str(photos / ".trash" / "b.jpg")]
    assert list_pictures(f"{photos}/._*.jpg") == list_pictures(f"{photos}/._a.jpg") == [f"{photos}/._a.jpg"]
    shutil.rmtree(photos)
