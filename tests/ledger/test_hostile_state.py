"""A state of OUT that names files elsewhere deletes and moves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchnst.errors import StorageError
from batchnst.ledger.out import Out
from batchnst.ledger.state import Journal, change_latest
from tests.helpers import row

VICTIMS = ["../../victim", "pairs/../../../victim", "/victim", "images/a.png", "pairs/._x.parquet", "pairs/a/b.parquet"]


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("place", ["id", "new", "old"])
def test_a_journal_reaches_nothing_but_the_ledger(tmp_path: Path, place: str, victim: str) -> None:
    out = Out(str(tmp_path / "out"))
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {"a.png": b"picture"}, [row("a")], [])
    victim = str(tmp_path / "victim") if victim.startswith("/") else victim
    (tmp_path / "victim").write_bytes(b"theirs")
    names: dict[str, Any] = {"id": "1-abc", "new": (), "old": ()}
    names[place] = victim if place == "id" else (victim,)
    if place == "id":
        names["new"] = ("pairs/merged-1.parquet",)
    change_latest(out.folder, lambda state: {"journal": Journal(**names)})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StorageError), out.claim("r2") as claim:
        out.recover(claim)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: data for path, data in before.items() if ".batchnst" not in path.parts} == {
        path: data for path, data in after.items() if ".batchnst" not in path.parts
    }
