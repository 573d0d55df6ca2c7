from __future__ import annotations

import re
import weakref
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchnst import Recipe, read_ledger
from batchnst.errors import InputError, LedgerError
from batchnst.layers import excitement as module
from batchnst.layers import formats
from batchnst.layers.contributions import contributions
from batchnst.layers.excitement import excitement
from batchnst.layers.sheet import Request, make, single_layer_recipe
from batchnst.ledger.out import Out
from batchnst.painting.single import stylize
from batchnst.pictures.decode import Pixels
from tests.helpers import batchnst, scene

QUICK = ["--size", "48", "--steps", "2", "--layers", "relu1_1,relu2_1", "--channels", "2", "--top", "4"]

HOSTILE = "<img src=x onerror=alert(1)>&\"'\n漢.png"


def quiet(what: str, done: float, of: float) -> None: ...


def of_layers(*names: str, **more: object) -> Recipe:
    both = dict.fromkeys(names, 1.0)
    return Recipe.from_settings({"content_layers": both, "style_layers": both, "precision": "fp32", **more})


# What excites ------------------------------------------------------------------------------------------------------


def test_patches_show_the_planted_pattern_at_the_size_that_is_seen(tmp_path: Path) -> None:
    ground = np.full((120, 160, 3), 128, np.uint8)
    spot = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
    ground[60:76, 90:106] = spot
    for i in range(3):
        Image.fromarray(np.roll(ground, 9 * i, 1)).save(tmp_path / f"{i}.png")
    found = excitement([str(tmp_path / f"{i}.png") for i in range(3)], [], of_layers("relu3_1", size=160), 12, 3, quiet)
    assert found.pictures == 3
    showing = 0
    for channel in found.channels["relu3_1"]:
        assert sorted(patch.name for patch in channel.patches) == ["0.png", "1.png", "2.png"]
        assert {patch.image.size for patch in channel.patches} == {(24, 24)}
        showing += all((np.asarray(patch.image)[..., :3] != 128).any() for patch in channel.patches)
    assert showing >= 10  # of 12; a channel may like gray


def test_a_patch_ends_where_its_picture_does(images: Path) -> None:
    address = str(images / "coffee.png")
    found = excitement([address], [address], of_layers("relu5_1", size=128), 1, 1, quiet)
    (patch,) = found.channels["relu5_1"][0].patches
    opaque = np.asarray(patch.image)[..., 3] == 255
    assert patch.image.size == (156, 156)
    assert 0 < opaque.sum() <= 128 * 85


def test_hundreds_of_pictures_pass_by_and_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: set[str] = set()
    most = 0

    def load(address: str, recipe: Recipe) -> Pixels:
        nonlocal most
        pixels = np.random.default_rng(int(address)).integers(0, 256, (16, 16, 3), np.uint8)
        alive.add(address)
        weakref.finalize(pixels, alive.discard, address)
        most = max(most, len(alive))
        return pixels

    monkeypatch.setattr(module, "load", load)
    found = excitement([str(i) for i in range(300)], [], of_layers("relu1_1", size=16), 4, 5, quiet)
    assert found.pictures == 300
    assert [len(channel.patches) for channel in found.channels["relu1_1"]] == [5] * 4
    assert all(len({patch.name for patch in channel.patches}) == 5 for channel in found.channels["relu1_1"])
    assert most <= 4  # the one that is seen, the next one, and what Python lets go of late


