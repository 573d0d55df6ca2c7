from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnst import read_ledger
from batchnst.errors import LedgerError, StorageError, Superseded
from batchnst.ledger import out as out_module
from batchnst.ledger.claim import Lease
from batchnst.ledger.out import INTENTS, Out, newest_rows
from batchnst.ledger.outcomes import Intent, Outcomes, PairRows
from batchnst.ledger.previous import Previous
from batchnst.ledger.schema import SCHEMAS, PairRow, to_table
from tests.helpers import NOON, loss, row, take_over


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
    out.commit(Lease("r1", 1), {}, [row(total_loss=3.0)], [loss(0), loss(1)])
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
    out.commit(Lease("r1", 1), {}, [row("a", status="failed", attempt=2, finished_at=later), row("b")], [])
    out.commit(Lease("r1", 1), {}, [row("a")], [])
    out.commit(Lease("r1", 1, 3), {}, [row("c")], [])
    places, outcomes = out.newest().find(["b", "none", "a"])
    assert places.tolist() == [0, 2]
    assert [(outcome.ok, outcome.attempt) for outcome in outcomes] == [(True, 1), (False, 2)]
    assert len(out.newest()) == 3


def test_what_a_task_committed_is_known_with_its_errors(out: Out) -> None:
    out.commit(Lease("r1", 1, 2), {}, [row("a")], [])
    out.commit(Lease("r1", 1, 3), {}, [row("b", status="failed", error_type="InputError", error_message="torn")], [])
    out.commit(Lease("r1", 1, 3), {}, [row("c")], [])
    assert out.committed(Lease("r1", 1, 3)) == {"b": "torn", "c": None}


def test_a_worker_of_a_run_that_lost_out_cannot_add_rows(out: Out) -> None:
    out.commit(Lease("r1", 1), {}, [row("a")], [])
    take_over(out.folder)
    with pytest.raises(Superseded, match="another run has taken this folder over"):
        out.commit(Lease("r1", 1), {}, [row("b")], [])
    assert len(out.newest()) == 1


def test_files_of_a_newer_version_and_foreign_files_are_refused(out: Out) -> None:
    out.commit(Lease("r1", 1), {}, [row("a")], [])
    folder = Path(out.address) / "ledger" / "pairs"
    newer = SCHEMAS["pairs"].with_metadata({b"batchnst.schema": b"99"})
    pq.write_table(pa.Table.from_pylist([], schema=newer), folder / "newer.parquet")
    with pytest.raises(
        LedgerError, match=r"newer\.parquet: written by a newer batchnst \(schema 99\); this one reads 2"
    ):
        out.newest()
    (folder / "newer.parquet").unlink()
    pq.write_table(pa.table({"pair_id": ["x"]}), folder / "foreign.parquet")
    with pytest.raises(LedgerError, match=r"foreign\.parquet: not a file of a batchnst ledger"):
        out.newest()
    (folder / "foreign.parquet").write_bytes(b"torn")
    with pytest.raises(LedgerError, match=r"foreign\.parquet: not a readable Parquet file"):
        out.newest()


def test_a_pair_is_not_done_while_its_picture_may_be_replaced_by_a_later_attempt(out: Out) -> None:
    """Found by the simulator: a row that lands late, after the next attempt has announced to replace its picture."""
    lease = Lease("r1", 1, 1)
    out.commit(lease, {"a.png": b"first"}, [row("a", run_number=1, attempt=1, output="a.png")], [])
    assert [outcome.done for outcome in out.newest().find(["a"])[1]] == [True]
    begun = json.dumps({"run_number": 1, "attempts": {"a.png": 2}}).encode()
    out.folder.write(f"{INTENTS}/r1-2-x.json", begun)
    assert [(outcome.ok, outcome.done) for outcome in out.newest().find(["a"])[1]] == [(True, False)]
    out.commit(Lease("r1", 1, 2), {"a.png": b"second"}, [row("a", run_number=1, attempt=2, output="a.png")], [])
    assert [outcome.done for outcome in out.newest().find(["a"])[1]] == [True]


def test_a_pair_is_not_done_once_another_has_written_its_output(out: Out) -> None:
    rows = [row(name, run_number=number, output="a.png") for name, number in (("a", 1), ("b", 2))]
    for own in rows:
        out.commit(Lease("r1", 1), {}, [own], [])
    done = {name: [outcome.done for outcome in out.newest().find([name])[1]] for name in ("a", "b")}
    assert done == {"a": [False], "b": [True]}
    out.commit(Lease("r1", 1), {}, [row("a", run_number=3, attempt=2, output="a.png")], [])
    done = {name: [outcome.done for outcome in out.newest().find([name])[1]] for name in ("a", "b")}
    assert done == {"a": [True], "b": [False]}


def test_the_later_run_is_newer_whatever_its_clock_says(out: Out) -> None:
    ahead = row("a", run_number=1, finished_at=NOON + timedelta(minutes=10), status="failed")
    out.commit(Lease("r1", 1), {}, [row("a", run_number=2, attempt=2), ahead], [])
    assert [(outcome.ok, outcome.attempt) for outcome in out.newest().find(["a"])[1]] == [(True, 2)]


def hashed(row: PairRow, data: bytes) -> PairRow:
    return replace(row, output_sha256=hashlib.sha256(data).hexdigest())


