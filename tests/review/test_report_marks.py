"""Marks in the report, what is painted again for them, and comparisons: on a night that was really painted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from batchnst import read_ledger
from batchnst.ledger.out import Out
from batchnst.ledger.schema import times
from batchnst.manifest.pair import fingerprint
from batchnst.manifest.reading import read_manifest
from batchnst.recipe import Recipe
from batchnst.review.report import build as report
from batchnst.review.report.loudness import loudness
from batchnst.review.report.redo import as_texts, request
from tests.browser import Heard, open_page, until
from tests.helpers import batchnst, row, scene

HANDLER = '"><img src=x onerror=window.pwned=1>'
QUICK = ("--engine", "inline")
FIXED = {"size": 48, "steps": 2, "precision": "fp32"}
IDS = ["boats", "dunes", "gone", "market", "noisy"]


@dataclass(frozen=True)
class Night:
    """A painted OUT, its manifest and its page."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def manifest(self) -> Path:
        return self.folder / "night.jsonl"

    @property
    def page(self) -> Path:
        return self.out / "report.html"

    def rows(self) -> list[dict[str, Any]]:
        table = read_ledger(str(self.out), "pairs").to_table()
        rows: list[dict[str, Any]] = table.sort_by([("run_number", "ascending"), ("attempt", "ascending")]).to_pylist()
        return rows

    def newest(self) -> dict[str, dict[str, Any]]:
        return {row["pair_id"]: row for row in self.rows()}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Four pairs painted in a batch and one that failed; two folders, two styles, one with a hostile name."""
    folder = tmp_path_factory.mktemp("night")
    waves = folder / "styles" / f"{HANDLER}.png"
    dots = folder / "styles" / "dots.png"
    waves.parent.mkdir()
    scene(40, 40).rotate(90).save(waves)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(dots)
    rows = []
    for name, where, style in zip(
        IDS, ["sea", "sand", "sea", "town", "town"], [waves, dots, waves, dots, dots], strict=True
    ):
        content = folder / "photos" / where / f"{name}.png"
        content.parent.mkdir(parents=True, exist_ok=True)
        if name != "gone":
            scene(48, 36).save(content)
        more = {"init": "noise", "seed": 2**62 + 1} if name == "noisy" else {}
        rows.append({"id": name, "content": f"photos/{where}/{name}.png", "style": str(style), **FIXED, **more})
    rows[0] |= {"note": "kept", "number": 2**60 + 1}
    night = Night(folder)
    night.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert batchnst("run", night.manifest, "--out", night.out, *QUICK).exit_code == 1
    assert batchnst("report", night.out).exit_code == 0
    return night


@pytest.fixture
def page(browser: Browser, night: Night, heard: Heard) -> Iterator[Page]:
    with open_page(browser, night.page, heard) as page:
        yield page


def focus(page: Page, pair_id: str) -> None:
    """Focus a pair, after the focus has come back from a dialog that was closed just before."""
    page.evaluate("id => new Promise(done => setTimeout(() => done(focusCard(numbers.get(id))), 50))", pair_id)


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def marks(page: Page) -> dict[str, str]:
    """The marks by pair, as the page describes them."""
    described = page.evaluate(
        "pairs.id.map((id, i) => [id, describe(markOf(i))]).filter(([, text]) => text !== 'no mark')"
    )
    return dict(described)


def focused(page: Page) -> str:
    return str(page.evaluate("pairs.id[document.activeElement.dataset.pair]"))


def download(page: Page, button: str, to: Path) -> str:
    with page.expect_download() as started:
        page.click(button)
    started.value.save_as(to)
    return to.read_text()


def redo(page: Page, to: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, download(page, "#save-redo", to).splitlines())
    return {row["id"]: row for row in rows}


# What is asked for again ------------------------------------------------------------------------------------------


def test_a_request_asks_for_just_what_the_row_was_asked_for(tmp_path: Path) -> None:
    recipe = Recipe(seed=2**62 + 1, init="noise", style_layers={"relu1_1": 0.25}, loss="gatys2016")
    pictures = {"content": "/a b.jpg", "styles": ["s3://bucket/s.png", "/t.png"], "style_weights": [1 / 3, 2 / 3]}
    masks = {"content_masks": ["/m.png", "/n.png"], "style_masks": ["/o.png", "/p.png"]}
    asked = row(
        "a.b", **pictures, **masks, output="x/a.webp", recipe=recipe.model_copy(update={"tile": 512}).json_text,
        extra=json.dumps({"big": 2**60 + 1, "note": 'a "b"'}),
    )  # fmt: skip
    base = json.loads(Recipe().json_text)
    texts = as_texts(base) | request(vars(asked), base)
    text = "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in texts.items()) + "}"
    manifest = tmp_path / "redo.jsonl"
    manifest.write_text(text + "\n")
    (pair,) = read_manifest(str(manifest), {"steps": 7})
    assert pair.recipe == recipe
    assert (pair.id, pair.output, pair.content, list(pair.styles)) == (
        "a.b",
        "x/a.webp",
        "/a b.jpg",
        pictures["styles"],
    )
    assert (list(pair.content_masks), list(pair.style_masks)) == (masks["content_masks"], masks["style_masks"])
    assert pair.style_weights == pytest.approx(pictures["style_weights"])
    assert json.loads(pair.extra) == {"big": 2**60 + 1, "note": 'a "b"'}


def test_times_of_a_pair_are_its_share_of_its_batch(night: Night) -> None:
    rows = [row for row in night.rows() if row["batch_size"] == 3]
    assert len(rows) == 3
    for painted in rows:
        whole = (painted["finished_at"] - painted["started_at"]).total_seconds()
        assert times(painted) == (painted["seconds"], painted["batch_seconds"])
        assert painted["batch_seconds"] == pytest.approx(whole)
        assert painted["seconds"] == pytest.approx(whole / 3)
    assert times({"seconds": 9.0, "batch_seconds": None, "batch_size": 3}) == (3.0, 9.0)


def test_strokes_in_the_sky_are_loud_and_those_in_the_trees_are_not() -> None:
    photo = np.full((60, 90), 200, np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (30, 90), dtype=np.uint8)
    photo[30:] = noise
    quiet, loud = photo.copy(), photo.copy()
    quiet[30:] = noise[::-1]
    loud[:30:4] = 120
    assert loudness(photo, quiet) < 1
    assert loudness(photo, loud) > 10
    assert loudness(photo[::2, ::2], loud) > 10, "previews may have different sizes"


# Marks ------------------------------------------------------------------------------------------------------------


def test_keys_mark_and_take_back_and_marks_stay(page: Page, heard: Heard) -> None:
    focus(page, "boats")
    press(page, "1", "ArrowRight", "2", "ArrowRight", "3", "ArrowRight", "X")
    assert marks(page) == {
        "boats": "keep",
        "dunes": "again: style weight × ½",
        "market": "again: style weight × 2",
        "noisy": "reject",
    }
    expect(page.locator("#counts")).to_have_text("1 keep · 2 again · 1 reject")
    assert focused(page) == "noisy"
    press(page, "x", "ArrowLeft", "2")
    assert marks(page) == {"boats": "keep", "dunes": "again: style weight × ½", "market": "again: style weight × ½"}
    press(page, "u")
    assert marks(page)["market"] == "again: style weight × 2"
    press(page, "Control+z", "Control+z", "Control+z")
    assert marks(page) == {"boats": "keep", "dunes": "again: style weight × ½"}
    press(page, "4")
    expect(page.locator("#tray .said")).to_contain_text("a seed changes nothing")
    page.reload()
    heard.asked.pop()
    assert set(marks(page)) == {"boats", "dunes"}
    card = page.locator(".item.keep")
    expect(card).to_contain_text("keep")
    expect(card.locator('[data-act="keep"]')).to_have_attribute("aria-pressed", "true")
    card.locator('[data-act="reject"]').click()
    assert marks(page)["boats"] == "reject"
    page.fill("input[name=q]", "uu")
    assert marks(page)["boats"] == "reject", "no letter that is typed is a key"


def test_many_are_marked_at_once_by_a_filter_and_undone_at_once(page: Page) -> None:
    page.select_option("select[name=folder]", "town")
    expect(page.locator("#bulk-name")).to_have_text("Mark these 2")
    page.click("#bulk >> text=Reject")
    assert marks(page) == {"market": "reject", "noisy": "reject"}
    page.click("#clear")
    page.select_option("select[name=mark]", "none")
    expect(page.locator("#shown")).to_have_text(f"3 of {len(IDS)} pairs")
    page.click("#bulk >> text=Keep")
    expect(page.locator("#counts")).to_have_text("3 keep · 2 reject")
    page.click("#undo")
    expect(page.locator("#tray .said")).to_have_text("Undone for 3 pairs")
    assert set(marks(page)) == {"market", "noisy"}
    page.select_option("select[name=mark]", "reject")
    expect(page.locator("#shown")).to_have_text(f"2 of {len(IDS)} pairs")
    page.click("#bulk >> text=No mark")
    assert marks(page) == {}


def test_arrows_go_by_rows_also_through_groups(page: Page) -> None:
    page.select_option("select[name=group]", "folder")
    assert groups(page) == [["sand", 1], ["sea", 2], ["town", 2]]
    expect(page.locator(".group").first).to_have_text("sand 1 pair")
    assert page.evaluate("order.map((i) => pairs.id[i])") == ["dunes", "gone", "boats", "market", "noisy"]
    focus(page, "boats")
    press(page, "ArrowDown")
    assert focused(page) == "noisy"
    press(page, "ArrowUp", "ArrowUp")
    assert focused(page) == "dunes"
    press(page, "End")
    assert focused(page) == "noisy"
    press(page, "ArrowRight", "Home")
    assert focused(page) == "dunes"
    page.select_option("select[name=group]", "style")
    expect(page.locator(".group")).to_have_count(2)
    assert groups(page) == [[f"{HANDLER}.png", 2], ["dots.png", 3]]


def groups(page: Page) -> list[list[Any]]:
    found: list[list[Any]] = page.evaluate("groups.map(({ name, members }) => [name, members.length])")
    return found


def test_the_form_refuses_what_no_run_would_take(page: Page) -> None:
    focus(page, "boats")
    press(page, "5")
    problem = page.locator("#again-problem")
    for field, text, expected in [
        ("size", "9", "size: 9 is not allowed; expected 16 to 65536 pixels, or original"),
        ("set", "stile_weight=3", "stile_weight: no such recipe key"),
        ("set", "steps", "steps: expected KEY=VALUE"),
        ("set", "", "Choose a change"),
    ]:
        page.fill("#again [name=size]", text if field == "size" else "")
        page.fill("#again [name=set]", text if field == "set" else "")
        page.click("text=Mark as again")
        expect(problem).to_contain_text(expected)
    press(page, "Escape")
    assert marks(page) == {}
    expect(page.locator("#save-redo")).to_be_disabled()


def test_marks_are_saved_and_loaded(page: Page, night: Night, tmp_path: Path) -> None:
    focus(page, "boats")
    press(page, "1", "ArrowRight", "3")
    before = marks(page)
    file = tmp_path / "marks.json"
    saved = json.loads(download(page, "#save-marks", file))
    assert (saved["out"], saved["marks"]["boats"]["mark"]) == (str(night.out), "keep")
    page.click("#bulk >> text=No mark")
    saved["marks"] |= {
        "unknown": {"mark": "keep", "made": "r-1"},
        "market": {"mark": "keep", "made": "another-1"},
        "__proto__": {"mark": "keep", "made": "r-1"},
        "noisy": {"mark": "shout"},
    }
    file.write_text(json.dumps(saved))
    page.set_input_files("#marks-file", file)
    said = page.locator("#tray .said")
    expect(said).to_have_text("2 marks loaded from marks.json; 4 of other pairs or attempts left out")
    assert marks(page) == before
    for text in ("[1", "{}", '{"marks": 3}'):
        file.write_text(text)
        page.set_input_files("#marks-file", file)
        expect(said).to_have_text(
            "marks.json: no marks could be read; expected a marks.json that this page has written"
        )
        page.evaluate("say('')")
        assert marks(page) == before


# Painted again ----------------------------------------------------------------------------------------------------


def test_what_is_marked_is_painted_again_and_shown_beside_what_was(
    browser: Browser, night: Night, heard: Heard
) -> None:
    file = night.folder / "elsewhere" / "redo.jsonl"
    file.parent.mkdir()
    with open_page(browser, night.page, heard) as page:
        focus(page, "boats")
        press(page, "3", "ArrowRight", "5")
        page.select_option("#again [name=style]", label=f"{HANDLER}.png")
        page.fill("#again [name=size]", "40")
        page.fill("#again [name=set]", "loss=neural-style\nsteps=3")
        page.click("text=Mark as again")
        focus(page, "market")
        press(page, "1", "ArrowRight", "4")
        focus(page, "gone")
        press(page, "5")
        page.click("text=Mark as again")
        expect(page.locator("#command")).to_have_text(f"batchnst run redo.jsonl --out {night.out} --retry-failed")
        asked = redo(page, file)
        assert set(asked) == {"boats", "dunes", "noisy", "gone"}
        assert all(Path(row["content"]).is_absolute() for row in asked.values())
        assert marks(page)["noisy"] == f"again: seed {asked['noisy']['seed']}"
        before = night.newest()
        again = batchnst("run", file, "--out", night.out, *QUICK, "--retry-failed")
        assert again.exit_code == 1, again.output
        assert "painting 4" in again.output
    after = night.newest()
    assert [after[name]["attempt"] for name in IDS] == [2, 2, 2, 1, 2]
    assert len(night.rows()) == 2 * len(IDS) - 1, "old attempts stay"
    assert differences(before["boats"], after["boats"]) == {"style_weight": (10.0, 20.0)}
    assert after["boats"]["extra"] == before["boats"]["extra"] != "{}"
    assert differences(before["noisy"], after["noisy"]) == {"seed": (2**62 + 1, asked["noisy"]["seed"])}
    assert differences(before["gone"], after["gone"]) == {}
    changed = differences(before["dunes"], after["dunes"])
    assert changed.pop("styles") == (before["dunes"]["styles"], before["boats"]["styles"])
    weights = {"content_weight": (1.0, 5.0), "style_weight": (10.0, 100.0), "tv_weight": (0.0, 0.001)}
    assert changed == {"size": (48, 40), "steps": (2, 3), "loss": ("balanced", "neural-style"), **weights}
    look_at_both(browser, night, heard)
    audit(night, file)


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two attempts were asked for otherwise."""
    names = ["content", "styles", "style_weights", "content_masks", "style_masks", "output", "weights_sha256", "extra"]
    old, new = ({name: row[name] for name in names} | json.loads(row["recipe"]) for row in (before, after))
    return {key: (old[key], new[key]) for key in old if old[key] != new[key] and key != "tile"}


