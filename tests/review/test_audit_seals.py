"""A sealed OUT is tampered with, consistently or not: the audit names exactly what was changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import Result

from batchnst.engine import run as engine_run
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS, RunRow
from tests.helpers import NOON, as_bytes, batchnst, loss, row
from tests.storage.servers import BUCKET, ENVIRONMENT, moto

PAIRS, STEPS = 4, 3

Row = dict[str, Any]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pairs of keys: a and b."""
    folder = tmp_path_factory.mktemp("keys")
    for name in "ab":
        assert batchnst("seal", "--new-key", folder / name).exit_code == 0
    return folder


def picture(number: int, run_id: str) -> bytes:
    return as_bytes(Image.new("RGB", (8, 8), (number, len(run_id), ord(run_id[-1]))))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fill(out: Out, run_id: str, numbers: range) -> None:
    """What a run leaves: a file of each table for every pair."""
    run = RunRow(run_id=run_id, started_at=NOON, manifest="m", settings="{}", pairs=4, done=0, given_up=0, to_paint=4,
                 engine="inline", host="h", pid=1)  # fmt: skip
    with out.claim(run_id) as claim:
        out.begin(replace(run, run_number=claim.run_number))
        for i in numbers:
            attempt = 1 + sum(row["pair_id"] == f"pair-{i}" for row in out.rows("pairs").to_pylist())
            name = {"run_id": run_id, "attempt": attempt}
            losses = [replace(loss(step, f"pair-{i}"), **name, total=i + 3.0 - step) for step in range(STEPS)]
            own = row(
                f"pair-{i}",
                **name,
                run_number=claim.run_number,
                output=f"pair-{i}.png",
                content_sha256="c",
                style_sha256=["s"],
                output_sha256=sha(picture(i, run_id)),
                width=8,
                height=8,
                fingerprint=run_id,
                steps=STEPS,
                initial_total=i + 3.0,
                total_loss=losses[-1].total,
                content_loss=1.0,
                style_loss=1.5,
                tv_loss=0.5,
            )
            out.commit(claim.lease(), {own.output: picture(i, run_id)}, [own], losses)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """An OUT with a run of four pairs, sealed by key a."""
    out = Out(str(tmp_path_factory.mktemp("sealed") / "out"))
    fill(out, "r1", range(PAIRS))
    seal(out.address, keys)
    return Path(out.address)


