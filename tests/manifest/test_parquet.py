"""Manifests in Parquet: of every type, in folders, with and without pandas."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnst.errors import ManifestError, RequestError, StorageError
from batchnst.manifest.collecting import list_pictures
from batchnst.manifest.reading import read_manifest
from batchnst.storage.stores import Disk

NOON = datetime(2026, 11, 21, 12, 30, 0, 5)
BASE = {"content": "a.jpg", "style": "s.png"}


def table(**columns: Any) -> pa.Table:
    """A manifest of one row with these columns, given as Arrow arrays or values."""
    arrays = {name: value if isinstance(value, pa.Array) else pa.array([value]) for name, value in columns.items()}
    return pa.table({**{name: pa.array([value]) for name, value in BASE.items()}, **arrays})


def extra_of(path: Path, rows: pa.Table) -> Any:
    pq.write_table(rows, path, coerce_timestamps=None)
    (pair,) = read_manifest(str(path), {})
    return json.loads(pair.extra, parse_constant=pytest.fail)


TYPES: dict[str, tuple[pa.Array, Any]] = {
    "nanoseconds": (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    "nanoseconds, UTC": (pa.array([1], pa.timestamp("ns", "UTC")), "1970-01-01 00:00:00.000000001Z"),
    "microseconds": (pa.array([NOON]), "2026-11-21 12:30:00.000005"),
    "the year 30000": (pa.array([884541340800000], pa.timestamp("ms")), "30000-01-01 00:00:00.000"),
    "date": (pa.array([date(2026, 11, 21)]), "2026-11-21"),
    "time": (pa.array([time(1, 2, 3)]), "01:02:03.000000"),
    "time in nanoseconds": (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
    "duration": (pa.array([timedelta(seconds=2)]), 2_000_000),
    "duration in nanoseconds": (pa.array([7], pa.duration("ns")), 7),
    "times in a list": (pa.array([[1, None]], pa.list_(pa.timestamp("ns"))), ["1970-01-01 00:00:00.000000001", None]),
    "times in a struct": (
        pa.array([{"t": 1, "n": float("nan")}], pa.struct({"t": pa.timestamp("ns"), "n": pa.float32()})),
        {"t": "1970-01-01 00:00:00.000000001", "n": None},
    ),
    "times in a map": (
        pa.array([[("k", 1)]], pa.map_(pa.string(), pa.timestamp("ns"))),
        {"k": "1970-01-01 00:00:00.000000001"},
    ),
    "numbers as keys": (pa.array([[(2, "b"), (1, "a")]], pa.map_(pa.int32(), pa.string())), {"1": "a", "2": "b"}),
    "categories": (pa.array(["x"]).dictionary_encode(), "x"),
    "decimal": (pa.array([Decimal("1.50")]), "1.50"),
    "text in bytes": (pa.array([b"plain"]), "plain"),
    "bytes": (pa.array([b"\xff\x00"]), "/wA="),
    "NaN in a list": (pa.array([[float("nan"), float("inf"), 1.5]]), [None, "inf", 1.5]),
    "fixed lists": (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), [1, 2]),
    "half floats": (pa.array([1.5], pa.float16()), 1.5),
    "large integers": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    "truth": (pa.array([True]), True),
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_a_column_of_the_users(tmp_path: Path, kind: str) -> None:
    values, kept = TYPES[kind]
    assert extra_of(tmp_path / "m.parquet", table(theirs=values)) == {"theirs": kept}


@pytest.mark.parametrize(
    "missing", [pa.array([float("nan")]), pa.nulls(1), pa.array([""]), pa.array([[]], pa.list_(pa.string()))]
)
def test_a_missing_value_is_absent(tmp_path: Path, missing: pa.Array) -> None:
    names = ["id", "output", "content_mask", "size", "seed", "theirs"]
    assert extra_of(tmp_path / "m.parquet", table(**dict.fromkeys(names, missing))) == {}


def test_no_pandas_is_needed(tmp_path: Path) -> None:
    for number, (values, _) in enumerate(TYPES.values()):
        pq.write_table(table(theirs=values), tmp_path / f"{number}.parquet")
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'pandas': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from batchnst.manifest.reading import read_manifest\n"
        f"for number in range({len(TYPES)}): assert len(read_manifest(f'{tmp_path}/{{number}}.parquet', {{}})) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_pandas_writes(tmp_path: Path) -> None:
    import pandas as pd

    rows = [BASE | {"id": "one", "size": 64, "when": pd.Timestamp(1)}, BASE | {"content": "b.jpg", "note": "x"}]
    pd.DataFrame(rows, index=["i", "j"]).to_parquet(tmp_path / "m.parquet")
    first, second = read_manifest(str(tmp_path / "m.parquet"), {})
    assert (first.id, first.recipe.size, second.recipe.size) == ("one", 64, 512)
    assert json.loads(first.extra)["when"] == "1970-01-01 00:00:00.000000001"
    assert json.loads(second.extra) == {"note": "x", "__index_level_0__": "j"}


def test_text_that_is_not_utf_8_gets_a_line(tmp_path: Path) -> None:
    bad = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(table(content=bad), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"m\.parquet: .*UTF-?8"):
        read_manifest(str(tmp_path / "m.parquet"), {})


def test_a_key_that_is_twice_in_a_map_gets_a_line(tmp_path: Path) -> None:
    twice = pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(table(theirs=twice), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"m\.parquet: not a readable Parquet file: .*k"):
        read_manifest(str(tmp_path / "m.parquet"), {})


# Folders -----------------------------------------------------------------------------------------------------------


def put(address: str, rows: pa.Table) -> None:
    with fsspec.open(address, "wb", auto_mkdir=True) as file:
        pq.write_table(rows, file)


@pytest.fixture(params=["{folder}", "file://{folder}", "memory://{name}"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, local or remote."""
    return str(request.param).format(folder=tmp_path / "x", name=uuid4().hex)


