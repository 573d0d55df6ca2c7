from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnst import read_ledger
from batchnst.errors import LedgerError, Superseded
from batchnst.ledger.claim import Lease
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS, PairRow
from tests.helpers import NOON, loss, row


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Out]:
    out = Out(str(tmp_path / "out"))
    with out.claim("r1"):
        yield out


def test_schemas_are_those_of_the_dataclasses() -> None:
    assert SCHEMAS["pairs"].names == [field.name for field in fields(PairRow)]
    assert SCHEMAS["pairs"].field("styles").type == pa.list_(pa.string())
    assert SCHEMAS["pairs"].field("started_at").type == pa.timestamp("us", tz="UTC")
    assert SCHEMAS["losses"].field("style_layers").type == pa.map_(pa.string(), pa.float64())
    assert not SCHEMAS["pairs"].field("fingerprint").nullable
    assert SCHEMAS["pairs"].field("total_loss").nullable


def test_what_is_written_can_be_read_here_and_by_duckdb(out: Out) -> None:
    out.append(Lease("r1"), [row(total_loss=3.0)], [loss(0), loss(1)])
    (read,) = read_ledger(out.address, "pairs").to_table().to_pylist()
    assert (read["pair_id"], read["total_loss"], read["started_at"]) == ("a", 3.0, NOON)
    assert read["versions"]["batchnst"] == "0"
    assert dict(read_ledger(out.address, "losses").to_table()["style_layers"][0].as_py()) == {"relu1_1": 0.25}
    found = duckdb.execute(
        f"SELECT count(*), max(step), any_value(style_layers['relu1_1']) FROM '{out.address}/ledger/losses/*.parquet'"
    )
    assert found.fetchall() == [(2, 1, 0.25)]


def test_an_empty_ledger_has_its_columns(out: Out) -> None:
    assert read_ledger(out.address, "pairs").to_table().num_rows == 0
    assert read_ledger(out.address, "losses").schema.names[0] == "run_id"
    with pytest.raises(ValueError, match="no ledger table 'images'; one of pairs, losses, runs"):
        read_ledger(out.address, "images")


def test_the_newest_row_of_a_pair_counts(out: Out) -> None:
    later = NOON + timedelta(seconds=5)
    out.append(Lease("r1"), [row("a", status="failed", attempt=2, finished_at=later), row("b")], [])
    out.append(Lease("r1"), [row("a")], [])
    out.append(Lease("r1", 3), [row("c")], [])
    places, outcomes = out.newest().find(["b", "none", "a"])
    assert places.tolist() == [0, 2]
    assert [(outcome.ok, outcome.attempt) for outcome in outcomes] == [(True, 1), (False, 2)]
    assert len(out.newest()) == 3


def test_what_a_task_committed_is_known_with_its_errors(out: Out) -> None:
    out.append(Lease("r1", 2), [row("a")], [])
    out.append(Lease("r1", 3), [row("b", status="failed", error_type="InputError", error_message="torn")], [])
    out.append(Lease("r1", 3), [row("c")], [])
    assert out.committed(Lease("r1", 3)) == {"b": "torn", "c": None}


def test_a_worker_of_a_run_that_lost_out_cannot_add_rows(out: Out) -> None:
    out.append(Lease("r1"), [row("a")], [])
    (Path(out.address) / ".batchnst" / "claim").write_text('{"run_id": "r2", "revoked": []}')
    with pytest.raises(Superseded, match="another run has taken this folder over"):
        out.append(Lease("r1"), [row("b")], [])
    assert len(out.newest()) == 1


def test_files_of_a_newer_version_and_foreign_files_are_refused(out: Out) -> None:
    out.append(Lease("r1"), [row("a")], [])
    folder = Path(out.address) / "ledger" / "pairs"
    newer = SCHEMAS["pairs"].with_metadata({b"batchnst.schema": b"99"})
    pq.write_table(pa.Table.from_pylist([], schema=newer), folder / "newer.parquet")
    with pytest.raises(
        LedgerError, match=r"newer\.parquet: written by a newer batchnst \(schema 99\); this one reads 1"
    ):
        out.newest()
    (folder / "newer.parquet").unlink()
    pq.write_table(pa.table({"pair_id": ["x"]}), folder / "foreign.parquet")
    with pytest.raises(LedgerError, match=r"foreign\.parquet: not a file of a batchnst ledger"):
        out.newest()
    (folder / "foreign.parquet").write_bytes(b"torn")
    with pytest.raises(LedgerError, match=r"foreign\.parquet: not a readable Parquet file"):
        out.newest()
