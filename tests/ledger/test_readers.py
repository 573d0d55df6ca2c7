"""Every program that CONTRACT names reads the ledger, from its first moment on, and pictures in Parquet."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import fastparquet
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnst.errors import LedgerError
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS, RunRow
from tests.helpers import NOON, as_bytes, loss, row, scene

RUN = RunRow(
    run_id="r1",
    run_number=1,
    started_at=NOON,
    manifest="/m.csv",
    settings="{}",
    pairs=1,
    done=0,
    given_up=0,
    to_paint=1,
    engine="inline",
    host="h",
    pid=1,
)

READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "fastparquet": lambda file: fastparquet.ParquetFile(io.BytesIO(file.read_bytes())).to_pandas().to_dict("records"),
    "pandas": lambda file: pd.read_parquet(file).to_dict("records"),
    "polars": lambda file: pl.read_parquet(file).to_dicts(),
    "pyarrow": lambda file: pq.read_table(file).to_pylist(),
    "duckdb": lambda file: duckdb.read_parquet(str(file)).to_arrow_table().to_pylist(),
}

OLDER_ENCODINGS = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "BIT_PACKED"}
"""Encodings that every reader knows, those of Spark 2 and of fastparquet included."""


@pytest.fixture
def out(tmp_path: Path) -> Out:
    """The OUT of a run that has begun."""
    folder = Out(str(tmp_path / "out"))
    folder.begin(RUN)
    return folder


def files(out: Out, table: str) -> list[Path]:
    return sorted(Path(out.address, "ledger", table).glob("*.parquet"))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("compacted", [False, True])
def test_every_reader_reads_every_table(out: Out, reader: str, compacted: bool) -> None:
    steps = [replace(loss(step), total=3.0 + step / 7) for step in range(300)]
    with out.claim("r1") as claim:
        for number in range(2):
            pair = row(f"p{number}", run_number=1, total_loss=1 / 3, notes=["a", "b"])
            out.commit(claim.lease(), {}, [pair], [replace(step, pair_id=f"p{number}") for step in steps])
        if compacted:
            out.compact(claim)
    read = READERS[reader]
    losses = [found for file in files(out, "losses") for found in read(file)]
    assert sorted(found["total"] for found in losses) == sorted(2 * [step.total for step in steps])
    pairs = {found["pair_id"]: found for file in files(out, "pairs") for found in read(file)}
    assert pairs["p1"]["total_loss"] == 1 / 3
    assert set(asdict(RUN)) <= read(files(out, "runs")[0])[0].keys()
    for table in SCHEMAS:
        for file in files(out, table):
            groups = pq.ParquetFile(file).metadata.to_dict()["row_groups"]
            used = {encoding for group in groups for column in group["columns"] for encoding in column["encodings"]}
            assert used <= OLDER_ENCODINGS


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("compacted", [False, True])
def test_every_reader_reads_pictures(out: Out, reader: str, compacted: bool) -> None:
    painted = {f"p{number}.png": as_bytes(scene(20, 20 + number)) for number in range(3)}
    with out.claim("r1", "parquet") as claim:
        for number, (name, data) in enumerate(painted.items()):
            done = row(f"p{number}", run_number=1, output=name, output_sha256=hashlib.sha256(data).hexdigest())
            out.commit(claim.lease(), {name: data}, [done], [])
        if compacted:
            out.compact(claim)
    found = [each for file in Path(out.address, "pictures").glob("*.parquet") for each in READERS[reader](file)]
    if reader == "fastparquet":  # it knows no structs, but their parts
        assert {each["image.path"]: each["image.bytes"] for each in found} == painted
    else:
        assert {each["image"]["path"]: each["image"]["bytes"] for each in found} == painted
    assert all(each["sha256"] == hashlib.sha256(painted[f"{each['pair_id']}.png"]).hexdigest() for each in found)


@pytest.mark.parametrize("reader", READERS)
def test_where_all_pairs_failed_the_losses_are_an_empty_table(out: Out, reader: str) -> None:
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, [row("a", status="failed", error_type="InputError")], [])
    (file,) = files(out, "losses")
    assert READERS[reader](file) == []
    assert pq.read_schema(file).names == SCHEMAS["losses"].names


def test_queries_find_nothing_where_all_pairs_failed(out: Out) -> None:
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, [row("a", status="failed", error_type="InputError")], [])
    pairs, losses = (f"'{out.address}/ledger/{table}/*.parquet'" for table in ("pairs", "losses"))
    with duckdb.connect() as connection:
        for table in (losses, f"{pairs} join {losses} using (run_id, pair_id, attempt)"):
            assert connection.execute(f"select count(*) from {table}").fetchall() == [(0,)]


# Found by `make fuzz` -----------------------------------------------------------------------------------------------


def test_a_file_that_another_program_wrote_again_is_read(out: Out) -> None:
    with out.claim("r1") as claim:
        for pair_id in ("a", "b"):
            out.commit(claim.lease(), {}, [row(pair_id, notes=["x"])], [loss(0, pair_id)])
        (first, _) = files(out, "pairs")
        rows = pq.read_table(first)
        longer = [field.with_type(pa.large_string()) if field.type == pa.string() else field for field in rows.schema]
        pq.write_table(rows.cast(pa.schema(longer, rows.schema.metadata)), first)
        assert sorted(out.rows("pairs")["pair_id"].to_pylist()) == ["a", "b"]
        out.compact(claim)
    assert sorted(out.rows("pairs")["pair_id"].to_pylist()) == ["a", "b"]


@pytest.mark.parametrize("column", ["notes", "pair_id", "finished_at"])
def test_a_column_of_another_type_gets_a_line(out: Out, column: str) -> None:
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, [row("a")], [])
    (file,) = files(out, "pairs")
    rows = pq.read_table(file)
    place, other = rows.schema.get_field_index(column), pa.array([b"\xff"])
    pq.write_table(rows.set_column(place, column, other), file)
    with pytest.raises(LedgerError, match="not a readable Parquet file"):
        out.rows("pairs")


def test_text_that_is_not_utf_8_gets_a_line(out: Out) -> None:
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, [row("a")], [])
    (file,) = files(out, "pairs")
    rows = pq.read_table(file)
    bad = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(rows.set_column(rows.schema.get_field_index("pair_id"), "pair_id", bad), file)
    with pytest.raises(LedgerError, match="not a readable Parquet file"):
        out.rows("pairs")
    file.write_bytes(file.read_bytes().replace(b"pair_id", b"pair\xffid"))  # the name of a column
    with pytest.raises(LedgerError, match="not a readable Parquet file"):
        out.rows("pairs")
