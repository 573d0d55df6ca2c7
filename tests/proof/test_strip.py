from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchnst import read_ledger
from batchnst.engine import run as engine_run
from batchnst.errors import RecipeError, RequestError
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import fingerprint
from batchnst.manifest.reading import read_manifest
from batchnst.proof.grid import read_grid
from batchnst.proof.strip import Strip, folder_of
from batchnst.recipe import Recipe
from tests.helpers import batchnst, pair

QUICK = ("--engine", "inline", "--size", 72, "--steps", 2)


@pytest.fixture
def manifest(images: Path, tmp_path: Path) -> Path:
    """Three pairs, one of them without its photo."""
    rows = [
        f"{images}/coffee.png,{images}/swirls.png,coffee,50",
        f"{images}/rocket.jpg,{images}/woodcut.png,rocket,",
        f"{tmp_path}/gone.png,{images}/swirls.png,gone,",
    ]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["content,style,id,style_weight", *rows]) + "\n")
    return path


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_ledger(str(out), "pairs").to_table().sort_by("finished_at").to_pylist()
    return found


@pytest.mark.slow
def test_a_proof_is_painted_at_half_size_then_whole_and_a_larger_one_only_where_it_is_new(
    manifest: Path, tmp_path: Path
) -> None:
    page, out = tmp_path / "proof.html", tmp_path / "proof.out"
    command = ("proof", manifest, "--pairs", 2, "--out", page, *QUICK)
    first = batchnst(*command, "--grid", "style_weight=5")
    assert first.exit_code == 0, first.output
    assert first.stdout == f"{page}\n"
    assert f"passed over 1 pair: {tmp_path}/gone.png: no such file" in first.stderr
    assert first.stderr.count("painting 2 into") == 2
    assert f"{page}: written at half size; full size follows" in first.stderr
    assert [row["width"] for row in rows(out)] == [64] * 2 + [72] * 2
    assert {json.loads(row["extra"])["proof_of"] for row in rows(out)} == {"coffee", "rocket"}
    assert {json.loads(row["recipe"])["style_weight"] for row in rows(out)} == {5}, "not the row's 50"
    larger = batchnst(*command, "--grid", "style_weight=5,20")
    assert larger.exit_code == 0, larger.output
    assert "2 of 4 pairs are done already; 2 left" in larger.stderr
    assert len(rows(out)) == 8
    html = page.read_text()
    assert "2 pairs in 2 settings" in html
    assert html.count('class="frame"') == html.count('class="numbers">content ') == 4
    assert "<b>Half size.</b>" not in html
    assert "half size · " not in html
    settings = {"size": "72", "steps": "2"}
    pairs = read_manifest(str(manifest), settings)
    same = Strip(pairs, list(pairs)[:2], read_grid(["style_weight=5,20"], settings), str(page))
    assert [stage.is_half for stage in same.stages()] == [False]