def look_at_both(browser: Browser, night: Night, heard: Heard) -> None:
    heard.asked.clear()
    assert batchnst("report", night.out).exit_code == 0
    with open_page(browser, night.page, heard) as page:
        page.select_option("select[name=status]", "again")
        expect(page.locator("#shown")).to_have_text(f"3 of {len(IDS)} pairs")
        two = page.locator(".item", has_text="dunes").locator(".result img")
        expect(two).to_have_count(2)
        assert two.nth(0).get_attribute("src") != two.nth(1).get_attribute("src")
        page.locator(".card", has_text="boats").click()
        figures = page.locator("#dialog .trio figure")
        expect(figures).to_have_count(4)
        expect(figures.nth(2)).to_contain_text("Before style_weight 10 → 20")
        expect(figures.nth(3)).to_contain_text("After boats.png")
        press(page, "ArrowRight")
        expect(figures.nth(2)).to_contain_text(f"style dots.png → {HANDLER}.png")
        press(page, "Escape")
    file = str(night.out / "previous")
    assert {path.parent.name for path in Path(file).rglob("*.png")} == {"boats", "dunes", "noisy"}


def audit(night: Night, file: Path) -> None:
    alone = batchnst("audit", night.out, "--manifest", night.manifest)
    assert alone.output.count(f"painted it as {file} asks, not as its row does here") == 4 - 1
    both = batchnst("audit", night.out, "--manifest", night.manifest, "--manifest", file)
    assert "outdated" not in both.output
    assert "found: 1 failed" in both.output


