from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import Result

from batchnst.manifest.collecting import list_pictures
from batchnst.manifest.reading import read_manifest
from tests.helpers import batchnst


def manifest(*arguments: object) -> Result:
    return batchnst("manifest", *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos at several depths, two paintings, and what is no picture."""
    for name in ("photos/b.jpg", "photos/a.PNG", "photos/deep/er/c.webp", "art/x.png", "art/y.jpeg", "art/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def rows(path: Path) -> list[tuple[str, str]]:
    """Contents and styles by their names, as a run reads them."""
    return [(Path(pair.content).name, Path(pair.styles[0]).name) for pair in read_manifest(str(path), {})]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_every_content_with_every_style(folder: Path, name: str) -> None:
    result = manifest(folder / "photos", folder / "art", "--out", folder / name)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{folder / name}: 6 pairs\n"
    assert rows(folder / name) == [(c, s) for c in ("a.PNG", "b.jpg", "c.webp") for s in ("x.png", "y.jpeg")]
    pairs = list(read_manifest(str(folder / name), {}))
    assert pairs[0].content == str(folder / "photos" / "a.PNG")
    assert len({pair.id for pair in pairs}) == 6


def test_the_same_pictures_give_the_same_manifest_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    manifest(folder / "photos", folder / "art", "--out", folder / "m.csv")
    moved = folder.rename(folder.with_name("moved"))
    before = (moved / "m.csv").read_bytes()
    manifest(moved / "photos", moved / "art", "--out", moved / "m.csv")
    assert (moved / "m.csv").read_bytes() == before
    assert str(moved).encode() not in before
    moved.rename(folder)


def test_zip_wants_as_many_of_both(folder: Path) -> None:
    refused = manifest(folder / "photos", folder / "art", "--out", folder / "m.csv", "--pairing", "zip")
    assert refused.exit_code == 2
    assert "3 contents and 2 styles; expected the same number of both" in refused.stderr
    assert not (folder / "m.csv").exists()
    manifest(f"{folder}/photos/*", folder / "art", "--out", folder / "m.csv", "--pairing", "zip")
    assert rows(folder / "m.csv") == [("a.PNG", "x.png"), ("b.jpg", "y.jpeg")]


def test_random_is_seeded_and_a_content_more_changes_nothing_for_the_others(folder: Path) -> None:
    for number in range(40):
        (folder / "photos" / f"{number}.jpg").touch()
    drawn = {}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        manifest(
            folder / "photos", folder / "art", "--out", folder / f"{name}.csv", "--pairing", "random", "--seed", seed
        )
        drawn[name] = dict(rows(folder / f"{name}.csv"))
    assert len(drawn["one"]) == 43
    assert drawn["one"] == drawn["same"] != drawn["other"]
    assert set(drawn["one"].values()) == {"x.png", "y.jpeg"}
    (folder / "photos" / "0000.jpg").touch()
    manifest(folder / "photos", folder / "art", "--out", folder / "more.csv", "--pairing", "random", "--seed", 1)
    assert {**drawn["one"], "0000.jpg": dict(rows(folder / "more.csv"))["0000.jpg"]} == dict(rows(folder / "more.csv"))


def test_globs_go_as_deep_as_they_say(folder: Path) -> None:
    assert [Path(found).name for found in list_pictures(f"{folder}/photos/**/*.webp")] == ["c.webp"]
    assert [Path(found).name for found in list_pictures(f"{folder}/*/*.[jp]*")] == ["x.png", "y.jpeg", "b.jpg"]
    assert list_pictures(str(folder / "art" / "x.png")) == [str(folder / "art" / "x.png")]


def test_names_that_a_csv_cannot_hold_are_refused_and_other_manifests_hold_them(folder: Path) -> None:
    for name in ("a|b.png", "new\nline.png", 'quo"te, comma.png', "‮right.png", "é.png"):
        (folder / "art" / name).touch()
    refused = manifest(folder / "photos", folder / "art", "--out", folder / "m.csv")
    assert refused.exit_code == 2
    assert "'art/a|b.png': a CSV cannot hold this name; write a .jsonl or .parquet manifest" in refused.stderr
    for name in ("m.jsonl", "m.parquet"):
        assert manifest(folder / "photos", folder / "art", "--out", folder / name).exit_code == 0
        assert {style for _, style in rows(folder / name)} == {path.name for path in (folder / "art").glob("*.[jp]*")}
    (folder / "art" / "a|b.png").unlink()
    assert manifest(folder / "photos", folder / "art", "--out", folder / "m.csv").exit_code == 0
    assert ("a.PNG", "new\nline.png") in rows(folder / "m.csv")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "art", "--out", "m.csv"], "no pictures there; expected a folder, a prefix, or a glob in quotes"),
        (["photos", "art/notes.txt", "--out", "m.csv"], "art/notes.txt: no pictures there"),
        (["photos", "art", "--out", "m.txt"], "expected a name that ends in .csv, .jsonl, .parquet"),
        (["gopher://x/photos", "art", "--out", "m.csv"], "gopher://x: no storage can be opened by this URI"),
    ],
)
def test_a_wrong_request_gets_a_line(
    folder: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = manifest(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not list(folder.glob("m.*"))


@pytest.mark.slow
def test_hundreds_of_thousands_of_pairs(folder: Path) -> None:
    for number in range(2000):
        (folder / "photos" / f"{number:05}.jpg").touch()
        if number < 100:
            (folder / "art" / f"{number:05}.jpg").touch()
    result = manifest(folder / "photos", folder / "art", "--out", folder / "m.csv")
    assert result.stdout == f"{folder}/m.csv: {2003 * 102} pairs\n"
