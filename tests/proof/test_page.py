from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from batchnst.cli.options import RECIPE_OPTIONS
from batchnst.ledger.out import Out
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import Pair
from batchnst.proof import render as rendering
from batchnst.proof.grid import read_grid
from batchnst.proof.render import render
from batchnst.proof.strip import Strip
from batchnst.recipe import Recipe
from tests.browser import Heard, open_page, until
from tests.helpers import pair, row, scene

SCRIPT = "<script>window.pwned=1</script>"
HANDLER = '"><img src=x onerror=window.pwned=1>'
GRID = ["style_weight=5,20", "style_scale=0.5,1"]
SETTINGS = {"size": 640, "pooling": "avg"}
PAIRS, COLUMNS = 4, 4


def make_pairs(folder: Path) -> list[Pair]:
    """Three usual pairs, and one with names that would like to be run."""
    names = ["harbour", "market", "dunes", SCRIPT.replace("/", "") + HANDLER]
    pairs = []
    for i, name in enumerate(names):
        content, style = folder / f"{name}.png", folder / f"{name} painting.png"
        scene(60, 40 + 10 * i).save(content)
        scene(30, 30).rotate(90 * i).save(style)
        pair_id = name if i < 3 else "hostile"
        pairs.append(pair(pair_id, content, style, Recipe.from_settings(SETTINGS)))
    return pairs


def make_strip(folder: Path, page: Path) -> Strip:
    """A proof whose cells are painted, but for one that failed and one that is not there yet."""
    pairs = make_pairs(folder)
    manifest = Manifest.of(str(folder / f"{HANDLER}.csv"), pairs)
    strip = Strip(manifest, pairs, read_grid(GRID, SETTINGS), str(page))
    out = Out(strip.folder)
    losses = {"content_loss": 0.25, "style_loss": 0.5, "tv_loss": 0.0, "total_loss": 0.75}
    rows = []
    for i, cell in enumerate(strip.cells):
        what = {"output": cell.full.output, "extra": cell.full.extra, "seconds": 12.0, "width": 640, "height": 480}
        if i == 1:
            error = {"status": "failed", "error_type": "<b>Bad</b>", "error_message": f"</script>{SCRIPT}<!--{HANDLER}"}
            rows.append(row(cell.full.id, **what | error))
        elif i != 2:
            picture = np.asarray(scene(640, 480)) ^ np.uint8(3 * i)
            path = Path(out.folder.path(f"images/{cell.full.output}"))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            rows.append(row(cell.full.id, **what | losses))
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, rows, [])
    return strip


@dataclass(frozen=True)
class Proof:
    """A proof and its page."""

    strip: Strip
    file: Path
    html: str


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    folder = tmp_path_factory.mktemp("proof")
    file = folder / "proof.html"
    strip = make_strip(folder, file)
    file.write_bytes(render(strip, SETTINGS, str(file), RECIPE_OPTIONS, is_half=True))
    return Proof(strip, file, file.read_text())


def test_the_page_is_whole_without_its_script(proof: Proof) -> None:
    assert proof.html.count('role="gridcell"') == PAIRS * COLUMNS
    assert proof.html.count('class="frame"') == PAIRS * COLUMNS - 1
    assert proof.html.count("content 0.25 · style 0.5 · 12 s</p>") == PAIRS * COLUMNS - 2
    assert "tv 0" not in proof.html
    assert re.search(r"not painted yet</span>", proof.html)
    assert "1 picture failed" in proof.html
    assert "<code>--set pooling=avg --size 640</code>" in proof.html
    assert "src=x" not in re.sub(r"&lt;.*?&gt;", "", proof.html).replace("\\u003cimg src=x", "")


def test_keys_that_rows_set_are_named(proof: Proof) -> None:
    assert re.search(r"Rows of the manifest that set\s+style_scale, style_weight themselves", proof.html)


