from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import ExifTags, Image
from playwright.sync_api import Browser, Page, expect

from batchnst import read_ledger
from batchnst.errors import InputError, LedgerError
from batchnst.ledger.out import Out
from batchnst.ledger.schema import PairRow, RunRow
from batchnst.review.report import build as report
from batchnst.review.report import cards as cards_of_pairs
from batchnst.review.report import cards as report_cards
from batchnst.review.report import curves, figures, previews
from batchnst.review.report.places import Places
from batchnst.storage import files
from tests.browser import Heard, open_page, until
from tests.helpers import NOON, row
from tests.tools import made_up

PAIRS = 66
SCRIPT = "<script>window.pwned=1</script>"
HANDLER = '"><img src=x onerror=window.pwned=1>'


@dataclass(frozen=True)
class Night:
    """A made-up OUT, its page, and what that holds."""

    out: Out
    page: Path
    html: str
    data: dict[str, Any]

    def index(self, pair_id: str) -> int:
        return int(self.data["pairs"]["id"].index(pair_id))


@pytest.fixture(scope="module")
def night(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    out = made_up.make(folder, PAIRS)
    with out.claim("hostile") as claim:
        out.commit(claim.lease(), {}, hostile_rows(out, folder), [])
    page = Path(out.address) / "report.html"
    page.write_bytes(report.build(out))
    html = page.read_text()
    return Night(out, page, html, data_of(html))


def hostile_rows(out: Out, folder: Path) -> list[PairRow]:
    """Two pairs, one painted, whose every text would like to be run."""
    content, style = folder / (SCRIPT.replace("/", "") + ".png"), folder / (HANDLER + ".png")
    for path in (content, style, Path(out.folder.path("images/" + HANDLER + "#%3F.png"))):
        Image.new("RGB", (40, 30), "teal").save(path)
    texts = {
        "run_id": "hostile",
        "content": str(content),
        "styles": [str(style)],
        "output": HANDLER + "#%3F.png",
        "host": "<b>bold</b>" + HANDLER,
        "extra": json.dumps({"</script>": SCRIPT}),
        "device": SCRIPT,
        "recipe": json.dumps({"init": SCRIPT + "<!--"}),
        "finished_at": made_up.EVENING + timedelta(hours=1),
        "started_at": made_up.EVENING,
        "content_sha256": None,
    }
    failed = {"status": "failed", "error_type": "<b>Bad</b>", "error_message": f"</script>{SCRIPT}<!--{HANDLER}"}
    return [
        row(SCRIPT, total_loss=5e6, **texts),
        row(HANDLER, **(texts | failed)),
    ]


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return {**data, **data["part"]}


def block(html: str, name: str) -> str:
    found = re.search(rf'<script type="application/octet-stream" id="{name}">([^<]*)</script>', html)
    assert found
    return found[1]


def preview(night: Night, i: int) -> Image.Image:
    lengths, firsts = night.data["pictures"]["text"], night.data["blocks"]
    number = max(k for k, first in enumerate(firsts) if first <= i)
    start = sum(lengths[firsts[number] : i])
    text = block(night.html, f"pictures-{number}")[start : start + lengths[i]]
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return picture.convert("RGB")


def details(night: Night, i: int) -> dict[str, Any]:
    size = night.data["pairsABlock"]
    packed = base64.b64decode(block(night.html, f"pairs-{i // size}"))
    found: dict[str, Any] = json.loads(gzip.decompress(packed))[i % size]
    return found


# What is in the page -----------------------------------------------------------------------------------------------


def test_the_page_holds_what_the_ledger_says(night: Night) -> None:
    rows = {
        row["pair_id"]: row
        for row in read_ledger(night.out.address, "pairs").to_table().sort_by("finished_at").to_pylist()
    }
    pairs = night.data["pairs"]
    assert sorted(pairs["id"]) == sorted(rows)
    for i, pair_id in enumerate(pairs["id"]):
        newest = rows[pair_id]
        assert (pairs["ok"][i], pairs["loss"][i]) == (newest["status"] == "ok", newest["total_loss"])
        assert [night.data["addresses"][k] for k in (pairs["content"][i], *pairs["styles"][i])] == [
            newest["content"],
            *newest["styles"],
        ]
        assert details(night, i)["row"]["fingerprint"] == newest["fingerprint"]
    failed = [not ok for ok in pairs["ok"]]
    assert failed == sorted(failed, reverse=True), "failures come first"
    assert 3 <= sum(failed) < 10


def test_a_curve_is_that_of_the_newest_attempt(night: Night) -> None:
    pairs = night.data["pairs"]
    i = max(range(len(pairs["id"])), key=lambda i: (pairs["ok"][i], pairs["attempt"][i]))
    found = details(night, i)
    assert pairs["attempt"][i] == 2
    assert [(attempt["attempt"], attempt["error_type"]) for attempt in found["earlier"]] == [(1, "WorkerLost")]
    losses = read_ledger(night.out.address, "losses").to_table().to_pylist()
    steps = sorted((r for r in losses if r["pair_id"] == pairs["id"][i] and r["attempt"] == 2), key=lambda r: r["step"])
    curve = found["curve"]
    assert curve["step"] == list(range(made_up.STEPS))
    assert curve["scales"] == [[0, 128], [28, 256], [55, 512]]
    for name in ("total", "content", "style", "tv"):
        np.testing.assert_allclose(curve["terms"][name], [r[name] for r in steps], rtol=5e-4)
    for name, values in curve["layers"].items():
        np.testing.assert_allclose(values, [dict(r["style_layers"])[name] for r in steps], rtol=5e-4)
    assert len(curve["layers"]) == 5


def test_previews_are_of_the_right_pictures(night: Night) -> None:
    pairs = night.data["pairs"]
    painted = [i for i, ok in enumerate(pairs["ok"]) if ok and "<" not in pairs["id"][i]]
    for i in painted[::7]:
        addresses = [
            night.out.folder.path(f"images/{pairs['output'][i]}"),
            night.data["addresses"][pairs["content"][i]],
        ]
        for address, number in zip(addresses, (pairs["result"][i], pairs["contentPicture"][i]), strict=True):
            shown = preview(night, number)
            with Image.open(address) as picture:
                original = picture.convert("RGB").resize(shown.size)
            assert np.abs(np.asarray(shown, float) - np.asarray(original, float)).mean() < 8


def test_charts_add_up(night: Night) -> None:
    painted = read_ledger(night.out.address, "pairs").to_table().to_pylist()
    painted = [row for row in painted if row["status"] == "ok"]
    throughput = night.data["charts"]["throughput"]
    pairs = sum(sum(worker["rates"]) for worker in throughput["workers"]) * throughput["width"] / 3600
    assert pairs == pytest.approx(len(painted), rel=0.01)
    losses = night.data["charts"]["losses"]["styles"]
    assert sum(sum(style["counts"]) for style in losses) == sum(style["pairs"] for style in losses)
    assert sum(style["pairs"] for style in losses) == len({row["pair_id"] for row in painted})
    one = next(style for style in losses if style["name"] == "wave.jpg")
    own = [row["total_loss"] for row in painted if [Path(s).name for s in row["styles"]] == ["wave.jpg"]]
    assert one["median"] == pytest.approx(np.median(own))


def test_a_rest_is_left_out_of_the_chart_and_spans_count_once() -> None:
    spans = figures.Spans(np.array([0.0, 50.0, 5000.0]), np.array([100.0, 80.0, 5100.0]))
    assert spans.periods(60.0) == [(0.0, 100.0), (5000.0, 5100.0)]
    assert spans.busy == 200.0
    assert spans.rates(np.array([0.0, 50.0, 100.0])).tolist() == [0.5 * 72, 1.5 * 72]


def test_an_empty_ledger_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"out: nothing to report: no attempt at a pair has ended there yet$"):
        report.build(Out(str(tmp_path / "out")))


