"""Rows of the ledger are damaged in every way: each command says so in plain lines and goes on with the others."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batchnst import read_ledger
from batchnst.cli.app import FAILED, WRONG
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS
from batchnst.ledger.soundness import split
from batchnst.review.serve.gallery import Gallery
from batchnst.review.serve.measures import Measures
from batchnst.review.serve.night import Night
from tests.helpers import batchnst, scene

HUGE = 2**63 - 1
OPTIONS = ["--size", "40", "--steps", "2", "--backbone", "alexnet", "--weights", "random"]
NO_OBJECTS = ["", "no JSON", "[1]", "null", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 100_000]
LEADING_OUT = ["", "x.xyz", "../../x.png", "/etc/x.png", "a/../../x.png", "a\nb.png"]
WORDS = {
    **dict.fromkeys(("recipe", "extra", "settings"), NO_OBJECTS),
    **dict.fromkeys(("pair_id", "run_id", "output"), LEADING_OUT),
}
"""Hostile texts for some columns."""


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs and their OUT, painted by the manifest; the picture of the pair c is gone since."""
    folder = tmp_path_factory.mktemp("night")
    for number, name in enumerate("abcs"):
        scene(40, 40).rotate(9 * number).save(folder / f"{name}.png")
    (folder / "m.csv").write_text("content,style,id\n" + "".join(f"{name}.png,s.png,{name}\n" for name in "abc"))
    result = batchnst("run", folder / "m.csv", "--out", folder / "out", "--engine", "inline", *OPTIONS)
    assert result.exit_code == 0, result.output
    (folder / "out" / "images" / "c.png").unlink()
    assert batchnst("seal", "--new-key", folder / "key").exit_code == 0
    return folder


def damage(out: Path, table: str) -> set[str]:
    """Add copies of a row, each with another hostile value in one column; return the texts that name damaged ones."""
    (path,) = (out / "ledger" / table).glob("*.parquet")
    rows = pq.read_table(path)
    schema = pa.schema([field.with_nullable(True) for field in rows.schema], rows.schema.metadata)
    whole = rows.filter(pc.equal(rows["pair_id"], "b")).slice(0, 1) if table != "runs" else rows
    cases = [(field.name, value) for field in SCHEMAS[table] for value in hostile(field)]
    added = pa.concat_tables([_changed(whole.cast(schema), i, *case) for i, case in enumerate(cases)])
    pq.write_table(pa.concat_tables([rows.cast(schema), added]), path)
    return {found.where for found in split(added, table, complete=True)[1]}


def _changed(row: pa.Table, number: int, column: str, value: Any) -> pa.Table:
    """A row with a key of its own, and one column changed."""
    own = {"pair_id": f"b{number}", "output": f"b{number}.png"} if "attempt" in row.column_names else {}
    for name, new in {**own, **({} if own else {"run_id": f"r{number}"}), column: value}.items():
        if name in row.column_names:
            field = row.schema.field(name)
            stored = pa.int64() if pa.types.is_timestamp(field.type) else field.type
            place = row.schema.get_field_index(name)
            row = row.set_column(place, field, pa.array([new], stored).cast(field.type))
    return row


def hostile(field: pa.Field) -> Iterator[Any]:
    """Values that no run writes, or that are at the edge of what one writes."""
    yield None
    if pa.types.is_string(field.type):
        yield from WORDS.get(field.name, ["", "../../x"])
    elif pa.types.is_int64(field.type):
        yield from (0, -1, HUGE, -HUGE - 1)
    elif pa.types.is_float64(field.type):
        yield from (math.nan, math.inf, -1.0, 1e308)
    elif pa.types.is_timestamp(field.type):
        yield from (0, HUGE, -HUGE - 1)
    elif pa.types.is_list(field.type):
        yield []
        yield [None] * 2 if pa.types.is_string(field.type.value_type) else [math.nan]
    elif pa.types.is_map(field.type):
        yield from ([], [("x", math.nan)])