# Comparing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def loud_page(browser: Browser, night: Night, heard: Heard) -> Iterator[Page]:
    """The page, which may ask for the pictures beside it."""
    with open_page(browser, night.page, heard) as page:
        yield page
        asked, heard.asked[:] = set(heard.asked[1:]), heard.asked[:1]
        beside = [path.as_uri() for top in ("images", "previous") for path in (night.out / top).rglob("*.png")]
        assert asked <= set(beside)
        assert asked


def test_a_painting_over_its_photograph_with_a_border_that_moves(loud_page: Page) -> None:
    page = loud_page
    focus(page, "market")
    press(page, "c")
    expect(page.locator("#compare-left")).to_contain_text("market.png · preview of 48 pixels")
    expect(page.locator("#compare-right")).to_have_text("market.png × dots.png · 48 × 36 pixels")
    right, left = page.locator("#stage .right img"), page.locator("#stage .left img")
    until(page, "document.querySelector('#stage .right img').src.startsWith('file:')")
    place = "parseFloat(stage.style.getPropertyValue('--border')) / stage.clientWidth"
    assert page.evaluate(place) == pytest.approx(0.5, abs=0.01)
    press(page, "Home")
    assert page.evaluate(place) == pytest.approx(0, abs=0.01)
    press(page, "End")
    assert page.evaluate(place) == pytest.approx(1, abs=0.01)
    box = page.locator("#compare-view").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 90, box["y"] + 50, steps=3)
    page.mouse.up()
    assert page.evaluate(place) < 0.45
    press(page, "z")
    expect(page.locator("#compare-zoom")).to_have_text("100 %")
    boxes = left.bounding_box(), right.bounding_box()
    assert boxes[0] == boxes[1]
    assert boxes[0] and boxes[0]["width"] == 48
    press(page, "3", "PageDown")
    expect(page.locator("#compare-title")).to_contain_text("noisy.png")
    press(page, "Escape")
    until(page, "pairs.id[document.activeElement.dataset.pair] === 'noisy'")
    assert marks(page) == {"market": "again: style weight × 2"}