def test_pictures_that_are_gone_changed_or_torn_are_said_to_be(tmp_path: Path) -> None:
    out = Out(str(tmp_path / "out"))
    Image.new("RGB", (8, 6)).save(tmp_path / "there.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    pictures = {"content": str(tmp_path / "torn.png"), "styles": [str(tmp_path / "there.png"), "nowhere://a/b.png"]}
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, [row("a", **pictures, style_weights=[0.5, 0.5], style_sha256=["0" * 64] * 2)], [])
    found = data_of(report.build(out).decode())["pictures"]
    assert found["problem"] == ["cannot be read", "changed since the run", "cannot be read", "missing"]
    assert [length > 0 for length in found["text"]] == [False, True, False, False]
    assert (found["width"][1], found["height"][1]) == (8, 6)


def test_a_store_that_does_not_answer_is_not_asked_for_every_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def read(address: str, *_: object) -> bytes:
        asked.append(address)
        raise InputError("gone", transient=True)

    monkeypatch.setattr(files, "read_at_most", read)
    out = Out(str(tmp_path))
    album = previews.Album(out, out.pictures([]))
    for i in range(200):
        album.number(previews.Source(f"s3://gone/{i}.png"))
    found = album.previews(200, lambda *_: None)
    assert {preview.problem for preview in found} == {"cannot be read"}
    assert 0 < len(asked) < 20


