"""OUT, the folder of pictures and ledger. Whole files are added to the ledger; none is ever changed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from numpy.typing import NDArray

from batchnst.errors import LedgerError, StorageError, Superseded
from batchnst.ledger import compaction, parquet
from batchnst.ledger.claim import Claim, Holder, Lease, check, holder
from batchnst.ledger.outcomes import COLUMNS, Intent, Outcomes, PairRows
from batchnst.ledger.pictures import shards
from batchnst.ledger.pictures.form import FormName, Picture, encode
from batchnst.ledger.pictures.stored import FORMS, Pictures
from batchnst.ledger.previous import Previous, keep
from batchnst.ledger.schema import ATTEMPT, SCHEMAS, LossRow, PairRow, RunRow, to_table
from batchnst.ledger.soundness import Damage, split
from batchnst.ledger.state import read_state
from batchnst.storage.files import Folder, in_parallel
from batchnst.text_hashes import hashes, repeated

GROUP = 256
"""Files that a thread reads one after the other, as one piece of work."""

PORTION = 32 << 20
"""Bytes of files whose rows are in memory together, where all of them need not be."""

TRIES = 5
"""Attempts at listing and reading files, if some of them vanish in between; and at replacing a picture."""

INTENTS = ".batchnst/intents"
"""Folder in OUT for the intents of tasks that replace pictures."""

T = TypeVar("T")

ORDERED_BY = ("run_number", "attempt", "finished_at")
"""Columns that say which of two rows is newer: the later run's, then the later attempt. Clocks count only within
ledgers of batchnst 0.1.0, which had no `run_number`.
"""


class Out:
    """A run's folder, local or in an object store: the ledger under `ledger/`, pictures as `ledger.pictures` says.

    damage: the first damaged row that was met; None if there was none so far.
    """

    def __init__(self, address: str) -> None:
        self.folder = Folder(address)
        self.address = self.folder.address
        self.damage: Damage | None = None

    def claim(self, run_id: str, form: FormName = "files", above: int = 0) -> Claim:
        """A claim on this folder by `run_id`; use it in a `with` statement.

        form: that of the run's pictures. above: a number that its run number must exceed.
        """
        return Claim(self.folder, run_id, self._last_number, form, above)

    def pictures(self, pair_ids: Collection[str] | None = None, **options: Any) -> Pictures:
        """The pictures of this folder, in every form, or only those of some pairs; `options` are those of Pictures."""
        return retry_vanished(lambda: Pictures(self.folder, pair_ids, **options))

    def foreign_pictures(self) -> set[str]:
        """Files under `images/`, relative to it, of a folder that no run or export has ever written to."""
        if read_state(self.folder).number or any(self.files(table) for table in SCHEMAS):
            return set()
        listing = self.folder.files("images")
        return {self.folder.relative(info.path).removeprefix("images/") for info in listing}

    def check(self, lease: Lease) -> None:
        """Raise Superseded if the holder of `lease` may no longer write."""
        check(self.folder, lease)

    def compact(self, claim: Claim, at_least: int = 2, shard_size: int = shards.SHARD_SIZE) -> tuple[int, int]:
        """Merge the small files of each table that has `at_least` of them; return the number of files before and after.

        Files with pictures are merged into some of about `shard_size` bytes, and superseded pictures leave them.
        Raises LedgerError if a file cannot be read; nothing is changed then. Raises Superseded if `claim` is lost.
        """
        self.recover(claim)
        count = left = len(compaction.current_files(self.folder, "pictures"))
        if count:  # first, because the files that it puts in place of rows may be merged only once it is through
            every, sound = (self._ok_attempts(damaged=damaged) for damaged in (True, False))
            left = shards.compact(self.folder, claim, (every, newest_rows(sound)), at_least, shard_size)
        before, after = compaction.compact(self.folder, claim, at_least)
        return before + count, after + left

    def _ok_attempts(self, *, damaged: bool) -> pa.Table:
        """The keys and the order of all ok rows of `pairs`; also of damaged ones if those are asked for."""
        rows = self.rows("pairs", [*ATTEMPT, "status", *ORDERED_BY[::2]], damaged=damaged)
        return rows.filter(pc.equal(rows["status"], "ok"))

    def recover(self, claim: Claim) -> None:
        """Finish or undo an interrupted compaction; raises Superseded if `claim` is lost."""
        compaction.recover(self.folder, claim)

    def write_snapshot(self, lease: Lease, name: str, data: bytes) -> None:
        """Write an intermediate picture to the path `name` under `snapshots/`; raises Superseded and StorageError."""
        self.folder.write(f"snapshots/{name}", data, before=lambda: self.check(lease))

    def commit(
        self,
        lease: Lease,
        pictures: Mapping[str, bytes],
        pairs: list[PairRow],
        losses: list[LossRow],
        previous: Mapping[str, Previous] | None = None,
    ) -> None:
        """Write pictures, by their `output`, then the rows of their attempts, and of attempts without a picture.

        `previous` has, by pair id, the attempts whose pictures are kept when they are replaced. Losses come before
        pairs, so that a row in `pairs` never lacks its losses. Raises Superseded if the holder of `lease` may no longer
        write, and StorageError.
        """
        name = f"{_prefix(lease)}{uuid.uuid4().hex[:12]}"
        rows = {"losses": _encode(losses, "losses"), "pairs": _encode(pairs, "pairs")}
        if lease.form != "files":
            self._commit_together(lease, name, pictures, pairs, rows)
            return
        versions = {output: self.folder.version(f"images/{output}") for output in pictures}
        replaced = tuple(output for output, version in versions.items() if version is not None)
        if replaced:
            attempts = {row.output: row.attempt for row in pairs if row.output in replaced}
            intent = json.dumps(asdict(Intent(lease.run_number, attempts))).encode()
            self.folder.write(f"{INTENTS}/{name}.json", intent, before=lambda: self.check(lease))
        for row in pairs:
            if row.output in replaced and (before := (previous or {}).get(row.pair_id)):
                keep(self.folder, row.pair_id, row.output, before, lambda: self.check(lease))
        for output, data in pictures.items():
            self._write_picture(lease, output, data, versions[output])
        # Also without rows: a query of a table without a file is an error.
        for table, data in rows.items():
            self.folder.write(f"ledger/{table}/{name}.parquet", data, before=lambda: self.check(lease))
        if replaced:
            self.folder.remove(f"{INTENTS}/{name}.json")

    def _commit_together(
        self, lease: Lease, name: str, pictures: Mapping[str, bytes], pairs: list[PairRow], rows: Mapping[str, bytes]
    ) -> None:
        """Commit with the pictures in a file together. Nothing is replaced, so nothing needs to be announced.

        A compaction that removes pictures without rows first takes the name of their rows, see `shards`. So that file
        must be a new one.
        """
        values = to_table(pairs, "pairs").to_pylist()
        painted = [Picture(pictures[row["output"]], row) for row in values if row["output"] in pictures]
        if painted:
            data = encode(FORMS[lease.form], painted)
            self.folder.write(f"pictures/{name}.{lease.form}", data, before=lambda: self.check(lease))
        self.folder.write(f"ledger/losses/{name}.parquet", rows["losses"], before=lambda: self.check(lease))
        if not self.folder.create_once(f"ledger/pairs/{name}.parquet", rows["pairs"], lambda: self.check(lease)):
            raise Superseded(f"{self.address}: another run has taken this folder over; this one stops")

    def _write_picture(self, lease: Lease, output: str, data: bytes, version: str | None) -> None:
        """Write a picture in place of `version`; try again while it is not another run that has changed it."""
        path = f"images/{output}"
        for _ in range(TRIES):
            if self.folder.replace(path, data, version, before=lambda: self.check(lease)):
                return
            version = self.folder.version(path)
            self.check(lease)
        raise StorageError(
            f"{self.folder.path(path)}: another program keeps changing it; stop that, or change `output`"
        )

    def _last_number(self) -> int:
        """The highest run number in the ledger; 0 if there is none."""
        return max((pc.max(self.rows(table, ["run_number"])["run_number"]).as_py() or 0) for table in ("runs", "pairs"))

    def intents(self) -> list[Intent]:
        """Replacements that began and whose rows are not there, of tasks that were cut off."""
        listing = self.folder.files(INTENTS, ending=".json")
        begun = [info for info in listing if compaction.is_counted(info.base_name)]
        if not begun:
            return []
        known = {info.base_name for info in self.folder.files("ledger/pairs", ending=".parquet")}
        pending = (info for info in begun if f"{info.base_name.removesuffix('.json')}.parquet" not in known)
        return [intent for info in pending if (intent := self._intent(self.folder.relative(info.path)))]

    def _intent(self, name: str) -> Intent | None:
        """The intent in a file; None if it is gone. Raises StorageError if it is damaged."""
        data = self.folder.read(name)
        try:
            return Intent.parse(data) if data else None
        except (ValueError, TypeError, LookupError, RecursionError, AttributeError):
            path = self.folder.path(name)
            raise StorageError(f"{path}: is damaged; remove it, then find altered pictures by `audit`") from None

    def begin(self, run: RunRow) -> None:
        """Add the row of a run that starts."""
        self.folder.write(f"ledger/runs/{run.run_id}.parquet", _encode([run], "runs"))

    def newest(self) -> Outcomes:
        """The newest outcome of every pair in the ledger."""
        rows = retry_vanished(lambda: PairRows.joined(map(PairRows.of, self.portions("pairs", COLUMNS))))
        return Outcomes(rows, self.intents())

    def previous(self, pair_ids: Sequence[str]) -> dict[str, Previous]:
        """The newest ok attempt at each of these pairs, by id; pairs without one are left out."""
        matching = pc.field("pair_id").isin(pa.array(pair_ids, pa.string())) & (pc.field("status") == "ok")
        rows = self.rows("pairs", ["run_id", "pair_id", "output_sha256", *ORDERED_BY], matching=matching)
        return {
            row["pair_id"]: Previous(row["run_id"], row["attempt"], row["output_sha256"] or "")
            for row in newest_rows(rows).to_pylist()
        }

    def committed(self, lease: Lease) -> dict[str, str | None]:
        """Error message by pair id of the pairs that a task has committed; None for those that are ok."""
        rows = self.rows("pairs", ["pair_id", "status", "error_message"], prefix=_prefix(lease)).to_pylist()
        return {row["pair_id"]: row["error_message"] if row["status"] == "failed" else None for row in rows}

    def runs(self) -> list[dict[str, Any]]:
        """The rows of all runs, the newest last."""
        rows: list[dict[str, Any]] = sort_rows(self.rows("runs"), ("run_number", "started_at")).to_pylist()
        return rows

    def holder(self) -> Holder | None:
        """The run that holds this folder; None if no run does, or if it is known to be dead."""
        return holder(self.folder)

    def rows(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        *,
        prefix: str = "",
        matching: pc.Expression | None = None,
        damaged: bool = False,
    ) -> pa.Table:
        """The rows of a table; only `columns` if given.

        prefix: read only files whose names begin with it. matching: only rows that satisfy it. damaged: also rows that
        are damaged; else those whose `columns` are damaged are left out. Raises LedgerError if this version cannot read
        a file.
        """

        def read() -> pa.Table:
            return self.rows_of(self.files(table, prefix), table, columns, matching, damaged=damaged)

        return retry_vanished(read)

    def portions(self, table: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The `columns` of all rows of a table, a part of it at a time; raises LedgerError as `rows` does."""
        portion, size = list[pafs.FileInfo](), 0
        for info in self.files(table):
            portion.append(info)
            size += info.size
            if size > PORTION or len(portion) == GROUP * self.folder.streams:
                yield self.rows_of(portion, table, columns)
                portion, size = [], 0
        yield self.rows_of(portion, table, columns)

    def rows_of(
        self,
        files: Sequence[pafs.FileInfo],
        table: str,
        columns: Sequence[str] | None = None,
        matching: pc.Expression | None = None,
        *,
        damaged: bool = False,
    ) -> pa.Table:
        """The rows of a table in `files`; arguments as of `rows`."""

        def read(info: pafs.FileInfo) -> pa.Table:
            rows = parquet.read(self.folder, info, columns, matching)
            return parquet.conform(info.path, rows, table)

        groups = [files[start : start + GROUP] for start in range(0, len(files), GROUP)]
        tables = in_parallel(lambda group: _concat(map(read, group)), groups, self.folder.streams)
        rows = _concat([parquet.empty(table, columns), *tables])
        return rows if damaged else self.sound(rows, table)[0]

    def sound(self, rows: pa.Table, table: str, *, complete: bool = False) -> tuple[pa.Table, list[Damage]]:
        """The sound rows of `rows` and the damage of the others, as `soundness.split` finds them."""
        rows, damages = split(rows, table, complete=complete)
        self.damage = self.damage or next(iter(damages), None)
        return rows, damages

    def rows_in(
        self,
        table: str,
        name: str,
        columns: Sequence[str] | None = None,
        matching: pc.Expression | None = None,
    ) -> pa.Table | None:
        """`rows_of` the one file of a table with this name, without a listing; None if it is not there any more."""
        path = self.folder.path(f"ledger/{table}/{name}")
        try:
            with self.folder.open(path, parquet.SMALL) as source:
                size = source.seek(0, os.SEEK_END)
            return self.rows_of([pafs.FileInfo(path, pafs.FileType.File, size=size)], table, columns, matching)
        except FileNotFoundError:
            return None

    def files(self, table: str, prefix: str = "") -> list[pafs.FileInfo]:
        """The files of a table, which hold each row once even during a compaction."""
        return compaction.current_files(self.folder, table, prefix)

    def dataset(self, table: str) -> ds.Dataset:
        """A table as a dataset; raises LedgerError if this version cannot read a file."""
        return retry_vanished(lambda: self._dataset(table))

    def _dataset(self, table: str) -> ds.Dataset:
        paths = [info.path for info in self.files(table)]
        dataset = ds.dataset(paths, schema=SCHEMAS[table], format="parquet", filesystem=self.folder.filesystem)
        for fragment in dataset.get_fragments():
            with parquet.readable(fragment.path):
                parquet.check_version(fragment.path, fragment.physical_schema)
        return dataset


