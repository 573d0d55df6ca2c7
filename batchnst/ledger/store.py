"""OUT: where pictures and ledger lie; whole files are added, nothing is changed.

A run claims OUT before it reads what is done. Its workers add rows only while the claim stands, so that a worker
that outlives a killed run cannot paint a pair that the next run paints too.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchnst.collection.storage import Folder
from batchnst.errors import LedgerError, Superseded
from batchnst.ledger.schema import SCHEMAS, VERSION, VERSION_KEY, LossRow, PairRow, to_table

_CLAIM = ".batchnst/claim"


@dataclass(frozen=True)
class Outcome:
    """What the newest row says of a pair."""

    ok: bool
    fingerprint: str
    attempt: int


class Out:
    """A run's folder, local or in an object store: `images/`, `ledger/pairs/`, `ledger/losses/`."""

    def __init__(self, address: str) -> None:
        self.folder = Folder(address)
        self.address = self.folder.address

    def claim(self, run_id: str) -> None:
        """Take OUT over for a run: workers of earlier runs can no longer add rows."""
        self.folder.write(_CLAIM, run_id.encode())
        self.folder.clear_temporary()

    def write_picture(self, output: str, data: bytes) -> None:
        """Put a picture in place under `images/`."""
        self.folder.write(f"images/{output}", data)

    def write_snapshot(self, name: str, data: bytes) -> None:
        """Put an intermediate picture in place under `snapshots/`."""
        self.folder.write(f"snapshots/{name}", data)

    def append(self, run_id: str, pairs: list[PairRow], losses: list[LossRow]) -> None:
        """Add the rows of finished attempts: losses first, so that a row in `pairs` never lacks its losses."""
        if self.folder.read(_CLAIM) != run_id.encode():
            raise Superseded(f"{self.address}: another run has taken this folder over; this one stops")
        name = f"{run_id}-{uuid.uuid4().hex[:12]}.parquet"
        if losses:
            self.folder.write(f"ledger/losses/{name}", _parquet(to_table(losses, "losses")))
        self.folder.write(f"ledger/pairs/{name}", _parquet(to_table(pairs, "pairs")))

    def newest(self, run_id: str | None = None) -> dict[str, Outcome]:
        """The newest outcome of every pair in the ledger, by pair id; of one run alone if it is named."""
        columns = ["pair_id", "status", "fingerprint", "attempt", "finished_at"]
        only = None if run_id is None else pc.field("run_id") == run_id
        rows = self.dataset("pairs").to_table(columns=columns, filter=only).sort_by([("finished_at", "ascending")])
        found = zip(*(rows[name].to_pylist() for name in columns[:4]), strict=True)
        return {pair_id: Outcome(status == "ok", mark, attempt) for pair_id, status, mark, attempt in found}

    def dataset(self, table: str) -> ds.Dataset:
        """One table, `pairs` or `losses`, as a dataset; raises LedgerError for files this version cannot read."""
        folder, schema = self.folder, SCHEMAS[table]
        dataset = ds.dataset(
            folder.files(f"ledger/{table}", ".parquet"),
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
