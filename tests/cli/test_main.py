from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image

from batchnst import read_ledger
from batchnst.bench import estimate
from batchnst.cli.options import RECIPE_OPTIONS
from batchnst.manifest.reading import read_manifest
from batchnst.recipe import PRESETS, Recipe, read_recipe, recipe_keys
from batchnst.transfer.weights import Weights
from tests import oracles
from tests.helpers import batchnst, size_of

QUICK = ["--engine", "inline", "--size", "48", "--steps", "4"]


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
    files = results(out)
    second = batchnst("run", manifest, "--out", out, *QUICK)
    assert second.exit_code == 0
    assert "2 of 2 pairs are done already; 0 left" in second.stderr
    assert files == results(out)


def results(out: Path) -> list[Path]:
    """The files of OUT, but for those by which runs keep out of each other's way."""
    return sorted(path for path in out.rglob("*") if path.is_file() and ".batchnst" not in path.parts)


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
    assert (made["size"], made["seed"], made["tv_weight"], made["content_weight"]) == (48, 4, 0.5, 1.0)
    assert (made["style_layers"], made["content_layers"]) == ({"relu1_1": 2.0, "relu3_1": 1.0}, {"relu3_1": 1.0})


def test_the_same_row_gives_the_same_pixels_in_fp32(manifest: Path, tmp_path: Path) -> None:
    pixels = []
    for name in ("one", "two"):
        result = batchnst("run", manifest, "--out", tmp_path / name, *QUICK, "--precision", "fp32", "--init", "noise")
        assert result.exit_code == 0, result.output
        pictures = [Image.open(tmp_path / name / "images" / f"{pair_id}.png") for pair_id in "ab"]
        pixels.append([picture.tobytes() for picture in pictures])
    assert pixels[0] == pixels[1]
    assert pixels[0][0] != pixels[0][1]


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
        (["run", "m.csv", "--out", "m.csv"], "cannot be written: it is a file; expected a folder"),
        (["run", "m.csv", "--out", "gopher://x"], "gopher://x: no storage can be opened by this URI"),
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
    first = batchnst("run", manifest, "--out", out, "--limit", 1, *QUICK)
    assert "1 of 2 pairs done (1 now" in first.stdout
    assert "0 failed, 1 left" in first.stdout
    manifest.write_text(manifest.read_text() + "gone.png,gone.png,c,\n")
    result = batchnst("plan", manifest, "--out", out, *QUICK[2:])
    assert result.exit_code == 0, result.output
    assert "3 in the manifest · 1 done · 0 failed and left alone · 2 to paint" in result.stdout
    assert "48×32  1 pair in 1 · fits, 0.9 GB, about 0:00:" in result.stdout
    assert "unreadable, will fail  1 pair in 1" in result.stdout
    assert "time     about 0:00:" in result.stdout
    assert re.search(r"presets  draft about 0:00:\d\d · standard 0:\S+ · fine 0:\S+ · paper 0:", result.stdout)
    assert read_ledger(str(out), "pairs").count_rows() == 1