def test_previews_are_upright_and_no_larger_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(noise).save(tmp_path / "turned.jpg", exif=exif)
    out = Out(str(tmp_path))
    album = previews.Album(out, out.pictures([]))
    for _ in range(2):
        assert album.number(previews.Source(str(tmp_path / "turned.jpg"))) == 0
    (large,) = album.previews(1, lambda *_: None)
    assert (large.width, large.height) == (512, 768)
    monkeypatch.setattr(previews, "BYTES", 30_000)
    monkeypatch.setattr(previews, "BYTES_A_PAIR", 0)
    (small,) = album.previews(1, lambda *_: None)
    assert small.height in previews.SIDES
    assert 15_000 < len(small.text) * 3 / 4 <= 30_000


def test_where_there_are_too_many_pairs_failures_stay_and_all_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards_of_pairs, "MOST_CARDS", 12)
    out = Out(str(tmp_path / "out"))
    rows = [row(f"p{i}", total_loss=float(100 + i)) for i in range(40)]
    failed = [row(f"f{i}", status="failed", error_type="E", error_message=f"no {i}") for i in range(2)]
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, rows + failed, [])
    html = report.build(out).decode()
    data = data_of(html)
    losses = sorted(loss for loss in data["pairs"]["loss"] if loss is not None)
    assert (len(data["pairs"]["id"]), data["pairs"]["ok"].count(False)) == (12, 2)
    assert (losses[0], losses[-1]) == (100.0, 139.0)
    assert max(np.diff(losses)) <= 5
    assert "40 pictures painted" in html
    assert sum(data["charts"]["losses"]["styles"][0]["counts"]) == 40


def test_what_is_left_is_what_the_newest_run_has_not_come_to(tmp_path: Path) -> None:
    out = Out(str(tmp_path / "out"))
    run = RunRow(run_id="r1", started_at=NOON - timedelta(seconds=60), manifest="m.csv", settings='{"size": 64}',
                 pairs=9, done=3, given_up=1, to_paint=5, engine="inline", host="h", pid=1)  # fmt: skip
    with out.claim("r1") as claim:
        out.begin(run)
        out.commit(claim.lease(), {}, [row("a"), row("b", status="failed", error_type="E", error_message="no")], [])
    html = report.build(out).decode()
    heading = re.sub(r"<[^>]+>", "", html[html.index("<h1>") : html.index("</h1>")])
    assert heading == "1 picture painted, 1 failed, 3 left"
    assert "with size&nbsp;64" in html


def test_alike_failures_are_one_reason() -> None:
    alike = [
        {"error_type": "E", "error_message": f"/{x}.jpg: no such file", "content": f"/{x}.jpg", "styles": ["/s"]}
        for x in "ab"
    ]
    assert {figures.reason(row) for row in alike} == {("E", "no such file")}
    other = alike[0] | {"content": "/c.jpg"}
    assert figures.reason(other) == ("E", "/a.jpg: no such file")


