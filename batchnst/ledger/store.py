"""OUT: where pictures and ledger lie; whole files are added, nothing is changed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchnst.collection.storage import Folder
from batchnst.errors import LedgerError
from batchnst.ledger.claim import Claim, Lease, check
from batchnst.ledger.schema import SCHEMAS, VERSION, VERSION_KEY, LossRow, PairRow, to_table

BLOCK = 1 << 14
"""Outcomes that are Python objects at the same time."""


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
        rows = SCHEMAS["pairs"].empty_table() if rows is None else rows
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
    """A run's folder, local or in an object store: `images/`, `ledger/pairs/`, `ledger/losses/`."""

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

    def newest(self, lease: Lease | None = None) -> Outcomes:
        """The newest outcome of every pair in the ledger; or only of those that one task has written."""
        columns = ["pair_id", "status", "fingerprint", "attempt", "finished_at"]
        return Outcomes(self.dataset("pairs", _prefix(lease) if lease else "").to_table(columns=columns))

    def dataset(self, table: str, prefix: str = "") -> ds.Dataset:
        """One table, `pairs` or `losses`, or its files that begin so, as a dataset.

        Raises LedgerError for files this version cannot read.
        """
        folder, schema = self.folder, SCHEMAS[table]
        dataset = ds.dataset(
            folder.files(f"ledger/{table}", prefix, ".parquet"),
            schema=schema,
            format="parquet",
            filesystem=folder.filesystem,
        )
        for fragment in dataset.get_fragments():
            _check_version(fragment)
        return dataset


def read_ledger(out: str, table: str) -> ds.Dataset:
    """The table `pairs` or `losses` of OUT, a folder or URI, as a pyarrow Dataset.

    Raises ValueError for another table and LedgerError for a ledger written by a newer batchnst.
    """
    if table not in SCHEMAS:
        raise ValueError(f"no ledger table {table!r}; one of {', '.join(SCHEMAS)}")
    return Out(out).dataset(table)


def _prefix(lease: Lease) -> str:
    return f"{lease.run_id}-{lease.task}-"


def _check_version(fragment: ds.Fragment) -> None:
    try:
        version = int((fragment.physical_schema.metadata or {}).get(VERSION_KEY, b"0"))
    except (pa.ArrowInvalid, OSError) as error:
        raise LedgerError(f"{fragment.path}: not a readable Parquet file: {error}") from None
    if version == 0:
        raise LedgerError(f"{fragment.path}: not a file of a batchnst ledger; move it out of OUT/ledger")
    if version > VERSION:
        raise LedgerError(f"{fragment.path}: written by a newer batchnst (schema {version}); this one reads {VERSION}")


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