def test_a_picture_that_is_replaced_is_kept_under_its_old_attempt(out: Out) -> None:
    first, second = (hashed(row("a", run_number=1, attempt=number), str(number).encode()) for number in (1, 2))
    out.commit(Lease("r1", 1), {"a.png": b"1"}, [first], [])
    failed = row("a", run_number=1, attempt=3, status="failed")
    known = out.previous(["a", "none"])
    assert known == {"a": Previous("r1", 1, first.output_sha256 or "")}
    out.commit(Lease("r1", 1), {"a.png": b"2"}, [second], [], known)
    out.commit(Lease("r1", 1), {}, [failed], [], out.previous(["a"]))
    assert out.previous(["a"])["a"].attempt == 2
    assert [out.folder.read(f"{place}.png") for place in ("previous/a/r1-1", "images/a")] == [b"1", b"2"]
    assert len(out.folder.files("previous")) == 1


def test_a_picture_that_is_not_that_of_its_row_is_not_kept(out: Out) -> None:
    out.commit(Lease("r1", 1), {"a.png": b"1"}, [hashed(row("a", run_number=1), b"another")], [])
    out.commit(Lease("r1", 1), {"a.png": b"2"}, [row("a", run_number=1, attempt=2)], [], out.previous(["a"]))
    assert out.folder.files("previous") == []


def test_a_picture_is_kept_before_it_is_replaced(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    out.commit(Lease("r1", 1), {"a.png": b"1"}, [hashed(row("a", run_number=1), b"1")], [])
    known, again = out.previous(["a"]), row("a", run_number=1, attempt=2)
    with monkeypatch.context() as patch:
        patch.setattr(Out, "_write_picture", lambda *_: (_ for _ in ()).throw(StorageError("killed here")))
        with pytest.raises(StorageError, match="killed here"):
            out.commit(Lease("r1", 1), {"a.png": b"2"}, [again], [], known)
    assert [out.folder.read(f"{place}.png") for place in ("previous/a/r1-1", "images/a")] == [b"1", b"1"]
    out.commit(Lease("r1", 1), {"a.png": b"2"}, [again], [], known)
    assert [out.folder.read(f"{place}.png") for place in ("previous/a/r1-1", "images/a")] == [b"1", b"2"]
    take_over(out.folder)
    with pytest.raises(Superseded):
        out.commit(Lease("r1", 1), {"a.png": b"3"}, [row("a", run_number=1, attempt=3)], [], out.previous(["a"]))
    assert out.folder.read("images/a.png") == b"2"


def test_a_pair_whose_output_has_changed_is_done(out: Out) -> None:
    for number, output in ((1, "a.png"), (2, "b.png")):
        out.commit(Lease("r1", 1), {}, [row("a", run_number=number, attempt=number, output=output)], [])
    assert [(outcome.done, outcome.attempt) for outcome in out.newest().find(["a"])[1]] == [(True, 2)]


@pytest.mark.parametrize("seed", range(8))
def test_a_pair_is_done_if_its_newest_row_is_the_newest_painting_of_its_output(seed: int) -> None:
    rng, rows = np.random.default_rng(seed), []
    for i, (pair, number, output, failed) in enumerate(rng.integers(1, 9, (40, 4)).tolist()):
        changes = {"status": "failed"} if failed == 1 else {}
        rows.append(row(f"p{pair}", run_number=number, attempt=i, output=f"{output}.png", **changes))
    rows.sort(key=lambda each: (each.run_number or 0, each.attempt))
    newest = {each.pair_id: each for each in rows}
    painted = {each.output: each for each in rows if each.status == "ok"}
    replaced = painted["3.png"]
    disputed = Intent(replaced.run_number or 0, {"3.png": replaced.attempt + 1, "none.png": 1})
    expected = {name for name, each in newest.items() if painted.get(each.output) is each}
    table = to_table([rows[i] for i in rng.permutation(len(rows))], "pairs")
    sure = {name for name in expected if newest[name] is not replaced}
    for intents, done in (((), expected), ((disputed,), sure)):
        found = Outcomes(PairRows.of(table), intents).find(list(newest))[1]
        assert {name for name, outcome in zip(newest, found, strict=True) if outcome.done} == done


def test_the_newest_rows_of_many_pairs_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [
        row(f"p{pair}", run_number=int(number), attempt=int(attempt), output=f"{output}.png", fingerprint=str(i))
        for i, (pair, number, attempt, output) in enumerate(rng.integers(1, 7, (60, 4)).tolist())
    ]
    table = to_table(rows, "pairs")
    last = {each.pair_id: each for each in sorted(rows, key=lambda each: (each.run_number or 0, each.attempt))}
    order = [(each.pair_id, each.run_number) for each in last.values()]
    assert {(r["pair_id"], r["run_number"]) for r in newest_rows(table).to_pylist()} == set(order)
    _, found = Outcomes(PairRows.of(table)).find(list(last))
    assert [outcome.attempt for outcome in found] == [each.attempt for each in last.values()]
    # Values with the same hash by chance are still told apart.
    monkeypatch.setattr(out_module, "hashes", lambda texts: np.zeros(len(texts), np.int64))
    assert {(r["pair_id"], r["run_number"]) for r in newest_rows(table).to_pylist()} == set(order)
