"""Merges files with pictures into larger ones, in the way of `compaction`, and removes what no longer counts.

- The newest picture of each pair stays in `pictures/`; those of earlier attempts go to `previous/`.
- A picture without a row is removed if its row can never come. Its file and the file of its row have one name, which is
  taken by an empty file first: a worker that wakes up cannot create it any more, and stops.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from numpy.typing import NDArray

from batchnst.errors import StorageError
from batchnst.ledger import parquet
from batchnst.ledger.claim import Claim
from batchnst.ledger.compaction import ASIDE, current_files, is_retired, new_identity, replace_files
from batchnst.ledger.pictures.form import keys
from batchnst.ledger.pictures.stored import Pictures, form_of, open_file, read_index
from batchnst.ledger.state import Journal
from batchnst.storage.files import Folder, in_parallel

SHARD_SIZE = 256_000_000
"""Default size of merged files, in bytes."""

ROUND_BYTES = 4_000_000_000
"""Most bytes that are twice on the store for a time, unless a single file is larger."""

MERGED = "merged-"
"""Beginning of the names of merged files."""


@dataclass(frozen=True)
class _Sorted:
    """A file and its pictures: those that stay, those that are superseded, and those that can be removed."""

    info: pafs.FileInfo
    index: pa.Table
    current: NDArray[np.bool_]
    superseded: NDArray[np.bool_]

    @property
    def is_clean(self) -> bool:
        return bool(self.current.all())


def compact(folder: Folder, claim: Claim, ok: tuple[pa.Table, pa.Table], at_least: int, shard_size: int) -> int:
    """Merge small files if there are `at_least` of them, and clean all; return the number of files afterwards.

    ok: all ok rows, and the newest of each pair; only the columns of ATTEMPT count. Raises as `compaction.compact`.
    """
    files = current_files(folder, "pictures")
    claim.check()  # so none of these files is of a later run, whose workers may be about to write their rows
    count = len(files)
    small = {info.path for info in files if info.size < shard_size // 2}
    looked = _to_look_at(folder, files, small, ok)
    known, newest = (keys(rows) for rows in ok)
    each = in_parallel(lambda info: _sort(folder, info, known, newest), looked, folder.streams)
    many = len(small) >= at_least
    chosen = [one for one in each if not one.is_clean or (many and one.info.path in small)]
    for groups in _rounds(list(_groups(chosen, shard_size))):
        identity = new_identity(claim)
        new = [name for group in groups for name in _merge(folder, identity, group)]
        old = [f"pictures/{one.info.base_name}" for group in groups for one in group]
        replace_files(folder, claim, Journal(id=identity, new=tuple(new), old=tuple(old)))
        count += sum(name.startswith("pictures/") for name in new) - len(old)
    return count


def _to_look_at(
    folder: Folder, files: Sequence[pafs.FileInfo], small: set[str], ok: tuple[pa.Table, pa.Table]
) -> Sequence[pafs.FileInfo]:
    """The files that may have to change; all of them if a pair was painted again since the last time."""
    known, newest = (keys(rows) for rows in ok)
    superseded = known.filter(pc.invert(pc.is_in(known, newest)))
    if len(superseded):
        previous = keys(Pictures(folder, tables=["previous"]).entries)
        if not pc.all(pc.is_in(superseded, previous)).as_py():
            return files
    return [info for info in files if info.path in small or not info.base_name.startswith(MERGED)]


def _sort(folder: Folder, info: pafs.FileInfo, known: pa.Array, newest: pa.Array) -> _Sorted:
    try:
        index = read_index(folder, folder.relative(info.path), claims=True)
    except FileNotFoundError:
        raise StorageError(f"{info.path}: vanished while files were merged") from None
    own = keys(index)
    current, has_row = (pc.is_in(own, rows).to_numpy(zero_copy_only=False) for rows in (newest, known))
    if not has_row.all() and not _disown(folder, info):
        current = current | ~has_row
    return _Sorted(info, index, current, has_row & ~current)


def _disown(folder: Folder, info: pafs.FileInfo) -> bool:
    """True if the pictures of a worker's file that have no row will never get one.

    False if their rows have come meanwhile, or once were there: then `audit` names the pictures.
    """
    name = f"{info.base_name.rpartition('.')[0]}.parquet"
    if info.base_name.startswith(MERGED) or is_retired(folder, f"pairs/{name}"):
        return False
    path = f"ledger/pairs/{name}"
    if folder.create_once(path, parquet.encode(parquet.empty("pairs"), "pairs", statistics=False)):
        return True
    found = [file for file in folder.files("ledger/pairs", prefix=name) if folder.relative(file.path) == path]
    return bool(found) and len(parquet.read(folder, found[0], ["pair_id"])) == 0


def _groups(chosen: Sequence[_Sorted], shard_size: int) -> Iterator[list[_Sorted]]:
    """Files of one form in groups of at most `shard_size` bytes; not a single one that needs no change."""
    for _, together in groupby(sorted(chosen, key=_by_form), key=lambda one: form_of(one.info.base_name).ending):
        group, size = list[_Sorted](), 0
        for one in together:
            if group and size + one.info.size > shard_size:
                yield group
                group, size = [], 0
            group.append(one)
            size += one.info.size
        if len(group) > 1 or not group[0].is_clean:
            yield group


def _by_form(one: _Sorted) -> tuple[str, str]:
    return form_of(one.info.base_name).ending, one.info.path


def _rounds(groups: Sequence[list[_Sorted]]) -> Iterator[list[list[_Sorted]]]:
    """The groups in rounds of at most ROUND_BYTES."""
    members, size = list[list[_Sorted]](), 0
    for group in groups:
        own = sum(one.info.size for one in group)
        if members and size + own > ROUND_BYTES:
            yield members
            members, size = [], 0
        members.append(group)
        size += own
    if members:
        yield members


def _merge(folder: Folder, identity: str, group: Sequence[_Sorted]) -> list[str]:
    """Merge the files of a group aside; return the names of the new ones, for a journal."""
    parts = {"pictures": [one.current for one in group], "previous": [one.superseded for one in group]}
    names = []
    for table, masks in parts.items():
        if any(mask.any() for mask in masks):
            name = f"{table}/{MERGED}{uuid.uuid4().hex}{form_of(group[0].info.base_name).ending}"
            _write(folder, f"{ASIDE}/{identity}/{name}", group, masks)
            names.append(name)
    return names


def _write(folder: Folder, path: str, group: Sequence[_Sorted], masks: Sequence[NDArray[np.bool_]]) -> None:
    """Copy the pictures that `masks` choose from each file of a group; raises StorageError if some are missing then."""
    with folder.writing(path) as sink:
        _copy(folder, sink, group, masks)
    expected = [keys(one.index.filter(pa.array(mask))) for one, mask in zip(group, masks, strict=True)]
    try:
        written = keys(read_index(folder, path, claims=True))
    except FileNotFoundError:
        return  # another run has taken OUT over; the state refuses the next step
    if not written.equals(pa.concat_arrays(expected)):
        raise StorageError(f"{folder.path(path)}: was written incompletely")


def _copy(folder: Folder, sink: BinaryIO, group: Sequence[_Sorted], masks: Sequence[NDArray[np.bool_]]) -> None:
    with form_of(group[0].info.base_name).writer(sink) as writer:
        for one, mask in zip(group, masks, strict=True):
            if not (entries := one.index.filter(pa.array(mask)).to_pylist()):
                continue
            try:
                with open_file(folder, folder.relative(one.info.path)) as file:
                    writer.copy(file, one.info.path, entries)
            except FileNotFoundError:
                raise StorageError(f"{one.info.path}: vanished while files were merged") from None
