"""OUT: where pictures and ledger lie; whole files are added, nothing is changed."""

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
"""Outcomes that are Python objects at the same time."""

GROUP = 256
"""Files that a thread reads at a time."""

TRIES = 3
"""Times that files are listed and read, where some of them vanish between."""

T = TypeVar("T")

_OUTCOMES = ("pair_id", "status", "fingerprint", "attempt", "finished_at")


@dataclass(frozen=True)
class Outcome:
    """What the newest row says of a pair."""

    ok: bool
    fingerprint: str
    attempt: int


class Outcomes:
    """The newest outcome of every pair, in columns: those of a million pairs take some hundred megabytes."""

    def __init__(self, rows: pa.Table | None = None) -> None:
        """From rows of `pairs`, all attempts of each pair; None: from none."""
        newest = newest_rows(parquet.empty("pairs", _OUTCOMES) if rows is None else rows)
        self._ids = newest["pair_id"].combine_chunks()
        self._columns = [newest[name] for name in ("status", "fingerprint", "attempt")]

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, pair_ids: Sequence[str] | pa.ChunkedArray) -> tuple[NDArray[np.int64], Iterator[Outcome]]:
        """Which of these ids, by position, have an outcome, and the outcomes of those."""
        if isinstance(pair_ids, Sequence):
            pair_ids = pa.array(pair_ids, pa.string())
        places = pc.index_in(pair_ids, self._ids)
        positions = np.flatnonzero(pc.is_valid(places).to_numpy(zero_copy_only=False))
        known = pa.table([column.take(places.drop_null()) for column in self._columns], ["status", "mark", "attempt"])
        return positions, (
            Outcome(status == "ok", mark, attempt)
            for batch in known.to_batches(max_chunksize=BLOCK)
            for status, mark, attempt in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )


class Out:
    """A run's folder, local or in an object store: `images/`, and the ledger's tables under `ledger/`."""

    def __init__(self, address: str) -> None:
        self.folder = Folder(address)
        self.address = self.folder.address

    def claim(self, run_id: str) -> Claim:
        """A run's hold on this folder, to be taken by `with`."""
        return Claim(self.folder, run_id)

    def check(self, lease: Lease) -> None:
        """Raise Superseded for one that may not write any more."""
        check(self.folder, lease)

    def compact(self, at_least: int = 2) -> tuple[int, int]:
        """Merge the ledger's small files, of tables with so many; under a claim. Returns the files before and after.

        Raises LedgerError, and leaves everything as it was, for a file that cannot be read.
        """
        return compaction.compact(self.folder, at_least)

    def recover(self) -> None:
        """End a compaction that was cut off; under a claim."""
        compaction.recover(self.folder)

    def write_picture(self, output: str, data: bytes) -> None:
        """Put a picture in place under `images/`."""
        self.folder.write(f"images/{output}", data)

    def write_snapshot(self, name: str, data: bytes) -> None:
        """Put an intermediate picture in place under `snapshots/`."""
        self.folder.write(f"snapshots/{name}", data)

    def append(self, lease: Lease, pairs: list[PairRow], losses: list[LossRow]) -> None:
        """Add the rows of finished attempts: losses first, so that a row in `pairs` never lacks its losses."""
        name = f"{_prefix(lease)}{uuid.uuid4().hex[:12]}.parquet"
        if losses:
            self.folder.write(f"ledger/losses/{name}", _encode(losses, "losses"))
        # Asked before each try: the store may be away for a while, and another run take over meanwhile.
        self.folder.write(f"ledger/pairs/{name}", _encode(pairs, "pairs"), before=lambda: self.check(lease))

    def begin(self, run: RunRow) -> None:
        """Add the row of a run that begins."""
        self.folder.write(f"ledger/runs/{run.run_id}.parquet", _encode([run], "runs"))

    def newest(self) -> Outcomes:
        """The newest outcome of every pair in the ledger."""
        return Outcomes(self.rows("pairs", _OUTCOMES))

    def committed(self, lease: Lease) -> dict[str, str | None]:
        """The pairs that a task has committed, by id, and the error of those that failed."""
        columns = self.rows("pairs", ["pair_id", "status", "error_message"], prefix=_prefix(lease)).to_pylist()
        return {row["pair_id"]: row["error_message"] if row["status"] == "failed" else None for row in columns}

    def runs(self) -> list[dict[str, Any]]:
        """The rows of all runs, the newest one last."""
        rows: list[dict[str, Any]] = self.rows("runs").sort_by("started_at").to_pylist()
        return rows

    def holder(self) -> Holder | None:
        """The run that has this folder."""
        return holder(self.folder)

    def rows(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        *,
        prefix: str = "",
        matching: pc.Expression | None = None,
    ) -> pa.Table:
        """A table's rows, or some of their columns, from all files or those whose names begin so.

        matching: only the rows where this holds. Raises LedgerError for a file that this version cannot read.
        """
        return patiently(lambda: self.rows_of(self.files(table, prefix), table, columns, matching))

    def rows_of(
        self,
        files: Sequence[pafs.FileInfo],
        table: str,
        columns: Sequence[str] | None = None,
        matching: pc.Expression | None = None,
    ) -> pa.Table:
        """The rows in some of a table's files."""
        read = partial(parquet.read, self.folder.filesystem, columns=columns, matching=matching)
        groups = [files[start : start + GROUP] for start in range(0, len(files), GROUP)]
        with ThreadPoolExecutor(self.folder.streams) as pool:
            tables = list(pool.map(lambda group: _concat(map(read, group)), groups))
        return _concat([parquet.empty(table, columns), *tables])

    def files(self, table: str, prefix: str = "") -> list[pafs.FileInfo]:
        """The files of a table, each row in one of them, also while they are being merged."""
        return compaction.without_doubles(self.folder, table, self.folder.files(f"ledger/{table}", prefix, ".parquet"))

    def dataset(self, table: str) -> ds.Dataset:
        """A table as a dataset; raises LedgerError for files this version cannot read."""
        return patiently(lambda: self._dataset(table))

    def _dataset(self, table: str) -> ds.Dataset:
        paths = [info.path for info in self.files(table)]
        dataset = ds.dataset(paths, schema=SCHEMAS[table], format="parquet", filesystem=self.folder.filesystem)
        for fragment in dataset.get_fragments():
            with parquet.readable(fragment.path):
                parquet.check_version(fragment.path, fragment.physical_schema)
        return dataset


