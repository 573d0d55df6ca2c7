"""Measure how long the report takes and how smoothly it scrolls: `python -m tests.tools.measure_report FOLDER N…`."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from batchnst.ledger.out import Out
from batchnst.review.report.build import build
from tests.tools import made_up

SIZES = (12, 1_000, 10_000)

TIMES = """() => {
    const [whole] = performance.getEntriesByType("navigation");
    const [cards] = performance.getEntriesByName("cards");
    return { "first cards": cards.startTime, "load event": whole.loadEventEnd };
}"""

SCROLL = """async (pixels) => {
    byId("list").scrollIntoView();
    const times = [];
    for (let frame = 0; frame < 240; frame++) {
        scrollBy({ top: pixels, behavior: "instant" });
        times.push(await new Promise(requestAnimationFrame));
    }
    const frames = times.slice(1).map((time, k) => time - times[k]).sort((a, b) => a - b);
    const share = (part) => frames[Math.floor(part * (frames.length - 1))];
    return { median: share(0.5), "95 %": share(0.95), slowest: share(1) };
}"""

SORT = """() => {
    const start = performance.now();
    change({ sort: "loss-down" });
    change({ q: "wave" });
    change({ q: "" });
    return (performance.now() - start) / 3;
}"""


def measure(folder: Path, pairs: int) -> None:
    """Print the figures of the page of a made-up run of `pairs` pairs."""
    out = Out(str(folder / "out")) if (folder / "out").exists() else made_up.make(folder, pairs)
    start = time.perf_counter()
    data = build(out)
    print(f"{pairs} pairs: built in {time.perf_counter() - start:.1f} s, {len(data) / 1e6:.1f} MB")
    path = folder / "out" / "report.html"
    path.write_bytes(data)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(path.as_uri())
        say("milliseconds to", page.evaluate(TIMES))
        page.wait_for_selector("#distribution .main-svg")
        say("milliseconds to", {"charts": page.evaluate("performance.now()")})
        say("milliseconds a search, filter or sort:", {"mean": page.evaluate(SORT)})
        for pixels in (60, 600):
            say(f"milliseconds a frame, {pixels} pixels each:", page.evaluate(SCROLL, pixels))
        say("", {"megabytes of heap": heap(page)})
        browser.close()


def heap(page: Page) -> float:
    session = page.context.new_cdp_session(page)
    return float(session.send("Runtime.getHeapUsage")["usedSize"]) / 1e6


def say(what: str, figures: dict[str, Any]) -> None:
    print(f"  {what} " + ", ".join(f"{name} {value:.0f}" for name, value in figures.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made-up runs are kept here and used again")
    parser.add_argument("pairs", type=int, nargs="*", default=SIZES)
    options = parser.parse_args()
    for pairs in options.pairs:
        measure(options.folder / str(pairs), pairs)


if __name__ == "__main__":
    main()
