"""Compares pictures and inputs with the hashes in their rows."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.chains import reading_order
from batchnst.errors import BatchNSTError, InputError
from batchnst.ledger.compaction import is_counted
from batchnst.ledger.out import Out, attempt_filter
from batchnst.pictures import isolated
from batchnst.pictures.decode import DecodeOptions
from batchnst.pictures.encode import FORMATS, Provenance
from batchnst.progress import Progress
from batchnst.review.audit.findings import Audit, Finding
from batchnst.storage import files

INPUTS = (
    *("content", "content_sha256", "styles", "style_sha256"),
    *("content_masks", "style_masks", "mask_sha256", "recipe", "start_sha256"),
)
"""Columns of `pairs` that name the files of a pair and their hashes."""

AT_ONCE = 64
"""Files checked by the threads in one block."""


def pictures(out: Out, rows: pa.Table, ok: pa.Table, result: Audit, progress: Progress) -> Iterator[Finding]:
    """Findings on pictures that differ from their rows, then on those without an ok row; sets `result.pictures`."""
    existing = {out.folder.relative(info.path) for info in out.folder.files("images")}
    columns = ["pair_id", "output", "output_sha256", "width", "height"]
    result.pictures = len(ok)
    yield from in_threads(
        partial(_picture, out, existing), ok.select(columns).sort_by("pair_id"), "pictures", out, progress
    )
    painted = pc.unique(rows["output"].filter(pc.equal(rows["status"], "ok"))).to_pylist()
    unknown = existing - {f"images/{output}" for output in painted}
    for name in sorted(filter(is_counted, unknown)):
        yield Finding("picture-unknown", None, f"{name}: no row says that it was painted")


def _picture(out: Out, existing: set[str], row: dict[str, Any]) -> Finding | None:
    """The first problem of a pair's picture; None if there is none."""
    name, pair_id = f"images/{row['output']}", row["pair_id"]
    if name not in existing:
        return Finding("picture-missing", pair_id, f"{name} is not there")
    data = out.folder.read(name) or b""
    try:
        kind, size = isolated.examine(data, name, (row["width"], row["height"]))
    except InputError as error:
        return Finding("picture-damaged", pair_id, str(error))
    expected = FORMATS[PurePosixPath(name).suffix.lower()]
    if kind != expected:
        return Finding("picture-format", pair_id, f"{name} is {kind}, not {expected}")
    if size != (row["width"], row["height"]):
        return Finding(
            "picture-size", pair_id, f"{name} has {size[0]}×{size[1]} pixels, not {row['width']}×{row['height']}"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != row["output_sha256"]:
        return Finding("picture-changed", pair_id, hash_differs(name, sha256, row["output_sha256"]))
    return None


def trace(file: str, out: Out | None = None) -> tuple[Provenance, Finding | None]:
    """The provenance stored in a picture, and a finding if it differs from its row in `out`.

    Without `out` there is no finding. Raises InputError if the file cannot be read or has no provenance.
    """
    data = files.read_at_most(file, DecodeOptions().max_file_bytes, "a painted picture has at most")
    origin = isolated.read_provenance(data, file)
    if out is None:
        return origin, None
    rows = out.rows("pairs", ["output_sha256"], matching=attempt_filter(asdict(origin)))
    sha256 = hashlib.sha256(data).hexdigest()
    if not len(rows):
        return origin, Finding("picture-unknown", origin.pair_id, f"{file}: no row says that it was painted")
    if sha256 not in rows["output_sha256"].to_pylist():
        text = hash_differs(file, sha256, rows["output_sha256"][0].as_py())
        return origin, Finding("picture-changed", origin.pair_id, text)
    return origin, None


def inputs(ok: pa.Table, result: Audit, progress: Progress) -> Iterator[Finding]:
    """Findings on inputs that have changed, one for each file and its first pair; sets `result.inputs`."""
    uses: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in ok.select(["pair_id", *INPUTS]).sort_by("pair_id").to_pylist():
        for source in dict.fromkeys(_inputs(row)):
            uses[source].append(row["pair_id"])
    result.inputs = len(uses)
    table = pa.Table.from_pylist(
        [
            {"address": address, "sha256": sha256, "pairs": uses[address, sha256]}
            for address, sha256 in sorted(uses, key=lambda source: reading_order(source[0]))
        ]
    )
    yield from in_threads(_input, table, "inputs", None, progress)


def _inputs(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The address and hash of each file that a pair was painted from."""
    masks = [*row["content_masks"], *row["style_masks"]]
    yield row["content"], row["content_sha256"]
    yield from zip(row["styles"], row["style_sha256"], strict=True)
    yield from zip(masks, row["mask_sha256"] or [], strict=False)  # batchnst 0.1.0 had no hashes of masks
    if row["start_sha256"]:
        yield json.loads(row["recipe"])["init"], row["start_sha256"]


def _input(row: dict[str, Any]) -> Finding | None:
    """A finding if the input at `address` is missing or has another `sha256`; `pairs` are the ids that use it."""
    first, others = row["pairs"][0], len(row["pairs"]) - 1
    also = f" (and of {others} more {'pair' if others == 1 else 'pairs'})" if others else ""
    try:
        sha256 = files.sha256_of(row["address"])
    except BatchNSTError as error:
        return Finding("input-missing", first, f"{error}{also}")
    if sha256 != row["sha256"]:
        return Finding("input-changed", first, hash_differs(row["address"], sha256, row["sha256"]) + also)
    return None


def hash_differs(name: str, actual: str, expected: str) -> str:
    """The text of a finding on a file that has another hash than its row says."""
    return f"{name} has SHA-256 {actual[:12]}…, not {expected[:12]}…"


def in_threads(
    check: Callable[[dict[str, Any]], Finding | None], rows: pa.Table, name: str, out: Out | None, progress: Progress
) -> Iterator[Finding]:
    """The findings of `check` on each of `rows`, called in threads; `name` is the files' name in progress texts."""
    with ThreadPoolExecutor(out.folder.streams if out else 16) as pool:
        for start in range(0, len(rows), AT_ONCE):
            progress(f"{name} {start}/{len(rows)}", start, len(rows))
            yield from filter(None, pool.map(check, rows.slice(start, AT_ONCE).to_pylist()))
