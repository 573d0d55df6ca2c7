"""Checks of files against the hashes in their rows: pictures, contents and styles."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from batchnst.errors import BatchNSTError
from batchnst.ledger.out import Out, of_attempt
from batchnst.pictures.decode import formats
from batchnst.pictures.encode import FORMATS, Provenance, provenance
from batchnst.progress import Progress
from batchnst.review.audit.findings import Audit, Finding
from batchnst.storage import files

AT_ONCE = 64
"""Files that are looked at in threads before what was found is taken up."""


def pictures(out: Out, rows: pa.Table, ok: pa.Table, result: Audit, progress: Progress) -> Iterator[Finding]:
    """Pictures that are not as their rows say, then those that no row knows."""
    there = {out.folder.relative(info.path) for info in out.folder.files("images")}
    columns = ["pair_id", "output", "output_sha256", "width", "height"]
    result.pictures = len(ok)
    yield from _in_threads(
        partial(_picture, out, there), ok.select(columns).sort_by("pair_id"), "pictures", out, progress
    )
    painted = pc.unique(rows["output"].filter(pc.equal(rows["status"], "ok"))).to_pylist()
    for name in sorted(there - {f"images/{output}" for output in painted}):
        yield Finding("picture-unknown", None, f"{name}: no row says that it was painted")


def _picture(out: Out, there: set[str], row: dict[str, Any]) -> Finding | None:
    name, pair_id = f"images/{row['output']}", row["pair_id"]
    if name not in there:
        return Finding("picture-missing", pair_id, f"{name} is not there")
    data = out.folder.read(name) or b""
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            image.load()
            kind, size = image.format, image.size
    except Exception as error:  # whatever a decoder does with a damaged file
        return Finding("picture-damaged", pair_id, f"{name} cannot be decoded: {error}")
    expected = FORMATS[PurePosixPath(name).suffix.lower()]
    if kind != expected:
        return Finding("picture-format", pair_id, f"{name} is {kind}, not {expected}")
    if size != (row["width"], row["height"]):
        return Finding(
            "picture-size", pair_id, f"{name} has {size[0]}×{size[1]} pixels, not {row['width']}×{row['height']}"
        )
    found = hashlib.sha256(data).hexdigest()
    if found != row["output_sha256"]:
        return Finding("picture-changed", pair_id, _unlike(name, found, row["output_sha256"]))
    return None


def trace(file: str, out: Out | None = None) -> tuple[Provenance, Finding | None]:
    """What a picture says of itself, and, if its OUT is given, what is wrong about that; raises InputError."""
    data = files.read(file)
    said = provenance(data, file)
    if out is None:
        return said, None
    rows = out.rows("pairs", ["output_sha256"], matching=of_attempt(asdict(said)))
    found = hashlib.sha256(data).hexdigest()
    if not len(rows):
        return said, Finding("picture-unknown", said.pair_id, f"{file}: no row says that it was painted")
    if found not in rows["output_sha256"].to_pylist():
        text = _unlike(file, found, rows["output_sha256"][0].as_py())
        return said, Finding("picture-changed", said.pair_id, text)
    return said, None


def inputs(ok: pa.Table, result: Audit, progress: Progress) -> Iterator[Finding]:
    """Contents and styles that are not what they were, each named once, with the first pair it concerns."""
    uses: dict[tuple[str, str], list[str]] = defaultdict(list)
    columns = ["pair_id", "content", "content_sha256", "styles", "style_sha256"]
    for row in ok.select(columns).sort_by("pair_id").to_pylist():
        inputs = [(row["content"], row["content_sha256"]), *zip(row["styles"], row["style_sha256"], strict=True)]
        for used in dict.fromkeys(inputs):
            uses[used].append(row["pair_id"])
    result.inputs = len(uses)
    table = pa.Table.from_pylist(
        [{"address": address, "sha256": sha256, "pairs": pairs} for (address, sha256), pairs in uses.items()]
    )
    yield from _in_threads(_input, table, "inputs", None, progress)


def _input(row: dict[str, Any]) -> Finding | None:
    first, others = row["pairs"][0], len(row["pairs"]) - 1
    also = f" (and of {others} more {'pair' if others == 1 else 'pairs'})" if others else ""
    try:
        found = hashlib.sha256(files.read(row["address"])).hexdigest()
    except BatchNSTError as error:
        return Finding("input-missing", first, f"{error}{also}")
    if found != row["sha256"]:
        return Finding("input-changed", first, _unlike(row["address"], found, row["sha256"]) + also)
    return None


def _unlike(name: str, found: str, wanted: str) -> str:
    return f"{name} has SHA-256 {found[:12]}…, not {wanted[:12]}…"


def _in_threads(
    look: Callable[[dict[str, Any]], Finding | None], rows: pa.Table, what: str, out: Out | None, progress: Progress
) -> Iterator[Finding]:
    """What a look at each row finds, a block of rows at a time."""
    with ThreadPoolExecutor(out.folder.streams if out else 16) as pool:
        for start in range(0, len(rows), AT_ONCE):
            progress(f"{what} {start}/{len(rows)}", start, len(rows))
            yield from filter(None, pool.map(look, rows.slice(start, AT_ONCE).to_pylist()))
