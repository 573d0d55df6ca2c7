"""Manifests of pictures inside archives and in the cells of Parquet, from their ids to the audit."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchnst import read_ledger
from batchnst.bench import estimate
from batchnst.engine.plan import Job, make_batches
from batchnst.errors import ManifestError
from batchnst.manifest import picture_columns
from batchnst.manifest.pair import Pair, fingerprint
from batchnst.manifest.reading import read_manifest
from batchnst.pages import short_names
from batchnst.recipe import Recipe
from batchnst.storage import files
from tests.helpers import as_bytes, batchnst, pair, scene
from tests.storage.made import cells, make_parquet, make_tar, make_zip
from tests.storage.servers import Web

QUICK = ["--engine", "inline", "--size", "48", "--steps", "2"]

PHOTOS = {f"photos/{number}.jpg": as_bytes(scene(48 + 4 * number, 40), "JPEG") for number in range(4)}
STYLE = as_bytes(scene(40, 48).rotate(90))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pairs(name: str = "m.parquet") -> list[Pair]:
    return list(read_manifest(name, {}))


# Rows --------------------------------------------------------------------------------------------------------------


def test_pictures_in_cells_become_addresses(folder: Path) -> None:
    photos, masks = cells(PHOTOS), [None, {"bytes": STYLE, "path": None}, None, None]
    make_parquet(
        folder / "m.parquet", {"content": photos, "style": [STYLE] * 4, "content_mask": masks, "depth": photos}, 3
    )
    first, second, *_, last = pairs()
    file = folder / "m.parquet"
    assert (first.content, first.styles) == (f"parquet://content/0/0.jpg::{file}", (f"parquet://style/0::{file}",))
    assert (first.content_masks, second.content_masks) == ((), (f"parquet://content_mask/1::{file}",))
    assert last.content == f"parquet://content/3/3.jpg::{file}"
    assert json.loads(last.extra) == {"depth": "parquet://depth/3/3.jpg::m.parquet"}
    assert last.id.startswith("3--style-3--")
    assert files.read(last.content) == PHOTOS["photos/3.jpg"]


def test_pictures_that_are_kept_once_in_a_dictionary(folder: Path) -> None:
    styles = pa.array([STYLE, PHOTOS["photos/1.jpg"], STYLE, STYLE]).dictionary_encode()
    make_parquet(folder / "m.parquet", {"content": cells(PHOTOS), "style": styles}, 3)
    assert [files.read(pair.styles[0]) for pair in pairs()] == [STYLE, PHOTOS["photos/1.jpg"], STYLE, STYLE]


def test_lists_of_pictures_are_several_styles(folder: Path) -> None:
    photos = cells(PHOTOS)
    make_parquet(folder / "m.parquet", {"content": photos, "style": [photos[:number] for number in (1, 2, 3, 1)]}, 3)
    third = pairs()[2]
    assert third.styles == tuple(f"parquet://style/2.{place}/{place}.jpg::{folder}/m.parquet" for place in range(3))
    assert [files.read(style) for style in third.styles] == list(PHOTOS.values())[:3]


@pytest.mark.parametrize("statistics", [True, False])
def test_a_cell_without_a_picture_is_an_error_with_its_line(folder: Path, statistics: bool) -> None:
    photos = [*cells(PHOTOS), None, {"bytes": None, "path": None}, {"bytes": None, "path": "more/x.jpg"}]
    table = pa.table({"content": photos, "style": [STYLE, None, *[STYLE] * 5]})
    pq.write_table(table, "m.parquet", row_group_size=3, write_statistics=statistics)
    with pytest.raises(ManifestError) as caught:
        pairs()
    assert [line.partition("; ")[0] for line in str(caught.value).splitlines()] == [
        "m.parquet: line 2, style: is missing",
        "m.parquet: line 5, content: is missing",
        "m.parquet: line 6, content: is missing",
    ]
    pq.write_table(table.slice(6), "m.parquet", write_statistics=statistics)
    assert pairs()[0].content == f"{folder}/more/x.jpg"  # as Hugging Face's datasets name files that they do not hold


def test_what_is_no_picture_gets_a_line(folder: Path) -> None:
    make_parquet(folder / "m.parquet", {"content": [b"1"], "style": [[b"1"]]})
    with pytest.raises(
        ManifestError, match="lists of binary in the column style; expected a list of struct<bytes, path>"
    ):
        pairs()
    make_parquet(folder / "a::b.parquet", {"content": [b"1"], "style": [b"1"]})
    with pytest.raises(ManifestError, match="may not have :: in its name; rename it"):
        pairs("a::b.parquet")


@pytest.mark.parametrize("column", ["content", "style"])
def test_addresses_that_are_not_marked_as_text_are_no_pictures(folder: Path, column: str) -> None:
    row = {"content": "a.png", "style": "s.png"} | {column: [b"photos/b.jpg", "photos/é.jpg".encode()]}
    values = {name: value if isinstance(value, list) else [value] * 2 for name, value in row.items()}
    pq.write_table(pa.table(values), folder / "m.parquet")
    with pytest.raises(ManifestError, match=f"has names such as 'photos/b.jpg' in the column {column}, as bytes"):
        pairs()


def test_the_same_rows_have_the_same_ids_wherever_they_lie(folder: Path) -> None:
    (folder / "here").mkdir()
    (folder / "there" / "deep").mkdir(parents=True)
    for place in ("here/m.parquet", "there/deep/m.parquet"):
        make_parquet(folder / place, {"content": cells(PHOTOS), "style": [STYLE] * 4})
    here = [pair.id for pair in pairs("here/m.parquet")]
    assert here == [pair.id for pair in pairs("there/deep/m.parquet")] == [pair.id for pair in pairs("here")]
    assert len(set(here)) == 4


def test_a_new_signature_changes_no_id_and_no_fingerprint(folder: Path) -> None:
    make_parquet(folder / "m.parquet", {"content": cells(PHOTOS), "style": [STYLE] * 4})
    with Web((folder / "m.parquet").read_bytes()) as web:
        first, second = (pairs(f"{web.url}/m.parquet?X-Amz-Signature={sign * 9}")[0] for sign in "ab")
    assert "X-Amz-Signature=aaaaaaaaa" in first.content
    assert (first.id, fingerprint(first, "w")) == (second.id, fingerprint(second, "w"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes that are read of files, one number for each time."""
    counts = list[int]()
    whole = files._Input.readinto

    def counted(self: Any, buffer: Any) -> int:
        counts.append(number := whole(self, buffer))
        return number

    monkeypatch.setattr(files._Input, "readinto", counted)
    yield counts


