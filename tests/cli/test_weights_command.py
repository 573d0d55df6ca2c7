from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from batchnst import Recipe, read_ledger, stylize
from batchnst.backbones import BACKBONES
from batchnst.cli.main import COMMANDS
from batchnst.painting.named_weights import import_weights, load_weights
from tests import oracles
from tests.helpers import as_pth, batchnst, random_state, torchvision_names

FULL = "BATCHNST_TEST_WEIGHTS"
"""A folder with torchvision's vgg16.pth and alexnet.pth, or state dicts of their convolutions by its names."""

ALEXNET = as_pth(torchvision_names(random_state()))

QUICK = ["--engine", "inline", "--size", 48, "--steps", 3]


@pytest.fixture
def folder(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a pair and a file of weights, and a cache with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    for name in ("coffee.png", "swirls.png"):
        Image.open(images / name).resize((64, 48)).save(name)
    Path("mine").mkdir()
    Path("mine/w.pth").write_bytes(ALEXNET)
    Path("m.csv").write_text("content,style,id,backbone,weights\ncoffee.png,swirls.png,a,alexnet,mine/w.pth\n")
    return tmp_path


def rows(out: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = read_ledger(str(out), "pairs").to_table().to_pylist()
    return found


def test_every_backbone_paints_a_pair(folder: Path) -> None:
    lines = [f"coffee.png,swirls.png,{name},{name},random" for name in BACKBONES]
    Path("m.csv").write_text("\n".join(["content,style,id,backbone,weights", *lines]))
    result = batchnst("run", "m.csv", "--out", "out", *QUICK)
    assert result.exit_code == 0, result.output
    assert {row["pair_id"]: row["weights_sha256"] for row in rows(folder / "out")} == {
        name: load_weights(name, "random").sha256 for name in BACKBONES
    }


def test_imported_weights_paint_are_listed_and_replayed(folder: Path) -> None:
    imported = batchnst("weights", "import", "mine/w.pth", "mine")
    sha256 = load_weights("alexnet", "mine").sha256
    assert imported.exit_code == 0, imported.output
    assert imported.stdout == f"mine: alexnet, {sha256}; --backbone alexnet --weights mine\n"
    Path("m.csv").write_text("content,style,id\ncoffee.png,swirls.png,a\n")
    options = ["--backbone", "alexnet", "--weights", "mine", "--precision", "fp32"]
    assert batchnst("run", "m.csv", "--out", "out", *QUICK, *options).exit_code == 0
    elsewhere = batchnst("run", "m.csv", "--out", "out", *QUICK, *options, "--weights", "mine/w.pth")
    assert "1 of 1 pairs are done already" in elsewhere.stderr
    listed = batchnst("weights", "--out", "out").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["bundled", "random", "random", "random", "mine"]
    assert f" 1 row   {sha256}  {folder}/mine/w.pth" in listed[-1]
    assert batchnst("replay", "out", "a").exit_code == 0
    os.remove(folder / "cache/batchnst/weights/mine.safetensors")
    gone = batchnst("replay", "out", "a")
    assert gone.exit_code == 2
    assert gone.stderr.startswith("batchnst: weights: none are called 'mine'")
    assert batchnst("weights", "--out", "out").stdout.splitlines()[-1].split() == [
        "-",
        "-",
        "1",
        "row",
        sha256,
        "not",
        "at",
        "hand",
    ]


def test_a_relative_path_is_relative_to_where_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine/r.toml").write_text('weights = "none.pth"\n')
    Path("mine/m.csv").write_text("content,style,weights\na.png,b.png,none.pth\n")
    Path("mine/bare.csv").write_text("content,style\na.png,b.png\n")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for arguments in (
        ["bare.csv", "--recipe", "../mine/r.toml"],
        ["bare.csv", "--weights", "../mine/none.pth"],
        ["m.csv"],
    ):
        result = batchnst("plan", f"../mine/{arguments[0]}", *arguments[1:])
        assert result.stderr == f"batchnst: weights {folder}/mine/none.pth: no such file\n"
        assert result.exit_code == 2


@pytest.mark.parametrize("command", [["run", "m.csv", "--out", "out"], ["plan", "m.csv"]])
def test_bad_weights_end_the_request_before_anything_is_made(folder: Path, command: list[str]) -> None:
    Path("mine/w.pth").write_bytes(ALEXNET[:-999])
    result = batchnst(*command, "--size", 48)
    assert result.exit_code == 2
    assert result.stderr == f"batchnst: weights {folder}/mine/w.pth: is truncated or damaged; fetch it again\n"
    assert not Path("out").exists()


def test_a_file_that_cannot_be_imported_is_said(folder: Path) -> None:
    torch.save(random_state(), "ours.pth")
    result = batchnst("weights", "import", "ours.pth", "mine")
    assert result.exit_code == 2
    assert "`batchnst weights import ours.pth NAME --normalisation imagenet|caffe`" in result.stderr
    assert batchnst("weights", "import", "ours.pth", "mine", "--normalisation", "imagenet").exit_code == 0
    assert load_weights("alexnet", "mine") == load_weights("alexnet", "mine/w.pth")


def test_help_has_the_commands_in_order() -> None:
    text = batchnst("--help").stdout
    places = [text.find(f"│ {name} ") for name in COMMANDS if f"│ {name} " in text]
    assert len(places) >= 11
    assert places == sorted(places)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vgg16", "alexnet"])
def test_full_precision_weights(backbone: str, folder: Path, images: Path) -> None:
    """Features are those of torchvision's module and normalisation, and a pair comes nearer to its style."""
    path = Path(os.environ.get(FULL, "unknown"), f"{backbone}.pth")
    if not path.exists():
        pytest.skip(f"${FULL} is no folder with {path.name}")
    state = torch.load(path, weights_only=True)
    theirs = oracles.torchvision_features(backbone)
    theirs.load_state_dict({name.removeprefix("features."): state[name] for name in state if "features." in name})
    name, weights = import_weights(str(path), "full")
    assert name == backbone
    oracles.check_features(backbone, weights, theirs)
    recipe = Recipe(backbone=backbone, weights="full", size=192, steps=60)
    painting = stylize(images / "chelsea.png", images / "swirls.png", recipe)
    assert painting.losses.total[-1] < painting.losses.total[0] / 5