def test_an_interrupt_leaves_the_page_at_half_size(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = engine_run.run, []

    def cut_off(pairs: Manifest, options: engine_run.Options) -> Iterator[Any]:
        calls.append(pairs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(pairs, options)

    monkeypatch.setattr(engine_run, "run", cut_off)
    page = tmp_path / "proof.html"
    result = batchnst("proof", manifest, "--pair", "coffee", "--out", page, *QUICK)
    assert result.exit_code == 130
    assert result.stdout == ""
    html = page.read_text()
    assert "1 pair in 1 setting<" in html
    assert "<b>Half size.</b>" in html
    assert "half size · content" in html


def test_failed_cells_are_shown_with_their_reason_and_exit_1(manifest: Path, tmp_path: Path) -> None:
    page = tmp_path / "proof.html"
    result = batchnst("proof", manifest, "--pair", "gone", "--out", page, *QUICK, "--grid", "recipe=draft,standard")
    assert result.exit_code == 1
    assert result.stdout == f"{page}\n"
    html = page.read_text()
    assert "2 pictures failed" in html
    assert html.count(f"<b>InputError</b> {tmp_path}/gone.png: no such file") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "style_weight=x"], "--grid style_weight=x: style_weight: 'x' is not allowed"),
        (["--out", "page.png"], "--out page.png: expected a name that ends in .html"),
        (["--pair", "cofee"], "--pair cofee: no such id in m.csv (did you mean 'coffee'?)"),
        (["--grid", "seed=" + ",".join(map(str, range(700)))], "--grid: 1,400 pictures; expected at most 1,000"),
        (
            ["--pair", "coffee", "--grid", "backbone=alexnet", "--set", "style_layers=relu1_1"],
            "--grid backbone=alexnet: ",
        ),
        (["--out", "run.html"], "run.out: holds pictures that are no proof; choose another --out"),
    ],
)
def test_a_wrong_request_is_said_in_a_line_before_anything_is_painted(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "run.html" in arguments:
        batchnst("run", "m.csv", "--out", "run.out", "--limit", 1, *QUICK)
    before = sorted(tmp_path.rglob("*"))
    options = ["--pairs", "2", "--weights", "random", *arguments]
    result = batchnst("proof", "m.csv", *([] if "--out" in arguments else ["--out", "p.html"]), *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_stands_beside_the_page() -> None:
    assert folder_of("a/b.c.HTML") == "a/b.c.out"
    assert folder_of("s3://bucket/p.htm") == "s3://bucket/p.out"
    for name in ("p", ".html", "a/.html"):
        with pytest.raises(RequestError, match=r"expected a name that ends in \.html"):
            folder_of(name)


def test_cells_have_the_same_ids_in_every_proof_and_equal_ones_are_painted_once() -> None:
    manifest = Manifest.of("m.csv", [pair("a" * 200), pair("b")])
    small = Strip(manifest, list(manifest), read_grid(["steps=4"], {}), "p.html")
    large = Strip(manifest, list(manifest), read_grid(["steps=4,5", "seed=0,1"], {}), "q.html")
    ids = {cell.full.id for cell in small.cells}
    assert ids < {cell.full.id for cell in large.cells}
    assert max(map(len, ids)) <= 200
    twice = Strip(manifest, list(manifest), read_grid(["steps=110,5", "recipe=standard,fine"], {}), "p.html")
    assert len({cell.full.id for cell in twice.cells}) == len(twice.cells)
    same = Strip(manifest, list(manifest), read_grid(["style_weight=5,5.0"], {}), "p.html")
    assert len({cell.full.id for cell in same.cells}) == len(same.cells) / 2


def test_half_is_half_unless_it_would_be_too_small() -> None:
    manifest = Manifest.of("m.csv", [pair("a")])
    for size, half in ((512, 256), (100, 64), (64, None), (40, None)):
        (cell,) = Strip(manifest, list(manifest), read_grid([f"size={size}"], {}), "p.html").cells
        assert (cell.full.recipe.size, cell.half and cell.half.recipe.size) == (size, half)


@pytest.mark.parametrize("settings", [{"size": "original"}, {"enlarge": False}])
def test_half_is_never_larger_than_the_photograph_where_the_whole_is_not(settings: dict[str, object]) -> None:
    pairs = [pair("a", recipe=Recipe.from_settings(settings))]
    (cell,) = Strip(Manifest.of("m.csv", pairs), pairs, read_grid(["style_weight=5"], {}), "p.html").cells
    assert cell.half
    assert cell.half.recipe.working_size(60, 40) == cell.full.recipe.working_size(60, 40) == (60, 40)
    assert cell.half.recipe.working_size(4000, 3000)[0] == 256


def test_a_row_that_does_not_go_with_a_column_is_named() -> None:
    pairs = [pair("a", recipe=Recipe.from_settings({"style_layers": "relu1_1"}))]
    manifest = Manifest.of("m.csv", pairs)
    with pytest.raises(RecipeError, match=r"^--grid backbone=alexnet: a: style_layers: no layer 'relu1_1'"):
        Strip(manifest, pairs, read_grid(["backbone=alexnet"], {}), "p.html")


def test_a_manifest_of_pairs_has_these_pairs() -> None:
    settings = {"loss": "gatys2016", "style_layers": "relu1_1=0.5", "learning_rate": 2, "seed": 2**60}
    pairs = [pair("a", recipe=Recipe.from_settings(settings)), pair("b", "s3://b/c.jpg")]
    manifest = Manifest.of("m.csv", pairs)
    assert [fingerprint(made, "w") for made in manifest] == [fingerprint(own, "w") for own in pairs]
    assert manifest.networks == {("vgg19", "bundled")}
    assert (manifest.sets("seed"), manifest.sets("no_key")) == (True, False)