def test_a_thinned_curve_keeps_what_matters() -> None:
    total = np.linspace(9, 1, 1000)
    total[777] = 0.5
    kept = curves._thin(total, [0, 333], 60)
    assert {0, 332, 333, 777, 999} <= set(kept.tolist())
    assert 60 <= len(kept) <= 64
    assert max(np.diff(kept)) <= 1000 // 59 + 1


@pytest.mark.parametrize(
    ("to", "base"),
    [
        (None, ""),
        ("out/page.html", ""),
        ("a b/page.html", "../out/"),
        ("page.html", "out/"),
    ],
)
def test_the_way_to_the_pictures_is_seen_from_the_page(tmp_path: Path, to: str | None, base: str) -> None:
    assert report._base(Out(str(tmp_path / "out")), to and str(tmp_path / to)) == base
    assert report._base(Out(str(tmp_path / "o ut")), str(tmp_path / "page.html")) == "o%20ut/"
    assert report._base(Out(str(tmp_path / "out")), "s3://bucket/page.html") is None


# In a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(browser: Browser, night: Night, heard: Heard) -> Iterator[Page]:
    with open_page(browser, night.page, heard) as page:
        yield page


def cards(page: Page) -> list[str]:
    """The ids of the pairs in the list, as far as they are rendered."""
    return [
        str(pair_id)
        for pair_id in page.eval_on_selector_all("#list .card", "all => all.map((a) => pairs.id[a.dataset.pair])")
    ]


def open_first(page: Page, sort: str = "loss-down") -> str:
    page.select_option("select[name=sort]", sort)
    until(page, f"state.sort === '{sort}'")
    page.locator("#list .card").first.click()
    expect(page.locator("#dialog .trio")).to_be_visible()
    return cards(page)[0]


def show_charts(page: Page) -> None:
    """Scroll through the charts: each is drawn when it comes near the window."""
    for chart in ("#throughput", "#distribution"):
        page.locator(chart).scroll_into_view_if_needed()
        page.wait_for_selector(f"{chart} .main-svg")
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")


def test_the_page_shows_everything_and_asks_for_nothing(page: Page, night: Night, heard: Heard) -> None:
    show_charts(page)
    expect(page.locator("h1")).to_have_text(re.compile(r"pictures? painted, \d failed, 2 left"))
    assert page.locator("#throughput .bars path").count() > 10
    assert page.locator("#strip img").count() == 12
    loaded = page.eval_on_selector_all("img", "all => all.filter((image) => image.naturalWidth > 9).length")
    assert loaded == page.locator("img").count() > 12
    assert cards(page)[0] == night.data["pairs"]["id"][0]
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert policy and "default-src 'none'" in policy and "script-src 'sha256-" in policy
    page.evaluate("document.body.append(element('script', { textContent: 'window.foreign = 1' }))")
    assert page.evaluate("window.foreign") is None
    assert "Content Security Policy" in heard.said.pop()


def test_search_filters_and_order(page: Page, night: Night) -> None:
    pairs, shown = night.data["pairs"], page.locator("#shown")
    by_loss = sorted((loss, i) for i, loss in enumerate(pairs["loss"]) if loss is not None)
    page.select_option("select[name=sort]", "loss-up")
    until(page, "state.sort === 'loss-up'")
    assert cards(page)[:3] == [pairs["id"][i] for _, i in by_loss[:3]]
    page.select_option("select[name=status]", "failed")
    expect(shown).to_have_text(re.compile(rf"^{pairs['ok'].count(False)} of {PAIRS + 2} pairs"))
    listed = page.evaluate("order.map((i) => pairs.id[i])")
    assert sorted(listed) == sorted(pairs["id"][i] for i, ok in enumerate(pairs["ok"]) if not ok)
    assert cards(page) == listed[: len(cards(page))] != []
    page.click("#clear")
    page.fill("input[name=q]", "WAVE photo-001")
    found = [i for i in pairs["id"] if "photo-001" in i and "wave" in i]
    expect(shown).to_have_text(f"{len(found)} of {PAIRS + 2} pairs")
    assert sorted(cards(page)) == sorted(found) != []
    page.fill("input[name=q]", "no such picture")
    expect(shown).to_have_text(f"0 of {PAIRS + 2} pairs")
    page.click("#clear")
    page.select_option("select[name=style]", label=wave_option(page))
    expect(shown).not_to_have_text(f"{PAIRS + 2} pairs")
    assert all("wave" in json.dumps(styles) for styles in page.evaluate("order.map(styleNames)"))


