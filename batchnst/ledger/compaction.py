"""Merges small ledger files into a few large, sorted ones. No row is lost or doubled, whatever is cut off or suspended.

1. The merged files are written to a folder aside.
2. A change of OUT's state decides that they replace the old ones. From then on the merged files count. A compaction
   that was suspended while another run took OUT over cannot take this step.
3. The merged files are moved into place. Once all are there, the old ones are removed.
4. A second change of the state ends the compaction, and retires the old names: a file that comes back, because a store
   was slow to write it, does not count.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs as pafs

from batchnst.errors import StorageError
from batchnst.ledger import parquet
from batchnst.ledger.claim import Claim
from batchnst.ledger.state import Journal, State, read_state
from batchnst.storage.files import Folder, in_parallel

ASIDE = ".batchnst/merged"
"""Folder in OUT for merged files that are not in place yet."""

RETIRED = ".batchnst/retired"
"""Folder in OUT for the lists of replaced files."""

MANY_LISTS = 32
"""Lists of replaced files that are merged into one."""

GROUP_BYTES = 32 << 20
"""Largest total size of files merged into one, in bytes: about a million steps, half a gigabyte of memory."""

SMALL_BYTES = GROUP_BYTES // 2
"""Only files smaller than this, in bytes, are merged, so that each row is rewritten only a few times."""

ORDER = {
    "pairs": ["status", "pair_id", "run_number", "attempt"],
    "losses": ["pair_id", "run_id", "attempt", "step"],
    "runs": ["run_number", "started_at"],
}
"""Sort order of each table, which keeps all failures, or the curve of a pair, together."""

SHARDS = ("pictures", "previous")
"""Folders of files with many pictures each, which are merged in the same way; they are in OUT itself."""

ENDINGS = dict.fromkeys(ORDER, (".parquet",)) | dict.fromkeys(SHARDS, (".parquet", ".tar"))
"""Endings of the files of each table, and of those with pictures."""

TRIES = 20
"""Attempts at listing the files of a table, if they change meanwhile."""


def compact(folder: Folder, claim: Claim, at_least: int) -> tuple[int, int]:
    """Merge the small files of each table that has `at_least` of them; return the number of files before and after.

    Raises LedgerError if a file cannot be read; nothing is changed then. Raises Superseded if another run has taken OUT
    over, StorageError if OUT fails.
    """
    recover(folder, claim)
    listed = {table: current_files(folder, table) for table in ORDER}
    groups = [(table, group) for table, files in listed.items() for group in _groups(files, at_least)]
    count = sum(map(len, listed.values()))
    if not groups:
        return count, count
    identity = new_identity(claim)
    new = tuple(_merge(folder, identity, table, group) for table, group in groups)
    old = tuple(f"{table}/{info.base_name}" for table, group in groups for info in group)
    replace_files(folder, claim, Journal(id=identity, new=new, old=old))
    return count, count - len(old) + len(new)


def new_identity(claim: Claim) -> str:
    """A name for a compaction; new files go to a folder of this name in ASIDE first."""
    return f"{claim.run_number}-{uuid.uuid4().hex[:12]}"


def replace_files(folder: Folder, claim: Claim, journal: Journal) -> None:
    """Decide a compaction whose new files are complete, and finish it; raises Superseded if `claim` is lost."""
    folder.write(_retired_name(journal.id), json.dumps(journal.old).encode())
    claim.change(lambda state: {"journal": journal})
    recover(folder, claim)


def recover(folder: Folder, claim: Claim) -> None:
    """Finish a compaction that was decided, and remove the merged files of those that were not."""
    state = read_state(folder)
    if state.journal:
        _finish(folder, claim, state.journal)
    for info in folder.files(ASIDE):
        name = folder.relative(info.path)
        # A run that was suspended here must not remove what a later one has merged meanwhile.
        if _run_number(name) <= claim.run_number:
            folder.remove(name)
    if len(state.retired) >= MANY_LISTS:
        _merge_retired(folder, claim, state)


def _run_number(name: str) -> int:
    """The number of the run that has merged a file, from its path; 0 for a file of another kind."""
    number = name.removeprefix(f"{ASIDE}/").partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _finish(folder: Folder, claim: Claim, journal: Journal) -> None:
    for name in (*journal.new, *journal.old):
        if not _is_ledger_file(name):
            raise StorageError(
                f"{folder.address}: its state names {name!r}, which is no ledger file; nothing was changed"
            )
    in_parallel(lambda name: folder.move(f"{ASIDE}/{journal.id}/{name}", _place(name)), journal.new, folder.streams)
    missing = [name for name in journal.new if not folder.exists(_place(name))]
    if missing:
        raise StorageError(f"{folder.path(_place(missing[0]))}: a merged file is missing; nothing was removed")
    claim.check()
    in_parallel(lambda name: folder.remove(_place(name)), journal.old, folder.streams)
    claim.change(lambda state: {"journal": None, "retired": (*state.retired, journal.id)})


def _is_ledger_file(name: str) -> bool:
    table, slash, file = name.partition("/")
    known = table in ENDINGS and bool(slash) and "/" not in file
    return known and file.endswith(ENDINGS[table]) and is_counted(file)


def _place(name: str) -> str:
    """The path in OUT of a file, from its name in a journal."""
    return name if name.partition("/")[0] in SHARDS else f"ledger/{name}"


def is_counted(path: str) -> bool:
    """False if a file, or a folder on the relative `path` to it, begins with `.` or `_`: other programs write those."""
    return not any(part.startswith((".", "_")) for part in path.split("/"))


def current_files(folder: Folder, table: str, prefix: str = "") -> list[pafs.FileInfo]:
    """The files of `table`, or of one of SHARDS; each row in exactly one of them, also during a compaction.

    Only files whose names begin with `prefix`; merged files have other names than those that they replace.
    """
    for _ in range(TRIES):
        state = read_state(folder)
        listing = folder.files(_place(table), ending=ENDINGS[table])
        files = [info for info in listing if is_counted(folder.relative(info.path))]
        listed = {f"{table}/{info.base_name}" for info in files}
        skipped = _skipped(folder, state, table, listed)
        # A listing is not one moment: files may be moved and removed meanwhile.
        if skipped is not None and read_state(folder).number == state.number:
            return [
                info
                for info in files
                if info.base_name.startswith(prefix) and f"{table}/{info.base_name}" not in skipped
            ]
    raise StorageError(f"{folder.address}: its ledger changed all the time while it was listed; try again")


def _skipped(folder: Folder, state: State, table: str, listed: set[str]) -> set[str] | None:
    """Names of the listed files that do not count; None if files were moved while they were listed."""
    skipped = {name for identity in state.retired for name in _retired(folder, identity)}
    if state.journal is None:
        return skipped
    new, old = (
        {name for name in names if name.startswith(f"{table}/")} for names in (state.journal.new, state.journal.old)
    )
    if new <= listed:
        return skipped | old
    # Old files are removed only after all new ones are in place.
    return skipped | new if old <= listed else None


def _retired(folder: Folder, identity: str) -> frozenset[str]:
    return _retired_names(folder.read(_retired_name(identity)) or b"[]")


@lru_cache(maxsize=2 * MANY_LISTS)
def _retired_names(data: bytes) -> frozenset[str]:
    return frozenset(json.loads(data))


def _retired_name(identity: str) -> str:
    return f"{RETIRED}/{identity}.json"


def _merge_retired(folder: Folder, claim: Claim, state: State) -> None:
    """Replace the lists of retired names by one."""
    identity = new_identity(claim)
    names = sorted(name for part in state.retired for name in _retired(folder, part))
    folder.write(_retired_name(identity), json.dumps(names).encode())
    claim.change(lambda latest: {"retired": (identity, *latest.retired[len(state.retired) :])})
    for part in state.retired:
        folder.remove(_retired_name(part))


def is_retired(folder: Folder, name: str) -> bool:
    """True if a compaction has replaced the file of this name, such as `pairs/x.parquet`."""
    return any(name in _retired(folder, identity) for identity in read_state(folder).retired)


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


def _merge(folder: Folder, identity: str, table: str, group: Sequence[pafs.FileInfo]) -> str:
    """Merge the files of `group` into one aside; return its future path under `ledger/`. Raises StorageError."""

    def read(info: pafs.FileInfo) -> pa.Table:
        return parquet.conform(info.path, parquet.read(folder, info), table)

    parts = in_parallel(read, group, folder.streams)
    # Keep columns that this version does not know.
    rows = pa.concat_tables(parts, promote_options="default").sort_by([(name, "ascending") for name in ORDER[table]])
    name = f"{table}/merged-{uuid.uuid4().hex}.parquet"
    folder.write(f"{ASIDE}/{identity}/{name}", parquet.encode(rows, table, statistics=True))
    written = [info for info in folder.files(f"{ASIDE}/{identity}/{table}") if info.base_name in name]
    # None is there any more if another run has taken OUT over; the state then refuses the next step.
    if written and parquet.read(folder, written[0], ORDER[table]).num_rows != sum(part.num_rows for part in parts):
        raise StorageError(f"{written[0].path}: was written incompletely")
    return name