def test_what_is_no_picture_is_left_out_unless_it_was_named(images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    addresses, recipe = [str(images / "coffee.png"), str(broken)], of_layers("relu1_1", size=16)
    found = excitement(addresses, [], recipe, 1, 1, quiet)
    assert found.pictures == 1
    said = "not a picture that Pillow can read: text that begins with 'not a picture'"
    assert found.left_out == [f"{broken}: {said}"]
    with pytest.raises(InputError, match=r"broken\.png: not a picture"):
        excitement(addresses, addresses, recipe, 1, 1, quiet)


def test_a_picture_that_is_in_a_folder_too_counts_once(images: Path, tmp_path: Path) -> None:
    for name in ("coffee.png", "swirls.png"):
        Image.open(images / name).save(tmp_path / name)
    (tmp_path / "broken.png").touch()
    request = Request([str(tmp_path / "swirls.png"), str(tmp_path)], channels=1, top=2)
    sheet = make(request, of_layers("relu1_1", size=16, steps=1), quiet)
    assert (sheet.content.name, sheet.style.name, sheet.pictures) == ("swirls.png", "swirls.png", 2)
    assert sheet.left_out == [f"{tmp_path}/broken.png: an empty file"]
    assert len(sheet.views[0].channels[0].patches) == 2


@pytest.mark.parametrize(
    ("settings", "text", "sizes"),
    [
        ({"size": "original"}, "2 pictures in full size", ((60, 40), (24, 30))),
        ({"size": 48, "enlarge": False}, "2 pictures of at most 48 pixels", ((48, 32), (24, 30))),
    ],
)
def test_pictures_are_seen_at_their_own_size_if_the_recipe_says_so(
    tmp_path: Path, settings: dict[str, object], text: str, sizes: tuple[tuple[int, int], ...]
) -> None:
    scene(60, 40).save(tmp_path / "a.png")
    scene(24, 30).save(tmp_path / "b.png")
    recipe = of_layers("relu1_1", steps=1, backbone="vgg16", weights="random", **settings)
    sheet = make(Request([f"{tmp_path}/*.png"], f"{tmp_path}/b.png", channels=1, top=2), recipe, quiet)
    assert (sheet.content.image.size, sheet.style.image.size) == sizes
    assert (sheet.views[0].content.size, sheet.views[0].texture.size) == sizes
    assert text in sheet.origin
    for ending in ("html", "png"):
        assert formats.render(sheet, f"x.{ending}")


# What a layer holds alone ------------------------------------------------------------------------------------------


def falls_to(images: Path, layer: str, term: str, **settings: object) -> float:
    """What is left of the loss of noise."""
    given = images / {"content": "coffee.png", "style": "swirls.png"}[term]
    recipe = of_layers("relu1_1", **settings)
    painting = stylize(given, given, single_layer_recipe(recipe, layer, term, recipe.pixels))
    return float(painting.final.total.item() / painting.losses.total[0].item())


@pytest.mark.parametrize(("layer", "term"), [("relu1_1", "style"), ("relu3_1", "content")])
def test_noise_becomes_what_a_layer_holds(images: Path, layer: str, term: str) -> None:
    assert falls_to(images, layer, term, size=64, steps=60) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu4_2", "relu5_1"])
@pytest.mark.parametrize("term", ["content", "style"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_noise_becomes_what_every_layer_holds(images: Path, layer: str, term: str, precision: str) -> None:
    assert falls_to(images, layer, term, size=128, precision=precision) < 0.1


# What a layer contributes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    (folder / "m.csv").write_text(
        "content,style,id,style_layers\n"
        f"{images}/coffee.png,{images}/swirls.png,a,\n"
        f'{images}/rocket.jpg,{images}/swirls.png,b,"relu1_1=1,relu3_1=4"\n'
    )
    more = ["--engine", "inline", "--size", "48", "--steps", "6", "--set", "content_layers=relu3_1"]
    assert batchnst("run", folder / "m.csv", "--out", folder / "out", *more).exit_code == 0
    return folder / "out"


def test_contributions_are_those_of_the_ledgers_first_and_last_rows(out: Path) -> None:
    rows = read_ledger(str(out), "losses").to_table().sort_by("step").to_pylist()
    expected = {}
    for pair_id, weights in (("a", {f"relu{i}_1": 1 for i in range(1, 6)}), ("b", {"relu1_1": 1, "relu3_1": 4})):
        first, last = ([row for row in rows if row["pair_id"] == pair_id][i] for i in (0, -1))
        found = contributions(Out(str(out)), pair_id, "vgg19")
        assert found.keys() == weights.keys()
        assert sum(own.before for own in found.values()) == pytest.approx(1)
        of_total = 10 / sum(weights.values())
        for name, own in found.items():
            before, after = dict(first["style_layers"])[name], dict(last["style_layers"])[name]
            assert own.before == pytest.approx(of_total * weights[name] * before / first["style"], rel=1e-5)
            assert own.after == pytest.approx(of_total * weights[name] * after / last["style"], rel=1e-5)
            assert own.remaining == pytest.approx(after / before)
        expected[pair_id] = found
    both = contributions(Out(str(out)), None, "vgg19")
    assert both["relu3_1"].before == pytest.approx(
        (expected["a"]["relu3_1"].before + expected["b"]["relu3_1"].before) / 2
    )
    assert both["relu5_1"] == expected["a"]["relu5_1"]


def test_a_ledger_that_has_nothing_to_say(out: Path) -> None:
    with pytest.raises(LedgerError, match="out: no pair 'none' that vgg19 has painted with a style loss"):
        contributions(Out(str(out)), "none", "vgg19")
    with pytest.raises(LedgerError, match="out: no pair that alexnet has painted with a style loss"):
        contributions(Out(str(out)), None, "alexnet")


def test_a_picture_in_its_own_style_has_no_style_loss_to_share(images: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"content,style\n{images}/coffee.png,{images}/coffee.png\n")
    more = ["--engine", "inline", "--size", "32", "--steps", "1", "--precision", "fp32"]
    assert batchnst("run", tmp_path / "m.csv", "--out", tmp_path / "out", *more).exit_code == 0
    with pytest.raises(LedgerError, match="no pair that vgg19 has painted with a style loss"):
        contributions(Out(str(tmp_path / "out")), None, "vgg19")


# The sheet ---------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def test_a_page_asks_for_nothing_and_a_name_is_only_a_name(images: Path, tmp_path: Path, out: Path) -> None:
    hostile = tmp_path / HOSTILE.replace("/", "")
    Image.open(images / "coffee.png").save(hostile)
    sheet = tmp_path / "sheet.html"
    result = batchnst("layers", hostile, images / "rocket.jpg", "--out", sheet, "--ledger", out, *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{sheet}\n"
    page = sheet.read_text()
    elements = Elements(page).found
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    assert len(pictures) == 2 + 2 * (2 * 4 + 2)
    assert all(picture["src"].startswith("data:image/webp;base64,") for picture in pictures)  # type: ignore[union-attr]
    shown = HOSTILE.replace("\n", "\N{REPLACEMENT CHARACTER}")
    assert {picture["alt"] for picture in pictures} > {shown, "rocket.jpg", f"The content: {shown}"}
    assert {name for _, attributes in elements for name in attributes} <= {
        *("lang", "charset", "name", "content", "http-equiv", "class", "src", "alt", "title", "id", "style"),
        *("aria-labelledby", "aria-hidden"),
    }
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe"}
    assert not re.search(r"(https?:)?//\w", re.sub(r"base64,[^\"]*", "", page))
    assert page.count("of the style loss at first") == 2
    assert "default-src 'none'" in page


def test_a_poster_has_a_row_a_layer(images: Path, tmp_path: Path) -> None:
    sheets = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for sheet, layers in zip(sheets, ("relu1_1", "relu1_1,conv3_1"), strict=True):
        more = ["--style", images / "swirls.png", "--set", "tolerance=0", *QUICK, "--layers", layers]
        result = batchnst("layers", images / "coffee.png", "--out", sheet, *more)
        assert result.exit_code == 0, result.output
    one, two = (Image.open(sheet).convert("RGB") for sheet in sheets)
    assert one.width == two.width
    assert two.height - one.height == pytest.approx(276)
    assert len(one.getcolors(1 << 24) or []) > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{images}/coffee.png", "--out", "x.gif"],
            "--out x.gif: cannot be written; expected a name that ends in .html",
        ),
        (["{images}/coffee.png", "--out", "x"], "--out x: cannot be written"),
        (["{images}/coffee.png", "--out", "x.png", "--layers", "relu9_1"], "no layer 'relu9_1' (did you mean"),
        (["{images}/coffee.png", "--out", "x.png", "--size", "9"], "size: '9' is not allowed"),
        (["empty", "--out", "x.png"], "empty: no pictures there"),
        (["none.png", "--out", "x.png"], "none.png: no pictures there"),
        (["text.png", "--out", "x.png"], "text.png: not a picture that Pillow can read"),
        (["{images}/coffee.png", "text.png", "--out", "x.png"], "text.png: not a picture that Pillow can read"),
        (["{images}/coffee.png", "--style", "none.png", "--out", "x.png"], "none.png: no such file"),
        (["{images}/coffee.png", "--pair", "a", "--out", "x.png"], "--pair a: expected --ledger OUT with it"),
        (["{images}/coffee.png", "--ledger", "empty", "--out", "x.png"], "empty: has no ledger"),
    ],
)
def test_a_wrong_request_is_a_line_and_leaves_nothing(
    arguments: list[str], message: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.png").write_text("not a picture")
    result = batchnst("layers", *(argument.format(images=images) for argument in arguments[:1]), *arguments[1:])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("batchnst: ")
    assert result.stderr.count("\n") <= 2
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.png"]
