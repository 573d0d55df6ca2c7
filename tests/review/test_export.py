"""Runs whose pictures are in files together: reviewed, exported, opened by others, and tampered with."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from batchnst.cli.app import FAILED, WRONG
from batchnst.ledger.out import Out
from batchnst.ledger.pictures.in_parquet import SCHEMA
from batchnst.review.report.build import build
from batchnst.storage import addresses
from batchnst.storage.files import Folder
from tests.helpers import as_bytes, batchnst
from tests.storage.servers import BUCKET, ENVIRONMENT, moto

FORMS = ["files", "parquet", "tar"]
IDS = ["a.b", "a.c", "plain"]


@pytest.fixture(scope="module")
def painted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an OUT that a run in Parquet and one in tar archives have painted, sealed."""
    folder = tmp_path_factory.mktemp("painted")
    Image.open(images / "coffee.png").convert("RGB").resize((48, 32)).save(folder / "photo.png")
    Image.open(images / "swirls.png").resize((48, 48)).save(folder / "style.png")
    lines = [f"photo.png,style.png,{name},{seed}" for seed, name in enumerate(IDS)]
    (folder / "m.csv").write_text("\n".join(["content,style,id,seed", *lines, "none.png,style.png,gone,0"]) + "\n")
    assert batchnst("seal", "--new-key", folder / "key").exit_code == 0
    for form, limit in (("parquet", 2), ("tar", 9)):
        options = ["--engine", "inline", "--size", 32, "--steps", 2, "--set", "init=noise", "--batch-size", 1]
        result = batchnst(
            "run", folder / "m.csv", "--out", folder / "out", *options, "--pictures", form, "--limit", limit
        )
        assert "Traceback" not in result.output
    assert batchnst("seal", folder / "out", "--key", folder / "key").exit_code == 0
    return folder


