"""Pictures of a collection, and the account of what was left out of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from batchnst.pictures import raw

MOST_NAMES = 20
"""Largest number of names that are not UTF-8 to tell."""

COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
"""Endings of compressed files, among them tars that are read from their beginning only."""

ADVICE = {
    **dict.fromkeys(COMPRESSED, "expand compressed archives to .tar, or write .zip"),
    ".jxl": "`pip install pillow-jxl-plugin` reads .jxl",
    **{ending: f"`pip install rawpy` reads {ending}" for ending in raw.ENDINGS},
}
"""Advice for files that are left out, by their ending."""


@dataclass(frozen=True)
class Picture:
    """A picture of a collection: its address, and its path relative to the collection's folder."""

    address: str
    inside: PurePosixPath


@dataclass
class LeftOut:
    """The files that were left out: `files` that are no pictures, with their endings, or what they are.

    pictures: with the option that left them out.
    unnamable: names that are not UTF-8. damage: what is wrong with an archive whose members were taken nevertheless.
    """

    files: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    unnamable: dict[str, None] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line for each name that is not UTF-8, up to MOST_NAMES, one for the others, and one for each damage."""
        more = len(self.unnamable) - MOST_NAMES
        lines = [f"left out: {name}: its name is not UTF-8; rename it" for name in list(self.unnamable)[:MOST_NAMES]]
        return [*lines, *([f"left out: {more} more such names"] if more > 0 else []), *self.damage]

    def line(self) -> str:
        """All of it, counted, in one line; empty if nothing was left out."""
        endings, options = Counter(self.files.values()), Counter(self.pictures.values())
        parts = [f"{count} {ending}" for ending, count in endings.most_common()]
        parts += [f"{count} {option}" for option, count in options.most_common()]
        advice = dict.fromkeys(text for ending, text in ADVICE.items() if ending in endings)
        return "; ".join([f"left out: {', '.join(parts)}", *advice]) if parts else ""
