"""A finished run is tampered with, one way at a time: the audit names exactly that, and so does its seal."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchnst.ledger.schema import SCHEMAS
from batchnst.recipe import ADDED
from batchnst.review import usual
from batchnst.review.audit.findings import KINDS
from batchnst.review.audit.steps import summarize
from tests.helpers import batchnst, loss

PAIRS = 9


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, pictures of its own and an OUT, painted for real."""
    folder = tmp_path_factory.mktemp("finished")
    photo = Image.open(images / "coffee.png").convert("RGB").resize((96, 64))
    Image.open(images / "swirls.png").resize((64, 64)).save(folder / "style.png")
    lines = ["content,style,id"]
    for i in range(PAIRS):
        photo.rotate(3 * i).save(folder / f"photo-{i}.png")
        lines.append(f"photo-{i}.png,style.png,pair-{i}")
    (folder / "m.csv").write_text("\n".join(lines) + "\n")
    options = ["--engine", "inline", "--size", 48, "--steps", 4]
    result = batchnst("run", folder / "m.csv", "--out", folder / "out", *options)
    assert result.exit_code == 0, result.output
    assert batchnst("seal", "--new-key", folder / "key").exit_code == 0
    assert batchnst("seal", folder / "out", "--key", folder / "key").exit_code == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to tamper with. Afterwards its seal has to name the pairs that were tampered with, and no other."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    yield folder
    later = painted_later(folder / "out")
    before, after = (contents(where / "out", later) for where in (finished, folder))
    changed = {pair for pair in before.keys() | after.keys() if before.get(pair) != after.get(pair)}
    findings = json.loads(batchnst("audit", folder / "out", "--seal", folder / "key.pub", "--json").stdout)["findings"]
    assert {finding["pair_id"] for finding in findings if finding["kind"].startswith("seal")} == changed


def sealed_run(out: Path) -> str:
    (leaves,) = map(pq.read_table, (out / "ledger" / "seals").glob("*.parquet"))
    (run_id,) = leaves["run_id"].unique().drop_null().to_pylist()
    return str(run_id)


def painted_later(out: Path) -> set[str]:
    """The outputs of rows of other runs than the sealed one."""
    sealed = sealed_run(out)
    return {row["output"] for row in readable_rows(out, "pairs") if row["run_id"] != sealed}


def contents(out: Path, later: set[str]) -> dict[str | None, list[str]]:
    """What the sealed run has made, by pair, and the rows of runs by None; without pictures that were painted later."""
    found, sealed = defaultdict[str | None, list[str]](list), sealed_run(out)
    for row in (row for table in SCHEMAS for row in readable_rows(out, table)):
        if row["run_id"] == sealed:
            found[row.get("pair_id")].append(repr(sorted(row.items())))
    for path in (out / "images").glob("pair-*"):
        if path.name not in later:
            found[path.stem].append(path.read_bytes().hex())
    return {pair: sorted(values) for pair, values in found.items()}


def readable_rows(out: Path, table: str) -> Iterator[dict[str, Any]]:
    for path in (out / "ledger" / table).glob("*.parquet"):
        with suppress(pa.ArrowException):
            rows = pq.read_table(path)
            yield from rows.to_pylist() if rows.schema.metadata else ()


def found(folder: Path, *options: object) -> list[tuple[str, str | None, str]]:
    """What an audit names: kind, pair and text."""
    result = batchnst("audit", folder / "out", "--json", *options)
    findings = json.loads(result.stdout)["findings"]
    assert result.exit_code == (1 if findings else 0), result.output
    return [(finding["kind"], finding["pair_id"], finding["text"]) for finding in findings]


