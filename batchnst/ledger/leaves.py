"""The leaves of a seal: one for each row of `runs` and `pairs`, each attempt's losses, and each picture of OUT.

A leaf is a row of a small table, with the columns of LEAVES:

    kind                       runs, pairs, losses or pictures
    run_id, pair_id, attempt   of the row, or of the losses; for a picture those of the newest ok row that names it
    output                     `output` of a picture's row, or its path under images/; null for the others
    sha256                     hash of the content

The content of a row is the canonical form of its columns without `run_id`, `pair_id` and `attempt`. That of losses is
the canonical form of an attempt's rows, without these columns too, end to end and in the order of their steps. That of
a picture is its file. The leaf itself is hashed in its canonical form, so the root binds all its columns.

Leaves are sorted by kind, pair_id, run_id, attempt, output and sha256: texts by their bytes, null last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from numpy.typing import NDArray

from batchnst.errors import LedgerError
from batchnst.ledger import merkle, parquet
from batchnst.ledger.canonical import encode_rows, slices
from batchnst.ledger.compaction import SHARDS, is_counted
from batchnst.ledger.out import ORDERED_BY, Out, newest_rows
from batchnst.ledger.pictures.form import keys
from batchnst.ledger.pictures.stored import Pictures
from batchnst.ledger.schema import ATTEMPT, SCHEMAS, VERSION
from batchnst.progress import Progress
from batchnst.storage.files import in_parallel

LEAVES = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("pair_id", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("attempt", pa.int64()),
        pa.field("output", pa.string()),
        pa.field("sha256", pa.binary(merkle.SIZE), nullable=False),
    ]
)
"""Columns of the leaves, in the order of their sort keys."""

NAMES = {"losses": "curves", "pairs": "rows of pairs", "pictures": "pictures", "runs": "rows of runs"}
"""The kinds of leaves, sorted, and what they are called. Counts come after the names."""

PART_BYTES = 4 << 20
"""Most bytes of ledger files that are read together, unless a single file is larger."""

BLOCK = 1 << 14
"""Rows encoded at a time."""

_OWNER = (*ATTEMPT, "output", *(name for name in ORDERED_BY if name != "attempt"))
"""Columns of `pairs` that say which row names a picture."""


def leaves_of(out: Out, progress: Progress, *, skip_unreadable: bool = False) -> tuple[pa.Table, int]:
    """The leaves of OUT, sorted; and the number of pictures that are missing or differ from their rows.

    Raises LedgerError for a file of the ledger or with pictures that cannot be read, unless it is to be skipped;
    StorageError if OUT fails.
    """
    read = partial(_parts, out, progress, skip_unreadable)
    pairs, owners = _pair_leaves(read)
    stored = out.pictures(tables=SHARDS, unreadable=(lambda *_: None) if skip_unreadable else None)
    pictures = _sorted([_picture_leaves(out, stored, owners, progress)])
    losses, runs = _loss_leaves(read), _sorted(_row_leaves("runs", part) for part in read("runs"))
    return pa.concat_tables([losses, pairs, pictures, runs]), _differing(owners, pictures)


def hashes_of(leaves: pa.Table) -> bytes:
    """The hash of each leaf, end to end."""
    return b"".join(merkle.leaf_hashes(encode_rows(batch)) for batch in leaves.to_batches(max_chunksize=BLOCK))


def _parts(out: Out, progress: Progress, skip_unreadable: bool, table: str) -> Iterator[pa.Table]:
    """The rows of a table, some files at a time."""
    files, done = out.files(table), 0
    for group in in_parts(files):
        progress(f"ledger, {table} {done}/{len(files)}", done, len(files))
        read = partial(_read, out, table, skip_unreadable)
        parts = in_parallel(read, group, out.folder.streams)
        yield pa.concat_tables(parts, promote_options="permissive").combine_chunks()
        done += len(group)


def in_parts(files: Sequence[pafs.FileInfo]) -> Iterator[list[pafs.FileInfo]]:
    """The files of a table in groups of at most PART_BYTES."""
    group, size = list[pafs.FileInfo](), 0
    for info in files:
        if group and size + info.size > PART_BYTES:
            yield group
            group, size = [], 0
        group.append(info)
        size += info.size
    if group:
        yield group


def _read(out: Out, table: str, skip_unreadable: bool, info: pafs.FileInfo) -> pa.Table:
    """The rows of a file, with all its columns; those that this version knows have the types of its schema."""
    try:
        rows = parquet.read(out.folder, info)
        missing = [field for field in SCHEMAS[table] if field.nullable and field.name not in rows.column_names]
        rows = pa.concat_tables([rows, pa.schema(missing).empty_table()], promote_options="default")
        known = rows.select(SCHEMAS[table].names).cast(parquet.with_gaps(SCHEMAS[table]))
        for name in set(rows.column_names) - set(known.column_names):
            known = known.append_column(name, rows[name])
        encode_rows(known.slice(0, 1))  # raises for types that have no canonical form
        return known
    except FileNotFoundError:
        raise LedgerError(f"{info.path}: was merged with other files meanwhile; run the command again") from None
    except LedgerError:
        if not skip_unreadable:
            raise
    except (KeyError, ValueError, pa.ArrowException) as error:
        if not skip_unreadable:
            text = f"{info.path}: its columns are not those of schema {VERSION}: {error}"
            raise LedgerError(text, "schema") from None
    return parquet.with_gaps(SCHEMAS[table]).empty_table()


def _pair_leaves(read: Any) -> tuple[pa.Table, pa.Table]:
    """The leaves of the rows of `pairs`; and the newest ok row for each output, with its picture's hash as `sha256`."""
    leaves, owners = list[pa.Table](), list[pa.Table]()
    for part in read("pairs"):
        leaves.append(_row_leaves("pairs", part))
        ok = part.filter(pc.equal(part["status"], "ok"))
        hashes = pa.array(map(_from_hex, ok["output_sha256"].to_pylist()), pa.binary(merkle.SIZE))
        owners.append(ok.select(_OWNER).append_column("sha256", hashes))
    if not owners:
        owners = [parquet.empty("pairs", _OWNER).append_column("sha256", pa.array([], pa.binary(merkle.SIZE)))]
    return _sorted(leaves), newest_rows(pa.concat_tables(owners), by="output")


