"""A form of files that hold many pictures, each beside its key: the run, the pair and the attempt that painted it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol, Self, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.ledger.schema import ATTEMPT

FormName: TypeAlias = Literal["files", "parquet", "tar"]
"""Names of the forms; `files` is a file of its own under `images/` for each picture."""

KEY = [
    pa.field("pair_id", pa.string(), nullable=False),
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("attempt", pa.int64(), nullable=False),
]
"""Columns of a picture's key."""

INDEX = pa.schema(
    [
        *KEY,
        pa.field("path", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("place", pa.int64(), nullable=False),
        pa.field("size", pa.int64()),
    ]
)
"""Columns of a file's index: what it says of each picture, and where it is.

path: `output` of its row. It, width, height and sha256 are null if they were not read. group: number of its row group,
or position of its first header in an archive. place: row in that row group, or position of its bytes. size: number of
bytes, null if only reading them tells.
"""

Entry: TypeAlias = Mapping[str, Any]
"""A row of an index."""


@dataclass(frozen=True)
class Picture:
    """A picture to write: its file `data`, and its `row` of `pairs` as JSON values without secrets."""

    data: bytes
    row: Mapping[str, Any]


class Writer(Protocol):
    """Writes pictures into one file, one after the other; little of it is in memory.

    Used in a `with` block, at whose end the file is complete, unless it ends with an error.
    """

    @property
    def size(self) -> int:
        """Number of bytes so far, about."""

    def add(self, picture: Picture) -> None:
        """Append a picture."""

    def copy(self, file: BinaryIO, name: str, entries: Sequence[Entry]) -> None:
        """Append the pictures at `entries` of another file of the same form, in their order there, as they are."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Form(Protocol):
    """A form of files. All functions raise LedgerError, with the file's `name`, if a file is not of this form."""

    ending: str

    def writer(self, sink: BinaryIO) -> Writer:
        """A writer to an empty file."""

    def index(self, file: BinaryIO, name: str, *, claims: bool = False) -> pa.Table:
        """The pictures in a file, with the columns of INDEX; the pictures themselves are not read.

        claims: with all that the file says of each picture, which may take many reads.
        """

    def read(self, file: BinaryIO, name: str, entries: Sequence[Entry]) -> Iterator[bytes]:
        """The bytes of the pictures at `entries` of a file, in this order."""


def encode(form: Form, pictures: Sequence[Picture]) -> bytes:
    """A whole file of `form` with these pictures."""
    sink = io.BytesIO()
    with form.writer(sink) as writer:
        for picture in pictures:
            writer.add(picture)
    return sink.getvalue()


def keys(rows: pa.Table) -> pa.Array:
    """A text for each row that tells attempts apart."""
    columns = [rows[name].cast(pa.string()) for name in ATTEMPT]
    joined = pc.binary_join_element_wise(*columns, "\n")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