def test_plan_reads_headers_of_all_pairs_or_of_some_if_they_are_many(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest.write_text("content,style\n" + "".join(f"gone-{i}.png,s.png\n" for i in range(9)))
    assert "batches  unreadable, will fail  9 pairs in 9\n" in batchnst("plan", manifest).stdout
    monkeypatch.setattr(estimate, "ALL", 8)
    monkeypatch.setattr(estimate, "SAMPLE", 3)
    plan = batchnst("plan", manifest).stdout
    assert "unreadable, will fail  9 pairs in 9\n         (estimated from 3 of them, drawn at random)" in plan


def test_plan_says_what_each_preset_takes(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measure_speed", lambda recipe: 1000.0)
    manifest.write_text(f"content,style\n{manifest.parent}/c.png,{manifest.parent}/c.png\n")
    Image.new("RGB", (64, 48)).save(manifest.parent / "c.png")
    result = batchnst("plan", manifest, "--size", 64, "--steps", 4, "--set", "loss=neural-style")
    second = 64 * 48 / 1000
    times = [timedelta(seconds=round(steps * second)) for steps in (4, 27, 110, 220, 500)]
    assert f"time     about {times[0]} " in result.stdout
    shown = f"presets  draft about {times[1]} · standard {times[2]} · fine {times[3]} · paper {times[4]}\n"
    assert shown in result.stdout
    other = batchnst("plan", manifest, "--size", 64, "--backbone", "alexnet", "--weights", "random")
    assert "· fine" in other.stdout, other.output
    assert "· paper" not in other.stdout  # its layers are those of VGG19


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", 1024, "--memory", 2), "1024×683  1 pair in 1 · tiled at 512, 1.9 GB, about"),
        (("--size", 1024, "--memory", 16), "1024×683  1 pair in 1 · fits, 2."),
        pytest.param(
            *(("--size", 1024, "--memory", 1.5, "--tile", "off"), "1024×683  1 pair in 1 · does not fit: "),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(("--size", 4096, "--memory", 4), "4096×2731  1 pair in 1 · tiled at 512, L-BFGS remembers "),
            marks=pytest.mark.slow,
        ),
        (("--size", 20000, "--memory", 4), "20000×13333  1 pair in 1 · does not fit: "),
    ],
)
def test_plan_says_what_fits_and_how(images: Path, tmp_path: Path, options: tuple[object, ...], said: str) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"content,style\n{images / 'coffee.png'},{images / 'swirls.png'}\n")
    result = batchnst("plan", manifest, *options, "--precision", "bf16")
    assert said in result.stdout


