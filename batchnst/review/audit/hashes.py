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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnst.chains import reading_order
from batchnst.errors import BatchNSTError, InputError, LedgerError
from batchnst.ledger.compaction import ENDINGS, is_counted
from batchnst.ledger.out import Out, attempt_filter
from batchnst.ledger.pictures.form import keys
from batchnst.ledger.pictures.stored import Found, Pictures
from batchnst.ledger.schema import ATTEMPT
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

_OF_PICTURE = [*ATTEMPT, "output"]
"""Columns of `pairs` that name a picture."""

AT_ONCE = 64
"""Files checked by the threads in one block."""


def pictures(
    out: Out, rows: pa.Table, damaged: pa.Table, ok: pa.Table, result: Audit, progress: Progress
) -> Iterator[Finding]:
    """Findings on pictures that differ from their rows, then on those without an ok row; sets `result.pictures`.

    The picture of a `damaged` row is not told beside that row.
    """
    result.pictures = len(ok)
    stored = out.pictures(unreadable=partial(unreadable, out, result), claims=True)
    columns = ok.select([*ATTEMPT, "output", "output_sha256", "width", "height"]).sort_by("pair_id")
    existing = {out.folder.relative(info.path) for info in out.folder.files("images")}
    found = list[Finding]()
    for i, finding in enumerate(stored.each(_with_claims(stored, columns), partial(_picture, existing))):
        if i % AT_ONCE == 0:
            progress(f"pictures {i}/{len(ok)}", i, len(ok))
        found += [finding] if finding else []
    yield from sorted(found, key=lambda finding: finding.pair_id or "")
    painted = rows.filter(pc.equal(rows["status"], "ok")).select(_OF_PICTURE)
    told = pa.concat_tables([damaged.select(_OF_PICTURE), painted], promote_options="default")
    yield from _unknown_files(out, existing, told)
    yield from unknown_entries(stored, told, "picture-unknown")


def unreadable(out: Out, result: Audit, file: str, error: LedgerError) -> None:
    """Add a finding on a file with many pictures that cannot be read."""
    result.findings.append(Finding(error.kind, None, str(error).replace(out.folder.path(file), file)))


def _with_claims(stored: Pictures, rows: pa.Table) -> pa.Table:
    """The rows with what the file of their picture says of it: its output and hash; null if it is a file of its own."""
    places = stored.places(rows)
    for name in ("path", "sha256"):
        rows = rows.append_column(f"claimed_{name}", stored.entries[name].take(places))
    return rows


def _unknown_files(out: Out, existing: set[str], told: pa.Table) -> Iterator[Finding]:
    """Findings on files with a picture of their own that no row of `told` names, and on files that are no pictures."""
    outputs = {f"images/{output}" for output in pc.unique(told["output"]).to_pylist()}
    others = {out.folder.relative(info.path) for info in out.folder.files("pictures")}
    foreign = {name for name in others if not name.endswith(ENDINGS["pictures"])}
    for name in sorted(filter(is_counted, existing - outputs | foreign)):
        yield Finding("picture-unknown", None, f"{name}: no row says that it was painted")


def unknown_entries(stored: Pictures, told: pa.Table, kind_of_unknown: str) -> Iterator[Finding]:
    """Findings on pictures in files with others that no row of `told` names, and on those that are there twice."""
    own = keys(stored.entries)
    first = pc.index_in(own, own).to_numpy()
    doubled = pa.array(first != np.arange(len(own)))
    unknown = pc.invert(pc.is_in(own, keys(told)))
    texts = {kind_of_unknown: "no row says that it was painted", "picture-doubled": "is there twice"}
    for (kind, text), which in zip(texts.items(), (unknown, doubled), strict=True):
        entries = stored.entries.filter(which).sort_by([("file", "ascending"), ("pair_id", "ascending")])
        for entry in entries.to_pylist():
            attempt = f"attempt {entry['attempt']} of run {entry['run_id']}"
            yield Finding(kind, entry["pair_id"], f"{entry['file']}: the picture of {attempt}: {text}")


def _picture(existing: set[str], row: dict[str, Any], picture: Found) -> Finding | None:
    """The first problem of a pair's picture; None if there is none."""
    name, data, pair_id = picture.name, picture.data, row["pair_id"]
    if picture.problem:
        return Finding("picture-damaged", pair_id, picture.problem)
    if data is None or (name.startswith("images/") and name not in existing):  # such as a link
        return Finding("picture-missing", pair_id, f"{name} is not there")
    try:
        kind, size = isolated.examine(data, name, (row["width"], row["height"]))
    except InputError as error:
        return Finding("picture-damaged", pair_id, str(error))
    expected = FORMATS.get(PurePosixPath(name).suffix.lower(), "any format that is painted")
    if kind != expected:
        return Finding("picture-format", pair_id, f"{name} is {kind}, not {expected}")
    if size != (row["width"], row["height"]):
        return Finding(
            "picture-size", pair_id, f"{name} has {size[0]}×{size[1]} pixels, not {row['width']}×{row['height']}"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != row["output_sha256"]:
        return Finding("picture-changed", pair_id, hash_differs(name, sha256, row["output_sha256"]))
    if (row["claimed_path"] or row["output"]) != row["output"]:
        return Finding("picture-changed", pair_id, f"{name} is called {row['claimed_path']!r} there")
    if (row["claimed_sha256"] or sha256) != sha256:
        return Finding("picture-changed", pair_id, f"{name}: its own column says another SHA-256")
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


def hash_differs(name: str, actual: str, expected: str | None) -> str:
    """The text of a finding on a file that has another hash than its row says."""
    return f"{name} has SHA-256 {actual[:12]}…, " + (f"not {expected[:12]}…" if expected else "but its row has none")


def in_threads(
    check: Callable[[dict[str, Any]], Finding | None], rows: pa.Table, name: str, out: Out | None, progress: Progress
) -> Iterator[Finding]:
    """The findings of `check` on each of `rows`, called in threads; `name` is the files' name in progress texts."""
    with ThreadPoolExecutor(out.folder.streams if out else 16) as pool:
        for start in range(0, len(rows), AT_ONCE):
            progress(f"{name} {start}/{len(rows)}", start, len(rows))
            yield from filter(None, pool.map(check, rows.slice(start, AT_ONCE).to_pylist()))
