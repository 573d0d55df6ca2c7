"""Inputs that were written after the pictures painted from them are told by `plan` and `run`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from batchnst.engine import newer
from batchnst.engine.newer import DoneInputs, describe_newer
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import Pair
from batchnst.recipe import Recipe
from tests.helpers import batchnst, pair, scene

NOW = time.time_ns() // 1000


def add(inputs: DoneInputs, painted: int, *pairs: Pair) -> None:
    """Add pairs that were all painted at this time."""
    manifest = Manifest.of("m.csv", pairs)
    for block in manifest.blocks():
        inputs.add(block, np.full(len(block), painted), manifest)


def test_the_earliest_picture_of_an_input_counts(tmp_path: Path) -> None:
    for name in ("old.png", "new.png", "style.png", "init.png"):
        (tmp_path / name).touch()
    inputs, recipe = DoneInputs(), Recipe(init=str(tmp_path / "init.png"))
    os.utime(tmp_path / "old.png", (1, 1))
    os.utime(tmp_path / "init.png", (1, 1))
    add(inputs, NOW + 10**9, pair("a", tmp_path / "new.png", f"file://{tmp_path}/style.png", recipe))
    add(inputs, NOW - 10**9, pair("b", tmp_path / "old.png", f"{tmp_path}/style.png"))
    add(inputs, 0, pair("c", tmp_path / "gone.png", "https://host/style.png"))
    assert inputs.newer() == [str(tmp_path / "style.png")]


def test_the_look_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = DoneInputs()
    monkeypatch.setattr(newer, "MOST", 3)
    monkeypatch.setattr(newer, "SECONDS", 0.1)
    for i in range(9):
        (tmp_path / f"{i}.png").touch()
        add(inputs, 0, pair(str(i), tmp_path / f"{i}.png", "https://host/style.png"))
    assert [Path(path).name for path in inputs.newer()] == ["0.png", "1.png", "2.png"]
    monkeypatch.setattr(os, "stat", lambda path: time.sleep(9))  # a disk that hangs
    began = time.monotonic()
    assert inputs.newer() == []
    assert time.monotonic() - began < 5


def test_plan_and_run_say_it_in_a_line(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "style.png"):
        scene(48, 48).save(tmp_path / name)
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text("content,style,id\na.png,style.png,a\nb.png,style.png,b\n")
    command = [manifest, "--out", out, "--size", "48", "--steps", "2"]
    assert batchnst("run", *command, "--engine", "inline").exit_code == 0
    assert "was written after" not in batchnst("run", *command, "--engine", "inline").stderr
    scene(64, 48).save(tmp_path / "a.png")
    line = (
        f"1 input of done pairs was written after the pictures ({tmp_path}/a.png); `batchnst audit {out} --deep` tells "
        "if they have changed"
    )
    assert line in batchnst("run", *command, "--engine", "inline").stderr.replace("\n", " ")
    assert f"inputs   {line}" in batchnst("plan", *command).stdout
    scene(64, 48).save(tmp_path / "style.png")
    assert "2 inputs of done pairs were written after the pictures" in batchnst("plan", *command).stdout
    assert describe_newer(["x", "y"], "o").startswith(
        "2 inputs of done pairs were written after the pictures (x and oth"
    )
