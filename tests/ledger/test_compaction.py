from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnst.errors import LedgerError, StorageError, Superseded
from batchnst.ledger import compaction
from batchnst.ledger.claim import Claim
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS
from batchnst.ledger.state import Journal, change_latest
from batchnst.storage.files import Folder
from tests.helpers import loss, row, take_over

FILES = 5


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    with Out(str(tmp_path / "out")).claim("r1") as claim:
        yield claim


@pytest.fixture
def out(claim: Claim) -> Out:
    """A ledger of five pairs files and as many of losses, in no order."""
    out = Out(claim.folder.address)
    for name in "dbeac":
        status = "failed" if name in "ce" else "ok"
        out.commit(claim.lease(), {}, [row(name, status=status)], [loss(step, name) for step in (1, 0)])
    return out


def same_claim(claim: Claim, out: Out) -> Claim:
    """The same claim on a copy of its folder."""
    copy = out.claim(claim.run_id)
    copy.run_number = claim.run_number
    return copy


def keys(out: Out) -> tuple[Counter[str], Counter[tuple[str, int]]]:
    """Every row, as our own readers see it."""
    losses = out.rows("losses", ["pair_id", "step"]).to_pylist()
    assert out.dataset("losses").count_rows() == len(losses)
    return Counter(out.rows("pairs")["pair_id"].to_pylist()), Counter((r["pair_id"], r["step"]) for r in losses)


WHOLE = Counter("abcde"), Counter((name, step) for name in "abcde" for step in (0, 1))


def test_many_files_become_one_a_table_sorted_with_every_row(out: Out, claim: Claim) -> None:
    assert keys(out) == WHOLE
    before = out.rows("pairs").sort_by("pair_id").to_pylist()
    assert out.compact(claim) == (2 * FILES, 2)
    assert out.rows("pairs").sort_by("pair_id").to_pylist() == before
    assert [(r["status"], r["pair_id"]) for r in out.rows("pairs").to_pylist()] == [
        ("failed", "c"), ("failed", "e"), ("ok", "a"), ("ok", "b"), ("ok", "d"),
    ]  # fmt: skip
    assert [r["step"] for r in out.rows("losses").to_pylist()] == [0, 1] * 5
    found = duckdb.execute(f"SELECT count(*), count(DISTINCT pair_id) FROM '{out.address}/ledger/losses/*.parquet'")
    assert found.fetchall() == [(10, 5)]
    assert out.compact(claim) == (2, 2)


def test_a_merged_file_has_the_statistics_by_which_rows_are_found(out: Out, claim: Claim) -> None:
    out.compact(claim)
    (path,) = (Path(out.address) / "ledger" / "pairs").iterdir()
    columns = pq.read_metadata(path).row_group(0)
    known = {columns.column(i).path_in_schema for i in range(columns.num_columns) if columns.column(i).is_stats_set}
    assert {"pair_id", "status", "error_type", "run_id"} <= known


