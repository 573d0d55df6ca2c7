"""Put a run's pictures on one sheet, OUT/contact-sheet.png.

A row a photograph and a column a style, the results where they meet; or, where a photograph was painted in a style in
several ways, one picture after the other with its id and note.

    python contact_sheet.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from batchnst import read_ledger

WIDTH, HEIGHT, GAP = 256, 192, 8
COLUMNS = 4
CAPTION = 34
PAPER, INK, PALE = "white", "black", "dimgray"


def tile(path: Path) -> Image.Image:
    """A picture fitted into a tile."""
    with Image.open(path) as image:
        return ImageOps.pad(image.convert("RGB"), (WIDTH, HEIGHT), color=PAPER)


def by_style(out: Path, rows: list[dict[str, Any]]) -> Image.Image:
    """Photographs down, styles across."""
    contents = sorted({row["content"] for row in rows})
    styles = sorted({row["styles"][0] for row in rows})
    across, down = WIDTH + GAP, HEIGHT + GAP
    sheet = Image.new("RGB", (GAP + across * (1 + len(styles)), GAP + down * (1 + len(contents))), PAPER)
    for column, style in enumerate(styles, 1):
        sheet.paste(tile(Path(style)), (GAP + across * column, GAP))
    for row, content in enumerate(contents, 1):
        sheet.paste(tile(Path(content)), (GAP, GAP + down * row))
    for pair in rows:
        column, row = 1 + styles.index(pair["styles"][0]), 1 + contents.index(pair["content"])
        sheet.paste(tile(out / "images" / pair["output"]), (GAP + across * column, GAP + down * row))
    return sheet


def by_id(out: Path, rows: list[dict[str, Any]]) -> Image.Image:
    """One picture after the other, in the order they were asked for, with captions."""
    across, down = WIDTH + GAP, HEIGHT + CAPTION + GAP
    sheet = Image.new("RGB", (GAP + across * COLUMNS, GAP + down * -(-len(rows) // COLUMNS)), PAPER)
    draw, bold, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(11)
    for k, pair in enumerate(rows):
        x, y = GAP + across * (k % COLUMNS), GAP + down * (k // COLUMNS)
        sheet.paste(tile(out / "images" / pair["output"]), (x, y))
        draw.text((x, y + HEIGHT + 1), pair["pair_id"], INK, bold)
        draw.text((x, y + HEIGHT + 18), json.loads(pair["extra"]).get("note", ""), PALE, small)
    return sheet


def main() -> None:
    """Write the sheet beside the run's images, and say where."""
    out = Path(sys.argv[1])
    attempts = read_ledger(str(out), "pairs").to_table().sort_by("finished_at").to_pylist()
    newest = {row["pair_id"]: row for row in attempts}
    rows = [row for row in newest.values() if row["status"] == "ok"]
    rows.sort(key=lambda row: json.loads(row["extra"]).get("order", row["pair_id"]))
    combinations = {(row["content"], row["styles"][0]) for row in rows}
    sheet = by_style(out, rows) if len(combinations) == len(rows) else by_id(out, rows)
    path = out / "contact-sheet.png"
    sheet.save(path)
    print(path)


if __name__ == "__main__":
    main()