def check(folder: Path, *, heavy: bool) -> list[dict[str, Any]]:
    """Call the commands of the morning, of which none may end in a traceback; return what an audit finds."""
    out, manifest = folder / "out", folder / "m.csv"
    findings: list[dict[str, Any]] = []
    for command in commands(out, manifest, heavy=heavy):
        result = batchnst(*command)
        assert result.exception is None or isinstance(result.exception, SystemExit), (command, result.exc_info)
        assert result.exit_code in (0, FAILED, WRONG)
        assert "Traceback" not in result.output
        if command[0] == "audit":
            assert result.exit_code == FAILED
            findings = json.loads(result.stdout)["findings"]
            pairs = [(finding["kind"], finding["pair_id"]) for finding in findings]
            assert ("picture-missing", "c") in pairs, "the other rows are still checked"
    for table in SCHEMAS:
        read_ledger(str(out), table).to_table()
    assert {"a", "c"} <= set(shown(Out(str(out))))
    return findings


def commands(out: Path, manifest: Path, *, heavy: bool) -> Iterator[tuple[object, ...]]:
    yield "status", out
    yield "audit", out, "--json", "--deep"
    yield "report", out
    yield "export", out, "--to", "tar", "--out", out.parent / "copy"
    if heavy:
        run = ("run", manifest, "--out", out, "--engine", "inline", *OPTIONS)
        yield "audit", out, "--json", "--manifest", manifest
        yield "replay", out, "b"
        yield "export", out, "--to", "files", "--out", out.parent / "files"
        yield "seal", out, "--key", out.parent / "key"
        yield "audit", out, "--json", "--seal", out.parent / "key.pub"
        yield "plan", manifest, "--out", out, "--redo", "missing", "--redo", "changed", *OPTIONS
        yield *run, "--limit", "1"
        yield *run, "--redo", "b"
        yield "ledger", "compact", out
        (out / "images" / "c.png").unlink(missing_ok=True)
        yield "audit", out, "--json"


def shown(out: Out) -> list[str]:
    """The ids that a live page shows."""
    night = Night(out)
    night.look()
    part = json.loads(json.dumps(night.part("", 0), default=str, allow_nan=False))
    json.dumps(night.state(), allow_nan=False)
    measures = Measures(night, Gallery(night))
    for name in "abc":
        json.dumps(measures.details(name), default=str, allow_nan=False)
    return list(part["part"]["pairs"]["id"])


@pytest.mark.parametrize("table", SCHEMAS)
@pytest.mark.parametrize("heavy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_command_goes_on_without_the_damaged_rows(night: Path, tmp_path: Path, table: str, heavy: bool) -> None:
    folder = shutil.copytree(night, tmp_path / "night")
    named = damage(folder / "out", table)
    findings = check(folder, heavy=heavy)
    texts = [finding["text"] for finding in findings if finding["kind"] == "row-damaged"]
    assert {text.partition(".parquet: ")[2] for text in texts} == named
    assert len(named) > 20


def test_a_picture_whose_row_is_damaged_is_told_once(night: Path, tmp_path: Path) -> None:
    out = shutil.copytree(night, tmp_path / "night") / "out"
    (path,) = (out / "ledger" / "pairs").glob("*.parquet")
    rows = pq.read_table(path)
    place = rows["pair_id"].to_pylist().index("b")
    widths = rows["width"].to_pylist()
    widths[place] = -1
    field = rows.schema.field("width")
    pq.write_table(rows.set_column(rows.schema.get_field_index("width"), field, pa.array(widths, field.type)), path)
    (out / "previous" / "b").mkdir(parents=True)
    row = rows.slice(place, 1).to_pylist()[0]
    shutil.copy(out / "images" / "b.png", out / "previous" / "b" / f"{row['run_id']}-1.png")
    found = json.loads(batchnst("audit", out, "--json").stdout)
    assert [(one["kind"], one["pair_id"]) for one in found["findings"]] == [
        ("row-damaged", "b"), ("picture-missing", "c"),
    ]  # fmt: skip
    assert found["unfinished"] == 0, "its losses have a row"