def test_a_picture_too_large_for_the_page_is_shown_smaller_with_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "MOST_SIDE", 320)
    strip = make_strip(tmp_path, tmp_path / "a b.html")
    html = render(strip, SETTINGS, str(tmp_path / "a b.html"), (), is_half=False).decode()
    assert 'width="320" height="240"' in html
    found = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    cell = json.loads(found[1])["cells"][0]
    assert cell["shown"] == "shown at 320 of 640 pixels"
    assert cell["link"] == f"a%20b.out/images/{strip.cells[0].full.output}"
    Path(strip.folder, "images", strip.cells[0].full.output).unlink()
    assert ">missing</span>" in render(strip, SETTINGS, str(tmp_path / "a b.html"), (), is_half=False).decode()


# In a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser: Browser, proof: Proof, heard: Heard) -> Iterator[Page]:
    with open_page(browser, proof.file, heard) as page:
        yield page


def focused(page: Page) -> list[str]:
    """Row and column of the place that has the focus."""
    found: list[str] = page.evaluate("[document.activeElement.dataset.row, document.activeElement.dataset.column]")
    return found


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def sums(page: Page) -> list[str]:
    return page.locator(".sum").all_inner_texts()


def test_all_pictures_are_shown_and_no_foreign_script_runs(page: Page, heard: Heard) -> None:
    loaded = page.eval_on_selector_all("img", "all => all.filter((image) => image.naturalWidth > 9).length")
    assert loaded == page.locator("img").count() == 2 * PAIRS + PAIRS * COLUMNS - 2
    page.evaluate("document.body.append(element('script', { textContent: 'window.foreign = 1' }))")
    assert page.evaluate("window.foreign") is None
    assert "Content Security Policy" in heard.said.pop()


def test_arrows_move_and_keys_mark_reject_and_undo(page: Page) -> None:
    page.locator("#sheet").focus()
    press(page, "Tab")
    assert focused(page) == ["0", "0"]
    press(page, "ArrowRight", "ArrowDown", "4")
    assert focused(page) == ["1", "1"]
    press(page, "ArrowUp", "ArrowUp", "2")
    assert focused(page) == ["-1", "1"]
    assert sums(page) == ["Σ 0", "Σ 6", "Σ 0", "Σ 0"]
    press(page, "ArrowDown", "End", "x")
    assert focused(page) == ["0", "3"]
    assert sums(page)[3] == "Σ 0 · 1 rejected"
    expect(page.locator("#said")).to_contain_text("Rejected: harbour.png × harbour painting.png, style_weight=20")
    assert "rejected" in (page.locator("td[data-row='0'][data-column='3']").get_attribute("class") or "")
    press(page, "u", "u")
    assert sums(page) == ["Σ 0", "Σ 4", "Σ 0", "Σ 0"]
    press(page, "3", "3", "u", "u", "u", "u")
    assert sums(page) == ["Σ 0"] * 4
    expect(page.locator("#said")).to_have_text("Nothing to undo")
    press(page, "Home", "ArrowLeft", "Control+1")
    assert focused(page) == ["0", "0"]
    assert sums(page) == ["Σ 0"] * 4


def test_marks_are_kept_by_page_and_by_what_they_are_of(page: Page, proof: Proof, heard: Heard) -> None:
    page.evaluate("moveTo([1, 2])")
    press(page, "5")
    page.locator("th[data-column='0']").get_by_role("button", name="Choose").click()
    page.reload()
    heard.asked.pop()
    assert sums(page) == ["Σ 0", "Σ 0", "Σ 5", "Σ 0"]
    expect(page.locator("#choice")).to_have_text("style_weight=5 style_scale=0.5")
    original = proof.file.read_bytes()
    try:
        fewer = Strip(
            proof.strip.manifest, proof.strip.pairs[1:], read_grid(["style_weight=20", GRID[1]], {}), "p.html"
        )
        fewer.folder = proof.strip.folder
        proof.file.write_bytes(render(fewer, SETTINGS, str(proof.file), RECIPE_OPTIONS, is_half=False))
        page.reload()
        heard.asked.pop()
        assert sums(page) == ["Σ 5", "Σ 0"]
    finally:
        proof.file.write_bytes(original)
    page.evaluate("localStorage.clear()")


def test_a_page_whose_storage_is_refused_still_marks(page: Page) -> None:
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full') } }")
    page.evaluate("moveTo([0, 0])")
    press(page, "5")
    assert sums(page)[0] == "Σ 5"