def wave_option(page: Page) -> str:
    return next(text for text in page.locator("select[name=style] option").all_inner_texts() if text.startswith("wave"))


def test_a_reason_shows_its_pairs_and_the_address_keeps_it(page: Page, night: Night, heard: Heard) -> None:
    page.locator(".reason", has_text="no such file").click()
    expect(page.locator("#shown")).to_have_text(f"1 of {PAIRS + 2} pairs that failed with InputError: no such file")
    assert cards(page) == [
        i
        for i, error in zip(night.data["pairs"]["id"], night.data["pairs"]["error"], strict=True)
        if "no such" in (error or "")
    ]
    page.reload()
    expect(page.locator("#shown")).to_have_text(re.compile("^1 of"))
    heard.asked.pop()


def test_a_pair_opens_by_click_and_keys_and_gives_the_focus_back(page: Page, night: Night) -> None:
    first = open_first(page)
    second = cards(page)[1]
    until(page, f"decodeURIComponent(location.hash).includes({json.dumps(first)})")
    expect(page.locator("#dialog .chart .main-svg .scatterlayer .trace")).to_have_count(9)
    steps = "[...dialog.querySelectorAll('.js-plotly-plot')].map((node) => node.data.map(({ x }) => x.length))"
    assert page.evaluate(steps) == [[made_up.STEPS] * 4, [made_up.STEPS] * 5]
    assert (page.locator("#dialog .chart path.js-line").first.get_attribute("d") or "").count("L") > 30
    expect(page.locator("#dialog .annotation-text")).to_have_text(["128 px", "256 px", "512 px"] * 2)
    page.keyboard.press("ArrowRight")
    until(page, f"decodeURIComponent(location.hash).includes({json.dumps(second)})")
    expect(page.locator("#dialog-body")).to_contain_text(second)
    page.keyboard.press("Escape")
    until(page, "pairs.id[document.activeElement.dataset.pair] === " + json.dumps(second))
    page.keyboard.press("Enter")
    expect(page.locator("#dialog-body")).to_contain_text(second)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#dialog-body")).to_contain_text(first)
    page.keyboard.press("Escape")
    expect(page.locator("#dialog")).to_be_hidden()
    until(page, "!location.hash.includes('pair=')")
    until(page, "pairs.id[document.activeElement.dataset.pair] === " + json.dumps(first))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#dialog-body")).to_contain_text(second)
    page.go_back()
    expect(page.locator("#dialog")).to_be_hidden()


def test_figures_in_an_opened_pair(page: Page, night: Night) -> None:
    i = night.index(open_first(page))
    page.locator("#dialog summary").click()
    rows = page.locator("#dialog tbody tr")
    expect(rows).to_have_count(made_up.STEPS)
    curve = details(night, i)["curve"]
    assert rows.nth(7).locator("td").all_inner_texts()[:2] == ["7", page.evaluate("figure", curve["terms"]["total"][7])]
    expect(page.locator("#dialog .facts").first).to_contain_text(
        page.evaluate("figure", night.data["pairs"]["loss"][i])
    )


