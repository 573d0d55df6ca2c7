"""Masks and start pictures are in the ledger by their hashes, and what is checked of contents is checked of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchnst import read_ledger
from tests.helpers import batchnst, scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pair with masks and a start picture, painted for real."""
    scene(48, 48).save(tmp_path / "a.png")
    scene(48, 48).rotate(90).save(tmp_path / "style.png")
    scene(48, 48).rotate(180).save(tmp_path / "init.png")
    left = np.zeros((48, 48), np.uint8)
    left[:, :24] = 255
    for name, mask in {"left": left, "right": 255 - left, "top": left.T, "bottom": 255 - left.T}.items():
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    (tmp_path / "m.csv").write_text(
        "content,style,id,content_mask,style_mask,init\n"
        "a.png,style.png,masked,left.png|right.png,top.png|bottom.png,init.png\n"
        "a.png,style.png,plain,,,\n"
    )
    result = batchnst("run", tmp_path / "m.csv", "--out", tmp_path / "out", "--engine", "inline", "--size", "48",
                      "--steps", "2")  # fmt: skip
    assert result.exit_code == 0, result.output
    return tmp_path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def findings(folder: Path) -> list[tuple[str, str]]:
    result = json.loads(batchnst("audit", folder / "out", "--deep", "--json").stdout)
    return [(finding["kind"], finding["text"].split(" ")[0]) for finding in result["findings"]]


def test_the_ledger_has_the_hashes(folder: Path) -> None:
    rows = {row["pair_id"]: row for row in read_ledger(str(folder / "out"), "pairs").to_table().to_pylist()}
    names = ["left", "right", "top", "bottom"]
    assert rows["masked"]["mask_sha256"] == [sha256(folder / f"{name}.png") for name in names]
    assert rows["masked"]["start_sha256"] == sha256(folder / "init.png")
    assert (rows["plain"]["mask_sha256"], rows["plain"]["start_sha256"]) == ([], None)


@pytest.mark.parametrize("name", ["bottom.png", "init.png", pytest.param("left.png", marks=pytest.mark.slow)])
def test_a_change_is_found_by_audit_and_replay(folder: Path, name: str) -> None:
    result = batchnst("audit", folder / "out", "--deep")
    assert ", 7 inputs\nfound nothing wrong" in result.stdout
    changed = np.array(Image.open(folder / name))
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(folder / name)
    assert findings(folder) == [("input-changed", str(folder / name))]
    replayed = batchnst("replay", folder / "out", "masked")
    assert replayed.exit_code == 1
    what = "init" if name == "init.png" else "mask"
    assert f"{what:8} {folder / name} has changed" in replayed.stdout
    (folder / name).unlink()
    assert findings(folder) == [("input-missing", f"{folder / name}:")]
