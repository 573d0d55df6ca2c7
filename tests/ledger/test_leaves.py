"""The leaves of OUT depend on its content alone, and on all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchnst.errors import LedgerError
from batchnst.ledger import parquet
from batchnst.ledger.leaves import hashes_of, leaves_of
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS, LossRow, PairRow, to_table
from batchnst.progress import silent
from tests.helpers import NOON, loss, row


def leaves(folder: Path, pairs: list[PairRow], losses: list[LossRow], files: int = 1) -> pa.Table:
    """The leaves of an OUT with these rows, in so many files of each table."""
    out = Out(str(folder))
    for number in range(files):
        with out.claim(f"{number}") as claim:
            out.commit(claim.lease(), {}, pairs[number::files], losses[number::files])
    return leaves_of(out, silent)[0]


def other(value: Any, kind: pa.DataType) -> Any:
    """Another value of a column."""
    if kind == pa.timestamp("us", "UTC"):
        return value.replace(microsecond=1)
    if pa.types.is_struct(kind):
        return replace(value, cuda="12")
    if pa.types.is_list(kind):
        return [*(value or []), 1.0 if kind.value_type == pa.float64() else "x"]
    if pa.types.is_map(kind):
        return value | {"relu1_1": 0.125}
    if kind == pa.string():
        return '{"x": 1}' if value == "{}" else f"{value}x"
    return (value or 0) + 1


@pytest.mark.parametrize(
    ("table", "column"), [(table, field.name) for table in ("pairs", "losses") for field in SCHEMAS[table]]
)
def test_every_column_is_in_its_leaf(tmp_path: Path, table: str, column: str) -> None:
    pairs, losses = [row()], [loss(0)]
    before = leaves(tmp_path / "before", pairs, losses)
    rows: list[Any] = pairs if table == "pairs" else losses
    rows[0] = replace(rows[0], **{column: other(getattr(rows[0], column), SCHEMAS[table].field(column).type)})
    after = leaves(tmp_path / "after", pairs, losses)
    changed = [a["kind"] for a, b in zip(before.to_pylist(), after.to_pylist(), strict=True) if a != b]
    assert changed == [table]
    assert hashes_of(before) != hashes_of(after)


def test_leaves_are_those_of_the_rows_in_whatever_files_and_order(tmp_path: Path) -> None:
    pairs = [row(f"pair-{number:02}", attempt=attempt) for number in range(7) for attempt in (1, 2)]
    losses = [
        replace(loss(step, pair.pair_id), attempt=pair.attempt, total=float(step))
        for pair in pairs
        for step in range(5)
    ]
    expected = leaves(tmp_path / "0", pairs, losses)
    assert expected["kind"].to_pylist() == ["losses"] * 14 + ["pairs"] * 14
    assert expected["pair_id"].to_pylist() == 2 * [pair.pair_id for pair in pairs]
    assert leaves(tmp_path / "1", pairs[::-1], losses[::-1]).equals(expected)
    assert leaves(tmp_path / "2", pairs, losses, files=3).equals(expected)  # each curve is in all three
    assert leaves(tmp_path / "3", pairs, sorted(losses, key=lambda loss: loss.step), files=2).equals(expected)


def test_curves_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = 1 << 10
    monkeypatch.setattr("batchnst.ledger.leaves.BLOCK", block)
    lengths = {"a": block + 3, "b": 2, "c": block - 1}
    losses = [loss(step, name) for name, length in lengths.items() for step in range(length)]
    out = Out(str(tmp_path / "all"))
    out.folder.write("ledger/losses/a.parquet", encoded(losses))
    together = leaves_of(out, silent)[0]
    for number, name in enumerate(lengths):
        one = Out(str(tmp_path / name))
        one.folder.write("ledger/losses/a.parquet", encoded([loss for loss in losses if loss.pair_id == name]))
        assert leaves_of(one, silent)[0].equals(together.slice(number, 1))


def encoded(losses: list[LossRow]) -> bytes:
    return parquet.encode(to_table(losses, "losses"), "losses", statistics=False)


def test_an_empty_out_has_no_leaves(tmp_path: Path) -> None:
    table, differing = leaves_of(Out(str(tmp_path)), silent)
    assert (len(table), differing, hashes_of(table)) == (0, 0, b"")


def test_a_picture_belongs_to_the_newest_ok_row_that_names_it(tmp_path: Path) -> None:
    out = Out(str(tmp_path))
    for name in ("a.png", "deep/b.png", "stray.png", "._a.png"):
        out.folder.write(f"images/{name}", name.encode())
    rows = [
        row("a", output="a.png", run_number=1),
        row("late", output="a.png", run_number=2, run_id="r2"),
        row("failed", output="a.png", run_number=3, status="failed", run_id="r3"),
        row("b", output="deep/b.png", output_sha256="no hash"),
    ]
    table = leaves(tmp_path, rows, [])
    pictures = [leaf for leaf in table.to_pylist() if leaf["kind"] == "pictures"]
    assert [(leaf["output"], leaf["pair_id"], leaf["run_id"]) for leaf in pictures] == [
        ("deep/b.png", "b", "r1"),
        ("a.png", "late", "r2"),
        ("stray.png", None, None),
    ]
    assert leaves_of(out, silent)[1] == 2


def test_a_column_without_a_canonical_form_is_refused(tmp_path: Path) -> None:
    out = Out(str(tmp_path))
    with_date = to_table([row()], "pairs").append_column("day", pa.array([NOON.date()]))
    out.folder.write("ledger/pairs/a.parquet", parquet.encode(with_date, "pairs", statistics=False))
    with pytest.raises(LedgerError, match="its columns are not those of schema 2"):
        leaves_of(out, silent)
    assert len(leaves_of(out, silent, skip_unreadable=True)[0]) == 0