def test_what_would_like_to_run_is_text(page: Page, night: Night) -> None:
    show_charts(page)
    for i in (night.index(SCRIPT), night.index(HANDLER)):
        page.evaluate("i => { location.hash = hashWith({ pair: pairs.id[i] }) }", i)
        expect(page.locator("#dialog-title")).to_contain_text(
            "<script>window.pwned=1<script>.png × " + HANDLER + ".png"
        )
        expect(page.locator("#dialog-body")).to_contain_text(HANDLER + " · 1")
        page.keyboard.press("Escape")
    expect(page.locator("h1")).to_be_visible()
    assert "<b>Bad</b>" in page.locator(".reasons").inner_text()
    assert page.locator(".card b", has_text="<b>Bad</b>").count() == 1
    assert f"</script>{SCRIPT}<!--{HANDLER}" in page.locator(".failure", has_text="Bad").inner_text()
    assert "<b>bold</b>" in (page.locator("#throughput .legend").text_content() or "")
    labels = page.locator("#distribution .ytick").all_text_contents()
    assert any(label.startswith('"><img src=x onerror=wind') for label in labels)
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == page.evaluate("document.scripts.length") < 30


def test_the_full_picture_is_where_the_link_says(page: Page, night: Night) -> None:
    for pair_id in (open_first(page), SCRIPT):
        page.evaluate("id => { location.hash = hashWith({ pair: id }) }", pair_id)
        expect(page.locator("#dialog-title")).to_contain_text(
            page.evaluate("id => title(pairs.id.indexOf(id))", pair_id)
        )
        expect(page.locator("#dialog figure a")).to_be_visible()
        href = str(page.locator("#dialog figure a").evaluate("link => link.href"))
        output = night.data["pairs"]["output"][night.index(pair_id)]
        assert Path(unquote(href.removeprefix("file://"))) == night.page.parent / "images" / output
        assert (night.page.parent / "images" / output).exists()


@pytest.mark.slow
def test_snapshots_slide(page: Page, night: Night) -> None:
    i = next(i for i, snapshots in enumerate(night.data["pairs"]["snapshots"]) if snapshots)
    assert [step for step, _ in night.data["pairs"]["snapshots"][i]] == [0, 40, 80, 120, 160]
    page.evaluate("i => { location.hash = hashWith({ pair: pairs.id[i] }) }", i)
    slider, image = page.locator("#dialog input[type=range]"), page.locator("#dialog .trio figure").last.locator("img")
    expect(page.locator("#dialog output")).to_have_text("final picture")
    written = image.get_attribute("src")
    slider.focus()
    seen = [written]
    for step in (160, 120):
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#dialog output")).to_have_text(f"step {step}")
        seen.append(image.get_attribute("src"))
    assert len(set(seen)) == 3
    page.keyboard.press("End")
    assert image.get_attribute("src") == written


def test_charts_are_drawn_when_they_come_near_or_are_printed(page: Page) -> None:
    drawn = "[...document.querySelectorAll('.js-plotly-plot')].map((node) => node.id)"
    until(page, "code !== null")
    assert page.evaluate(drawn) == []
    assert page.evaluate("'Plotly' in window") is False
    # In one call, as a browser prints without waiting for anything.
    printed = f"(dispatchEvent(new Event('beforeprint')), {drawn})"
    assert page.evaluate(printed) == ["throughput", "distribution"]
    assert page.locator("#throughput .bars path").count() > 10


@pytest.mark.slow
def test_a_browser_that_prints_says_so_in_time_for_charts_that_were_never_near(page: Page) -> None:
    until(page, "code !== null")
    assert page.evaluate("'Plotly' in window") is False
    page.pdf()
    assert page.locator("#throughput .bars path").count() > 10
    assert page.locator("#distribution .main-svg").count() > 0


@pytest.mark.slow
def test_dark_is_dark_also_in_charts(page: Page) -> None:
    show_charts(page)
    background = "getComputedStyle(document.body).backgroundColor"
    bar = "document.querySelector('#throughput .bars path').style.fill"
    light = page.evaluate(background), page.evaluate(bar)
    page.emulate_media(color_scheme="dark")
    until(page, f"{bar} !== '{light[1]}'")
    dark = page.evaluate(background)
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (light[0], dark)]
    assert brightness[0] > 600 and brightness[1] < 150