def test_marks_are_given_with_the_mouse_too(page: Page) -> None:
    cell = page.locator("td[data-row='2'][data-column='1']")
    cell.get_by_role("button", name="Mark 3 of 5").click()
    assert sums(page)[1] == "Σ 3"
    assert cell.get_by_role("button", name="Mark 3 of 5").get_attribute("aria-pressed") == "true"
    expect(page.locator("dialog")).to_be_hidden()
    page.locator("#undo").click()
    assert sums(page)[1] == "Σ 0"


def pasted(page: Page) -> str:
    """What the clipboard holds, as a text field gets it."""
    page.evaluate("document.body.append(element('textarea', { id: 'pasted' }))")
    page.locator("#pasted").focus()
    press(page, "Control+v")
    text = page.locator("#pasted").input_value()
    page.evaluate("byId('pasted').remove()")
    return text


def test_the_chosen_setting_is_copied_as_options_and_as_a_recipe(page: Page) -> None:
    assert page.locator("#copy-options").is_disabled()
    page.evaluate("moveTo([1, 2])")
    press(page, "5")
    expect(page.locator("#choice")).to_have_text("style_weight=20 style_scale=0.5")
    page.locator("#copy-options").click()
    expect(page.locator("#said")).to_have_text("Options copied")
    assert pasted(page) == "--set pooling=avg --style-weight 20 --size 640 --style-scale 0.5"
    page.evaluate("moveTo([-1, 3])")
    press(page, "Enter")
    expect(page.locator("#choice")).to_have_text("style_weight=20 style_scale=1")
    page.locator("#copy-toml").click()
    expect(page.locator("#said")).to_have_text("Recipe copied")
    assert tomllib.loads(pasted(page)) == {"size": 640, "pooling": "avg", "style_weight": 20}
    page.evaluate("moveTo([-1, 3])")
    press(page, "Enter")
    expect(page.locator("#choice")).to_have_text("style_weight=20 style_scale=0.5")


def width(page: Page, pane: int = 0) -> float:
    return float(page.locator(".pane img").nth(pane).evaluate("image => image.getBoundingClientRect().width"))


def test_enter_opens_arrows_change_the_picture_and_escape_gives_the_focus_back(page: Page) -> None:
    page.evaluate("moveTo([1, 0])")
    press(page, "Enter")
    expect(page.locator("#dialog-title")).to_have_text("market.png × market painting.png")
    expect(page.locator(".pane .labels")).to_have_text("style_weight=5 style_scale=0.5")
    press(page, "ArrowRight", "ArrowDown", "4")
    expect(page.locator("#dialog-title")).to_contain_text("dunes.png × dunes painting.png")
    assert page.locator(".pane [aria-label='Mark 4 of 5']").get_attribute("aria-pressed") == "true"
    page.locator("#next").click()
    expect(page.locator(".pane .labels")).to_have_text("style_weight=20 style_scale=0.5")
    press(page, "Escape")
    expect(page.locator("dialog")).to_be_hidden()
    expect(page.locator(":focus")).to_have_attribute("data-row", "2")  # once the browser has told of the end
    assert focused(page) == ["2", "2"]
    assert sums(page) == ["Σ 0", "Σ 4", "Σ 0", "Σ 0"]


def test_zoom_goes_to_the_pictures_own_pixels(page: Page) -> None:
    page.locator("td[data-row='1'][data-column='0'] img").click()
    whole = width(page)
    assert whole > 700, "a small picture fills the view"
    press(page, "z")
    assert width(page) == 640
    expect(page.locator("#zoom")).to_have_text("100 %")
    press(page, "z")
    assert width(page) == 1280
    press(page, "z")
    assert width(page) == whole
    page.locator(".pane img").click()
    assert width(page) == 640


