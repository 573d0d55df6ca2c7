"""A run never replaces a picture that is the user's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.helpers import batchnst, scene

PAINT = ["--engine", "inline", "--size", "32", "--steps", "1"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photos named `images`, as OUT's own folder of pictures is, and a manifest beside it."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "mask.png", "style.png"):
        scene(40, 32).save(tmp_path / "images" / name)
    return tmp_path


def manifest(folder: Path, output: str, settings: str = "") -> Path:
    path = folder / "m.jsonl"
    path.write_text(
        f'{{"content": "images/a.png", "style": "images/style.png", "id": "x", "output": "{output}"{settings}}}'
    )
    return path


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("command", [["plan"], ["run", *PAINT], ["run", *PAINT, "--pictures", "tar"]])
def test_an_output_in_place_of_a_photo_is_refused(photos: Path, command: list[str]) -> None:
    path = manifest(photos, "a.png")
    before = hashes(photos)
    name, *options = command
    result = batchnst(name, path, "--out", photos, *options)
    assert (result.exit_code, result.stderr.count("\n"), hashes(photos)) == (2, 1, before)
    assert "images/a.png is a picture that pairs are painted from, and pair x would replace it" in result.stderr


@pytest.mark.parametrize("out", ["file://{}", "{}/link"])
@pytest.mark.parametrize(
    ("output", "settings"),
    [
        ("style.png", ""),
        ("mask.png", ', "content_mask": "images/mask.png", "style_mask": "images/mask.png"'),
        ("mask.png", ', "init": "images/mask.png"'),
    ],
)
def test_every_input_counts_also_in_an_out_with_a_ledger(photos: Path, output: str, settings: str, out: str) -> None:
    (photos / "link").symlink_to(photos)
    assert batchnst("run", manifest(photos, "new.png"), "--out", photos, *PAINT).exit_code == 0
    result = batchnst("plan", manifest(photos, output, settings), "--out", out.format(photos))
    assert (result.exit_code, f"images/{output} is a picture that pairs are painted from" in result.stderr) == (2, True)


def test_a_file_in_a_folder_that_is_no_out_yet_is_not_replaced(photos: Path) -> None:
    (photos / "images" / "old.png").write_bytes(b"mine")
    result = batchnst("run", manifest(photos, "old.png"), "--out", photos, *PAINT)
    assert (result.exit_code, "images/old.png is not painted by any run" in result.stderr) == (2, True)
    assert batchnst("run", manifest(photos, "new.png"), "--out", photos, *PAINT).exit_code == 0
    assert (photos / "images" / "old.png").read_bytes() == b"mine"