@pytest.fixture
def out(sealed: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(sealed, tmp_path / "out")


def seal(out: object, keys: Path, key: str = "a") -> str:
    """Seal OUT; return the root."""
    result = batchnst("seal", out, "--key", keys / key)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[1].removeprefix("root ")


def audit(out: object, keys: Path, *options: object) -> Row:
    result = batchnst("audit", out, "--seal", keys / "a.pub", "--json", *options)
    values: Row = json.loads(result.stdout)
    assert result.exit_code == (1 if values["findings"] else 0), result.output
    return values


def found(out: object, keys: Path, *options: object) -> list[tuple[str, str | None, str]]:
    """What an audit says of seals: kind, pair and text."""
    findings = audit(out, keys, *options)["findings"]
    return [(f["kind"], f["pair_id"], f["text"]) for f in findings if f["kind"].startswith("seal")]


def kinds(out: object, keys: Path, *options: object) -> list[tuple[str, str | None]]:
    return [(kind, pair) for kind, pair, _ in found(out, keys, *options)]


def change(out: Path, table: str, edit: Callable[[Row], Row | None]) -> None:
    """Rewrite the files of a table row by row; a row for which `edit` returns None is dropped."""
    for path in (out / "ledger" / table).glob("*.parquet"):
        rows = [edit(row) for row in pq.read_table(path).to_pylist()]
        pq.write_table(pa.Table.from_pylist([row for row in rows if row], schema=SCHEMAS[table]), path)


def of_pair(number: int, edit: Callable[[Row], Row | None]) -> Callable[[Row], Row | None]:
    return lambda row: edit(row) if row["pair_id"] == f"pair-{number}" else row


def repaint(out: Path, number: int, run_id: str = "forged") -> None:
    """Change a picture, its row and its losses so that they agree with one another."""
    (out / f"images/pair-{number}.png").write_bytes(picture(number, run_id))
    new = {"output_sha256": sha(picture(number, run_id)), "total_loss": 0.5, "initial_total": number + 2.5}
    change(out, "pairs", of_pair(number, lambda row: row | new))
    change(out, "losses", of_pair(number, lambda row: row | {"total": number + 2.5 - row["step"] * (number + 2) / 2}))


def test_nothing_has_changed_since_a_seal(out: Path, keys: Path) -> None:
    values = audit(out, keys)
    assert values["findings"] == []
    assert (values["seals"], set(values["unsealed"].values())) == (1, {0})
    text = batchnst("audit", out, "--seal", keys / "a.pub").stdout
    assert text.splitlines()[1:] == ["valid seals: 1; not sealed: nothing", "found nothing wrong"]
    again = batchnst("seal", out, "--key", keys / "a")
    assert again.stdout.startswith("nothing has changed since seal 1\nroot ")
    assert len(list((out / "ledger/seals").iterdir())) == 2


def test_a_picture_its_row_and_its_losses_changed_together(out: Path, keys: Path) -> None:
    repaint(out, 2)
    assert batchnst("audit", out).exit_code == 0
    assert found(out, keys) == [
        ("sealed-altered", "pair-2", "the curve of attempt 1 of run r1 is not as in seal 1"),
        ("sealed-altered", "pair-2", "the row of attempt 1 of run r1 is not as in seal 1"),
        ("sealed-altered", "pair-2", "images/pair-2.png is not as in seal 1"),
    ]


def test_a_row_removed_with_its_losses(out: Path, keys: Path) -> None:
    for table in ("pairs", "losses"):
        change(out, table, of_pair(1, lambda row: None))
    assert found(out, keys) == [
        ("sealed-removed", "pair-1", "the curve of attempt 1 of run r1 is gone since seal 1"),
        ("sealed-removed", "pair-1", "the row of attempt 1 of run r1 is gone since seal 1"),
    ]
    (out / "images/pair-1.png").unlink()
    assert found(out, keys)[2:] == [("sealed-removed", "pair-1", "images/pair-1.png is gone since seal 1")]


def test_two_pictures_exchanged_with_their_hashes(out: Path, keys: Path) -> None:
    first, second = (out / f"images/pair-{number}.png" for number in (0, 3))
    data = first.read_bytes(), second.read_bytes()
    first.write_bytes(data[1])
    second.write_bytes(data[0])
    for number, new in ((0, data[1]), (3, data[0])):
        change(out, "pairs", of_pair(number, lambda row, new=new: row | {"output_sha256": sha(new)}))  # type: ignore[misc]
    assert batchnst("audit", out).exit_code == 0
    assert found(out, keys) == [
        ("sealed-altered", "pair-0", "the row of attempt 1 of run r1 is not as in seal 1"),
        ("sealed-altered", "pair-3", "the row of attempt 1 of run r1 is not as in seal 1"),
        ("sealed-moved", "pair-0", "images/pair-0.png is that of pair-3 since seal 1"),
        ("sealed-moved", "pair-3", "images/pair-3.png is that of pair-0 since seal 1"),
    ]


def test_a_curve_given_to_another_pair(out: Path, keys: Path) -> None:
    change(out, "losses", of_pair(1, lambda row: row | {"pair_id": "pair-9"}))
    text = "the curve of attempt 1 of run r1 is that of pair-9 since seal 1"
    assert found(out, keys) == [("sealed-moved", "pair-1", text)]


def test_rows_added_to_a_sealed_run(out: Path, keys: Path) -> None:
    (path,) = (p for p in (out / "ledger/pairs").iterdir() if "pair-2" in pq.read_table(p)["pair_id"].to_pylist())
    shutil.copy(path, path.with_name("again.parquet"))
    rows = pq.read_table(path).to_pylist()
    forged = [row | {"pair_id": "new", "output": "new.png"} for row in rows]
    pq.write_table(pa.Table.from_pylist(forged, schema=SCHEMAS["pairs"]), path.with_name("forged.parquet"))
    assert sorted(found(out, keys), key=lambda finding: str(finding[1])) == [
        ("sealed-added", "new", "the row of attempt 1 of run r1 was added after seal 1"),
        ("sealed-added", "pair-2", "the row of attempt 1 of run r1 was added after seal 1"),
    ]


@pytest.mark.parametrize("edit", [{"host": "x"}, {"run_number": None}, {"engine": "ray"}])
def test_the_row_of_a_run(out: Path, keys: Path, edit: Row) -> None:
    change(out, "runs", lambda row: row | edit)
    assert found(out, keys) == [("sealed-altered", None, "the row of run r1 is not as in seal 1")]


def test_a_later_run_is_not_tampering_and_told_as_not_sealed(out: Path, keys: Path) -> None:
    fill(Out(str(out)), "r2", range(3, 6))
    values = audit(out, keys)
    assert values["findings"] == []
    assert values["unsealed"] == {"losses": 3, "pairs": 3, "pictures": 3, "runs": 1}
    text = batchnst("audit", out, "--seal", keys / "a.pub").stdout
    assert "valid seals: 1; not sealed: curves 3, rows of pairs 3, pictures 3, rows of runs 1\n" in text
    seal(out, keys)
    values = audit(out, keys)
    assert (values["findings"], values["seals"], set(values["unsealed"].values())) == ([], 2, {0})


def test_what_was_changed_between_two_seals_and_after_them(out: Path, keys: Path) -> None:
    change(out, "losses", of_pair(0, lambda row: row | {"tv": 9.0}))
    fill(Out(str(out)), "r2", range(4, 6))
    seal(out, keys)
    change(out, "losses", of_pair(5, lambda row: row | {"tv": 9.0}))
    assert found(out, keys) == [
        ("sealed-altered", "pair-0", "the curve of attempt 1 of run r1 is not as in seal 1; seal 2 was made over it"),
        ("sealed-altered", "pair-5", "the curve of attempt 1 of run r2 is not as in seal 2"),
    ]


def test_compaction_and_other_files_leave_seals_valid(out: Path, keys: Path) -> None:
    assert batchnst("ledger", "compact", out).exit_code == 0
    assert audit(out, keys)["findings"] == []
    for table in SCHEMAS:
        (path,) = (out / "ledger" / table).iterdir()
        rows = pq.read_table(path)
        turned = rows.take(list(range(len(rows)))[::-1])
        added = turned.append_column("anew", pa.nulls(len(rows), pa.string())).replace_schema_metadata(
            rows.schema.metadata
        )
        half = len(rows) // 2
        pq.write_table(added.slice(0, half), path, row_group_size=1, compression="gzip", use_dictionary=False)
        pq.write_table(turned.slice(half), path.with_name("b.parquet"), coerce_timestamps="us")
    assert audit(out, keys)["findings"] == []
    assert batchnst("seal", out, "--key", keys / "a").stdout.startswith("nothing has changed since seal 1\n")


@pytest.fixture(scope="module")
def sealed_again(sealed: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sealed OUT after two more runs that painted pair-0 again, each of which was sealed."""
    out = shutil.copytree(sealed, tmp_path_factory.mktemp("sealed-again") / "out")
    for run_id in ("r2", "r3"):
        fill(Out(str(out)), run_id, range(1))
        seal(out, keys)
    return out


def three_seals(sealed_again: Path, out: Path) -> list[Path]:
    """Put the OUT with three seals in the place of `out`; return their statements."""
    shutil.copytree(sealed_again, out, dirs_exist_ok=True)
    return sorted((out / "ledger/seals").glob("*.json"))


def test_a_seal_that_was_removed(out: Path, sealed_again: Path, keys: Path) -> None:
    first, second, third = three_seals(sealed_again, out)
    assert audit(out, keys)["seals"] == 3
    data = second.read_bytes()
    second.unlink()
    assert found(out, keys) == [
        ("seal-missing", None, "not there: seal 2, but seal 3 is"),
        (
            "seal-missing",
            None,
            f"ledger/seals/{second.stem}.parquet has no seal: it was removed, or cut off when it was made",
        ),
    ]
    second.with_suffix(".parquet").unlink()
    assert found(out, keys) == [("seal-missing", None, "not there: seal 2, but seal 3 is")]
    second.write_bytes(data)
    assert kinds(out, keys) == [("seal-damaged", None)]
    first.unlink()
    first.with_suffix(".parquet").unlink()
    assert found(out, keys)[0] == ("seal-missing", None, "not there: seal 1, but seal 2 is")
    assert third.exists()


def test_a_seal_of_a_number_out_of_reach(out: Path, keys: Path) -> None:
    (path,) = (out / "ledger/seals").glob("*.json")
    shutil.copy(path, path.with_name(f"{10**15}-{path.name[7:]}"))
    text = f"not there: seals 2 to {10**15 - 1}, but seal {10**15} is"
    assert found(out, keys)[0] == ("seal-missing", None, text)
    assert kinds(out, keys)[1:] == [("seal-damaged", None)]


def test_the_newest_seal_removed(out: Path, sealed_again: Path, keys: Path) -> None:
    newest = three_seals(sealed_again, out)[-1]
    root = json.loads(newest.read_text())["seal"]["root"]
    values = audit(out, keys, "--root", root.upper())
    assert (values["findings"], values["root_of"]) == ([], 3)
    assert (
        ", the root is that of seal 3; not" in batchnst("audit", out, "--seal", keys / "a.pub", "--root", root).stdout
    )
    newest.unlink()
    assert kinds(out, keys) == [("seal-missing", None)]
    warned = batchnst("seal", shutil.copytree(out, out.with_name("copy")), "--key", keys / "a")
    assert f"{newest.stem}.parquet has no seal: it was removed" in warned.stderr
    newest.with_suffix(".parquet").unlink()
    # Nothing in OUT shows that it was there, but a root that was kept elsewhere does.
    assert kinds(out, keys) == []
    assert found(out, keys, "--root", root) == [("seal-root", None, f"no seal by this key has the root {root}")]


def test_all_seals_removed(out: Path, keys: Path) -> None:
    shutil.rmtree(out / "ledger/seals")
    assert found(out, keys) == [("seal-missing", None, "there is no seal")]


def test_a_seal_by_another_key(out: Path, keys: Path) -> None:
    repaint(out, 1)
    shutil.rmtree(out / "ledger/seals")
    seal(out, keys, "b")
    assert kinds(out, keys) == [("seal-key", None)]
    shutil.rmtree(out / "ledger/seals")
    seal(out, keys)
    seal(out, keys, "b")
    assert kinds(out, keys) == [("seal-key", None)]
    fill(Out(str(out)), "r2", range(1))
    seal(out, keys)
    assert kinds(out, keys) == [("seal-key", None)]


REST = ("number", "previous", "counts", "batchnst", "format")
"""Fields of a seal that only the slow tests change."""


@pytest.mark.parametrize(
    "field", ["root", "leaves", "time", *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]
)
def test_a_seal_that_says_something_else(out: Path, sealed_again: Path, keys: Path, field: str) -> None:
    path = three_seals(sealed_again, out)[1]
    values = json.loads(path.read_text())
    new = {int: 9, str: "00" * 32, dict: {"pairs": 5}}[type(values["seal"][field])]
    path.write_text(json.dumps(values | {"seal": values["seal"] | {field: new}}))
    assert ("seal-damaged", None) in kinds(out, keys)
    assert {kind for kind, _ in kinds(out, keys)} <= {"seal-damaged", "seal-chain"}


def test_seals_that_do_not_follow_one_another(out: Path, sealed_again: Path, keys: Path, tmp_path: Path) -> None:
    """The key's holder makes another second seal, and puts it in place of the one that the third one names."""
    second = three_seals(sealed_again, out)[1]
    other = tmp_path / "other"
    shutil.copytree(out, other, ignore=shutil.ignore_patterns("00000[23]-*"))
    change(other, "pairs", of_pair(2, lambda row: row | {"seed": 5}))
    seal(other, keys)
    for path in (second, second.with_suffix(".parquet")):
        path.unlink()
    for path in (other / "ledger/seals").glob("000002-*"):
        shutil.copy(path, out / "ledger/seals")
    assert [kind for kind, _ in kinds(out, keys)].count("seal-chain") == 1


def test_two_seals_of_one_number(out: Path, keys: Path, tmp_path: Path) -> None:
    other = shutil.copytree(out, tmp_path / "other", ignore=shutil.ignore_patterns("seals"))
    change(other, "pairs", of_pair(2, lambda row: row | {"seed": 5}))
    seal(other, keys)
    shutil.copytree(other / "ledger/seals", out / "ledger/seals", dirs_exist_ok=True)
    assert "seal-chain" in [kind for kind, _ in kinds(out, keys)]


def edit_leaves(out: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    (path,) = (out / "ledger/seals").glob("*.parquet")
    pq.write_table(edit(pq.read_table(path)), path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda leaves: leaves.slice(1),
        lambda leaves: leaves.take([1, 0, *range(2, len(leaves))]),
        lambda leaves: leaves.set_column(1, "pair_id", pa.array(leaves["pair_id"].to_pylist()[::-1])),
        lambda leaves: leaves.select(["kind", "sha256"]),
        lambda leaves: leaves.set_column(0, "kind", pa.array(range(len(leaves)))),
    ],
    ids=["removed", "turned", "exchanged", "columns", "types"],
)
def test_leaves_that_were_changed(out: Path, keys: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    edit_leaves(out, edit)
    assert kinds(out, keys) == [("seal-damaged", None)]


@pytest.mark.parametrize("data", [b"", b"torn", b"[]", b"{}", b'{"seal": {}}', b"\xff", b"[" * 100_000])
def test_damaged_and_unknown_files_are_named(out: Path, keys: Path, data: bytes) -> None:
    seals = out / "ledger/seals"
    (path,) = seals.glob("*.json")
    path.write_bytes(data)
    (seals / "notes.txt").write_text("mine")
    (seals / "deeper").mkdir()
    (seals / "deeper" / path.name).write_text("mine")
    for name in ("._x.json", "_x.parquet", ".hidden"):
        (seals / name).write_bytes(data)
    findings = audit(out, keys)["findings"]
    assert [(f["kind"], f["text"].split(":")[0]) for f in findings] == [
        ("seal-damaged", f"ledger/seals/{path.name}"),
        ("foreign", f"ledger/seals/deeper/{path.name}"),
        ("foreign", "ledger/seals/notes.txt"),
    ]
    refused = batchnst("seal", out, "--key", keys / "a")
    assert refused.exit_code == 2
    assert "is damaged; restore it from a copy" in refused.stderr


def test_seals_are_no_part_of_the_ledgers_tables(out: Path) -> None:
    assert {table: Out(str(out)).dataset(table).count_rows() for table in SCHEMAS} == {
        "pairs": PAIRS, "losses": PAIRS * STEPS, "runs": 1,
    }  # fmt: skip
    assert batchnst("audit", out).exit_code == 0
    assert batchnst("report", out).exit_code == 0
    assert batchnst("status", out).exit_code == 0


def test_a_file_that_cannot_be_read_is_not_sealed_and_its_rows_are_named(out: Path, keys: Path) -> None:
    path = next(iter((out / "ledger/pairs").iterdir()))
    (pair_id,) = pq.read_table(path)["pair_id"].to_pylist()
    path.write_bytes(b"torn")
    assert kinds(out, keys) == [("sealed-removed", pair_id)]
    refused = batchnst("seal", out, "--key", keys / "a")
    assert refused.exit_code == 2
    assert "not a readable Parquet file" in refused.stderr


def test_pictures_that_differ_from_their_rows_are_sealed_with_a_warning(out: Path, keys: Path) -> None:
    (out / "images/pair-0.png").unlink()
    (out / "images/pair-1.png").write_bytes(picture(9, "r9"))
    result = batchnst("seal", out, "--key", keys / "a")
    assert result.stderr == "batchnst: 2 pictures are missing or differ from their rows; `batchnst audit` names them\n"


def test_rows_of_the_same_step_have_no_order(out: Path, keys: Path) -> None:
    change(out, "losses", of_pair(1, lambda row: row | {"step": 0}))
    root = seal(out, keys)
    (path,) = (p for p in (out / "ledger/losses").iterdir() if "pair-1" in pq.read_table(p)["pair_id"].to_pylist())
    rows = pq.read_table(path)
    for order in ([2, 0, 1], [1, 2, 0]):
        pq.write_table(rows.take(order), path)
        assert batchnst("seal", out, "--key", keys / "a").stdout.splitlines()[1] == f"root {root}"


def test_a_seal_waits_for_no_run(out: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchnst.ledger.claim.BEAT_SECONDS", 0.2)
    with Out(str(out)).claim("other"):
        result = batchnst("seal", out, "--key", keys / "a")
    assert result.exit_code == 2
    assert "is painting into this folder" in result.stderr


def test_a_seal_that_is_cut_off_leaves_nothing(out: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Out(str(out)), "r2", range(1))
    before = sorted((out / "ledger/seals").iterdir())

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchnst.ledger.seal._create", interrupted)
    assert batchnst("seal", out, "--key", keys / "a").exit_code == 130
    assert sorted((out / "ledger/seals").iterdir()) == before


def test_keys_are_for_their_owner_and_never_overwritten(tmp_path: Path, out: Path, keys: Path) -> None:
    key = tmp_path / "key"
    assert batchnst("seal", "--new-key", key).exit_code == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    data = key.read_bytes(), key.with_suffix(".pub").read_bytes()
    again = batchnst("seal", "--new-key", key)
    assert (again.exit_code, "exists already; nothing was written" in again.stderr) == (2, True)
    key.unlink()
    assert batchnst("seal", "--new-key", key).exit_code == 2
    assert not key.exists()
    assert key.with_suffix(".pub").read_bytes() == data[1]
    for wrong in (keys / "a.pub", keys / "none", out / "images/pair-0.png"):
        assert batchnst("seal", out, "--key", wrong).exit_code == 2
    assert batchnst("audit", out, "--seal", keys / "a").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [["seal"], ["seal", "o"], ["seal", "--key", "k"], ["seal", "o", "--key", "k", "--new-key", "n"],
     ["audit", "o", "--root", "00"], ["audit", "o", "--proof"], ["audit", "--picture", "p", "--proof"]],
)  # fmt: skip
def test_requests_that_are_wrong(arguments: list[str]) -> None:
    assert batchnst(*arguments).exit_code == 2


def test_a_proof_is_of_the_newest_seal_that_has_the_picture(out: Path, sealed_again: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(out / "images/pair-0.png", tmp_path / "mailed.png"))
    assert proof(out, copy)["seal"]["number"] == 1
    three_seals(sealed_again, out)  # pair-0 is painted again
    assert proof(out, copy)["seal"]["number"] == 1
    assert proof(out, out / "images/pair-3.png")["seal"]["number"] == 3
    values = proof(out, out / "images/pair-0.png")
    assert (values["leaf"]["pair_id"], values["leaf"]["run_id"], values["seal"]["number"]) == ("pair-0", "r3", 3)
    copy.write_bytes(picture(9, "r9"))
    refused = batchnst("audit", out, "--picture", copy, "--proof")
    assert refused.exit_code == 1
    assert "has this picture" in refused.stderr


def proof(out: Path, picture: Path) -> Row:
    result: Result = batchnst("audit", out, "--picture", picture, "--proof")
    assert result.exit_code == 0, result.output
    values: Row = json.loads(result.stdout)
    return values


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with moto(tmp_path) as url:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/out"


def test_an_out_in_a_store(bucket: str, keys: Path) -> None:
    fill(Out(bucket), "r1", range(2))
    seal(bucket, keys)
    assert audit(bucket, keys)["findings"] == []
    Out(bucket).folder.write("images/pair-1.png", picture(9, "r9"))
    assert kinds(bucket, keys) == [("sealed-altered", "pair-1")]


# Runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(images: Path, tmp_path: Path) -> Path:
    rows = [f"{images}/{name},{images}/swirls.png" for name in ("coffee.png", "none.png")]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["content,style", *rows]) + "\n")
    return path


def test_a_run_seals_at_its_end_also_if_pairs_failed(manifest: Path, tmp_path: Path, keys: Path) -> None:
    out = tmp_path / "painted"
    options = ["--engine", "inline", "--size", 32, "--steps", 2, "--seal", keys / "a"]
    result = batchnst("run", manifest, "--out", out, *options)
    assert result.exit_code == 1, result.output
    assert "\nseal 1: curves 1, rows of pairs 2, pictures 1, rows of runs 1\nroot " in result.stdout
    assert kinds(out, keys) == []
    again = batchnst("run", manifest, "--out", out, *options)
    assert "\nnothing has changed since seal 1\nroot " in again.stdout


def test_a_run_with_a_bad_key_paints_nothing(manifest: Path, tmp_path: Path, keys: Path) -> None:
    result = batchnst("run", manifest, "--out", tmp_path / "painted", "--engine", "inline", "--seal", keys / "a.pub")
    assert result.exit_code == 2
    assert not (tmp_path / "painted").exists()


def test_an_interrupted_run_is_not_sealed(
    manifest: Path, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_run, "paint_chunk", interrupted)
    result = batchnst("run", manifest, "--out", tmp_path / "painted", "--engine", "inline", "--seal", keys / "a")
    assert result.exit_code == 130
    assert not (tmp_path / "painted/ledger/seals").exists()
