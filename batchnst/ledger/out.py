"""OUT, the folder of pictures and ledger. Whole files are added to the ledger; none is ever changed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from numpy.typing import NDArray

from batchnst.errors import LedgerError
from batchnst.ledger import compaction, parquet
from batchnst.ledger.claim import Claim, Holder, Lease, check, holder
from batchnst.ledger.schema import ATTEMPT, SCHEMAS, LossRow, PairRow, RunRow, to_table
from batchnst.storage.files import Folder

BLOCK = 1 << 14
"""Outcomes converted to Python objects at a time."""

GROUP = 256
"""Files that a thread reads one after the other, as one piece of work."""

TRIES = 3
"""Attempts at listing and reading files, if some of them vanish in between."""

T = TypeVar("T")

_OUTCOMES = ("pair_id", "status", "fingerprint", "attempt", "finished_at")


@dataclass(frozen=True)
class Outcome:
    """The newest row of a pair: its status, fingerprint and attempt."""

    ok: bool
    fingerprint: str
    attempt: int


class Outcomes:
    """The newest outcome of every pair, kept in columns: a million pairs take some hundred megabytes."""

    def __init__(self, rows: pa.Table | None = None) -> None:
        """`rows` are those of `pairs`, with all attempts at each pair; None means no rows."""
        newest = newest_rows(parquet.empty("pairs", _OUTCOMES) if rows is None else rows)
        self._ids = newest["pair_id"].combine_chunks()
        self._columns = [newest[name] for name in ("status", "fingerprint", "attempt")]

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, pair_ids: Sequence[str] | pa.ChunkedArray) -> tuple[NDArray[np.int64], Iterator[Outcome]]:
        """The positions in `pair_ids` of the pairs that have an outcome, and their outcomes in the same order."""
        if isinstance(pair_ids, Sequence):
            pair_ids = pa.array(pair_ids, pa.string())
        rows = pc.index_in(pair_ids, self._ids)
        positions = np.flatnonzero(pc.is_valid(rows).to_numpy(zero_copy_only=False))
        names = ["status", "fingerprint", "attempt"]
        known = pa.table([column.take(rows.drop_null()) for column in self._columns], names)
        return positions, (
            Outcome(status == "ok", fingerprint, attempt)
            for batch in known.to_batches(max_chunksize=BLOCK)
            for status, fingerprint, attempt in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )


class Out:
    """A run's folder, local or in an object store: pictures under `images/`, the ledger under `ledger/`."""

    def __init__(self, address: str) -> None:
        self.folder = Folder(address)
        self.address = self.folder.address

    def claim(self, run_id: str) -> Claim:
        """A claim on this folder by `run_id`; use it in a `with` statement."""
        return Claim(self.folder, run_id)

    def check(self, lease: Lease) -> None:
        """Raise Superseded if the holder of `lease` may no longer write."""
        check(self.folder, lease)

    def compact(self, at_least: int = 2) -> tuple[int, int]:
        """Merge the small files of each table that has `at_least` of them; return the number of files before and after.

        The caller must hold the claim. Raises LedgerError if a file cannot be read; nothing is changed then.
        """
        return compaction.compact(self.folder, at_least)

    def recover(self) -> None:
        """Finish or undo an interrupted compaction. The caller must hold the claim."""
        compaction.recover(self.folder)

    def write_picture(self, output: str, data: bytes) -> None:
        """Write a picture to the path `output` under `images/`; raises StorageError."""
        self.folder.write(f"images/{output}", data)

    def write_snapshot(self, name: str, data: bytes) -> None:
        """Write an intermediate picture to the path `name` under `snapshots/`; raises StorageError."""
        self.folder.write(f"snapshots/{name}", data)

    def append(self, lease: Lease, pairs: list[PairRow], losses: list[LossRow]) -> None:
        """Add the rows of finished attempts, losses first, so that a row in `pairs` never lacks its losses.

        Raises Superseded if the holder of `lease` may no longer write, and StorageError.
        """
        name = f"{_prefix(lease)}{uuid.uuid4().hex[:12]}.parquet"
        if losses:
            self.folder.write(f"ledger/losses/{name}", _encode(losses, "losses"))
        # Checked before each try: another run may take over while the store is out of reach.
        self.folder.write(f"ledger/pairs/{name}", _encode(pairs, "pairs"), before=lambda: self.check(lease))

    def begin(self, run: RunRow) -> None:
        """Add the row of a run that starts."""
        self.folder.write(f"ledger/runs/{run.run_id}.parquet", _encode([run], "runs"))

    def newest(self) -> Outcomes:
        """The newest outcome of every pair in the ledger."""
        return Outcomes(self.rows("pairs", _OUTCOMES))

    def committed(self, lease: Lease) -> dict[str, str | None]:
        """Error message by pair id of the pairs that a task has committed; None for those that are ok."""
        rows = self.rows("pairs", ["pair_id", "status", "error_message"], prefix=_prefix(lease)).to_pylist()
        return {row["pair_id"]: row["error_message"] if row["status"] == "failed" else None for row in rows}

    def runs(self) -> list[dict[str, Any]]:
        """The rows of all runs, the newest last."""
        rows: list[dict[str, Any]] = self.rows("runs").sort_by("started_at").to_pylist()
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
    ) -> pa.Table:
        """The rows of a table; only `columns` if given.

        prefix: read only files whose names begin with it. matching: only rows that satisfy it. Raises LedgerError if
        this version cannot read a file.
        """
        return retry_vanished(lambda: self.rows_of(self.files(table, prefix), table, columns, matching))

    def rows_of(
        self,
        files: Sequence[pafs.FileInfo],
        table: str,
        columns: Sequence[str] | None = None,
        matching: pc.Expression | None = None,
    ) -> pa.Table:
        """The rows of a table in `files`; only `columns` if given, and only rows that satisfy `matching`."""
        read = partial(parquet.read, self.folder.filesystem, columns=columns, matching=matching)
        groups = [files[start : start + GROUP] for start in range(0, len(files), GROUP)]
        with ThreadPoolExecutor(self.folder.streams) as pool:
            tables = list(pool.map(lambda group: _concat(map(read, group)), groups))
        return _concat([parquet.empty(table, columns), *tables])

    def files(self, table: str, prefix: str = "") -> list[pafs.FileInfo]:
        """The files of a table, which hold each row once even during a compaction."""
        return compaction.current_files(self.folder, table, self.folder.files(f"ledger/{table}", prefix, ".parquet"))

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


