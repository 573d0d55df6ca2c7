"""The sheet as one picture: a row for each layer, from the first to the deepest."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from batchnst.layers.contributions import Contribution, percent
from batchnst.layers.excitement import Channel
from batchnst.layers.sheet import LEGEND, NamedImage, Sheet, View

PAPER, LINE, INK, MUTED, ACCENT = "#faf9f6", "#dcd7cc", "#1d1c1a", "#6a665f", "#2f5d8a"
"""Colours."""

BLOCK, SEAM = 220, 2
"""BLOCK: side of a channel's square of patches, and of every other picture. SEAM: gap between two patches.

All lengths in this module are in pixels.
"""

MARGIN, LABEL, HEADS, ROW, GUTTER = 64, 290, 136, 56, 26
"""MARGIN: border around everything. LABEL: width of the layers' names. HEADS: height of the columns' heads. ROW: gap
between two rows. GUTTER: gap between two columns.
"""

WORDS = 1280
"""Least right end of the title and the legend."""

LARGE, MIDDLE, SMALL = 80, 34, 23
"""Font sizes."""


def poster(sheet: Sheet) -> Image.Image:
    """Draw `sheet` as an RGB picture."""
    canvas = _Poster(sheet)
    canvas.draw()
    return canvas.image


class _Poster:
    """A canvas with the left ends of its columns: `content`, `style` and `shares`."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet
        self.content = max(WORDS, self._channel(max(len(view.channels) for view in sheet.views))) + GUTTER
        self.style = self._after(self.content)
        self.shares = self._after(self.style) + GUTTER
        self.has_shares = any(view.contribution for view in sheet.views)
        width = (self.shares if self.has_shares else self.style) + BLOCK + MARGIN
        self.top = MARGIN + BLOCK + HEADS
        self.image = Image.new("RGB", (width, self.top + len(sheet.views) * (BLOCK + ROW) + MARGIN - ROW), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    @staticmethod
    def _after(left: int) -> int:
        return left + BLOCK + GUTTER

    def _channel(self, i: int) -> int:
        return MARGIN + LABEL + i * (BLOCK + GUTTER)

    def draw(self) -> None:
        """Draw the whole poster."""
        self._title()
        self._heads(self._channel(0), "Strongest channels", "the patches that excite each of them most", math.inf)
        self._input(self.content, "Content", self.sheet.content)
        self._input(self.style, "Style", self.sheet.style)
        if self.has_shares:
            self._heads(self.shares, "Style loss", "share by layer")
        for i, view in enumerate(self.sheet.views):
            self._row(view, self.top + i * (BLOCK + ROW))

    def _title(self) -> None:
        width = self.content - MARGIN - 2 * GUTTER
        self._text(MARGIN - 3, MARGIN - 22, self.sheet.title, LARGE, INK, width)
        for i, line in enumerate((*LEGEND, self.sheet.origin)):
            self._text(MARGIN, MARGIN + 92 + 35 * i, line, SMALL, MUTED, width)

    def _input(self, left: int, term: str, image: NamedImage) -> None:
        self._picture(image.image, left, MARGIN)
        self._heads(left, f"{term} alone", image.name)

    def _heads(self, left: int, text: str, caption: str, width: float = BLOCK) -> None:
        top = MARGIN + BLOCK + 34
        self._text(left, top, text, SMALL, INK, width)
        self._text(left, top + 32, caption, SMALL, MUTED, width)

    def _row(self, view: View, top: int) -> None:
        self.pen.line((MARGIN, top - ROW // 2, self.image.width - MARGIN, top - ROW // 2), LINE, 2)
        self._text(MARGIN, top - 8, view.layer.name, MIDDLE, INK)
        for i, fact in enumerate(view.facts):
            self._text(MARGIN, top + 42 + 33 * i, fact, SMALL, MUTED)
        self._field(view, top)
        for i, channel in enumerate(view.channels):
            self._patches(channel, self._channel(i), top)
        self._picture(view.content, self.content, top)
        self._picture(view.texture, self.style, top)
        if view.contribution:
            self._contribution(view.contribution, top)

    def _field(self, view: View, top: int) -> None:
        """Draw the layer's receptive field inside the outline of a picture."""
        bottom, side = top + BLOCK, 64
        field = max(2, min(side, round(side * view.field.size / self.sheet.side)))
        left, upper = MARGIN + (side - field) // 2, bottom - (side + field) // 2
        self.pen.rectangle((MARGIN, bottom - side, MARGIN + side - 1, bottom - 1), None, MUTED, 2)
        self.pen.rectangle((left, upper, left + field - 1, upper + field - 1), ACCENT)

    def _patches(self, channel: Channel, left: int, top: int) -> None:
        across = channel.across
        self.pen.rectangle((left - 1, top - 1, left + BLOCK, top + BLOCK), LINE)  # shows where a patch is transparent
        side = (BLOCK - SEAM * (across - 1)) // across
        for patch, (row, column) in zip(channel.patches, product(range(across), repeat=2), strict=False):
            resample = Image.Resampling.NEAREST if patch.image.width < side else Image.Resampling.LANCZOS
            image = patch.image.resize((side, side), resample)
            self.image.paste(image, (left + column * (side + SEAM), top + row * (side + SEAM)), image)

    def _picture(self, image: Image.Image, left: int, top: int) -> None:
        self.image.paste(ImageOps.contain(image, (BLOCK, BLOCK)), (left, top))

    def _contribution(self, contribution: Contribution, top: int) -> None:
        bars = (contribution.before, "first", MUTED, top), (contribution.after, "last", ACCENT, top + 76)
        for share, step, colour, y in bars:
            self._text(self.shares, y - 6, f"{percent(share)} at {step}", SMALL, INK)
            self.pen.rectangle((self.shares, y + 32, self.shares + BLOCK, y + 52), LINE)
            self.pen.rectangle((self.shares, y + 32, self.shares + round(BLOCK * share), y + 52), colour)
        self._text(self.shares, top + 158, "its own loss falls", SMALL, MUTED)
        self._text(self.shares, top + 190, f"to {percent(contribution.remaining)}", SMALL, MUTED)

    def _text(self, left: float, top: float, text: str, size: int, colour: str, width: float = math.inf) -> None:
        """Draw a line of text, cut off with … if it is wider than `width`."""
        font = _font(size)
        if font.getlength(text) > width:
            while text and font.getlength(text + "…") > width:
                text = text[:-1]
            text += "…"
        self.pen.text((left, top), text, colour, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Load one of matplotlib's fonts: they have Greek and Cyrillic letters, Pillow's own has only ASCII."""
    name = "STIXGeneral.ttf" if size == LARGE else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