@pytest.fixture
def datasets() -> Any:
    """The library of this name, without progress bars; imported here, because that takes long."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def out(painted: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(painted / "out", tmp_path / "out")


def found(out: object, *options: object) -> list[tuple[str, str | None]]:
    """What an audit names, but for the pair that failed."""
    result = batchnst("audit", out, "--json", *options)
    findings = json.loads(result.stdout)["findings"]
    return [(finding["kind"], finding["pair_id"]) for finding in findings if finding["kind"] != "failed"]


def export(out: object, form: str, to: object, *options: object) -> str:
    result = batchnst("export", out, "--to", form, "--out", to, *options)
    assert result.exit_code == 0, result.output
    return result.stdout


def hashes(out: object) -> dict[str, str]:
    """The hash of the picture of each ok pair, as its row says; each picture must have it."""
    folder = Out(str(out))
    ok = folder.rows("pairs").to_pylist()
    rows = {row["pair_id"]: row["output_sha256"] for row in ok if row["status"] == "ok"}
    stored = folder.pictures()
    for row in ok:
        if row["status"] == "ok":
            assert hashlib.sha256(stored.find(row).data or b"").hexdigest() == row["output_sha256"]
    return rows


def test_every_review_works_on_pictures_in_files_together(painted: Path) -> None:
    out = painted / "out"
    endings = {path.suffix for path in (out / "pictures").iterdir()}
    assert (endings, (out / "images").exists()) == ({".parquet", ".tar"}, False)
    assert found(out, "--deep", "--manifest", painted / "m.csv", "--seal", painted / "key.pub") == []
    replayed = batchnst("replay", out, "plain")
    assert ("every pixel as it was" in replayed.stdout, replayed.exit_code) == (True, 0), replayed.output
    page = build(Out(str(out))).decode()
    assert page.count('"place": "pictures/') == 0 < page.count("pictures/")
    assert '"missing"' not in page
    assert "3 of 4 done" in batchnst("status", out).stdout


def test_a_seal_stays_valid_when_pictures_are_painted_again_and_merged(painted: Path, out: Path) -> None:
    options = ["--engine", "inline", "--size", 32, "--steps", 3, "--set", "init=noise", "--pictures", "parquet"]
    batchnst("run", painted / "m.csv", "--out", out, *options)
    for _ in range(2):
        assert len(Out(str(out)).pictures(tables=("pictures", "previous")).entries) == 6
        assert found(out, "--seal", painted / "key.pub") == []
        assert batchnst("ledger", "compact", out).exit_code == 0
    assert sorted(Out(str(out)).pictures().entries["pair_id"].to_pylist()) == IDS
    assert {path.suffix for path in (out / "previous").iterdir()} == {".parquet", ".tar"}


@pytest.mark.parametrize("form", [*(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[:2]), "tar"])
def test_an_export_of_all_is_an_out_of_its_own_from_any_form_to_any(painted: Path, tmp_path: Path, form: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert "4 of 4 pairs, 3 pictures copied now, 0 before" in export(painted / "out", form, first)
    for out in (first, second):
        assert hashes(out) == hashes(painted / "out")
        assert found(out, "--manifest", painted / "m.csv", "--deep", "--seal", painted / "key.pub") == []
        assert (
            batchnst("status", out).stdout.splitlines()[0] == batchnst("status", painted / "out").stdout.splitlines()[0]
        )
        if out == first:
            export(first, FORMS[FORMS.index(form) - 1], second)


def test_a_later_run_into_an_export_is_newer_than_all_runs_before(painted: Path, tmp_path: Path) -> None:
    export(painted / "out", "tar", tmp_path / "x")
    with Out(str(tmp_path / "x")).claim("later") as claim:
        assert claim.run_number > max(row["run_number"] for row in Out(str(painted / "out")).runs())


def test_pictures_in_parquet_open_everywhere(painted: Path, tmp_path: Path, datasets: Any) -> None:
    import pandas as pd  # here, because others wait for it
    import polars as pl

    to = tmp_path / "x"
    export(painted / "out", "parquet", to)
    files = f"{to}/pictures/*.parquet"
    assert duckdb.execute(
        f"SELECT pair_id FROM '{files}' WHERE octet_length(image.bytes) > 0 ORDER BY 1"
    ).fetchall() == [(name,) for name in IDS]
    assert sorted(pl.scan_parquet(files).select("pair_id", pl.col("image").struct.field("path")).collect()["path"]) == [
        f"{name}.png" for name in IDS
    ]
    assert sorted(pd.read_parquet(to / "pictures")["pair_id"]) == IDS
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"), keep_in_memory=True
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert {row["pair_id"]: row["image"].size for row in loaded} == dict.fromkeys(IDS, (32, 21))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file open
def test_pictures_in_archives_open_in_webdataset_and_datasets(painted: Path, tmp_path: Path, datasets: Any) -> None:
    to = tmp_path / "x"
    export(painted / "out", "tar", to)
    (archive,) = (to / "pictures").iterdir()
    samples = list(webdataset.WebDataset(str(archive), shardshuffle=False).decode("pil"))
    assert {sample["json"]["pair_id"]: sample["png"].size for sample in samples} == dict.fromkeys(IDS, (32, 21))
    assert sorted(sample["__key__"] for sample in samples) == ["a%2Eb", "a%2Ec", "plain"]
    assert {sample["json"]["status"] for sample in samples} == {"ok"}
    loaded = datasets.load_dataset(
        "webdataset", data_files=str(archive), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(row["json"]["pair_id"] for row in loaded) == IDS


def test_a_part_is_chosen_and_what_that_means_is_said(painted: Path, tmp_path: Path) -> None:
    said = export(
        painted / "out", "files", tmp_path / "x", "--status", "ok", "--where", "seed > 0 AND pair_id LIKE 'a%'"
    )
    assert "1 of 4 pairs, 1 pictures" in said
    assert "Only a part was chosen" in said
    assert [path.name for path in (tmp_path / "x/images").iterdir()] == ["a.c.png"]
    assert found(tmp_path / "x") == []
    (missing,) = {kind for kind, _ in found(tmp_path / "x", "--seal", painted / "key.pub")}
    assert missing == "sealed-removed"
    proof = batchnst("audit", tmp_path / "x", "--picture", tmp_path / "x/images/a.c.png", "--proof")
    assert json.loads(proof.stdout)["leaf"]["pair_id"] == "a.c"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--where", "no_such_column = 1"], "--where no_such_column = 1: Binder Error"),
        (["--where", "1 = "], "--where 1 =: Parser Error"),
        (["--where", "true); SELECT (1"], "Parser Error"),
        (["--where", "true) UNION SELECT content FROM pairs WHERE (true"], "Parser Error"),
        (["--where", "true) LIMIT (1"], "Parser Error"),
        (["--where", "error('two') AND\n true"], "--where error('two') AND true: "),
        (["--where", "exists(FROM iceberg_scan('x'))"], "not in the catalog"),
        (["--out", "file://{folder}/out"], "expected another folder"),
        (["--out", "{folder}/link"], "expected another folder"),
        (["--where", "pair_id IN (SELECT content FROM read_csv('{folder}/m.csv'))"], "disabled by configuration"),
        (["--where", "false"], "no pair is as --status and --where ask"),
        (["--shard-size", "big"], "--shard-size big: expected a size"),
        (["--shard-size", "1KB"], "--shard-size 1KB: expected a size of at least 1MB"),
        (["--out", "{folder}/out/inside"], "expected another folder"),
    ],
)
def test_a_wrong_request_is_one_line(painted: Path, tmp_path: Path, options: list[str], text: str) -> None:
    options = [option.format(folder=painted) for option in options]
    with suppress(FileExistsError):
        (painted / "link").symlink_to(painted / "out")
    result = batchnst("export", painted / "out", "--to", "tar", "--out", tmp_path / "x", *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert text in result.stderr


def test_pairs_of_another_run_are_not_mixed_in(painted: Path, tmp_path: Path) -> None:
    export(painted / "out", "tar", tmp_path / "x")
    rewrite(tmp_path / "x", "pairs", lambda row: row | {"run_id": "another"})
    refused = batchnst("export", painted / "out", "--to", "tar", "--out", tmp_path / "x")
    assert (refused.exit_code, "holds pairs of other runs" in refused.stderr) == (2, True)


def test_a_picture_of_the_users_is_not_replaced(painted: Path, tmp_path: Path) -> None:
    mine = tmp_path / "x/images/plain.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    refused = batchnst("export", painted / "out", "--to", "files", "--out", tmp_path / "x")
    assert (refused.exit_code, "images/plain.png is there and not of a run" in refused.stderr) == (2, True)
    assert [path.name for path in (tmp_path / "x").rglob("*") if path.is_file()] == ["plain.png"]
    assert "1 pictures copied" in export(painted / "out", "files", tmp_path / "x", "--where", "pair_id = 'a.b'")
    assert mine.read_bytes() == b"mine"


class Killed(BaseException):
    """As if the process ended at this place."""


@pytest.mark.parametrize("form", [pytest.param("files", marks=pytest.mark.slow), "tar"])
def test_an_export_that_is_killed_at_any_moment_goes_on(
    painted: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Folder.write
    for moment in range(0, 100, 2):
        calls = itertools.count()

        def dying(self: Folder, name: str, *rest: Any, calls: Any = calls, moment: int = moment, **more: Any) -> None:
            if not name.startswith(".batchnst") and next(calls) >= moment:
                raise Killed
            real(self, name, *rest, **more)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Folder, "write", dying)
            export(painted / "out", form, tmp_path / "x")
            break
    assert moment >= 4
    assert hashes(tmp_path / "x") == hashes(painted / "out")
    assert found(tmp_path / "x", "--seal", painted / "key.pub") == []
    assert len(Out(str(tmp_path / "x")).rows("losses")) == len(Out(str(painted / "out")).rows("losses"))


def test_a_picture_that_is_missing_is_named_and_the_others_are_exported(out: Path, tmp_path: Path) -> None:
    next((out / "pictures").glob("*.tar")).unlink()
    result = batchnst("export", out, "--to", "files", "--out", tmp_path / "x")
    assert (result.exit_code, result.stderr) == (1, "batchnst: plain: images/plain.png is not there\n")
    assert sorted(path.name for path in (tmp_path / "x/images").iterdir()) == ["a.b.png", "a.c.png"]
    assert found(tmp_path / "x") == [("picture-missing", "plain")]


@pytest.mark.parametrize("form", ["files", "tar"])
def test_a_picture_that_is_not_that_of_its_row_is_named_and_not_copied(out: Path, tmp_path: Path, form: str) -> None:
    export(out, "files", tmp_path / "files")
    path = tmp_path / "files/images/plain.png"
    path.write_bytes(path.read_bytes() + b"x")
    result = batchnst("export", tmp_path / "files", "--to", form, "--out", tmp_path / "x")
    said = "batchnst: plain: images/plain.png is another picture than its row says; it was not copied\n"
    assert (result.exit_code, result.stderr) == (1, said)
    assert found(tmp_path / "x") == [("picture-missing", "plain")]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_an_export_to_a_store_and_back(
    painted: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto(tmp_path) as url:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        addresses._open.cache_clear()
        there = f"s3://{BUCKET}/{form}"
        export(painted / "out", form, there)
        assert "0 pictures copied now, 3 before" in export(painted / "out", form, there)
        assert found(there, "--seal", painted / "key.pub") == []
        export(there, "files", tmp_path / form)
        assert hashes(tmp_path / form) == hashes(painted / "out")
    addresses._open.cache_clear()


# Tampering ----------------------------------------------------------------------------------------------------------


def rewrite(out: Path, table: str, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Rewrite the files of a table row by row; a row for which `edit` returns None is dropped."""
    folder = out / "pictures" if table == "pictures" else out / "ledger" / table
    for path in folder.glob("*.parquet"):
        rows = pq.read_table(path)
        kept = [row for row in map(edit, rows.to_pylist()) if row]
        pq.write_table(pa.Table.from_pylist(kept, rows.schema), path)