def retry_vanished(read: Callable[[], T]) -> T:
    """Call `read`, which lists files and reads them; call it again if a compaction has removed some in between.

    Raises FileNotFoundError if files vanish in TRIES calls in a row.
    """
    for _ in range(TRIES - 1):
        with suppress(FileNotFoundError):
            return read()
    return read()


def _concat(tables: Iterable[pa.Table]) -> pa.Table:
    """One table in one chunk; columns that a file of an earlier version lacks are null."""
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def attempt_filter(attempt: Mapping[str, Any]) -> pc.Expression:
    """Filter for the rows of one attempt; `attempt` has the columns in ATTEMPT."""
    run_id, pair_id, number = (pc.field(name) == attempt[name] for name in ATTEMPT)
    return run_id & pair_id & number


def newest_rows(rows: pa.Table, by: str = "pair_id") -> pa.Table:
    """The newest row for each value of the column `by`; `rows` are those of `pairs`, with at least ORDERED_BY."""
    # Most values are there once. Only hashes are repeated by chance, and the values themselves are compared here.
    several = np.flatnonzero(repeated(hashes(rows[by])))
    if not len(several):
        return rows
    some = rows.select(list(dict.fromkeys([by, *ORDERED_BY]))).take(pa.array(several))
    values = some[by].combine_chunks().dictionary_encode()
    in_order = _order(some, ORDERED_BY)
    newest = np.zeros(len(values.dictionary), np.int64)
    newest[values.indices.to_numpy()[in_order]] = in_order  # of repeated indices, the last value stays
    kept = np.ones(len(rows), bool)
    kept[several] = False
    kept[several[newest]] = True
    return rows.filter(pa.array(kept))