def test_any_two_pairs_are_compared(loud_page: Page) -> None:
    page = loud_page
    focus(page, "market")
    press(page, "c", "h", "PageUp")
    expect(page.locator("#compare-left")).to_contain_text("market.png × dots.png · ")
    expect(page.locator("#compare-right")).not_to_contain_text("market.png")
    press(page, "w")
    expect(page.locator("#compare-left")).not_to_contain_text("market.png")
    choice = page.locator("#with button", has_text="market.png × dots.png")
    choice.click()
    expect(choice).to_have_attribute("aria-pressed", "true")
    expect(choice).to_be_focused()
    expect(page.locator("#compare-left")).to_contain_text("market.png × dots.png")
    press(page, "Escape")
    focus(page, "gone")
    press(page, "c")
    expect(page.locator("#compare")).to_be_hidden()
    expect(page.locator("#tray .said")).to_contain_text("no picture to compare")


def test_where_no_picture_lies_beside_the_page_previews_are_compared(
    browser: Browser, night: Night, heard: Heard, tmp_path: Path
) -> None:
    mailed = tmp_path / "mailed.html"
    mailed.write_bytes(report.build(Out(str(night.out)), "s3://bucket/mailed.html"))
    with open_page(browser, mailed, heard) as page:
        focus(page, "market")
        press(page, "c")
        expect(page.locator("#compare-right")).to_have_text("market.png × dots.png · 48 × 36 pixels · preview")
        assert str(page.locator("#stage .right img").get_attribute("src")).startswith("data:")