def with_bytes(data: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def edit(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"image": row["image"] | {"bytes": data}} if row["pair_id"] == "a.b" else row

    return edit


OTHER = as_bytes(Image.new("RGB", (32, 21), "red"))


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (with_bytes(OTHER), "picture-changed"),
        (with_bytes(OTHER[:60]), "picture-damaged"),
        (with_bytes(as_bytes(Image.new("RGB", (9, 9)))), "picture-size"),
        (with_bytes(as_bytes(Image.new("RGB", (32, 21)), "JPEG")), "picture-format"),
        (lambda row: None if row["pair_id"] == "a.b" else row, "picture-missing"),
        (lambda row: row | {"sha256": "0" * 64} if row["pair_id"] == "a.b" else row, "picture-changed"),
    ],
)
def test_a_change_in_a_parquet_file_is_named(
    painted: Path, out: Path, edit: Callable[[dict[str, Any]], dict[str, Any]], kind: str
) -> None:
    rewrite(out, "pictures", edit)
    assert found(out) == [(kind, "a.b")]
    sealed = [finding for finding in found(out, "--seal", painted / "key.pub") if finding[0].startswith("sealed")]
    claimed_only = Out(str(out)).pictures(claims=True).entries["sha256"].to_pylist().count("0" * 64)
    assert {pair for _, pair in sealed} == (set() if claimed_only else {"a.b"})


