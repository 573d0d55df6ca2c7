"""OUT: where pictures and ledger lie; whole files are added, nothing is changed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchnst.collection.storage import Folder
from batchnst.errors import LedgerError
from batchnst.ledger.claim import Claim, Lease, check
from batchnst.ledger.schema import SCHEMAS, VERSION, VERSION_KEY, LossRow, PairRow, RunRow, to_table

BLOCK = 1 << 14
"""Outcomes that are Python objects at the same time."""

GROUP, SMALL = 256, 1 << 20
"""So many files are read by a thread at a time, and at once those of fewer bytes than this."""

_OUTCOMES = ("pair_id", "status", "fingerprint", "attempt", "finished_at")
_OUTCOME_COLUMNS = pa.schema([SCHEMAS["pairs"].field(name) for name in _OUTCOMES])


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
        rows = _OUTCOME_COLUMNS.empty_table() if rows is None else rows
        pairs = rows["pair_id"].combine_chunks().dictionary_encode()
        in_order = np.argsort(rows["finished_at"].cast(pa.int64()).to_numpy(), kind="stable")
        newest = np.zeros(len(pairs.dictionary), np.int64)
        newest[pairs.indices.to_numpy()[in_order]] = in_order  # the last one stays
        self._ids = pairs.dictionary
        self._columns = [rows[name].take(pa.array(newest)) for name in ("status", "fingerprint", "attempt")]

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
            self.folder.write(f"ledger/losses/{name}", _parquet(to_table(losses, "losses")))
        self.check(lease)
        self.folder.write(f"ledger/pairs/{name}", _parquet(to_table(pairs, "pairs")))

    def begin(self, run: RunRow) -> None:
        """Add the row of a run that begins."""
        self.folder.write(f"ledger/runs/{run.run_id}.parquet", _parquet(to_table([run], "runs")))

    def newest(self, lease: Lease | None = None) -> Outcomes:
        """The newest outcome of every pair in the ledger; or only of those that one task has written."""
        files = self.folder.files("ledger/pairs", _prefix(lease) if lease else "", ".parquet")
        groups = [files[start : start + GROUP] for start in range(0, len(files), GROUP)]
        with ThreadPoolExecutor(4 if self.folder.local else 32) as pool:
            tables = list(pool.map(partial(_read_outcomes, self.folder.filesystem), groups))
        return Outcomes(pa.concat_tables([_OUTCOME_COLUMNS.empty_table(), *tables]))

    def dataset(self, table: str) -> ds.Dataset:
        """A table as a dataset; raises LedgerError for files this version cannot read."""
        folder, schema = self.folder, SCHEMAS[table]
        paths = [info.path for info in folder.files(f"ledger/{table}", ending=".parquet")]
        dataset = ds.dataset(paths, schema=schema, format="parquet", filesystem=folder.filesystem)
        for fragment in dataset.get_fragments():
            with _readable(fragment.path):
                _check_version(fragment.path, fragment.physical_schema)
        return dataset


def read_ledger(out: str, table: str) -> ds.Dataset:
    """The table `pairs`, `losses` or `runs` of OUT, a folder or URI, as a pyarrow Dataset.

    Raises ValueError for another table and LedgerError for a ledger written by a newer batchnst.
    """
    if table not in SCHEMAS:
        raise ValueError(f"no ledger table {table!r}; one of {', '.join(SCHEMAS)}")
    return Out(out).dataset(table)


def _prefix(lease: Lease) -> str:
    return f"{lease.run_id}-{lease.task}-"


def _read_outcomes(filesystem: pafs.FileSystem, files: Sequence[pafs.FileInfo]) -> pa.Table:
    """What `Outcomes` is made of, from some files."""
    tables = []
    for info in files:
        with _readable(info.path), filesystem.open_input_file(info.path) as source:
            # One request for a small file, not one a column.
            file = pq.ParquetFile(pa.BufferReader(source.read()) if info.size < SMALL else source)
            _check_version(info.path, file.schema_arrow)
            tables.append(file.read(columns=_OUTCOME_COLUMNS.names, use_threads=False))
    return pa.concat_tables(tables).combine_chunks().replace_schema_metadata()


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise LedgerError(f"{path}: not a readable Parquet file: {error}") from None


def _check_version(path: str, schema: pa.Schema) -> None:
    version = int((schema.metadata or {}).get(VERSION_KEY, b"0"))
    if version == 0:
        raise LedgerError(f"{path}: not a file of a batchnst ledger; move it out of OUT/ledger")
    if version > VERSION:
        raise LedgerError(f"{path}: written by a newer batchnst (schema {version}); this one reads {VERSION}")


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Of no use in so small a file, and half of what it takes to open one.
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    return bytes(sink.getvalue())
