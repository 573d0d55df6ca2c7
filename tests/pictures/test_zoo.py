"""Hundreds of deliberately varied files: each is painted as it should look, or fails for its true reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from batchnst import read_ledger
from tests.helpers import batchnst, scene
from tests.pictures import zoo

SIZE = 48
UNCHANGED = [
    "--set",
    "style_weight=0",
    "--set",
    "tv_weight=0",
    "--set",
    f"min_size={SIZE}",
    "--set",
    "content_layers=relu2_1",
]
"""What leaves a picture as it was: the content alone, from the content."""


def test_every_file_is_painted_right_or_fails_for_its_reason(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    found = zoo.release(tmp_path / "zoo")
    scene(64, 64).save(tmp_path / "style.png")
    rows = [
        {"content": f"zoo/{name}", "style": "style.png", "id": f"n{i}", "order": name, **animal.settings}
        for i, (name, animal) in enumerate(found.items())
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--engine", "inline", "--size", SIZE, "--steps", 1, *UNCHANGED]
    options += ["--set", "style_layers=relu1_1"]
    result = batchnst("run", tmp_path / "m.jsonl", "--out", tmp_path / "out", *options)
    assert result.exit_code == 1, result.output
    ledger = {row["pair_id"]: row for row in read_ledger(str(tmp_path / "out"), "pairs").to_table().to_pylist()}
    assert len(ledger) == len(rows) >= 300
    wrong = {}
    for row in rows:
        animal, outcome = found[str(row["order"])], ledger[str(row["id"])]
        if problem := difference(animal, outcome, tmp_path / "out" / "images"):
            wrong[animal.name] = problem
    assert not wrong, "\n".join(f"{name}: {problem}" for name, problem in wrong.items())


def difference(animal: zoo.Animal, row: dict[str, object], images: Path) -> str:
    """What is wrong with how a file came out."""
    if animal.looks is None:
        said = str(row["error_message"])
        return "" if row["status"] == "failed" and re.search(animal.fails, said) else f"{row['status']}: {said}"
    if row["status"] != "ok":
        return f"failed: {row['error_message']}"
    wanted = Image.fromarray(animal.looks.round().clip(0, 255).astype(np.uint8))
    scale = SIZE / max(wanted.size)
    size = (max(1, round(wanted.width * scale)), max(1, round(wanted.height * scale)))
    expected = np.asarray(wanted.resize(size, Image.Resampling.LANCZOS) if size != wanted.size else wanted).astype(int)
    painted = np.asarray(Image.open(images / str(row["output"])).convert("RGB"))
    if painted.shape != expected.shape:
        return f"{painted.shape}, not {expected.shape}"
    apart = np.abs(painted - expected).max()
    return f"{apart} apart" if apart > animal.within + 1 else ""
