"""Archives and Parquet files for tests, honest and hostile."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SPARSE_BYTES = 10_000_000_000
"""Length of what lies before the last member of a sparse archive."""


def make_zip(path: Path, members: Mapping[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip with these members."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, members: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar with these members."""
    with tarfile.open(path, "w", format=kind, errors="surrogateescape") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sparse_zip(path: Path, name: str, data: bytes) -> Path:
    """A zip of 10 GB that takes little room on a disk: a long member without content before the member `name`."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("small.txt", b"small")
        file.seek(SPARSE_BYTES)
        archive.start_dir = SPARSE_BYTES
        archive.writestr(name, data)
    return path


def sparse_tar(path: Path, name: str, data: bytes) -> Path:
    """A tar of 10 GB that takes little room on a disk: ten members without content, then the member `name`."""
    hole = SPARSE_BYTES // 10 // 512 * 512
    with path.open("wb") as file:
        for number in range(10):
            info = tarfile.TarInfo(f"hole-{number}")
            info.size = hole
            file.write(info.tobuf())
            file.seek(hole, io.SEEK_CUR)
        info = tarfile.TarInfo(name)
        info.size = len(data)
        file.write(info.tobuf() + data + bytes(-len(data) % 512 + 1024))
    return path


def make_parquet(path: Path, columns: Mapping[str, object], rows_in_group: int = 4) -> Path:
    """A Parquet file with these columns."""
    pq.write_table(pa.table(dict(columns)), path, row_group_size=rows_in_group)
    return path


def cells(members: Mapping[str, bytes]) -> list[dict[str, object]]:
    """Pictures as Hugging Face's datasets keep them."""
    return [{"bytes": data, "path": name} for name, data in members.items()]