def patiently(read: Callable[[], T]) -> T:
    """What is listed and read: again where files vanish in between, because a compaction has merged them."""
    for _ in range(TRIES - 1):
        with suppress(FileNotFoundError):
            return read()
    return read()


def _concat(tables: Iterable[pa.Table]) -> pa.Table:
    """One table, in one piece; columns that a file of an earlier version lacks are null."""
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def of_attempt(attempt: Mapping[str, Any]) -> pc.Expression:
    """What holds for the rows of an attempt, given by any of its rows."""
    run_id, pair_id, number = (pc.field(name) == attempt[name] for name in ATTEMPT)
    return run_id & pair_id & number


def newest_rows(rows: pa.Table) -> pa.Table:
    """The newest of each pair's rows, of `pairs` or some of its columns."""
    pairs = rows["pair_id"].combine_chunks().dictionary_encode()
    in_order = np.argsort(rows["finished_at"].cast(pa.int64()).to_numpy(), kind="stable")
    newest = np.zeros(len(pairs.dictionary), np.int64)
    newest[pairs.indices.to_numpy()[in_order]] = in_order  # the last one stays
    return rows.take(pa.array(newest))


def open_out(address: str) -> Out:
    """The folder of an earlier run; raises LedgerError where there is no ledger."""
    out = Out(address)
    if not any(out.files(table) for table in SCHEMAS):
        raise LedgerError(f"{address}: has no ledger; expected the --out of an earlier `batchnst run`")
    return out


def read_ledger(out: str, table: str) -> ds.Dataset:
    """The table `pairs`, `losses` or `runs` of OUT, a folder or URI, as a pyarrow Dataset.

    Raises ValueError for another table and LedgerError for a ledger written by a newer batchnst.
    """
    if table not in SCHEMAS:
        raise ValueError(f"no ledger table {table!r}; one of {', '.join(SCHEMAS)}")
    return Out(out).dataset(table)


def _prefix(lease: Lease) -> str:
    return f"{lease.run_id}-{lease.task}-"


def _encode(rows: list[PairRow] | list[LossRow] | list[RunRow], table: str) -> bytes:
    return parquet.encode(to_table(rows, table), table, statistics=False)
