"""Measure the live page of a large OUT with pictures and losses: `python -m tests.tools.measure_serve FOLDER PAIRS`."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from batchnst.ledger.claim import Claim
from batchnst.ledger.out import Out
from batchnst.ledger.schema import PairRow
from tests.browser import open_browser
from tests.helpers import NOON, as_bytes, loss, row, scene

PAIRS_A_FILE = 500
STYLES = 12
STEPS = 20

PICTURE = as_bytes(scene(48, 32), "JPEG")

SCROLL = """async () => {
  const times = [];
  let last = performance.now();
  for (let k = 0; k < 120; k++) {
    scrollBy({ top: 240, behavior: "instant" });
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - last);
    last = performance.now();
  }
  return times.sort((a, b) => a - b);
}"""


def made_up(number: int) -> PairRow:
    """A row of a pair whose picture is PICTURE."""
    ended = NOON + timedelta(seconds=2 * number)
    return row(
        f"photo-{number:06}",
        run_number=1,
        content=f"/photos/{number // STYLES:05}.jpg",
        styles=[f"/paintings/{number % STYLES}.jpg"],
        output=f"{number:06}.jpg",
        output_sha256=hashlib.sha256(PICTURE).hexdigest(),
        total_loss=1.0 + number % 97,
        started_at=ended - timedelta(seconds=30),
        finished_at=ended,
        pid=number % 8,
    )


def commit(out: Out, claim: Claim, numbers: Sequence[int]) -> None:
    """Commit pairs with pictures and losses, as a task does."""
    rows = [made_up(number) for number in numbers]
    losses = [replace(loss(step, made.pair_id), total=9.0 / (step + 1)) for made in rows for step in range(STEPS)]
    out.commit(claim.lease(), {made.output: PICTURE for made in rows}, rows, losses)


def main() -> None:
    """Make a ledger, serve it, open the page, and say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=int)
    arguments = parser.parse_args()
    out, is_new = Out(str(arguments.folder)), not arguments.folder.exists()
    with out.claim("r1", "tar") as claim:
        for start in range(0, arguments.pairs if is_new else 0, PAIRS_A_FILE):
            commit(out, claim, range(start, min(start + PAIRS_A_FILE, arguments.pairs)))
    command = [sys.executable, "-m", "batchnst", "serve", out.address, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, open_browser() as browser:
        assert server.stdout
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        began = time.monotonic()
        page.goto(server.stdout.readline().strip())
        while not page.evaluate("pairs.id.length"):
            time.sleep(0.1)
        print(f"first pairs after {time.monotonic() - began:.1f} s", flush=True)
        while page.evaluate("pairs.id.length") < arguments.pairs:
            time.sleep(0.1)
        print(f"all {arguments.pairs} after {time.monotonic() - began:.1f} s", flush=True)
        status = Path(f"/proc/{server.pid}/status").read_text()
        print("memory of the server:", next(line for line in status.splitlines() if line.startswith("VmHWM")))
        frames = page.evaluate(SCROLL)
        print(f"frames while it scrolls: median {frames[60]:.0f} ms, longest {frames[-1]:.0f} ms", flush=True)
        began = time.monotonic()
        with out.claim("r1", "tar") as claim:
            commit(out, claim, [arguments.pairs])
        page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
        while page.evaluate("pairs.id.length") == arguments.pairs:
            time.sleep(0.05)
        print(f"a new pair is shown after {time.monotonic() - began:.1f} s")
        server.kill()


if __name__ == "__main__":
    main()