def test_neither_the_manifest_nor_the_plan_reads_pictures(folder: Path, read: list[int]) -> None:
    """Only where the file does not tell which cells are empty."""
    photos = cells({f"{number}.jpg": random.Random(number).randbytes(100_000) for number in range(40)})
    make_parquet(
        folder / "m.parquet", {"content": photos, "style": [photos[:1]] * 40, "style_mask": [None, photos[0]] * 20}, 20
    )
    found = pairs()
    batches = make_batches([Job(pair, "f", 1) for pair in found], None, workers=1, largest=lambda _: 10**9)
    assert {batch.assumed for batch in batches} == {True}
    assert sum(len(batch.jobs) for batch in batches) == 40
    assert sum(read) < 1_000_000 < (folder / "m.parquet").stat().st_size


def test_large_row_groups_get_a_remark(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_columns, "WHOLE_GROUP", 10)
    make_parquet(folder / "m.parquet", {"content": cells(PHOTOS), "style": [STYLE] * 4})
    (note,) = read_manifest("m.parquet", {}).notes
    assert "in which a picture is slow to read; write smaller ones (100 rows)" in note


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("zip://a.jpg", "expected zip://PATH::ARCHIVE"),
        ("tar://../a.jpg::photos.tar", "leads out of its archive"),
        ("zip://a.jpg::https://me:hunter2@host/photos.zip", "no passwords or keys in addresses"),
    ],
)
def test_an_address_that_cannot_be_is_an_error_with_its_line(folder: Path, address: str, said: str) -> None:
    (folder / "m.jsonl").write_text(json.dumps({"content": address, "style": "s.png"}))
    with pytest.raises(ManifestError, match=f"m.jsonl: line 1, content: .*{said}") as caught:
        pairs("m.jsonl")
    assert "hunter2" not in str(caught.value)


def test_names_of_pictures_inside_are_those_inside() -> None:
    addresses = ["zip://a/x.jpg::/n/1.zip", "zip://b/x.jpg::/n/1.zip", "parquet://image/7::/n/p.parquet", "/n/y.jpg"]
    assert list(short_names(addresses).values()) == ["a/x.jpg", "b/x.jpg", "image-7", "y.jpg"]
    found = pair("p", addresses[0])
    assert found.content == addresses[0]


def test_pictures_of_unknown_size_share_a_square(folder: Path) -> None:
    jobs = [
        Job(pair(str(row), f"parquet://image/{row}::p.parquet", recipe=Recipe(size=64)), "f", 1) for row in range(6)
    ]
    (batch,) = make_batches(jobs, None, workers=1, largest=lambda _: 10**9)
    assert (batch.size, batch.assumed, len(batch.jobs)) == ((64, 64), True, 6)
    small = [Job(pair("s", f"parquet://image/{row}::p", recipe=Recipe(enlarge=False)), "f", 1) for row in range(2)]
    assert [batch.size for batch in make_batches(small, None, workers=1, largest=lambda _: 10**9)] == [None, None]