def _from_hex(text: str | None) -> bytes | None:
    """The bytes of a SHA-256 in hexadecimal; None if it is none."""
    try:
        data = bytes.fromhex(text or "")
    except ValueError:
        return None
    return data if len(data) == merkle.SIZE else None


def _row_leaves(kind: str, rows: pa.Table) -> pa.Table:
    """A leaf for each row."""
    keys = [name for name in ATTEMPT if name in rows.column_names]
    content, digests = rows.drop_columns(keys), list[bytes]()
    for batch in content.to_batches(max_chunksize=BLOCK):
        data, ends = slices(encode_rows(batch))
        digests += [hashlib.sha256(data[begin:end]).digest() for begin, end in pairwise(ends.tolist())]
    return _leaves(kind, digests, {name: rows[name] for name in keys})


def _leaves(kind: str, digests: Sequence[bytes], columns: dict[str, Any]) -> pa.Table:
    count = len(digests)
    columns = {"kind": pa.repeat(kind, count), "sha256": pa.array(digests, pa.binary(merkle.SIZE)), **columns}
    absent = {field.name: pa.nulls(count, field.type) for field in LEAVES if field.name not in columns}
    return pa.table({name: (columns | absent)[name] for name in LEAVES.names}, schema=LEAVES)


def _sorted(parts: Iterable[pa.Table]) -> pa.Table:
    """Leaves of one kind, sorted."""
    leaves = pa.concat_tables([LEAVES.empty_table(), *parts]).combine_chunks()
    keys = [(name, "ascending") for name in LEAVES.names if leaves[name].null_count < len(leaves)]
    return leaves.take(pc.sort_indices(leaves, keys)) if len(leaves) > 1 else leaves


# Losses -------------------------------------------------------------------------------------------------------------


def _loss_leaves(read: Any) -> pa.Table:
    """A leaf for each attempt's losses. Attempts whose rows are in several parts are read once more, together."""
    leaves = _sorted(leaf for part in read("losses") for leaf in _curves(part))
    if not len(torn := _repeated(leaves)):
        return leaves
    again = [part.filter(pc.is_in(part["pair_id"], torn)) for part in read("losses")]
    whole = list(_curves(pa.concat_tables(again, promote_options="permissive").combine_chunks()))
    return _sorted([leaves.filter(pc.invert(pc.is_in(leaves["pair_id"], torn))), *whole])


def _repeated(leaves: pa.Table) -> pa.Array:
    """Ids of the pairs of which sorted `leaves` have an attempt more than once."""
    same = np.ones(max(len(leaves) - 1, 0), bool)
    for name in ATTEMPT:
        values = leaves[name].combine_chunks()
        same &= pc.fill_null(pc.equal(values[1:], values[:-1]), False).to_numpy(zero_copy_only=False)
    return pc.unique(leaves["pair_id"].combine_chunks()[1:].filter(pa.array(same)))


def _curves(rows: pa.Table) -> Iterator[pa.Table]:
    """A leaf for each attempt in `rows` of `losses`."""
    attempts = _codes(rows)
    steps = pc.fill_null(rows["step"], -1).to_numpy()
    if not _in_order(attempts, steps):
        order = np.lexsort((steps, attempts))
        rows, attempts, steps = rows.take(pa.array(order)), attempts[order], steps[order]
    starts = np.append(np.flatnonzero(np.diff(attempts, prepend=-1)), len(rows))
    for first, last in _blocks(starts):
        own = starts[first : last + 1]
        part = rows.slice(own[0], own[-1] - own[0])
        encoded = encode_rows(part.drop_columns(ATTEMPT))
        digests = _digests(encoded, steps[own[0] : own[-1]], own - own[0])
        yield _leaves("losses", digests, {name: part[name].take(pa.array(own[:-1] - own[0])) for name in ATTEMPT})