def test_two_pictures_side_by_side_move_together(page: Page) -> None:
    page.set_viewport_size({"width": 900, "height": 500})
    page.evaluate("moveTo([1, 0])")
    press(page, "Enter", "s", "z")
    expect(page.locator(".pane")).to_have_count(2)
    assert page.locator(".pane .labels").all_inner_texts() == [
        "style_weight=5 style_scale=0.5",
        "style_weight=5 style_scale=1",
    ]
    expect(page.locator(".pane").nth(1)).to_have_class(re.compile("active"))
    press(page, "ArrowRight")
    assert page.locator(".pane .labels").nth(1).inner_text() == "style_weight=20 style_scale=0.5"
    places = "panes.map(({ view }) => [view.scrollLeft, view.scrollTop])"
    before = page.evaluate(places)
    press(page, "Shift+ArrowRight", "Shift+ArrowDown")
    moved = f"{places}.every(([x, y]) => x > {before[0][0]} && y > {before[0][1]})"
    until(page, f"{moved} && JSON.stringify({places}[0]) === JSON.stringify({places}[1])")
    after = page.evaluate(places)
    box = page.locator(".view").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 230, steps=3)
    page.mouse.up()
    place = [after[0][0] - 60, after[0][1] - 30]
    until(page, f"JSON.stringify({places}) === JSON.stringify({[place, place]})")
    expect(page.locator("#zoom")).to_have_text("100 %")
    expect(page.locator(".pane").nth(0)).to_have_class(re.compile("active"))
    press(page, "ArrowDown")
    expect(page.locator(".pane .labels").nth(0)).to_contain_text("dunes")
    press(page, "5", "s")
    expect(page.locator(".pane")).to_have_count(1)
    expect(page.locator("#dialog-title")).to_contain_text("dunes.png")
    assert sums(page)[0] == "Σ 5"


def test_what_failed_or_would_like_to_run_is_text(page: Page) -> None:
    failure = f"<b>Bad</b> </script>{SCRIPT}<!--{HANDLER}"
    assert " ".join(page.locator("td .failure").inner_text().split()) == failure
    page.evaluate("openCell(0, 1)")
    assert " ".join(page.locator(".view .failure").inner_text().split()) == failure
    press(page, "ArrowRight")
    expect(page.locator(".view")).to_contain_text("not painted yet")
    press(page, "z", "s", "Escape")
    page.evaluate("openCell(3, 0)")
    expect(page.locator("#dialog-title")).to_contain_text(HANDLER)
    expect(page.locator(".place")).to_contain_text(HANDLER)


def test_a_phone_scrolls_down_alone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    fits = "[document.documentElement, document.body].every((node) => node.scrollWidth <= innerWidth)"
    assert page.evaluate(fits)
    picture = page.locator("td img").first.bounding_box()
    assert picture and picture["width"] > 250
    page.evaluate("openCell(3, 0)")
    press(page, "s")
    assert page.evaluate(f"{fits} && dialog.scrollWidth <= innerWidth")
    assert page.evaluate("panes.every(({ view }) => view.clientHeight > 150 && view.clientWidth > 300)")


def test_dark_is_dark(page: Page) -> None:
    background = "getComputedStyle(document.querySelector('thead th')).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (light, page.evaluate(background))]
    assert brightness[0] > 600 and brightness[1] < 150


def test_all_can_be_reached_and_has_a_name(page: Page) -> None:
    page.evaluate("openCell(0, 0)")
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    name = "node.ariaLabel || node.innerText"
    assert (
        page.evaluate(
            f"[...document.querySelectorAll('button, a, td')].filter((node) => !({name})).map((node) => node.outerHTML)"
        )
        == []
    )
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(set(ids)) == len(ids)
    labels = "[...document.querySelectorAll('[aria-labelledby]')].map((node) => node.getAttribute('aria-labelledby'))"
    assert set(page.evaluate(labels)) <= set(ids)
    assert page.locator("table [tabindex='0']").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"


def test_print_has_all_pictures_and_no_controls(page: Page) -> None:
    page.evaluate("moveTo([0, 0])")
    press(page, "4")
    page.emulate_media(media="print")
    expect(page.locator(".chosen")).to_be_hidden()
    shown = "node => getComputedStyle(node).display !== 'none'"
    rating = page.locator("td[data-row='0'][data-column='0'] .rating button")
    assert [button.evaluate(shown) for button in rating.all()] == [True] * 4 + [False] * 2
    fits = "document.querySelector('table').scrollWidth <= document.querySelector('.sheet').clientWidth"
    assert page.evaluate(fits)