class Killed(BaseException):
    """As if the process ended at this place."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["write", "create", "move", "remove"])
def test_a_kill_at_any_moment_loses_and_doubles_nothing(
    out: Out, claim: Claim, tmp_path: Path, method: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in range(100):
        copy = Out(str(shutil.copytree(out.address, tmp_path / str(moment))))
        held = same_claim(claim, copy)
        with monkeypatch.context() as patch:
            patch.setattr(Folder, method, dying(getattr(Folder, method), moment, after))
            try:
                copy.compact(held)
                break
            except Killed:
                pass
        assert keys(copy) == WHOLE, f"{method} number {moment}"
        copy.recover(held)
        assert keys(copy) == WHOLE
        raw = duckdb.execute(f"SELECT count(*) FROM '{copy.address}/ledger/pairs/*.parquet'")
        assert raw.fetchall() == [(FILES,)]
        assert not list((Path(copy.address) / compaction.ASIDE).rglob("*.parquet"))
        assert copy.compact(held)[1] == 2
    assert moment >= {"write": 3, "create": 2, "move": 2, "remove": 2 * FILES}[method]


def dying(real: Callable[..., Any], moment: int, after: bool) -> Callable[..., Any]:
    """A method of a process that ends with the call of that number, before or after it did its work."""
    calls = itertools.count()

    def method(*args: Any) -> Any:
        call = next(calls)
        if call < moment or (call == moment and after):
            result = real(*args)
        if call >= moment:
            raise Killed
        return result

    return method


def test_columns_of_a_later_version_are_kept(out: Out, claim: Claim) -> None:
    later = pa.table(
        {**{name: out.rows("pairs")[name] for name in SCHEMAS["pairs"].names}, "mood": ["calm"] * FILES}
    ).replace_schema_metadata(SCHEMAS["pairs"].metadata)
    pq.write_table(later, Path(out.address) / "ledger" / "pairs" / "later.parquet")
    out.compact(claim)
    (path,) = (Path(out.address) / "ledger" / "pairs").iterdir()
    assert Counter(pq.read_table(path)["mood"].to_pylist()) == {"calm": FILES, None: FILES}


def test_a_file_that_cannot_be_read_stops_it_and_everything_stays(out: Out, claim: Claim) -> None:
    (Path(out.address) / "ledger" / "losses" / "torn.parquet").write_bytes(b"torn")
    before = sorted(Path(out.address).rglob("*"))
    with pytest.raises(LedgerError, match=r"torn\.parquet: not a readable Parquet file"):
        out.compact(claim)
    left = [path for path in sorted(Path(out.address).rglob("*")) if ".batchnst" not in path.parts]
    assert left == [path for path in before if ".batchnst" not in path.parts]


def test_large_files_are_left_and_groups_stay_small(out: Out, claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    size = max(info.size for info in out.files("losses"))
    monkeypatch.setattr(compaction, "GROUP_BYTES", 2 * size)
    monkeypatch.setattr(compaction, "SMALL_BYTES", size + 1)
    out.compact(claim)
    assert len(out.files("losses")) == 3
    assert keys(out) == WHOLE
    monkeypatch.setattr(compaction, "SMALL_BYTES", 1)
    assert out.compact(claim, at_least=2)[0] == out.compact(claim)[1]


def test_a_run_merges_when_there_are_many(out: Out, claim: Claim) -> None:
    assert out.compact(claim, at_least=FILES + 1) == (2 * FILES, 2 * FILES)
    assert out.compact(claim, at_least=FILES) == (2 * FILES, 2)


def test_a_suspended_run_leaves_alone_what_a_later_one_has_merged(out: Out, claim: Claim) -> None:
    """Found by the simulator: a run that went on clearing away after another one had taken OUT over."""
    out.folder.write(f"{compaction.ASIDE}/1-own/pairs/merged-a.parquet", b"own")
    out.folder.write(f"{compaction.ASIDE}/2-later/pairs/merged-b.parquet", b"later")
    out.recover(claim)
    assert [out.folder.relative(info.path) for info in out.folder.files(compaction.ASIDE)] == [
        f"{compaction.ASIDE}/2-later/pairs/merged-b.parquet"
    ]


def test_a_compaction_that_was_suspended_while_another_run_took_over_removes_nothing(
    out: Out, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compaction._merge

    def merge(*arguments: Any) -> str:
        name = real(*arguments)
        take_over(out.folder)
        return name

    monkeypatch.setattr(compaction, "_merge", merge)
    with pytest.raises(Superseded):
        out.compact(claim)
    assert keys(out) == WHOLE


def test_a_file_that_comes_back_after_it_was_merged_does_not_count(out: Out, claim: Claim) -> None:
    (old,) = (info for info in out.files("pairs") if out.rows_of([info], "pairs")["pair_id"].to_pylist() == ["a"])
    data = Path(old.path).read_bytes()
    out.compact(claim)
    Path(old.path).write_bytes(data)
    assert keys(out) == WHOLE
    assert out.compact(claim)[0] == 2


def test_a_state_that_names_files_elsewhere_touches_nothing(out: Out, claim: Claim, tmp_path: Path) -> None:
    victim = tmp_path / "victim.parquet"
    victim.write_bytes(b"mine")
    for names in (["../../victim.parquet"], [str(victim)], ["pairs/../../../victim.parquet"], ["pairs/._a.parquet"]):
        journal = Journal(id="1-x", new=(), old=tuple(names))
        change_latest(out.folder, lambda state: {"journal": journal})  # noqa: B023
        with pytest.raises(StorageError, match="no ledger file; nothing was changed"):
            out.recover(claim)
        claim.change(lambda state: {"journal": None})
    assert victim.read_bytes() == b"mine"
    assert keys(out) == WHOLE
