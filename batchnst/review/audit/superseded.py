"""Checks the pictures of earlier attempts, which OUT keeps when a pair is painted again."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.ledger.compaction import ENDINGS, SHARDS, is_counted
from batchnst.ledger.out import ORDERED_BY, Out, sort_rows
from batchnst.ledger.pictures.form import keys
from batchnst.ledger.pictures.stored import Found
from batchnst.ledger.previous import PREVIOUS, previous_name
from batchnst.ledger.schema import ATTEMPT
from batchnst.progress import Progress
from batchnst.review.audit.findings import Audit, Finding
from batchnst.review.audit.hashes import hash_differs, in_threads, unknown_entries, unreadable
from batchnst.storage.files import in_parallel

_COLUMNS = [*ATTEMPT, "output", "output_sha256"]
"""Columns of `pairs` that name a picture of an earlier attempt, and its hash."""

_ORDERED = list(dict.fromkeys([*_COLUMNS, *ORDERED_BY]))
"""These columns, and those by which attempts are put in order."""


def previous_pictures(
    out: Out, rows: pa.Table, damaged: pa.Table, newest: pa.Table, result: Audit, progress: Progress
) -> Iterator[Finding]:
    """Findings on pictures of earlier attempts, in `previous/` or elsewhere, that are not those of an ok row.

    Sets `result.previous`, the number of them. None needs to be there: people may remove them to make room. That of a
    `damaged` row is not told beside that row. newest: the newest of `rows` of each pair.
    """
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    yield from _together(out, ok.select(_COLUMNS), damaged, result)
    files = [out.folder.relative(info.path) for info in out.folder.files(PREVIOUS)]
    yield from _in_place(out, ok, newest, files, result)
    told = _known(damaged)
    listed = [name for name in files if not _has_many(name) and name not in told]
    known = _known(ok.filter(pc.is_in(ok["pair_id"], pa.array({name.split("/")[1] for name in listed}, pa.string()))))
    table = pa.Table.from_pylist([known[name] for name in listed if name in known])
    result.previous += len(table)
    yield from in_threads(partial(_picture, out), table, "earlier pictures", out, progress)
    for name in listed:
        if name not in known and is_counted(name.rpartition("/")[2]):
            yield Finding("previous-unknown", None, f"{name}: no row says that it was painted")


def _has_many(name: str) -> bool:
    """True for a file with the pictures of many attempts."""
    return name.count("/") == 1 and name.endswith(ENDINGS[PREVIOUS])


def _together(out: Out, ok: pa.Table, damaged: pa.Table, result: Audit) -> Iterator[Finding]:
    """Findings on pictures in files with many; adds their number to `result.previous`."""
    stored = out.pictures(tables=(PREVIOUS,), unreadable=partial(unreadable, out, result), claims=True)
    there = ok.filter(pc.is_valid(stored.places(ok)))
    result.previous += len(there)
    yield from sorted(filter(None, stored.each(there, _found)), key=lambda finding: finding.text)
    told = pa.concat_tables([damaged.select(_COLUMNS), ok], promote_options="default")
    yield from unknown_entries(stored, told, "previous-unknown")


def _found(row: dict[str, Any], picture: Found) -> Finding | None:
    """A finding if a picture in a file with many is not that of its row."""
    return _changed(picture.name, picture.data, [row])


def _changed(name: str, data: bytes | None, attempts: Sequence[dict[str, Any]]) -> Finding | None:
    """A finding if the picture `name` is that of none of these attempts at a pair, the newest last."""
    sha256, newest = hashlib.sha256(data or b"").hexdigest(), attempts[-1]
    if any(sha256 == row["output_sha256"] for row in attempts):
        return None
    return Finding("previous-changed", newest["pair_id"], hash_differs(name, sha256, newest["output_sha256"]))


def _in_place(out: Out, ok: pa.Table, newest: pa.Table, previous: Sequence[str], result: Audit) -> Iterator[Finding]:
    """Findings on pictures that stayed where they were painted, although the row of their pair is not the newest.

    That pair was painted again into a file of another form, or to another output, or failed when it was painted again.
    previous: the files under `previous/`.
    """
    earlier = ok.filter(pc.invert(pc.is_in(keys(ok), keys(newest)))).select(_ORDERED)
    if not len(earlier):
        return
    stored = out.pictures(tables=SHARDS, unreadable=lambda *_: None)  # these are findings already
    places = stored.places(earlier)
    files = stored.entries["file"].take(places.drop_null())
    together = earlier.filter(pc.is_valid(places)).filter(pc.starts_with(files, "pictures/"))
    result.previous += len(together)
    yield from sorted(filter(None, stored.each(together, _found)), key=lambda finding: finding.text)
    current = newest.filter(pc.and_(pc.equal(newest["status"], "ok"), pc.is_null(stored.places(newest))))
    apart = earlier.filter(pc.and_(pc.is_null(places), pc.invert(pc.is_in(earlier["output"], current["output"]))))
    expected = _expected(out, apart, previous)
    result.previous += len(expected)
    checked = in_parallel(
        lambda stayed: _changed(stayed[0], out.folder.read(stayed[0]), stayed[1]), expected.items(), out.folder.streams
    )
    yield from filter(None, checked)


def _expected(out: Out, apart: pa.Table, previous: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By each file under `images/` that is there, its attempts of `apart` that are not in `previous`, newest last."""
    there = {*previous, *(out.folder.relative(info.path) for info in out.folder.files("images"))}
    expected = defaultdict[str, list[dict[str, Any]]](list)
    for row in sort_rows(apart).to_pylist():
        kept = previous_name(row["pair_id"], row["run_id"], row["attempt"], row["output"])
        if (name := f"images/{row['output']}") in there and kept not in there:
            expected[name].append(row)
    return expected


def _known(rows: pa.Table) -> dict[str, dict[str, Any]]:
    """Pair and hash of the picture of each row, by its path in OUT; a damaged row may have none."""
    found = rows.select(_COLUMNS).to_pylist()
    names = (previous_name(row["pair_id"], row["run_id"], row["attempt"], row["output"] or "") for row in found)
    return {name: {"name": name, **row} for name, row in zip(names, found, strict=True)}


def _picture(out: Out, row: dict[str, Any]) -> Finding | None:
    """A finding if the file is not the picture of its row."""
    return _changed(row["name"], out.folder.read(row["name"]), [row])
