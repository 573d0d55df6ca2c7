"""Merges small ledger files into a few large, sorted ones. A crash at any point neither loses nor doubles a row.

1. The merged files are written to a folder aside.
2. A journal lists the new files and the old ones that they replace. From then on the new files count.
3. The new files are moved into place, the old ones removed, and then the journal.
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
"""Folder in OUT for merged files that are not in place yet."""

JOURNAL = ".batchnst/compaction"
"""Path of the journal in OUT."""

GROUP_BYTES = 32 << 20
"""Largest total size of files merged into one, in bytes: about a million steps, half a gigabyte of memory."""

SMALL_BYTES = GROUP_BYTES // 2
"""Only files smaller than this, in bytes, are merged, so that each row is rewritten only a few times."""

ORDER = {
    "pairs": ["status", "pair_id", "finished_at"],
    "losses": ["pair_id", "run_id", "attempt", "step"],
    "runs": ["started_at"],
}
"""Sort order of each table, which keeps all failures, or the curve of a pair, together."""


@dataclass(frozen=True)
class _Journal:
    """New files and the old ones that they replace, as paths under `ledger/`."""

    new: list[str]
    old: list[str]


def compact(folder: Folder, at_least: int) -> tuple[int, int]:
    """Merge the small files of each table that has `at_least` of them; return the number of files before and after.

    Raises LedgerError if a file cannot be read; nothing is changed then. Raises StorageError if OUT fails.
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
    """Finish an interrupted compaction if its journal was written; otherwise remove its merged files."""
    journal = _read(folder)
    if journal:
        with ThreadPoolExecutor(folder.streams) as pool:
            list(pool.map(lambda name: folder.move(f"{ASIDE}/{name}", f"ledger/{name}"), journal.new))
            list(pool.map(lambda name: folder.remove(f"ledger/{name}"), journal.old))
        folder.remove(JOURNAL)
    for info in folder.files(ASIDE):
        folder.remove(folder.relative(info.path))


def current_files(folder: Folder, table: str, files: list[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """The listed `files` of `table` without those that hold the same rows twice during a compaction."""
    journal = _read(folder)
    if journal is None:
        return files
    new, old = ({name for name in names if name.startswith(f"{table}/")} for names in (journal.new, journal.old))
    listed = {f"{table}/{info.base_name}" for info in files}
    # Old files are removed only after all new ones are in place.
    skipped = old if new <= listed else new
    return [info for info in files if f"{table}/{info.base_name}" not in skipped]


def _groups(files: Sequence[pafs.FileInfo], at_least: int) -> list[list[pafs.FileInfo]]:
    """Small files in groups of at most GROUP_BYTES and at least two files; none if fewer than `at_least` are small."""
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
    """Merge the files of `group` into one in ASIDE; return its future path under `ledger/`. Raises StorageError."""
    with ThreadPoolExecutor(folder.streams) as pool:
        parts = list(pool.map(partial(parquet.read, folder.filesystem), group))
    # Keep columns that this version does not know.
    rows = pa.concat_tables(parts, promote_options="default").sort_by([(name, "ascending") for name in ORDER[table]])
    name = f"{table}/merged-{uuid.uuid4().hex}.parquet"
    folder.write(f"{ASIDE}/{name}", parquet.encode(rows, table, statistics=True))
    (written,) = (info for info in folder.files(f"{ASIDE}/{table}") if info.base_name in name)
    if parquet.read(folder.filesystem, written, ORDER[table]).num_rows != sum(part.num_rows for part in parts):
        raise StorageError(f"{written.path}: was written incompletely")
    return name


def _read(folder: Folder) -> _Journal | None:
    data = folder.read(JOURNAL)
    return _Journal(**json.loads(data)) if data else None


def _write(folder: Folder, journal: _Journal) -> None:
    folder.write(JOURNAL, json.dumps({"new": journal.new, "old": journal.old}).encode())
