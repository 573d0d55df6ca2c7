"""Damaged rows are found column by column, and do not count."""

from __future__ import annotations

import errno
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from batchnst.errors import LedgerError, StorageError
from batchnst.ledger.out import INTENTS, Out
from batchnst.ledger.pictures.form import FormName
from batchnst.ledger.schema import SCHEMAS, to_table
from batchnst.ledger.soundness import split
from batchnst.ledger.state import STATES, read_state
from batchnst.manifest.outputs import output_problem
from batchnst.storage.stores import Disk
from tests.helpers import loss, row


def damages(table: str = "pairs", **changes: Any) -> list[str]:
    rows = to_table([row("a"), row("b")], "pairs") if table == "pairs" else to_table([loss(0), loss(1, "b")], "losses")
    (values,) = rows.slice(1).to_pylist()
    schema = pa.schema([field.with_nullable(True) for field in SCHEMAS[table]], SCHEMAS[table].metadata)
    both = pa.concat_tables([rows.cast(schema).slice(0, 1), pa.Table.from_pylist([values | changes], schema)])
    sound, found = split(both, table)
    assert sound["pair_id"].to_pylist() == ["a", "b"][: 2 - len(found)]
    assert sound.schema.equals(SCHEMAS[table])
    return [str(damage) for damage in found]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extra": "not JSON"}, "extra is 'not JSON'; expected a JSON object"),
        ({"recipe": '{"size": NaN}'}, "recipe is '{\"size\": NaN}'; expected a JSON object"),
        ({"output": "../../x.png"}, "output is '../../x.png'; expected a path in OUT's folder of pictures"),
        ({"status": "done"}, "status is 'done'; expected ok or failed"),
        ({"styles": [], "style_weights": []}, "styles is []; expected some addresses"),
        ({"style_weights": [0.5, 0.5]}, "style_weights has not one value for each of its styles"),
        ({"host": None}, "host has no value"),
        ({"width": 0}, "width is 0; expected a whole number from 1 to 2147483648"),
        ({"seconds": float("nan")}, "seconds is nan; expected a number of seconds"),
        ({"content": "x" * 99, "recipe": "y" * 99}, f"recipe is '{'y' * 39}…; expected a JSON object"),
    ],
)
def test_a_damaged_row_is_named_with_the_value_that_is_wrong(changes: dict[str, Any], said: str) -> None:
    assert damages(**changes) == [f"pair b: the row of attempt 1 of run r1: {said}"]


def test_a_row_is_named_as_far_as_it_can_be() -> None:
    assert damages(pair_id=None, attempt=-1) == ["the row of attempt -1 of run r1: pair_id has no value"]
    assert damages(run_id="", attempt=None)[0].startswith("pair b: the row of a run: run_id is ''; expected a name")
    assert damages("losses", step=-1)[0].startswith("pair b: the row of attempt 1 of run r1: step is -1; expected a ")


@pytest.mark.parametrize(
    "changes", [{"total_loss": float("nan")}, {"output_sha256": "no hash"}, {"notes": []}, {"seconds": -2.0}]
)
def test_what_an_audit_compares_is_no_damage(changes: dict[str, Any]) -> None:
    assert damages(**changes) == []


def test_a_damaged_row_does_not_count_and_the_next_run_is_newer_than_all_sound_ones(tmp_path: Path) -> None:
    out = Out(str(tmp_path))
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, [row("a", run_number=7), row("b", run_number=2**63 - 1)], [])
    assert (len(out.newest()), str(out.damage)[:30]) == (1, "pair b: the row of attempt 1 o")
    assert len(out.rows("pairs", damaged=True)) == 2
    (tmp_path / STATES).rename(tmp_path / "states")
    with Out(str(tmp_path)).claim("r2") as claim:
        assert claim.run_number == 8


@pytest.mark.parametrize("data", [b"[]", b"{}", b"null", b"1", b'{"holder": 1}', b"[" * 100_000])
def test_state_and_intents_that_are_damaged_are_named(tmp_path: Path, data: bytes) -> None:
    out = Out(str(tmp_path))
    out.folder.write(f"{INTENTS}/x.json", data)
    with pytest.raises(StorageError, match=r"x\.json: is damaged; remove it"):
        out.newest()
    out.folder.write(f"{STATES}/000000000001.json", data)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match=r"01\.json: is damaged; remove it"):
        patch.setattr("time.sleep", lambda _: None)
        read_state(out.folder)


@pytest.mark.parametrize("form", ["parquet", "tar"])
@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, LedgerError), (errno.EIO, StorageError)])
def test_a_file_that_is_refused_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: FormName, number: int, kind: type[Exception]
) -> None:
    out = Out(str(tmp_path))
    with out.claim("r1", form) as claim:
        out.commit(claim.lease(), {"a.png": b"picture"}, [row("a")], [])

    real = Disk.open

    def refused(self: Disk, path: str, buffer: int, **options: bool) -> BinaryIO:
        if path.endswith((".parquet", ".tar")):
            raise OSError(number, "as if the disk had said it")
        return real(self, path, buffer, **options)

    monkeypatch.setattr(Disk, "open", refused)
    for read in (out.pictures, lambda: out.rows("pairs")):
        with pytest.raises(kind, match="as if the disk had said it") as caught:
            read()
        assert "not a readable" not in str(caught.value)


def test_no_row_with_an_output_that_a_manifest_may_name_is_damaged() -> None:
    """Else its pair would be painted again by every run, and never be done."""
    outputs = [f"{a}{chr(code)}{b}.png" for code in range(0x2100) for a in ("", "x", "x/") for b in ("", "/y")]
    allowed = sorted({str(PurePosixPath(output)) for output in outputs if output_problem(output, 4000) is None})
    assert len(allowed) > 30_000
    rows = to_table([row()], "pairs").take(pa.array([0] * len(allowed)))
    rows = rows.set_column(rows.schema.get_field_index("output"), rows.schema.field("output"), pa.array(allowed))
    assert split(rows, "pairs")[1] == []
