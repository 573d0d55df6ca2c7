from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from batchnst import read_ledger
from batchnst.cli import app
from batchnst.transfer.weights import Weights
from tests import oracles
from tests.conftest import size_of

QUICK = ["--engine", "inline", "--size", "48", "--steps", "4"]


def batchnst(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def manifest(images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "m.csv"
    path.write_text(
        f"content,style,id,steps\n{images}/coffee.png,{images}/swirls.png,a,\n"
        f"{images}/rocket.jpg,{images}/swirls.png,b,6\n"
    )
    return path


def recipes(out: Path) -> dict[str, dict[str, object]]:
    rows = read_ledger(str(out), "pairs").to_table().sort_by("finished_at").to_pylist()
    return {row["pair_id"]: json.loads(row["recipe"]) for row in rows}


def test_a_run_paints_and_a_second_one_finds_nothing_to_do(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = batchnst("run", manifest, "--out", out, *QUICK)
    assert first.exit_code == 0, first.output
    assert f"{out}: 2 of 2 pairs done (2 now, in " in first.stdout
    assert first.stdout.count("\n") == 1
    files = sorted(path for path in out.rglob("*") if path.is_file())
    second = batchnst("run", manifest, "--out", out, *QUICK)
    assert second.exit_code == 0
    assert "2 of 2 pairs are done already; 0 left" in second.stderr
    assert files == sorted(path for path in out.rglob("*") if path.is_file())


def test_a_changed_row_is_done_again(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batchnst("run", manifest, "--out", out, *QUICK)
    manifest.write_text(manifest.read_text().replace(",b,6", ",b,5"))
    again = batchnst("run", manifest, "--out", out, *QUICK)
    assert "1 of 2 pairs are done already; 1 left" in again.stderr
    assert recipes(out)["b"]["steps"] == 5
    assert read_ledger(str(out), "pairs").count_rows() == 3


def test_row_then_option_then_recipe_file_then_default(manifest: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("steps = 9\nsize = 40\nseed = 3\ntv_weight = 0.5\n[style_layers]\nrelu1_1 = 2\nrelu3_1 = 1\n")
    out = tmp_path / "out"
    options = ["--recipe", recipe, "--size", "48", "--set", "content_layers=relu3_1", "--set", "seed=4"]
    result = batchnst("run", manifest, "--out", out, "--engine", "inline", *options)
    assert result.exit_code == 0, result.output
    assert {name: made["steps"] for name, made in recipes(out).items()} == {"a": 9, "b": 6}
    made = recipes(out)["a"]
    assert (made["size"], made["seed"], made["tv_weight"], made["content_weight"]) == (48, 4, 0.5, 5.0)
    assert (made["style_layers"], made["content_layers"]) == ({"relu1_1": 2.0, "relu3_1": 1.0}, {"relu3_1": 1.0})


def test_a_bad_picture_is_a_failed_row_and_exit_1(manifest: Path, tmp_path: Path, images: Path) -> None:
    out = tmp_path / "out"
    manifest.write_text(manifest.read_text() + f"gone.png,{images}/swirls.png,c,\n")
    result = batchnst("run", manifest, "--out", out, *QUICK)
    assert result.exit_code == 1
    assert f"failed: c: {tmp_path}/gone.png: no such file" in result.stderr
    assert "2 of 3 pairs done (2 now" in result.stdout
    assert "1 failed" in result.stdout
    again = batchnst("run", manifest, "--out", out, *QUICK)
    assert again.exit_code == 1
    assert "1 pair failed in an earlier run and is left alone; --retry-failed runs it again" in again.stderr
    Image.open(images / "chelsea.png").save(tmp_path / "gone.png")
    mended = batchnst("run", manifest, "--out", out, "--retry-failed", *QUICK)
    assert mended.exit_code == 0, mended.output
    assert "3 of 3 pairs done (1 now" in mended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.csv", "--out", "o"], "none.csv: no such file"),
        (["run", "m.csv", "--out", "o", "--set", "stlye_weight=1"], "(did you mean 'style_weight'?)"),
        (["run", "m.csv", "--out", "o", "--set", "seed"], "--set seed: expected KEY=VALUE"),
        (
            ["run", "m.csv", "--out", "o", "--optimizer", "adm"],
            "optimizer: 'adm' is not allowed (did you mean 'adam'?)",
        ),
        (["run", "m.csv", "--out", "o", "--recipe", "r.toml"], "recipe r.toml: cannot be read: No such file"),
        (["plan", "m.csv", "--size", "9"], "size: '9' is not allowed: should be greater than or equal to 16"),
        (["run", "double.csv", "--out", "o"], "double.csv: line 3, id: 'a' is already the id of line 2"),
        (["run", "empty.csv", "--out", "o"], "empty.csv: has no rows"),
        (["stylize", "none.png", "s.png", "--out", "x.png"], "none.png: no such file"),
        (["stylize", "c.png", "s.png", "--out", "x.gif"], "--out x.gif: cannot be written"),
        (["run", "m.csv"], "Missing option '--out'"),
    ],
)
def test_a_wrong_request_gets_a_line_and_exit_2_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text("content,style\nc.png,s.png\n")
    (tmp_path / "double.csv").write_text("content,style,id\nc.png,s.png,a\nc.png,s.png,a\n")
    (tmp_path / "empty.csv").write_text("content,style\n")
    before = sorted(tmp_path.rglob("*"))
    result = batchnst(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_says_what_run_would_do(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batchnst("run", manifest, "--out", out, "--limit", 1, *QUICK)
    manifest.write_text(manifest.read_text() + "gone.png,gone.png,c,\n")
    result = batchnst("plan", manifest, "--out", out, *QUICK[2:])
    assert result.exit_code == 0, result.output
    assert "3 in the manifest · 1 done · 0 failed and left alone · 2 to paint" in result.stdout
    assert "48×32  1 pair in 1" in result.stdout
    assert "unreadable, will fail  1 pair in 1" in result.stdout
    assert "time     about 0:00:" in result.stdout
    assert read_ledger(str(out), "pairs").count_rows() == 1


def test_stylize_writes_one_picture_and_no_ledger(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "x.jpg"
    styles = [images / "swirls.png", images / "woodcut.png"]
    result = batchnst("stylize", images / "coffee.png", *styles, "--out", out, "--size", "48", "--steps", "4")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert size_of(out) == (48, 32)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [out]


def test_the_ledgers_loss_is_the_written_pictures(images: Path, tmp_path: Path, weights: Weights) -> None:
    content, style, out = images / "coffee.png", images / "swirls.png", tmp_path / "out"
    (tmp_path / "m.csv").write_text(f"content,style,id\n{content},{style},a\n")
    result = batchnst("run", tmp_path / "m.csv", "--out", out, "--engine", "inline", "--size", "160", "--steps", "30")
    assert result.exit_code == 0, result.output
    (row,) = read_ledger(str(out), "pairs").to_table().to_pylist()
    vgg = oracles.torchvision_vgg19(weights)
    expected = oracles.neural_style_loss(vgg, out / "images" / "a.png", content, style, 160)
    assert row["total_loss"] == pytest.approx(expected, rel=0.02)
    assert row["total_loss"] < 0.1 * row["initial_total"]


def test_help_names_the_commands_in_the_contracts_order() -> None:
    text = batchnst("--help").stdout
    order = [text.index(f" {name} ") for name in ("run", "plan", "stylize")]
    assert order == sorted(order)