def change(folder: Path, table: str, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Rewrite a table's file row by row; a row for which `edit` returns None is dropped."""
    (path,) = (folder / "out" / "ledger" / table).glob("*.parquet")
    rows = [edit(row) for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist([row for row in rows if row], schema=SCHEMAS[table]), path)


def of_pair(number: int, **values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | values if row["pair_id"] == f"pair-{number}" else row


def of_step(number: int, at: int, **values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | values if (row["pair_id"], row["step"]) == (f"pair-{number}", at) else row


def test_a_finished_run_is_clean_in_every_way_it_is_asked(folder: Path) -> None:
    manifest = folder / "m.csv"
    assert found(folder) == found(folder, "--deep") == found(folder, "--manifest", finished_manifest(folder)) == []
    text = batchnst("audit", folder / "out", "--deep")
    assert text.stdout == (
        f"9 of 9 pairs ok, 0 failed; 9 pictures, {9 * 4} steps of 9 attempts, 10 inputs\nfound nothing wrong\n"
    )
    assert batchnst("ledger", "compact", folder / "out").exit_code == 0
    assert found(folder, "--deep") == []
    # The pictures are looked for beside the manifest: those of a copy are others.
    assert {kind for kind, *_ in found(folder, "--manifest", manifest)} == {"outdated"}


def finished_manifest(folder: Path) -> Path:
    """The manifest that the run read, from the ledger."""
    (path,) = (folder / "out" / "ledger" / "runs").iterdir()
    return Path(pq.read_table(path)["manifest"][0].as_py())


def test_rows_of_the_manifest_without_an_ok_row(folder: Path) -> None:
    original = finished_manifest(folder)
    lines = original.read_text().splitlines()
    changed = original.with_name("changed.csv")
    changed.write_text("\n".join(["content,style,id,steps", *(line + "," for line in lines[1:-1])]) + "\n")
    with changed.open("a") as file:
        file.write("photo-8.png,style.png,pair-8,9\nphoto-8.png,style.png,new,\n")
    (run,) = (folder / "out" / "ledger" / "runs").iterdir()
    by = f"run {run.stem} painted it as {original} asks, not as its row does here"
    assert found(folder, "--manifest", changed) == [
        ("missing", "new", "it has no row in the ledger"),
        ("outdated", "pair-8", by),
    ]
    assert [kind for kind, *_ in found(folder, "--manifest", changed, "--manifest", original)] == ["missing"]
    changed.unlink()


def test_a_failed_pair(folder: Path) -> None:
    change(folder, "pairs", of_pair(3, status="failed", error_type="InputError", error_message="gone"))
    (folder / "out" / "images" / "pair-3.png").unlink()
    expected = [("failed", "pair-3", "InputError: gone")]
    assert found(folder) == found(folder, "--manifest", finished_manifest(folder)) == expected


def test_pictures(folder: Path) -> None:
    pictures = folder / "out" / "images"
    (pictures / "pair-0.png").unlink()
    (pictures / "pair-1.png").write_bytes((pictures / "pair-1.png").read_bytes()[:900])
    Image.open(pictures / "pair-2.png").save(pictures / "pair-2.png", "JPEG")
    Image.open(pictures / "pair-3.png").resize((10, 11)).save(pictures / "pair-3.png")
    pixels = np.asarray(Image.open(pictures / "pair-4.png")).copy()
    pixels[5, 5] ^= 1
    Image.fromarray(pixels).save(pictures / "pair-4.png")
    Image.fromarray(pixels).save(pictures / "stray.png")
    findings = found(folder)
    assert [(kind, pair) for kind, pair, _ in findings] == [
        ("picture-missing", "pair-0"),
        ("picture-damaged", "pair-1"),
        ("picture-format", "pair-2"),
        ("picture-size", "pair-3"),
        ("picture-changed", "pair-4"),
        ("picture-unknown", None),
    ]
    texts = [text for *_, text in findings]
    assert texts[0] == "images/pair-0.png is not there"
    assert texts[2] == "images/pair-2.png is JPEG, not PNG"
    assert texts[3] == "images/pair-3.png has 10×11 pixels, not 48×32"
    assert texts[5] == "images/stray.png: no row says that it was painted"


def test_pictures_of_earlier_attempts(folder: Path) -> None:
    (run_id,) = {row["run_id"] for row in readable_rows(folder / "out", "pairs")}
    for name in (f"pair-0/{run_id}-1.png", f"pair-1/{run_id}-1.png", "pair-2/other-1.png", "x.png", "pair-0/.DS_Store"):
        path = folder / "out" / "previous" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "out" / "images" / "pair-0.png", path)
    assert [(kind, pair, text.partition(" has")[0]) for kind, pair, text in found(folder)] == [
        ("previous-changed", "pair-1", f"previous/pair-1/{run_id}-1.png"),
        ("previous-unknown", None, "previous/pair-2/other-1.png: no row says that it was painted"),
        ("previous-unknown", None, "previous/x.png: no row says that it was painted"),
    ]
    assert "2 pictures of earlier attempts" in batchnst("audit", folder / "out").stdout


def test_a_row_that_was_painted_twice(folder: Path) -> None:
    for table in ("pairs", "losses"):
        (path,) = (folder / "out" / "ledger" / table).glob("*.parquet")
        rows = [row for row in pq.read_table(path).to_pylist() if row["pair_id"] == "pair-5"]
        again = pa.Table.from_pylist([row | {"run_id": "other"} for row in rows], schema=SCHEMAS[table])
        pq.write_table(again, path.with_name("again.parquet"))
    ((kind, pair, text),) = found(folder)
    assert (kind, pair) == ("doubled", "pair-5")
    assert text.endswith(", and again by run other")


def test_steps_that_are_missing(folder: Path) -> None:
    drop = {("pair-1", step) for step in range(4)} | {("pair-2", 1)}
    change(folder, "losses", lambda row: None if (row["pair_id"], row["step"]) in drop else row)
    first, second = found(folder)
    assert first[:2] == ("losses-missing", "pair-1")
    assert first[2].endswith("none of its 4 steps is in the ledger")
    assert second[:2] == ("losses-gap", "pair-2")
    assert second[2].endswith("the ledger has 3 rows for its 4 steps; expected each step once")


def test_steps_that_are_there_twice(folder: Path) -> None:
    change(folder, "losses", of_step(2, 3, step=2))
    assert [(kind, pair) for kind, pair, _ in found(folder)] == [("losses-gap", "pair-2")]


def test_a_losses_file_that_is_there_twice(folder: Path) -> None:
    (path,) = (folder / "out" / "ledger" / "losses").glob("*.parquet")
    shutil.copy(path, path.with_name("copy.parquet"))
    assert {kind for kind, *_ in found(folder)} == {"losses-gap"}
    assert len(found(folder)) == PAIRS


@pytest.mark.parametrize("column", ["total_loss", "content_loss", "style_loss", "tv_loss", "initial_total"])
def test_a_final_loss_that_is_not_that_of_the_steps(folder: Path, column: str) -> None:
    change(
        folder, "pairs", lambda row: row | {column: row[column] * 1.01 + 1e-3} if row["pair_id"] == "pair-7" else row
    )
    assert [(kind, pair) for kind, pair, _ in found(folder)] == [("losses-differ", "pair-7")]


def test_losses_that_are_no_numbers(folder: Path) -> None:
    change(folder, "losses", of_step(6, 1, content=float("nan")))
    assert [(kind, pair) for kind, pair, _ in found(folder)] == [("not-finite", "pair-6")]


def test_a_pair_that_was_rescued(folder: Path) -> None:
    change(folder, "pairs", of_pair(6, stopped="diverged", error_type="Diverged"))
    assert [(kind, pair) for kind, pair, _ in found(folder)] == [("rescued", "pair-6")]


def test_a_loss_that_rose(folder: Path) -> None:
    (path,) = (folder / "out" / "ledger" / "losses").glob("*.parquet")
    (best,) = (row for row in pq.read_table(path).to_pylist() if (row["pair_id"], row["step"]) == ("pair-0", 2))
    change(folder, "pairs", of_pair(0, **{f"{term}_loss": best[term] for term in ("total", "content", "style", "tv")}))
    change(folder, "losses", of_step(0, 3, total=1e15))
    assert [(kind, pair) for kind, pair, _ in found(folder)] == [("rose", "pair-0")]


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_a_loss_far_from_what_is_usual(folder: Path, factor: float) -> None:
    def scaled(*columns: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda row: row | {name: row[name] * factor for name in columns} if row["pair_id"] == "pair-8" else row

    change(folder, "losses", scaled("total", "content", "style", "tv"))
    change(folder, "pairs", scaled("total_loss", "content_loss", "style_loss", "tv_loss", "initial_total"))
    ((kind, pair, text),) = found(folder)
    assert (kind, pair) == ("outlier", "pair-8")
    assert "is usual for style.png at 48 pixels (z = " in text


def test_few_pairs_say_nothing_of_what_is_usual(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, "losses", lambda row: row | {"total": row["total"] * 100} if row["pair_id"] == "pair-8" else row)
    change(
        folder,
        "pairs",
        lambda row: (
            row | {name: row[name] * 100 for name in ("total_loss", "initial_total")}
            if row["pair_id"] == "pair-8"
            else row
        ),
    )
    assert [kind for kind, *_ in found(folder)] == ["outlier"]
    monkeypatch.setattr(usual, "MIN_GROUP", PAIRS + 1)
    assert found(folder) == []


def test_inputs_that_have_changed_since(folder: Path) -> None:
    (folder / "photo-6.png").write_bytes((folder / "photo-5.png").read_bytes())
    contents = {"pair-6": str(folder / "photo-6.png"), "pair-7": str(folder / "none.png")}
    change(folder, "pairs", lambda row: row | {"content": contents.get(row["pair_id"], row["content"])})
    assert found(folder) == []
    first, second = found(folder, "--deep")
    assert first[:2] == ("input-changed", "pair-6")
    assert first[2].startswith(f"{folder}/photo-6.png has SHA-256 ")
    assert second == ("input-missing", "pair-7", f"{folder}/none.png: no such file")


def test_a_style_that_has_changed_is_named_once(folder: Path) -> None:
    change(folder, "pairs", lambda row: row | {"styles": [str(folder / "photo-1.png")]})
    ((kind, pair, text),) = found(folder, "--deep")
    assert (kind, pair) == ("input-changed", "pair-0")
    assert text.endswith("(and of 8 more pairs)")


def test_files_that_do_not_belong(folder: Path) -> None:
    pairs = folder / "out" / "ledger" / "pairs"
    newer = SCHEMAS["pairs"].with_metadata({b"batchnst.schema": b"99"})
    pq.write_table(newer.empty_table(), pairs / "a.parquet")
    pq.write_table(pa.table({"pair_id": ["x"]}), pairs / "b.parquet")
    (pairs / "c.parquet").write_bytes(b"torn")
    lacking = pa.schema([f for f in SCHEMAS["pairs"] if f.name != "status"], SCHEMAS["pairs"].metadata)
    pq.write_table(lacking.empty_table(), pairs / "d.parquet")
    (folder / "out" / "ledger" / "losses" / "notes.txt").write_text("mine")
    (folder / "out" / "ledger" / "losses" / "moved").symlink_to("notes.txt")
    (path,) = (folder / "out" / "ledger" / "runs").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    findings = found(folder)
    assert [(kind, text.split(":")[0]) for kind, _, text in findings] == [
        ("schema", "ledger/pairs/a.parquet"),
        ("foreign", "ledger/pairs/b.parquet"),
        ("unreadable", "ledger/pairs/c.parquet"),
        ("schema", "ledger/pairs/d.parquet"),
        ("unreadable", f"ledger/runs/{path.name}"),
        ("foreign", "ledger/losses/notes.txt"),
        ("foreign", "ledger/losses/moved"),
    ]


def test_rows_made_with_other_weights(folder: Path) -> None:
    change(folder, "pairs", of_pair(2, weights_sha256="0" * 64))
    ((kind, pair, text),) = found(folder)
    assert (kind, pair) == ("other-weights", "pair-2")
    assert text.startswith("weights 000000000000…; most rows with vgg19 bundled have ")


def test_rows_made_by_another_recipe(folder: Path) -> None:
    def steeper(row: dict[str, Any]) -> dict[str, Any]:
        recipe = json.loads(row["recipe"]) | {"style_weight": 7.0, "seed": 5}
        return row | {"recipe": json.dumps(recipe)} if row["pair_id"] == "pair-2" else row

    change(folder, "pairs", steeper)
    assert found(folder) == [("other-recipe", "pair-2", "style_weight 7.0, not 10.0")]


def test_rows_of_a_version_without_the_newer_keys_are_not_odd(folder: Path) -> None:
    def older(row: dict[str, Any]) -> dict[str, Any]:
        recipe = json.loads(row["recipe"])
        assert {recipe.pop(key) for key in ADDED} == set(ADDED.values())
        return row | {"recipe": json.dumps(recipe)} if row["pair_id"] == "pair-2" else row

    change(folder, "pairs", older)
    assert found(folder) == []


def test_a_recipe_that_the_manifest_asks_for_is_not_odd(folder: Path) -> None:
    manifest = finished_manifest(folder).with_name("mixed.csv")
    rows = [f"photo-{i}.png,style.png,pair-{i},{5 if i == 4 else ''}" for i in range(PAIRS)]
    manifest.write_text("\n".join(["content,style,id,steps", *rows]) + "\n")
    options = ["--engine", "inline", "--size", 48, "--set", "steps=4"]
    assert batchnst("run", manifest, "--out", folder / "out", *options).exit_code == 0
    assert found(folder) == [("other-recipe", "pair-4", "steps 5, not 4")]
    assert found(folder, "--manifest", manifest) == []
    manifest.unlink()


def test_rows_made_by_other_software(folder: Path) -> None:
    change(
        folder,
        "pairs",
        lambda row: row | {"versions": row["versions"] | {"torch": "1.0"}} if row["pair_id"] == "pair-2" else row,
    )
    ((kind, pair, text),) = found(folder)
    assert (kind, pair) == ("other-versions", "pair-2")
    assert text.startswith("torch 1.0, not ")


TESTED_IN = ("test_audit.py", "test_audit_seals.py", "test_damaged_rows.py", "test_export.py")


def test_every_kind_is_tested() -> None:
    source = "".join(Path(__file__).with_name(name).read_text() for name in TESTED_IN)
    assert [kind for kind in KINDS if f'"{kind}"' not in source] == []


def test_a_picture_says_where_it_comes_from(folder: Path) -> None:
    picture = folder / "out" / "images" / "pair-3.png"
    said = batchnst("audit", "--picture", picture)
    assert said.exit_code == 0
    assert said.stdout.startswith("pair_id      pair-3\nrun_id       2")
    with_ledger = batchnst("audit", folder / "out", "--picture", picture, "--json")
    assert with_ledger.exit_code == 0
    assert json.loads(with_ledger.stdout)["finding"] is None
    copy = picture.with_name("other.png")
    with Image.open(picture) as image:
        image.rotate(180).save(copy, exif=image.getexif())
    tampered = batchnst("audit", folder / "out", "--picture", copy)
    assert tampered.exit_code == 1
    assert f"picture-changed: pair-3: {copy} has SHA-256 " in tampered.stdout
    nothing = batchnst("audit", "--picture", folder / "style.png")
    assert nothing.exit_code == 2
    assert "nothing in it says that batchnst painted it" in nothing.stderr


def test_an_audit_of_nothing_is_refused(tmp_path: Path) -> None:
    assert batchnst("audit").exit_code == 2
    result = batchnst("audit", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == f"batchnst: {tmp_path}: has no ledger; expected the --out of an earlier `batchnst run`\n"


def test_curves_are_summed_up_as_by_hand() -> None:
    steps = [(0, 64, 9.0), (1, 64, 5.0), (2, 128, 7.0), (3, 128, 4.0), (4, 128, 6.0)]
    rows = [vars(loss(step)) | {"scale": scale, "total": total} for step, scale, total in steps]
    rows += [vars(loss(1, "b")), vars(loss(2, "b"))]
    a, b = summarize(pa.Table.from_pylist(rows[::-1], schema=SCHEMAS["losses"])).to_pylist()
    assert (a["rows"], a["whole"], a["finite"], a["initial"], a["total"], a["rose"]) == (5, True, True, 9.0, 4.0, False)
    assert (b["pair_id"], b["rows"], b["whole"]) == ("b", 2, False)