def test_a_row_group_that_cannot_be_read_is_named_and_others_are_read(out: Path) -> None:
    (first, _) = sorted((out / "pictures").glob("*.parquet"))
    whole = bytearray(first.read_bytes())
    at = whole.index(b"\x89PNG")
    whole[at - 30 : at] = bytes(30)
    first.write_bytes(whole)
    (damaged,) = pq.read_table(first, columns=["pair_id"])["pair_id"].to_pylist()
    assert found(out) == [("picture-damaged", damaged)]


def test_a_change_in_an_archive_is_named(painted: Path, out: Path) -> None:
    (archive,) = (out / "pictures").glob("*.tar")
    whole = bytearray(archive.read_bytes())
    at = whole.index(b"IDAT") + 40
    whole[at] ^= 1
    archive.write_bytes(whole)
    assert found(out)[0][1] == "plain"
    assert ("sealed-altered", "plain") in found(out, "--seal", painted / "key.pub")
    archive.write_bytes(whole[:at])
    assert found(out) == [("unreadable", None), ("picture-missing", "plain")]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_cannot_be_read_keeps_no_other_from_being_exported(
    painted: Path, out: Path, tmp_path: Path, form: str
) -> None:
    (archive,) = (out / "pictures").glob("*.tar")
    archive.write_bytes(archive.read_bytes()[:700])
    result = batchnst("export", out, "--to", form, "--out", tmp_path / "copy")
    assert (result.exit_code, "4 of 4 pairs, 2 pictures copied now" in result.stdout) == (FAILED, True), result.output
    first, *others = result.stderr.splitlines()
    assert f"pictures/{archive.name}: not a readable" in first
    assert first.endswith("; its pictures were not copied")
    (of_pair,) = (line for line in others if "plain" in line)
    assert f"pictures/{archive.name}" in of_pair
    assert sorted(whole_pairs(tmp_path / "copy")) == ["a.b", "a.c"]
    replayed = batchnst("replay", out, "a.b")
    assert ("every pixel as it was" in replayed.stdout, replayed.exit_code) == (True, 0), replayed.output


def whole_pairs(out: Path) -> list[str]:
    """The ids of pairs whose pictures are there, as their rows say."""
    folder = Out(str(out))
    stored, rows = folder.pictures(), folder.rows("pairs").to_pylist()
    sha256 = {row["pair_id"]: hashlib.sha256(stored.find(row).data or b"").hexdigest() for row in rows}
    return [row["pair_id"] for row in rows if sha256[row["pair_id"]] == row["output_sha256"]]


