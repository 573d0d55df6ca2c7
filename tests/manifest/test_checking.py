"""What is checked in columns is what each row alone says: pairs, ids and fingerprints."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchnst.errors import ManifestError
from batchnst.manifest.blocks import Blocks, to_batch
from batchnst.manifest.checking import Checks, check, in_columns
from batchnst.manifest.manifest import SCHEMA, Manifest
from batchnst.manifest.outputs import LONGEST_OUTPUT
from batchnst.manifest.pair import fingerprint
from batchnst.manifest.reading import _Builder
from batchnst.manifest.row_columns import Cells, contain, mask

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))

ADDRESSES = [
    *(
        "a.png",
        "photos/a b.tar.gz",
        "/x/y.jpg",
        "./a",
        "a/../b.png",
        "a//b",
        "~/c.png",
        ".hidden",
        "..",
        "dots.",
        "é/ü.png",
    ),
    *(
        "s3://bucket/a/b.png",
        "s3://bucket",
        "https://h/a.png?v=1",
        "https://h/a.png?sig=abcdefgh&v=2",
        "gs://b/a%20b.png",
    ),
    *(
        "https://me:secret@h/a.png",
        "file:///x/a%20b.png",
        "file:/x/y.png",
        "zip://a.png::s3://b/c.zip",
        "S3://b/a",
        "a:b",
    ),
    *(
        "s3://b/é.png",
        "a\nb.png",
        "a\0b",
        'quo"te\\.png',
        " x ",
        "x" * 60 + ".png",
        "photo#1.png",
        "100%.png",
        "a/.b/c.",
        "文.png",
    ),
]
OUTPUTS = [
    "x.png",
    "a/b.JPG",
    "../x.png",
    "a/./b.png",
    "x.gif",
    ".png",
    "é.png",
    "a" * 300 + ".png",
    "d.webp",
    "a//b.tif",
    "..x.png",
]

CELLS: dict[str, st.SearchStrategy[Any]] = {
    "content": st.sampled_from(ADDRESSES) | st.text(max_size=8),
    "style": st.sampled_from(ADDRESSES),
    "id": st.sampled_from(["a", "b.c", "..", "a b", "x" * 201]) | st.text(max_size=3),
    "output": st.sampled_from(OUTPUTS) | st.text(max_size=8),
    "content_mask": st.sampled_from(ADDRESSES),
    "seed": st.integers(-2, 5) | st.just(2**63 - 1),
    "size": st.sampled_from([8, 64, 512, 20_000]),
    "format": st.sampled_from(["png", "webp", "gif"]),
    "init": st.sampled_from(["content", "noise", "nois", "start.png", "https://h/s.png?sig=abcdefgh"]),
    "weights": st.sampled_from(["bundled", "w/x.pth", 'my"name']),
    "tolerance": st.sampled_from([0.0, 0.1, 1e-9, 7.0, float("inf")]),
    "mood": st.text(max_size=5),
    "taken": st.booleans(),
    "rank": st.floats(),
}
LISTS = {"style": 3, "style_mask": 2, "style_weights": 2}


@st.composite
def columns(draw: st.DrawFn) -> dict[str, pa.Array]:
    """Columns of some rows, as Parquet may have them."""
    rows = draw(st.integers(1, 5))
    names = {"content", "style", *draw(st.sets(st.sampled_from([*CELLS, *LISTS])))}
    table = {}
    for name in sorted(names):
        cell = CELLS.get(name, st.sampled_from(ADDRESSES))
        if name == "style_weights":
            cell = st.sampled_from([0.0, 1.0, 3.0])
        if name in LISTS and (name not in CELLS or draw(st.booleans())):
            cell = st.lists(cell, max_size=LISTS[name])
        table[name] = pa.array(draw(st.lists(cell | st.none(), min_size=rows, max_size=rows)))
    return table


def alone(cells: Cells, base: str, options: dict[str, Any]) -> tuple[list[tuple[Any, ...]], list[list[str]]]:
    """The values and the problems of each row, checked by itself."""
    builder = _Builder(options, LONGEST_OUTPUT)
    builder.base = base
    builder.begin("")
    values, problems = [], []
    for row in cells.rows():
        builder._problems.clear()
        values.append(builder._check(1, row))
        problems.append([text for _, text in builder._problems])
    return values, problems


def compare(cells: Cells, base: str, options: dict[str, Any]) -> None:
    values, problems = alone(cells, base, options)
    if not in_columns(cells):
        return
    builder = _Builder(options, LONGEST_OUTPUT)
    found, doubt = check(cells, Checks(base, LONGEST_OUTPUT, builder._recipe, builder._shares))
    assert not any(wrong and not unsure for wrong, unsure in zip(problems, doubt, strict=True))
    sure = [value for value, unsure in zip(values, doubt, strict=True) if not unsure]
    if not sure:
        return
    expected, made = to_batch(sure, SCHEMA), found.filter(pa.array(~doubt))
    for row, other in zip(made.to_pylist(), expected.to_pylist(), strict=True):
        own, theirs = (json.loads(each.pop("settings")) for each in (row, other))
        seed = row.pop("seed")
        other.pop("seed")
        assert {**own, **({} if seed is None else {"seed": seed})} == {
            **theirs,
            **({"seed": int(theirs["seed"])} if "seed" in theirs and seed is not None else {}),
        }
        assert row == other
    manifests = [Manifest("m", blocks(rows), options) for rows in (made, expected)]
    hashes = dict.fromkeys(manifests[1].networks, "w")
    for manifest in manifests:
        own = [fingerprint(pair, "w") for pair in manifests[1]]
        assert [*manifest.fingerprints(next(manifest.blocks()), hashes).to_pylist()] == own


def blocks(rows: pa.RecordBatch) -> Blocks:
    made = Blocks(SCHEMA)
    made.add(rows)
    return made


@pytest.mark.parametrize("base", ["/base", "/", "s3://bucket/base", "file:///base"])
@given(table=columns())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_columns_say_what_each_row_says(base: str, table: dict[str, pa.Array]) -> None:
    rows = len(table["content"])
    compare(Cells.of(np.arange(1, rows + 1), table), base, {"steps": 7})


@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_cells_of_a_spreadsheet_say_what_each_row_says(data: st.DataObject) -> None:
    names = ["content", "style", "style_weights", "style_mask", "seed", "size", "mood"]
    cell = st.sampled_from(["", "a.png", "s.png|t.png", "| é |x", "1|3", "7", "07", "512", "-1", "a|"])
    rows = data.draw(st.lists(st.tuples(*[cell] * len(names)), min_size=1, max_size=4))
    table = {name: pa.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    compare(Cells.of(np.arange(len(rows)), table, split=True), "/base", {})


def test_good_rows_are_not_in_doubt() -> None:
    """Otherwise they would be checked one by one, slowly."""
    names = [name for name in ADDRESSES if "\0" not in name and "secret" not in name]
    table = {"content": pa.array(names), "style": pa.array(["s.png"] * len(names)), "seed": pa.array(range(len(names)))}
    builder = _Builder({}, LONGEST_OUTPUT)
    made, doubt = check(
        Cells.of(np.arange(len(names)), table), Checks("/b", LONGEST_OUTPUT, builder._recipe, builder._shares)
    )
    assert not doubt.any()
    assert set(made["settings"].to_pylist()) == {"{}"}
    assert made["seed"].to_pylist() == list(range(len(names)))


def test_errors_are_reported_once_each() -> None:
    builder = _Builder({}, LONGEST_OUTPUT)
    builder.begin("")
    table = {"content": pa.array(["a", "b", "c"]), "style": pa.array(["s"] * 3), "size": pa.array([64, 1, 2])}
    builder.add(Cells.of(np.array([2, 3, 9]), table))
    with pytest.raises(ManifestError) as caught:
        builder.finish("m", None)
    assert [line.split(": size")[0] for line in str(caught.value).splitlines()] == ["m: line 3", "m: line 9"]


@given(
    texts=st.lists(st.text("ab/é", max_size=3) | st.none(), max_size=6), start=st.integers(0, 6), size=st.integers(0, 6)
)
def test_texts_with_a_part_are_found_in_any_slice(texts: list[str | None], start: int, size: int) -> None:
    for column in (pa.array(texts, pa.string()).slice(start, size), pa.array(texts[start:], pa.string())):
        for part in ("/", "ab"):
            assert mask(contain(column, part)).tolist() == [part in (text or "") for text in column.to_pylist()]