@pytest.mark.parametrize("name", ["night", "night/", "night.parquet", "v1.2/"])
def test_a_folder_of_parquet_files_is_one_manifest(place: str, name: str) -> None:
    folder = f"{place}/{name.rstrip('/')}"
    put(f"{folder}/part-1.parquet", table(content="b.jpg", size=64))
    put(f"{folder}/part-0.parquet", table(content="/abs/a.jpg", mood="calm"))
    put(f"{folder}/deep/part-2.PARQUET", table(content="c.jpg"))
    for other in ("_SUCCESS", "_metadata.parquet", ".part-0.parquet.crc", "_tmp/x.parquet", "notes.txt"):
        with fsspec.open(f"{folder}/{other}", "wb", auto_mkdir=True) as file:
            file.write(b"nothing")
    pairs = {pair.content: pair for pair in read_manifest(f"{place}/{name}", {})}
    assert set(pairs) == {"/abs/a.jpg", f"{folder}/b.jpg", f"{folder}/c.jpg"}
    assert pairs["/abs/a.jpg"].extra == '{"mood": "calm"}'
    assert pairs[f"{folder}/b.jpg"].recipe.size == 64


def test_problems_of_a_folder_name_their_file(tmp_path: Path) -> None:
    put(f"{tmp_path}/n/a.parquet", pa.Table.from_pylist([BASE | {"id": "w"}, BASE | {"id": "x"}]))
    put(
        f"{tmp_path}/n/b.parquet", pa.Table.from_pylist([BASE | {"id": "x", "size": 64}, BASE | {"id": "y", "size": 1}])
    )
    put(f"{tmp_path}/n/c.parquet", pa.table({"content": ["a"]}))
    with pytest.raises(ManifestError) as caught:
        read_manifest(f"{tmp_path}/n", {})
    assert [line.removeprefix(f"{tmp_path}/n: ") for line in str(caught.value).splitlines()] == [
        "b.parquet: line 1, id: 'x' is already the id of a.parquet: line 2; expected a unique one",
        "b.parquet: line 2: size: 1 is not allowed: should be greater than or equal to 16; "
        "a number of pixels, or original",
        "c.parquet: has no column style; it has: content",
    ]


@pytest.mark.parametrize("name", ["empty", "empty.parquet", "none", "none.parquet"])
def test_a_folder_without_parquet_files_gets_a_line(tmp_path: Path, name: str) -> None:
    for folder in ("empty", "empty.parquet"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").touch()
    with pytest.raises(ManifestError) as caught:
        read_manifest(str(tmp_path / name), {})
    assert len(str(caught.value).splitlines()) == 1


class Failing(io.FileIO):
    """A file whose first half can be read, before its disk fails; its end is read first, as that of a Parquet file."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(path)
        self.number, self.asked = number, 0

    def readinto(self, buffer: Any, /) -> int:
        self.asked += 1
        if self.asked > 1:
            raise OSError(self.number, "as if the disk had said it")
        return super().readinto(buffer)


@pytest.mark.parametrize(("number", "transient"), [(errno.EIO, True), (errno.EACCES, False)])
def test_a_store_that_goes_away_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, transient: bool
) -> None:
    path = tmp_path / "m.parquet"
    pictures = pa.array([{"bytes": b"p" * 300_000, "path": "p.png"}] * 2)
    rows = pa.table({"content": ["a.jpg"] * 200_000, "style": [f"{i}.png" for i in range(200_000)]})
    pq.write_table(rows, path, use_dictionary=False, compression="none")
    pq.write_table(pa.table({"image": pictures}), tmp_path / "p.parquet", compression="none")

    def failing(self: Disk, path: str, buffer: int, **_: bool) -> BinaryIO:
        return io.BufferedReader(Failing(path, number), buffer)

    monkeypatch.setattr(Disk, "open", failing)
    with pytest.raises(ManifestError) as caught:
        read_manifest(str(path), {})
    assert str(caught.value) == f"{path}: cannot be read: as if the disk had said it"
    with pytest.raises(StorageError if transient else RequestError, match="cannot be read: as if the disk had said it"):
        list_pictures(str(tmp_path / "p.parquet"))