@pytest.mark.slow
def test_a_phone_scrolls_down_alone(page: Page, night: Night) -> None:
    show_charts(page)
    page.set_viewport_size({"width": 390, "height": 844})
    until(page, "columns === 1")
    fits = "[document.documentElement, dialog].every((node) => node.scrollWidth <= innerWidth)"
    until(page, fits)
    heights = "[byId('distribution'), byId('distribution').querySelector('svg')].map((node) => node.clientHeight)"
    assert len(set(page.evaluate(heights))) == 1
    assert page.evaluate(heights)[0] > 300
    open_first(page)
    page.locator("#dialog .chart > div").first.scroll_into_view_if_needed()
    expect(page.locator("#dialog .main-svg").first).to_be_visible()
    until(page, fits)
    page.evaluate("i => { location.hash = hashWith({ pair: pairs.id[i] }) }", night.index(HANDLER))
    expect(page.locator("#dialog-body")).to_contain_text("<b>Bad</b>")
    assert page.evaluate(fits)


def test_all_can_be_reached_and_has_a_name(page: Page) -> None:
    open_first(page)
    expect(page.locator("#dialog .main-svg").first).to_be_visible()
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    reached = "[...document.querySelectorAll('button, a:not(.modebar a), input, select')]"
    name = "node.innerText || node.ariaLabel || node.labels?.length || node.querySelector('img[alt]')"
    assert page.evaluate(f"{reached}.filter((node) => !({name})).map((node) => node.outerHTML)") == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) <= 1
    ids = page.evaluate("[...document.querySelectorAll('[id]:not(svg *)')].map((node) => node.id)")
    assert len(set(ids)) == len(ids)
    labels = "[...document.querySelectorAll('[aria-labelledby]')].map((node) => node.getAttribute('aria-labelledby'))"
    assert set(page.evaluate(labels)) <= set(ids)
    assert page.evaluate("document.documentElement.lang") == "en"


def test_only_what_is_near_is_in_the_document_and_the_last_pair_can_be_reached(page: Page, night: Night) -> None:
    assert len(cards(page)) < PAIRS / 2
    page.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
    until(page, "shown.has(lines.length - 1)")
    assert cards(page)[-1] == night.data["pairs"]["id"][-1]
    assert len(cards(page)) < PAIRS / 2
    assert page.locator("#list .item").last.get_attribute("aria-posinset") == str(PAIRS + 2)


@pytest.mark.slow
def test_print_has_all_cards_and_no_controls(page: Page) -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(cards(page)) == PAIRS + 2
    expect(page.locator("#controls")).to_be_hidden()
    until(page, "[...document.querySelectorAll('#list img')].every((image) => image.complete)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(cards(page)) < PAIRS / 2


PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def test_pairs_can_be_added_and_changed_while_the_page_is_open(page: Page, night: Night, tmp_path: Path) -> None:
    out, changed = Out(str(tmp_path / "out")), next(i for i in cards(page) if "<" not in i)
    with out.claim("r2") as claim:
        out.commit(claim.lease(), {}, [row(changed, attempt=7, total_loss=1.0), row("new", total_loss=2.0)], [])
    places = Places(out)
    album, added = previews.Album(out, places.stored), report_cards.read(out, [changed, "new"], places)
    part = report_cards.part(added, album.number, {})
    part["pictures"] = {"url": [PIXEL for _ in album.sources]}
    page.locator(f'#list [data-pair="{night.index(changed)}"]').focus()
    page.evaluate("part => addPairs(part)", part)
    expect(page.locator("#shown")).to_have_text(f"{PAIRS + 3} pairs")
    assert page.evaluate("pairs.id[document.activeElement.dataset.pair]") == changed
    expect(page.locator(".card", has_text="attempt 7").locator("img").first).to_have_attribute("src", PIXEL)
    page.select_option("select[name=sort]", "loss-up")
    until(page, "state.sort === 'loss-up'")
    assert cards(page)[:2] == [changed, "new"]
