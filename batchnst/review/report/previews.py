"""The report's pictures: each once, made small enough for all of them to fit into one file."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageOps

from batchnst.errors import StorageError
from batchnst.ledger.out import Out
from batchnst.pictures import decode
from batchnst.progress import Progress
from batchnst.storage import files

SIDES = (768, 640, 512, 448, 384, 320, 256, 224, 192, 160, 128, 96)
"""Longest sides that previews may have."""

QUALITY = 78

SAMPLES = 48
"""Pictures that are made small to see how many bytes that takes."""

BYTES, BYTES_A_PAIR = 18_000_000, 5_500
"""What all previews together may take; the page is a third larger."""


@dataclass(frozen=True)
class Wanted:
    """A picture to be shown: its address, or path in OUT; its hash where that is known; how many times smaller."""

    address: str
    in_out: bool = False
    sha256: str | None = None
    smaller: int = 1


@dataclass(frozen=True)
class Preview:
    """A picture as the page has it: WebP in base64; or why there is none."""

    text: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


class Album:
    """The pictures of a page, numbered in the order in which they are asked for."""

    def __init__(self, out: Out) -> None:
        self.out = out
        self._numbers: dict[Wanted, int] = {}
        self._lost_stores: set[str] = set()

    def number(self, wanted: Wanted) -> int:
        """The number of a picture, which will be in the page."""
        return self._numbers.setdefault(wanted, len(self._numbers))

    def previews(self, pairs: int, progress: Progress) -> list[Preview]:
        """All pictures, by number, in a size in which those of so many pairs fit into the page."""
        wanted, found = list(self._numbers), []
        with ThreadPoolExecutor((os.cpu_count() or 1) if self.out.folder.local else self.out.folder.streams) as pool:
            side = self._side(pool, wanted, BYTES + BYTES_A_PAIR * pairs)
            for preview in pool.map(partial(self._preview, side), wanted):
                found.append(preview)
                progress(f"{len(found)} of {len(wanted)} pictures", len(found), len(wanted))
        return found

    def _side(self, pool: ThreadPoolExecutor, wanted: Sequence[Wanted], most_bytes: int) -> int:
        """The largest of SIDES in which the pictures take so many bytes, by what some of them take."""
        full = sum(1 / item.smaller**2 for item in wanted)
        sample = [item for item in wanted if item.smaller == 1]
        sample = sample[:: -(-len(sample) // SAMPLES) or 1]
        for side in SIDES:
            size = sum(len(preview.text) for preview in pool.map(partial(self._preview, side), sample)) * 3 / 4
            if size / max(len(sample), 1) * full <= most_bytes:
                return side
        return SIDES[-1]

    def _preview(self, side: int, wanted: Wanted) -> Preview:
        try:
            data = self._read(wanted)
            if data is None:
                return Preview(problem="missing")
            return _shrink(data, side // wanted.smaller, "" if _is(data, wanted.sha256) else "changed since")
        except Exception:
            # A picture that is gone, torn or out of reach is for `run` and `audit` to tell of; the page shows the rest.
            return Preview(problem="cannot be read")

    def _read(self, wanted: Wanted) -> bytes | None:
        if wanted.in_out:
            return self.out.folder.read(wanted.address)
        store = "/".join(wanted.address.split("/")[:3]) if files.is_uri(wanted.address) else None
        if store in self._lost_stores:
            raise StorageError(f"{store}: does not answer")
        try:
            return files.read(wanted.address)
        except StorageError:
            if store:
                self._lost_stores.add(store)  # ten thousand times the wait for an answer would take the day
            raise


def _is(data: bytes, sha256: str | None) -> bool:
    return sha256 is None or hashlib.sha256(data).hexdigest() == sha256


def _shrink(data: bytes, side: int, problem: str) -> Preview:
    with Image.open(io.BytesIO(data), formats=decode.formats()) as image:
        image.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded no larger than is of use
        picture = decode.to_rgb(ImageOps.exif_transpose(image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=2)
    return Preview(base64.b64encode(buffer.getvalue()).decode(), *picture.size, problem)