def test_what_was_tiled_says_so_and_is_not_painted_again(images: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text(f"content,style,id,tile\n{images / 'coffee.png'},{images / 'swirls.png'},a,64\n")
    quick = ("--engine", "inline", "--size", 96, "--steps", 2, "--precision", "fp32")
    assert batchnst("run", manifest, "--out", out, *quick).exit_code == 0
    row = read_ledger(str(out), "pairs").to_table().to_pylist()[0]
    assert json.loads(row["recipe"])["tile"] == 64
    manifest.write_text(f"content,style,id\n{images / 'coffee.png'},{images / 'swirls.png'},a\n")
    again = batchnst("run", manifest, "--out", out, *quick)
    assert "1 of 1 pairs are done already" in again.stderr
    assert batchnst("replay", out, "a").exit_code == 0
    assert batchnst("audit", out, "--manifest", manifest).exit_code == 0


def test_more_than_the_memory_is_refused_in_one_line(images: Path, tmp_path: Path) -> None:
    pair = (images / "coffee.png", images / "swirls.png")
    result = batchnst("stylize", *pair, "--out", tmp_path / "x.png", "--size", 4000, "--memory", 1)
    assert result.exit_code == 2
    assert result.stderr.startswith("batchnst: 4000×2667 pixels take ")
    assert result.stderr.endswith(" GB at the least, more than the 1 GB available; lower size\n")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("position", [2, *(pytest.param(position, marks=pytest.mark.slow) for position in (0, 1))])
def test_a_pair_that_can_never_fit_fails_alone_wherever_it_stands(images: Path, tmp_path: Path, position: int) -> None:
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    rows = [f"{images}/coffee.png,{images}/swirls.png,{name}," for name in "ab"]
    rows.insert(position, f"{images}/coffee.png,{images}/swirls.png,large,4000")
    manifest.write_text("\n".join(["content,style,id,size", *rows]) + "\n")
    told = batchnst("plan", manifest, "--memory", 1, "--size", 48, "--steps", 4).stdout
    assert "4000×2667  1 pair in 1 · does not fit: needs " in told
    assert "1 pair does not fit into 1.0 GB and will fail; lower size" in told
    result = batchnst("run", manifest, "--out", out, "--memory", 1, *QUICK)
    assert result.exit_code == 1, result.output
    assert "failed: large: 4000×2667 pixels take " in result.stderr
    found = {row["pair_id"]: row for row in read_ledger(str(out), "pairs").to_table().to_pylist()}
    assert {name: row["error_type"] for name, row in found.items()} == {"a": None, "b": None, "large": "OutOfMemory"}
    assert found["large"]["error_kind"] == "permanent"


def test_a_run_of_which_no_pair_fits_is_refused_and_plan_says_so(images: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text(f"content,style,id\n{images}/coffee.png,{images}/swirls.png,large\n")
    told = batchnst("plan", manifest, "--memory", 1, "--size", 4000)
    assert "none fits into 1.0 GB: `run` would refuse; lower size" in told.stdout
    result = batchnst("run", manifest, "--out", out, "--memory", 1, "--engine", "inline", "--size", 4000)
    assert result.exit_code == 2
    assert result.stderr.startswith("batchnst: large: 4000×2667 pixels take ")
    assert not (out / "ledger").exists()


def test_stylize_writes_one_picture_and_no_ledger(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "x.jpg"
    styles = [images / "swirls.png", images / "woodcut.png"]
    result = batchnst("stylize", images / "coffee.png", *styles, "--out", out, "--size", "48", "--steps", "4")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert size_of(out) == (48, 32)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [out]


def test_stylize_takes_weights_and_masks_as_a_row_does(images: Path, tmp_path: Path) -> None:
    coffee, woodcut, swirls = images / "coffee.png", images / "woodcut.png", images / "swirls.png"
    masks = [images / "cup-mask.png", images / "cup-mask-around.png"]
    row = {"content": str(coffee), "style": [str(woodcut), str(swirls)], "style_weights": [1, 4], "id": "a"}
    row |= {"content_mask": [str(mask) for mask in masks]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    batchnst("run", tmp_path / "m.jsonl", "--out", tmp_path / "out", *QUICK, "--precision", "fp32")
    options = ["--out", tmp_path / "x.png", *QUICK[2:], "--precision", "fp32", "--style-weights", "1,4"]
    result = batchnst(
        "stylize", coffee, woodcut, swirls, *options, "--content-mask", masks[0], "--content-mask", masks[1]
    )
    assert result.exit_code == 0, result.output
    single, in_run = (Image.open(path) for path in (tmp_path / "x.png", tmp_path / "out" / "images" / "a.png"))
    assert single.tobytes() == in_run.tobytes()
    wrong = batchnst("stylize", coffee, swirls, *options)
    assert wrong.exit_code == 2
    assert "style_weights: expected 1 numbers ≥ 0, not all 0; found ['1', '4']" in wrong.stderr
    unmatched = batchnst("stylize", coffee, swirls, *options[:-2], "--style-mask", masks[0], "--style-mask", masks[1])
    assert unmatched.exit_code == 2
    assert "style_mask: expected 1, one for each part of the content; found 2" in unmatched.stderr


@pytest.mark.parametrize("loss", ["balanced", pytest.param("neural-style", marks=pytest.mark.slow)])
def test_the_ledgers_loss_is_the_written_pictures(images: Path, tmp_path: Path, weights: Weights, loss: str) -> None:
    content, style, out = images / "coffee.png", images / "swirls.png", tmp_path / "out"
    (tmp_path / "m.csv").write_text(f"content,style,id\n{content},{style},a\n")
    run = ["run", tmp_path / "m.csv", "--out", out, "--engine", "inline", "--size", "99", "--steps", "12"]
    result = batchnst(*run, "--set", f"loss={loss}")
    assert result.exit_code == 0, result.output
    (row,) = read_ledger(str(out), "pairs").to_table().to_pylist()
    vgg = oracles.torchvision_vgg19(weights)
    expected = oracles.written_loss(vgg, out / "images" / "a.png", content, style, 99, loss)
    assert row["loss_definition"] == f"{loss}/1"
    assert row["total_loss"] == pytest.approx(expected, rel=0.02)
    assert row["total_loss"] < 0.2 * row["initial_total"]


COMMANDS = ["run", "plan", "proof", "stylize", "manifest", "status", "audit", "report", "replay", "bench"]


def test_help_names_the_commands_in_the_contracts_order() -> None:
    text = batchnst("--help").stdout
    order = [text.index(f"│ {name} ") for name in COMMANDS]
    assert order == sorted(order)


CONTROLS = {
    "content_weight": "7",
    "style_weight": "70",
    "tv_weight": "0.5",
    "content_layers": "relu2_1=2,relu3_1",
    "style_layers": "relu1_1,relu2_1=0.5",
    "loss": "gatys2016",
    "optimizer": "adam",
    "learning_rate": "3",
    "size": "40",
    "steps": "5",
    "min_size": "20",
    "init": "start.png",
    "style_scale": "0.5",
    "pooling": "avg",
    "resample": "bilinear",
    "preserve_color": "luminance",
    "precision": "bf16",
    "tolerance": "0.5",
    "snapshot_every": "2",
    "seed": "9",
    "alpha": "black",
    "format": "webp",
    "quality": "70",
    "metadata": "keep",
    "max_megapixels": "30",
    "tile": "64",
}


@pytest.mark.parametrize("where", ["row", "recipe", "option"])
def test_every_control_works_from_a_row_a_recipe_and_an_option(images: Path, tmp_path: Path, where: str) -> None:
    out, options = tmp_path / "out", ["--engine", "inline"]
    row = {"content": str(images / "coffee.png"), "style": str(images / "swirls.png"), "id": "a"}
    Image.new("RGB", (30, 30), "gray").save(tmp_path / "start.png")
    start = str(tmp_path / "start.png")
    if where == "row":
        row |= CONTROLS
    elif where == "recipe":
        text = "".join(f"{key} = {json.dumps(_as_number(value))}\n" for key, value in CONTROLS.items())
        (tmp_path / "r.toml").write_text(text)
        options += ["--recipe", str(tmp_path / "r.toml")]
    else:
        for key, value in {**CONTROLS, "init": start}.items():
            own = ["--set", f"{key}={value}"] if key not in RECIPE_OPTIONS else [f"--{key.replace('_', '-')}", value]
            options += own
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    result = batchnst("run", tmp_path / "m.jsonl", "--out", out, *options)
    assert result.exit_code == 0, result.output
    recipe = recipes(out)["a"]
    expected = Recipe.from_settings({**CONTROLS, "init": start})
    assert recipe == json.loads(expected.json_text)
    assert size_of(out / "images" / "a.webp") == (40, 27)
    # Two scales; with so loose a tolerance none of them has the ten steps it takes to stop.
    losses = read_ledger(str(out), "losses").to_table().sort_by("step").to_pylist()
    assert [step["scale"] for step in losses] == [20, 20, 40, 40, 40, 40, 40]
    assert [name for name, _ in losses[0]["style_layers"]] == ["relu1_1", "relu2_1"]
    snapshots = sorted(path.name for path in (out / "snapshots" / "a").iterdir())
    assert snapshots == ["step-00000.jpg", "step-00002.jpg", "step-00004.jpg", "step-00006.jpg"]


def _as_number(value: str) -> object:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def test_recipe_options_are_recipe_keys() -> None:
    assert set(RECIPE_OPTIONS) < set(recipe_keys())


def test_masks_paint_parts_and_bad_ones_fail_with_their_reason(images: Path, tmp_path: Path) -> None:
    swirls, woodcut, coffee = images / "swirls.png", images / "woodcut.png", images / "coffee.png"
    cup, around = images / "cup-mask.png", images / "cup-mask-around.png"
    Image.new("L", (600, 400)).save(tmp_path / "black.png")
    Image.new("L", (300, 300), 255).save(tmp_path / "square.png")
    (tmp_path / "m.csv").write_text(
        "content,style,id,content_mask,style_mask\n"
        f"{coffee},{woodcut}|{swirls},own,{cup}|{around},\n"
        f"{coffee},{swirls},parts,{cup}|{around},{images}/suns-mask.png|{images}/suns-mask-around.png\n"
        f"{coffee},{swirls},plain,,\n"
        f"{coffee},{swirls},black,black.png,\n"
        f"{coffee},{swirls},square,square.png,\n"
        f"{coffee},{swirls},gone,gone.png,\n"
    )
    out = tmp_path / "out"
    result = batchnst("run", tmp_path / "m.csv", "--out", out, *QUICK)
    assert result.exit_code == 1
    rows = {row["pair_id"]: row for row in read_ledger(str(out), "pairs").to_table().to_pylist()}
    assert [rows[name]["status"] for name in ("own", "parts", "plain")] == ["ok"] * 3
    pictures = {(out / "images" / f"{name}.png").read_bytes() for name in ("own", "parts", "plain")}
    assert len(pictures) == 3
    assert rows["own"]["content_masks"] == [str(cup), str(around)]
    assert rows["black"]["error_message"].startswith("content_mask ")
    assert "black.png: all black; expected white where" in rows["black"]["error_message"]
    assert "square.png: 300×300 pixels, but its picture is shaped like 48×32" in rows["square"]["error_message"]
    assert "gone.png: no such file" in rows["gone"]["error_message"]


def test_a_picture_that_diverged_was_painted_all_the_same_and_says_so(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wild = ["--optimizer", "sgd", "--set", "learning_rate=1e9"]
    result = batchnst("run", manifest, "--out", out, "--engine", "inline", "--size", "32", "--steps", "8", *wild)
    assert result.exit_code == 0, result.output
    row = read_ledger(str(out), "pairs").to_table().to_pylist()[0]
    assert (row["status"], row["stopped"], row["error_type"], row["precision"]) == (
        "ok",
        "diverged",
        "Diverged",
        "fp32",
    )
    assert "painted again from its best picture, in fp32 and by L-BFGS" in row["error_message"]
    losses = read_ledger(str(out), "losses").to_table().to_pylist()
    own = [step for step in losses if step["pair_id"] == row["pair_id"]]
    assert sorted(step["step"] for step in own) == list(range(row["steps"]))
    assert row["total_loss"] == min(step["total"] for step in own)


@pytest.mark.parametrize("name", ["controls.jsonl", "demo.csv"])
def test_the_example_manifests_run_as_they_stand(images: Path, name: str) -> None:
    pairs = read_manifest(str(images.parent / name), {})
    assert all(Path(path).exists() for pair in pairs for path in (pair.content, *pair.styles, *pair.content_masks))
    if name == "controls.jsonl":
        shown = {key for pair in pairs for key in recipe_keys() if getattr(pair.recipe, key) != getattr(Recipe(), key)}
        assert set(recipe_keys()) - shown == {"backbone", "weights"}


def test_a_recipe_is_taken_by_name_and_options_override_it(manifest: Path, tmp_path: Path) -> None:
    options = ["--engine", "inline", "--size", "40", "--steps", "3", "--set", "pooling=max", "--recipe", "paper"]
    assert batchnst("run", manifest, "--out", tmp_path / "out", *options).exit_code == 0
    made = json.loads(read_ledger(str(tmp_path / "out"), "pairs").to_table()["recipe"][0].as_py())
    assert (made["loss"], made["init"], made["pooling"]) == ("gatys2016", "noise", "max")
    unknown = batchnst("plan", manifest, "--recipe", "papr")
    assert unknown.exit_code == 2
    assert "recipe papr: cannot be read" in unknown.stderr
    assert "a TOML file, or draft, standard, fine, paper" in unknown.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_with_a_name_is_valid(name: str) -> None:
    assert Recipe.from_settings(read_recipe(name)).size == 512


def test_help_lists_the_commands_in_their_order() -> None:
    shown = re.findall(r"^│ (\w+) ", batchnst("--help").stdout.partition("Commands")[2], re.MULTILINE)
    order = ["run", "plan", "proof", "stylize", "manifest", "status", "audit", "report", "replay"]
    order += ["layers", "weights", "bench"]
    assert [name for name in shown if name in order] == [name for name in order if name in shown]
    assert "layers" in shown