def newest_rows(rows: pa.Table) -> pa.Table:
    """The newest row of each pair. `rows` are those of `pairs`, with at least `pair_id` and `finished_at`."""
    pairs = rows["pair_id"].combine_chunks().dictionary_encode()
    in_order = np.argsort(rows["finished_at"].cast(pa.int64()).to_numpy(), kind="stable")
    newest = np.zeros(len(pairs.dictionary), np.int64)
    newest[pairs.indices.to_numpy()[in_order]] = in_order  # of repeated indices, the last value stays
    return rows.take(pa.array(newest))


def open_out(address: str) -> Out:
    """The OUT of an earlier run; raises LedgerError if it has no ledger."""
    out = Out(address)
    if not any(out.files(table) for table in SCHEMAS):
        raise LedgerError(f"{address}: has no ledger; expected the --out of an earlier `batchnst run`")
    return out


def read_ledger(out: str, table: str) -> ds.Dataset:
    """The table `pairs`, `losses` or `runs` as a pyarrow Dataset; `out` is a run's folder or URI.

    Raises ValueError for another table, and LedgerError if the ledger was written by a newer batchnst.
    """
    if table not in SCHEMAS:
        raise ValueError(f"no ledger table {table!r}; one of {', '.join(SCHEMAS)}")
    return Out(out).dataset(table)


def _prefix(lease: Lease) -> str:
    """Beginning of the names of the files that a task writes."""
    return f"{lease.run_id}-{lease.task}-"


def _encode(rows: list[PairRow] | list[LossRow] | list[RunRow], table: str) -> bytes:
    return parquet.encode(to_table(rows, table), table, statistics=False)