def sort_rows(rows: pa.Table, by: Sequence[str] = ORDERED_BY) -> pa.Table:
    """The rows, oldest first."""
    return rows.take(pa.array(_order(rows, by)))


def _order(rows: pa.Table, by: Sequence[str]) -> NDArray[np.int64]:
    """Positions of the rows, oldest first; rows of 0.1.0, which have no `run_number`, by the clock alone."""
    number = pc.fill_null(rows["run_number"], 0).to_numpy()
    keys = [rows[name].cast(pa.int64()).to_numpy() for name in by[1:]]
    keys = [np.where(number > 0, key, 0) if name == "attempt" else key for name, key in zip(by[1:], keys, strict=True)]
    return np.lexsort([*reversed(keys), number])


def open_out(address: str) -> Out:
    """The OUT of an earlier run; raises LedgerError if it has no ledger."""
    out = Out(address)
    if not any(out.files(table) for table in SCHEMAS):
        raise LedgerError(f"{address}: has no ledger; expected the --out of an earlier `batchnst run`")
    return out


def read_ledger(out: str, table: str) -> ds.Dataset:
    """The table `pairs`, `losses` or `runs` as a pyarrow Dataset; `out` is a run's folder or URI.

    Raises ValueError for another table, and LedgerError if the ledger was written by a newer batchnst. Reading the
    dataset raises FileNotFoundError if a run or `ledger compact` has merged files meanwhile: call this again then.
    """
    if table not in SCHEMAS:
        raise ValueError(f"no ledger table {table!r}; one of {', '.join(SCHEMAS)}")
    return Out(out).dataset(table)


def _prefix(lease: Lease) -> str:
    """Beginning of the names of the files that a task writes."""
    return f"{lease.run_id}-{lease.task}-"


def _encode(rows: list[PairRow] | list[LossRow] | list[RunRow], table: str) -> bytes:
    return parquet.encode(to_table(rows, table), table, statistics=False)