@pytest.mark.parametrize("dest", ["file", "file/below", "dangling", "x" * 300])
def test_a_destination_that_cannot_be_a_folder_is_refused(painted: Path, tmp_path: Path, dest: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    result = batchnst("export", painted / "out", "--to", "files", "--out", tmp_path / dest)
    assert (result.exit_code, len(result.stderr.splitlines())) == (WRONG, 1), result.output
    assert f"{dest}: cannot be written: " in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("foreign", ["pictures/mine.parquet", "pictures/mine.tar", "ledger/pairs/mine.parquet"])
@pytest.mark.parametrize("form", ["files", "tar"])
def test_a_destination_with_files_of_others_is_refused_before_anything_is_copied(
    painted: Path, tmp_path: Path, foreign: str, form: str
) -> None:
    (tmp_path / "x" / foreign).parent.mkdir(parents=True)
    (tmp_path / "x" / foreign).write_text("mine")
    result = batchnst("export", painted / "out", "--to", form, "--out", tmp_path / "x")
    assert (result.exit_code, len(result.stderr.splitlines())) == (WRONG, 1), result.output
    assert f"--out {tmp_path}/x: " in result.stderr
    assert "expected an empty folder" in result.stderr
    assert [path for path in (tmp_path / "x").rglob("*") if path.is_file()] == [tmp_path / "x" / foreign]


def test_a_damaged_header_hides_no_picture_and_a_merge_loses_none(painted: Path, out: Path, tmp_path: Path) -> None:
    export(out, "tar", tmp_path / "x")
    (archive,) = (tmp_path / "x/pictures").iterdir()
    whole = bytearray(archive.read_bytes())
    whole[whole.rindex(b".json\0")] ^= 1  # of the last picture
    archive.write_bytes(whole)
    for options in ([], ["--seal", painted / "key.pub"]):
        kinds = [kind for kind, _ in found(tmp_path / "x", *options)]
        assert kinds[:4] == ["unreadable", *["picture-missing"] * 3]
    paint = ["--engine", "inline", "--size", 32, "--steps", 1, "--pictures", "tar"]
    batchnst("run", painted / "m.csv", "--out", tmp_path / "x", *paint)  # so that there is something to merge
    refused = batchnst("ledger", "compact", tmp_path / "x")
    assert ("is damaged after byte" in refused.stderr, archive.read_bytes()) == (True, bytes(whole)), refused.output


def test_a_picture_that_stayed_when_its_pair_was_painted_again_is_checked(painted: Path, out: Path) -> None:
    paint = ["--engine", "inline", "--size", 32, "--set", "init=noise"]
    for form, steps in (("files", 1), ("parquet", 2), ("tar", 3)):
        batchnst("run", painted / "m.csv", "--out", out, *paint, "--steps", steps, "--pictures", form)
        assert found(out) == []
    (out / "images/plain.png").write_bytes(OTHER)
    assert found(out) == [("previous-changed", "plain")]


def test_a_picture_of_a_pair_that_failed_then_is_checked(painted: Path, out: Path) -> None:
    def fail(row: dict[str, Any]) -> dict[str, Any]:
        changes = {"status": "failed", "attempt": 9, "error_type": "InputError", "error_message": "x", "steps": None}
        return row | changes | {"output_sha256": None}

    for path in (out / "ledger/pairs").glob("*.parquet"):
        rows = pq.read_table(path)
        ok = [row for row in rows.to_pylist() if row["status"] == "ok"]
        pq.write_table(pa.Table.from_pylist([*rows.to_pylist(), *map(fail, ok)], rows.schema), path)
    assert found(out) == []
    rewrite(out, "pictures", with_bytes(OTHER))
    assert found(out) == [("previous-changed", "a.b")]


def test_unknown_and_doubled_pictures_are_named(out: Path) -> None:
    (first, *_) = sorted((out / "pictures").glob("*.parquet"))
    row = pq.read_table(first).to_pylist()[0]
    planted = [row, row | {"pair_id": "stray"}]
    pq.write_table(pa.Table.from_pylist(planted, SCHEMA), out / "pictures" / "z.parquet")
    (out / "pictures" / "notes.txt").write_text("mine")
    (out / "pictures" / "._z.parquet").write_bytes(b"macOS")
    assert sorted(found(out), key=str) == [
        ("picture-doubled", row["pair_id"]), ("picture-unknown", "stray"), ("picture-unknown", None),
    ]  # fmt: skip