def _codes(rows: pa.Table) -> NDArray[np.int64]:
    """A number for each row that tells attempts apart (N,)."""
    codes = np.zeros(len(rows), np.int64)
    for name in ATTEMPT:
        values = rows[name].combine_chunks().dictionary_encode(null_encoding="encode")
        codes = codes * len(values.dictionary) + values.indices.to_numpy()
    return codes


def _in_order(attempts: NDArray[np.int64], steps: NDArray[np.int64]) -> bool:
    """True if the rows of each attempt are together, and in the order of their steps."""
    same = attempts[1:] == attempts[:-1]
    together = np.count_nonzero(~same) + 1 == len(np.unique(attempts))
    return bool(together and np.all(steps[1:][same] >= steps[:-1][same]))


def _blocks(starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of attempts of about BLOCK rows each."""
    first = 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK, side="right")) - 1)
        yield first, last
        first = last


def _digests(encoded: pa.Array, steps: NDArray[np.int64], starts: NDArray[np.int64]) -> list[bytes]:
    """The hash of the rows of each attempt; rows of the same step are sorted by their bytes."""
    data, ends = slices(encoded)
    digests = [hashlib.sha256(data[begin:end]).digest() for begin, end in pairwise(ends[starts].tolist())]
    inside = np.setdiff1d(np.arange(1, len(steps)), starts)
    repeated = inside[steps[inside] == steps[inside - 1]]
    for attempt in np.unique(np.searchsorted(starts, repeated, side="right") - 1):
        own = slice(starts[attempt], starts[attempt + 1])
        rows = sorted(zip(steps[own], encoded[own].to_pylist(), strict=True))
        digests[attempt] = hashlib.sha256(b"".join(row for _, row in rows)).digest()
    return digests


# Pictures -----------------------------------------------------------------------------------------------------------


def _picture_leaves(out: Out, stored: Pictures, owners: pa.Table, progress: Progress) -> pa.Table:
    """A leaf for each picture; `owners` has the newest ok row for each output.

    An output whose newest picture is in a file with others has no leaf for a file under images/: that is superseded.
    """
    together = _leaves_together(stored, owners, progress)
    images = (out.folder.relative(info.path) for info in out.folder.files("images"))
    known = set(together["output"].to_pylist())
    names = [name for name in images if is_counted(name) and name.removeprefix("images/") not in known]
    digests = list[bytes]()
    for start in range(0, len(names), BLOCK // 16):
        progress(f"pictures {start}/{len(names)}", start, len(names))
        block = names[start : start + BLOCK // 16]
        digests += in_parallel(lambda name: _digest(out.folder.read(name)), block, out.folder.streams)
    outputs = pa.array([name.removeprefix("images/") for name in names], pa.string())
    places = pc.index_in(outputs, owners["output"].combine_chunks())
    columns = {"output": outputs, **{name: owners[name].take(places) for name in ATTEMPT}}
    return pa.concat_tables([_leaves("pictures", digests, columns), together])


def _leaves_together(stored: Pictures, owners: pa.Table, progress: Progress) -> pa.Table:
    """A leaf for each picture of `owners` that is in a file with others, and for each of its doubles."""
    rows = pc.index_in(keys(stored.entries), keys(owners))
    places, owned = pc.indices_nonzero(pc.is_valid(rows)), owners.take(rows.drop_null())
    owned = owned.select([*ATTEMPT, "output"]).append_column("number", pa.array(range(len(owned)), pa.int64()))
    numbers, digests = list[int](), list[bytes]()
    each = stored.each_at(places, owned, lambda row, found: (row["number"], _digest(found.data)))
    for number, digest in each:
        if len(numbers) % BLOCK == 0:
            progress(f"pictures {len(numbers)}/{len(owned)}", len(numbers), len(owned))
        numbers.append(number)
        digests.append(digest)
    found = owned.take(pa.array(numbers, pa.int64()))
    return _leaves("pictures", digests, {name: found[name] for name in (*ATTEMPT, "output")})


def _digest(data: bytes | None) -> bytes:
    return hashlib.sha256(data or b"").digest()


def _differing(owners: pa.Table, pictures: pa.Table) -> int:
    """The number of ok rows, one for each output, whose picture is missing or has another hash."""
    places = pc.index_in(owners["output"], pictures["output"].combine_chunks())
    same = pc.equal(pictures["sha256"].take(places), owners["sha256"])
    return len(owners) - (pc.sum(same).as_py() or 0)