# Who cannot see or has little room --------------------------------------------------------------------------------


def test_all_controls_have_names_and_counts_are_told(page: Page) -> None:
    focus(page, "market")
    press(page, "5")
    expect(page.locator("#again")).to_be_visible()
    reached = "[...document.querySelectorAll('button, a, input, select, textarea, output')]"
    name = "node.innerText || node.ariaLabel || node.labels?.length || node.querySelector('img[alt]')"
    assert page.evaluate(f"{reached}.filter((node) => !({name})).map((node) => node.outerHTML)") == []
    assert page.locator("#counts").get_attribute("role") == "status"
    assert page.locator("dialog .said[role=status]").count() == 2
    assert page.evaluate("document.activeElement.closest('dialog').id") == "again"
    press(page, "Escape")
    assert focused(page) == "market"


def test_a_phone_shows_all_of_it(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    until(page, "columns === 1")
    fits = "[document.documentElement, comparing, again].every((node) => node.scrollWidth <= innerWidth)"
    assert page.evaluate(fits)
    focus(page, "market")
    press(page, "5")
    assert page.evaluate(fits)


def test_a_fingerprint_of_the_painted_row_is_that_of_its_request(night: Night, tmp_path: Path) -> None:
    for painted in night.newest().values():
        texts = request(painted, {})
        file = tmp_path / f"{painted['pair_id']}.jsonl"
        file.write_text("{" + ", ".join(f"{json.dumps(key)}: {text}" for key, text in texts.items()) + "}\n")
        (pair,) = read_manifest(str(file), {})
        assert fingerprint(pair, painted["weights_sha256"]) == painted["fingerprint"]
