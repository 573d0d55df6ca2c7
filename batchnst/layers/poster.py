"""The sheet as one picture: a row a layer, from the first to the deepest."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from batchnst.layers.contributions import Contribution, percent
from batchnst.layers.excitement import Channel
from batchnst.layers.sheet import LEGEND, Given, Sheet, View

PAPER, LINE, INK, MUTED, ACCENT = "#faf9f6", "#dcd7cc", "#1d1c1a", "#6a665f", "#2f5d8a"

BLOCK, SEAM = 220, 2
"""Side of a channel's patches together, and of every other picture; between two patches. All lengths are in pixels."""

MARGIN, LABEL, HEADS, ROW, GUTTER = 64, 290, 136, 56, 26
"""Around everything; of the layers' names; of the columns' heads; between two rows; between two columns."""

WORDS = 1280
"""Where the words above the sheet end, at the least."""

LARGE, MIDDLE, SMALL = 80, 34, 23
"""Sizes of type."""


def poster(sheet: Sheet) -> Image.Image:
    """The sheet, RGB."""
    drawn = _Poster(sheet)
    drawn.draw()
    return drawn.image


class _Poster:
    """A canvas, and where things stand on it."""

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
        """Everything."""
        self._title()
        self._heads(self._channel(0), "Strongest channels", "the patches that excite each of them most", math.inf)
        self._given(self.content, "Content", self.sheet.content)
        self._given(self.style, "Style", self.sheet.style)
        if self.has_shares:
            self._heads(self.shares, "Style loss", "share of a layer")
        for i, view in enumerate(self.sheet.views):
            self._row(view, self.top + i * (BLOCK + ROW))

    def _title(self) -> None:
        most = self.content - MARGIN - 2 * GUTTER
        self._text(MARGIN - 3, MARGIN - 22, self.sheet.title, LARGE, INK, most)
        for i, line in enumerate((*LEGEND, self.sheet.origin)):
            self._text(MARGIN, MARGIN + 92 + 35 * i, line, SMALL, MUTED, most)

    def _given(self, left: int, what: str, given: Given) -> None:
        self._picture(given.image, left, MARGIN)
        self._heads(left, f"{what} alone", given.name)

    def _heads(self, left: int, text: str, note: str, most: float = BLOCK) -> None:
        top = MARGIN + BLOCK + 34
        self._text(left, top, text, SMALL, INK, most)
        self._text(left, top + 32, note, SMALL, MUTED, most)

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
        """What a position sees, in a picture of the size that the network saw."""
        bottom, side = top + BLOCK, 64
        seen = max(2, min(side, round(side * view.field.size / self.sheet.recipe.size)))
        left, upper = MARGIN + (side - seen) // 2, bottom - (side + seen) // 2
        self.pen.rectangle((MARGIN, bottom - side, MARGIN + side - 1, bottom - 1), None, MUTED, 2)
        self.pen.rectangle((left, upper, left + seen - 1, upper + seen - 1), ACCENT)

    def _patches(self, channel: Channel, left: int, top: int) -> None:
        across = channel.across
        self.pen.rectangle((left - 1, top - 1, left + BLOCK, top + BLOCK), LINE)  # where a patch is transparent
        side = (BLOCK - SEAM * (across - 1)) // across
        for patch, (row, column) in zip(channel.patches, product(range(across), repeat=2), strict=False):
            kind = Image.Resampling.NEAREST if patch.image.width < side else Image.Resampling.LANCZOS
            image = patch.image.resize((side, side), kind)
            self.image.paste(image, (left + column * (side + SEAM), top + row * (side + SEAM)), image)

    def _picture(self, image: Image.Image, left: int, top: int) -> None:
        self.image.paste(ImageOps.contain(image, (BLOCK, BLOCK)), (left, top))

    def _contribution(self, own: Contribution, top: int) -> None:
        for share, when, colour, y in ((own.before, "first", MUTED, top), (own.after, "last", ACCENT, top + 76)):
            self._text(self.shares, y - 6, f"{percent(share)} at {when}", SMALL, INK)
            self.pen.rectangle((self.shares, y + 32, self.shares + BLOCK, y + 52), LINE)
            self.pen.rectangle((self.shares, y + 32, self.shares + round(BLOCK * share), y + 52), colour)
        self._text(self.shares, top + 158, "its own falls", SMALL, MUTED)
        self._text(self.shares, top + 190, f"to {percent(own.left)}", SMALL, MUTED)

    def _text(self, left: float, top: float, text: str, size: int, colour: str, most: float = math.inf) -> None:
        """A line of text, cut where it would be longer than `most`."""
        font = _font(size)
        if font.getlength(text) > most:
            while text and font.getlength(text + "…") > most:
                text = text[:-1]
            text += "…"
        self.pen.text((left, top), text, colour, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Fonts that come with matplotlib: they have Greek and Cyrillic letters, too; Pillow's own has ASCII alone."""
    name = "STIXGeneral.ttf" if size == LARGE else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