# A night -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def night(folder: Path) -> Path:
    """Pairs from archives and Parquet, painted for real; the manifest's pictures are in the folder `in`."""
    (folder / "in").mkdir()
    half = np.zeros((40, 48), np.uint8)
    half[:, :24] = 255
    mask = as_bytes(Image.fromarray(half))
    make_zip(folder / "in" / "photos.zip", {**PHOTOS, "mask.png": mask, "broken.jpg": b"no picture"})
    make_tar(folder / "in" / "art.tar", {"s.png": STYLE})
    rows = [
        {"content": None, "id": name, "style": "tar://s.png::art.tar"} for name in ("zip", "masked", "gone", "broken")
    ]
    rows[0]["content"] = rows[1]["content"] = "zip://photos/0.jpg::photos.zip"
    rows[1] |= {"content_mask": "zip://mask.png::photos.zip", "init": "tar://s.png::art.tar"}
    rows[2]["content"], rows[3]["content"] = "zip://none.jpg::photos.zip", "zip://broken.jpg::photos.zip"
    (folder / "in" / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_night_from_archives_is_painted_audited_and_replayed(night: Path) -> None:
    result = batchnst("run", "in/m.jsonl", "--out", "out", *QUICK)
    assert result.exit_code == 1
    rows = {row["pair_id"]: row for row in read_ledger("out", "pairs").to_table().to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "zip": "ok", "masked": "ok", "gone": "failed", "broken": "failed",
    }  # fmt: skip
    assert rows["zip"]["content"] == f"zip://photos/0.jpg::{night}/in/photos.zip"
    for name, said in {
        "gone": "the archive has no such file",
        "broken": "not a picture|cannot be|cannot identify",
    }.items():
        assert rows[name]["error_kind"] == "permanent"
        assert any(part in rows[name]["error_message"] for part in said.split("|"))
    assert ", 3 inputs\nfound: 2 failed\n" in batchnst("audit", "out", "--deep").stdout
    assert batchnst("replay", "out", "masked").exit_code == 0
    assert batchnst("report", "out").exit_code == 0
    make_zip(night / "in" / "photos.zip", {**PHOTOS, "photos/0.jpg": PHOTOS["photos/1.jpg"]})
    os.utime(night / "in" / "photos.zip", (4e9, 4e9))
    findings = json.loads(batchnst("audit", "out", "--deep", "--json").stdout)["findings"]
    kinds = {(finding["kind"], finding["text"].partition("::")[0]) for finding in findings}
    assert {("input-changed", "zip://photos/0.jpg"), ("input-missing", "zip://mask.png")} <= kinds
    again = batchnst("run", "in/m.jsonl", "--out", "out", *QUICK)
    assert f"1 input of done pairs was written after the pictures ({night}/in/photos.zip)" in again.output


def test_a_night_from_a_parquet_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "in").mkdir()
    photos = [*cells(PHOTOS), {"bytes": b"no picture", "path": "x.jpg"}]
    make_parquet(folder / "in" / "m.parquet", {"content": photos, "style": [{"bytes": STYLE, "path": None}] * 5})
    monkeypatch.setattr(estimate, "measure_speed", lambda recipe: 1e6)
    plan = batchnst("plan", "in/m.parquet", "--size", "48", "--steps", "2")
    assert "batches  at most 48×48  5 pairs in " in plan.output
    result = batchnst("run", "in", "--out", "out", *QUICK)
    assert result.exit_code == 1
    rows = {row["content"]: row for row in read_ledger("out", "pairs").to_table().to_pylist()}
    assert len(rows) == 5
    assert max(row["batch_size"] or 0 for row in rows.values()) > 1
    for number in range(4):
        row = rows[f"parquet://content/{number}/{number}.jpg::{folder}/in/m.parquet"]
        assert (row["status"], row["width"]) == ("ok", 48)
    assert batchnst("run", "in", "--out", "out", *QUICK).stdout.count("4 of 5 pairs done")
    assert ", 8 inputs\n" in batchnst("audit", "out", "--deep", "--manifest", "in").stdout
    assert (
        batchnst("replay", "out", rows[f"parquet://content/2/2.jpg::{folder}/in/m.parquet"]["pair_id"]).exit_code == 0
    )


@pytest.mark.slow
def test_ray_workers_read_the_pictures_of_a_parquet_manifest(folder: Path) -> None:
    (folder / "in").mkdir()
    make_parquet(folder / "in" / "m.parquet", {"content": cells(PHOTOS), "style": [STYLE] * 4})
    result = batchnst("run", "in/m.parquet", "--out", "out", "--size", "48", "--steps", "2", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    rows = read_ledger("out", "pairs").to_table().to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert max(row["batch_size"] for row in rows) == 2
