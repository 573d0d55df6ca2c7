"""Many small ledger files become few, sorted ones, without a row lost or doubled, wherever it is cut off.

Merged files are made aside. Then a journal says which of them replace which files: from that moment on, and not before,
the merged ones count. They are moved into place, the old ones removed, and last of all the journal.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.fs as pafs

from batchnst.errors import StorageError
from batchnst.ledger import parquet
from batchnst.storage.files import Folder

ASIDE = ".batchnst/merged"
JOURNAL = ".batchnst/compaction"

GROUP_BYTES = 32 << 20
"""Files of so many bytes together are merged: about a million steps, half a gigabyte of memory."""

SMALL_BYTES = GROUP_BYTES // 2
"""Files of fewer bytes are merged; each row is so rewritten but a few times in the life of a ledger."""

ORDER = {
    "pairs": ["status", "pair_id", "finished_at"],
    "losses": ["pair_id", "run_id", "attempt", "step"],
    "runs": ["started_at"],
}
"""How rows are sorted, so that all failures, or one pair's curve, lie together."""


@dataclass(frozen=True)
class _Journal:
    """Files that replace others, by their paths under `ledger/`."""

    new: list[str]
    old: list[str]


def compact(folder: Folder, at_least: int) -> tuple[int, int]:
    """Merge the small files of each table that has so many; returns how many files there were, and are.

    Raises LedgerError, and leaves everything as it was, for a file that cannot be read.
    """
    recover(folder)
    listed = {table: folder.files(f"ledger/{table}", ending=".parquet") for table in ORDER}
    groups = [(table, group) for table, files in listed.items() for group in _groups(files, at_least)]
    count = sum(map(len, listed.values()))
    if not groups:
        return count, count
    new = [_merge(folder, table, group) for table, group in groups]
    old = [f"{table}/{info.base_name}" for table, group in groups for info in group]
    _write(folder, _Journal(new, old))
    recover(folder)
    return count, count - len(old) + len(new)


def recover(folder: Folder) -> None:
    """End what a compaction began, if its journal was written, or clear away what it had made."""
    journal = _read(folder)
    if journal:
        with ThreadPoolExecutor(folder.streams) as pool:
            list(pool.map(lambda name: folder.move(f"{ASIDE}/{name}", f"ledger/{name}"), journal.new))
            list(pool.map(lambda name: folder.remove(f"ledger/{name}"), journal.old))
        folder.remove(JOURNAL)
    for info in folder.files(ASIDE):
        folder.remove(folder.relative(info.path))


def without_doubles(folder: Folder, table: str, files: list[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """Of a table's files, as they were listed, those that count while a compaction is under way, or was cut off."""
    journal = _read(folder)
    if journal is None:
        return files
    new, old = ({name for name in names if name.startswith(f"{table}/")} for names in (journal.new, journal.old))
    listed = {f"{table}/{info.base_name}" for info in files}
    # Old ones are removed when all the new ones are in place.
    skipped = old if new <= listed else new
    return [info for info in files if f"{table}/{info.base_name}" not in skipped]


def _groups(files: Sequence[pafs.FileInfo], at_least: int) -> list[list[pafs.FileInfo]]:
    """Small files, as many together as make GROUP_BYTES; a single one would gain nothing."""
    small = [info for info in files if info.size < SMALL_BYTES]
    if len(small) < at_least:
        return []
    groups, size = [[small[0]]], small[0].size
    for info in small[1:]:
        if size + info.size > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(info)
        size += info.size
    return [group for group in groups if len(group) > 1]


def _merge(folder: Folder, table: str, group: Sequence[pafs.FileInfo]) -> str:
    """Make a file of several, aside; returns its path under `ledger/`."""
    with ThreadPoolExecutor(folder.streams) as pool:
        parts = list(pool.map(partial(parquet.read, folder.filesystem), group))
    # Columns that this version does not know are kept.
    rows = pa.concat_tables(parts, promote_options="default").sort_by([(name, "ascending") for name in ORDER[table]])
    name = f"{table}/merged-{uuid.uuid4().hex}.parquet"
    folder.write(f"{ASIDE}/{name}", parquet.encode(rows, table, statistics=True))
    (written,) = (info for info in folder.files(f"{ASIDE}/{table}") if info.base_name in name)
    if parquet.read(folder.filesystem, written, ORDER[table]).num_rows != sum(part.num_rows for part in parts):
        raise StorageError(f"{written.path}: was not written as a whole")
    return name


def _read(folder: Folder) -> _Journal | None:
    data = folder.read(JOURNAL)
    return _Journal(**json.loads(data)) if data else None


def _write(folder: Folder, journal: _Journal) -> None:
    folder.write(JOURNAL, json.dumps({"new": journal.new, "old": journal.old}).encode())
