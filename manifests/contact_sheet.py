"""Put a run's pictures on one sheet: a row a photograph, a column a style, the results where they meet.

python contact_sheet.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageOps

from batchnst import read_ledger

WIDTH, HEIGHT, GAP = 256, 192, 8
PAPER = "white"


def sheet(out: Path) -> Image.Image:
    """The contact sheet of the pairs that are done in `out`."""
    rows = read_ledger(str(out), "pairs").to_table().to_pylist()
    results = {(row["content"], row["styles"][0]): row["output"] for row in rows if row["status"] == "ok"}
    contents = sorted({content for content, _ in results})
    styles = sorted({style for _, style in results})
    across, down = WIDTH + GAP, HEIGHT + GAP
    picture = Image.new("RGB", (GAP + across * (1 + len(styles)), GAP + down * (1 + len(contents))), PAPER)

    def place(path: Path, column: int, row: int) -> None:
        with Image.open(path) as image:
            tile = ImageOps.pad(image.convert("RGB"), (WIDTH, HEIGHT), color=PAPER)
        picture.paste(tile, (GAP + across * column, GAP + down * row))

    for column, style in enumerate(styles, 1):
        place(Path(style), column, 0)
    for row, content in enumerate(contents, 1):
        place(Path(content), 0, row)
    for (content, style), output in results.items():
        place(out / "images" / output, 1 + styles.index(style), 1 + contents.index(content))
    return picture


def main() -> None:
    """Write the sheet beside the run's images, and say where."""
    out = Path(sys.argv[1])
    path = out / "contact-sheet.png"
    sheet(out).save(path)
    print(path)


if __name__ == "__main__":
    main()
