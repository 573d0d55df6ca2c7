"""Pictures in files together: written, found, merged, and never lost or doubled."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batchnst.errors import LedgerError, Superseded
from batchnst.ledger.claim import Claim, Lease
from batchnst.ledger.compaction import ASIDE
from batchnst.ledger.out import Out
from batchnst.ledger.pictures import in_parquet, shards
from batchnst.ledger.pictures.form import FormName, Picture, encode
from batchnst.ledger.pictures.in_parquet import INDEX_KEY
from batchnst.ledger.pictures.stored import FORMS, form_of
from batchnst.ledger.schema import ATTEMPT, PairRow, to_table
from batchnst.storage.files import Folder
from tests.helpers import row, take_over

TOGETHER: list[FormName] = ["parquet", "tar"]

NAMES = ["a", "a.b", "a.c", ".hidden", "a%2Eb".replace("%", "-"), "_x", "l" * 180, "v1.2.3", "A"]
"""Ids of pairs that are hard for file systems, archives or WebDataset."""


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    with Out(str(tmp_path / "out")).claim("r1") as claim:
        yield claim


@pytest.fixture
def out(claim: Claim) -> Out:
    return Out(claim.folder.address)


def data_of(name: str, attempt: int = 1) -> bytes:
    return np.random.default_rng([len(name), attempt, *name.encode()]).bytes(900 + len(name))


def made(name: str, form: FormName, attempt: int = 1, **changes: Any) -> tuple[Lease, dict[str, bytes], PairRow]:
    """A commit of one picture."""
    data = data_of(name, attempt)
    values = {"run_number": 1, "attempt": attempt, "output": f"sub dir/{name}.PNG", "width": 3, "height": 2}
    painted = row(name, output_sha256=hashlib.sha256(data).hexdigest(), **values, **changes)
    return Lease(painted.run_id, 1, 1, form), {painted.output: data}, painted


def commit(out: Out, name: str, form: FormName, attempt: int = 1) -> None:
    lease, pictures, painted = made(name, form, attempt)
    out.commit(lease, pictures, [painted], [])


def held(out: Out) -> dict[str, bytes | None]:
    """The picture of each pair, as every reader finds it."""
    rows = out.rows("pairs")
    stored = out.pictures()
    found = dict(stored.each(rows, lambda row, found: (f"{row['pair_id']} {row['attempt']}", found.data)))
    assert all(stored.find(row).data == found[f"{row['pair_id']} {row['attempt']}"] for row in rows.to_pylist())
    return found


@pytest.mark.parametrize("form", [*TOGETHER, "files"])
def test_pictures_of_every_name_come_back_before_and_after_they_are_merged(
    out: Out, claim: Claim, form: FormName
) -> None:
    for name in NAMES:
        commit(out, name, form)
    expected = {f"{name} 1": data_of(name) for name in NAMES}
    assert held(out) == expected
    out.compact(claim)
    assert held(out) == expected
    assert len(list((Path(out.address) / "pictures").glob("*"))) == (form != "files")


def test_forms_may_be_mixed_and_each_is_merged_with_its_own(out: Out, claim: Claim) -> None:
    forms: list[FormName] = ["files", "parquet", "tar"]
    for name, form in zip(NAMES, itertools.cycle(forms), strict=False):
        commit(out, name, form)
    assert held(out) == {f"{name} 1": data_of(name) for name in NAMES}
    assert out.compact(claim)[1] == 2 + 2
    assert held(out) == {f"{name} 1": data_of(name) for name in NAMES}


class Counted(io.BytesIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


class Requests(io.BytesIO):
    """A file that counts how often it is read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        self.count += 1
        return super().read(size)


def many(count: int) -> bytes:
    """A Parquet file with pictures in several row groups."""
    rows = [to_table([made(f"p{i}", "parquet")[2]], "pairs").to_pylist()[0] for i in range(count)]
    return encode(FORMS["parquet"], [Picture(bytes([i]) * 300_000, row) for i, row in enumerate(rows)])


def test_a_parquet_file_is_listed_by_its_footer_whatever_its_length() -> None:
    whole, form = many(40), FORMS["parquet"]
    short, long, all_rows = Requests(many(1)), Requests(whole), Requests(whole)
    form.index(short, "x")
    index = form.index(long, "x")
    rows = form.index(all_rows, "x", claims=True)
    assert long.count == short.count < all_rows.count / 5
    same = [*ATTEMPT, "group", "place"]
    assert index.select(same).equals(rows.select(same))
    assert (index["sha256"].null_count, rows["sha256"].null_count) == (40, 0)
    assert list(form.read(io.BytesIO(whole), "x", index.to_pylist())) == [bytes([i]) * 300_000 for i in range(40)]


def rewritten(whole: bytes, change: Callable[[pa.Table], pa.Table], metadata: dict[bytes, bytes]) -> io.BytesIO:
    sink, table = io.BytesIO(), change(pq.read_table(io.BytesIO(whole)))
    pq.write_table(table.replace_schema_metadata({**in_parquet.SCHEMA.metadata, **metadata}), sink)
    return sink


def test_a_footer_that_does_not_fit_the_rows_is_not_believed() -> None:
    whole, form = many(8), FORMS["parquet"]
    kept = {INDEX_KEY: pq.read_metadata(io.BytesIO(whole)).metadata[INDEX_KEY]}
    damaged = {INDEX_KEY: base64.b64encode(zlib.compress(b"[" * 30_000))}
    for change, metadata, names in (
        (lambda table: table, {}, range(8)),
        (lambda table: table.slice(3), kept, range(3, 8)),
        (lambda table: table, {INDEX_KEY: b"?"}, range(8)),
        (lambda table: table, damaged, range(8)),
    ):
        index = form.index(rewritten(whole, change, metadata), "x")
        assert index["pair_id"].to_pylist() == [f"p{i}" for i in names]
        assert index["sha256"].null_count == 0
    turned = rewritten(whole, lambda table: table.take(list(range(7, -1, -1))), kept)
    with pytest.raises(LedgerError, match="its footer and its rows name other pictures"):
        list(form.read(turned, "x", form.index(turned, "x").to_pylist()))
    entries = form.index(turned, "x", claims=True).to_pylist()
    assert [data[0] for data in form.read(turned, "x", entries)] == list(range(7, -1, -1))


def test_merged_files_are_listed_by_their_footers(out: Out, claim: Claim) -> None:
    for name in ("a", "b", "c"):
        commit(out, name, "parquet")
    out.compact(claim)
    (path,) = (Path(out.address) / "pictures").iterdir()
    assert INDEX_KEY in pq.read_metadata(path).metadata
    assert sorted(out.pictures().entries["pair_id"].to_pylist()) == ["a", "b", "c"]
    assert out.pictures().entries["path"].null_count == 3


@pytest.mark.parametrize("form", TOGETHER)
def test_one_picture_is_read_by_ranges_and_an_index_leaves_pictures_alone(form: FormName) -> None:
    pictures = []
    for i in range(40):
        _, data, painted = made(f"p{i}", form)
        values = to_table([painted], "pairs").to_pylist()[0]
        pictures.append(Picture(b"".join(data.values()) * 300, values))
    whole = encode(FORMS[form], pictures)
    assert len(whole) > 10_000_000
    file = Counted(whole)
    index = FORMS[form].index(file, "x")
    assert file.count < 500_000
    assert index["pair_id"].to_pylist() == [f"p{i}" for i in range(40)]
    file.count = 0
    assert list(FORMS[form].read(file, "x", [index.slice(33, 1).to_pylist()[0]])) == [pictures[33].data]
    assert file.count < 2_500_000


def test_parquet_says_what_hugging_face_and_others_need(out: Out) -> None:
    commit(out, "a", "parquet")
    (path,) = (Path(out.address) / "pictures").iterdir()
    file = pq.ParquetFile(path)
    (picture,) = file.read().to_pylist()
    assert picture["image"] == {"bytes": data_of("a"), "path": "sub dir/a.PNG"}
    assert (picture["run_id"], picture["attempt"], picture["width"]) == ("r1", 1, 3)
    assert picture["sha256"] == hashlib.sha256(data_of("a")).hexdigest()
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == file.schema_arrow.names
    assert features["image"] == {"_type": "Image"}
    columns = {file.metadata.row_group(0).column(i).path_in_schema: i for i in range(8)}
    bytes_column = file.metadata.row_group(0).column(columns["image.bytes"])
    assert (bytes_column.compression, bytes_column.is_stats_set) == ("UNCOMPRESSED", False)


@pytest.mark.parametrize("form", TOGETHER)
def test_earlier_attempts_go_to_previous(out: Out, claim: Claim, form: FormName) -> None:
    for attempt, names in [(1, "ab"), (2, "a")]:
        for name in names:
            commit(out, name, form, attempt)
    assert len(out.pictures().entries) == 3
    out.compact(claim)
    assert sorted(zip(*out.pictures().entries.select(["pair_id", "attempt"]).to_pydict().values(), strict=True)) == [
        ("a", 2), ("b", 1),
    ]  # fmt: skip
    previous = out.pictures(tables=["previous"])
    earlier = out.rows("pairs").filter((pc.field("pair_id") == "a") & (pc.field("attempt") == 1))
    assert list(previous.each(earlier, lambda _, found: found.data)) == [data_of("a", 1)]
    before = sorted(Path(out.address).rglob("*.*"))
    out.compact(claim)
    after = sorted(Path(out.address).rglob("*.*"))
    assert [path for path in after if ".batchnst" not in path.parts] == [
        path for path in before if ".batchnst" not in path.parts
    ]


@pytest.mark.parametrize("form", TOGETHER)
def test_a_picture_that_was_painted_again_leaves_a_merged_file_too(out: Out, claim: Claim, form: FormName) -> None:
    for name in "abc":
        commit(out, name, form)
    out.compact(claim)
    commit(out, "b", form, 2)
    out.compact(claim)
    assert Counter(out.pictures().entries["pair_id"].to_pylist()) == Counter("abc")
    assert held(out)["b 2"] == data_of("b", 2)


class Killed(BaseException):
    """As if the process ended at this place."""


def cut_off(out: Out, name: str, form: FormName, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is killed between its picture and its row."""
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "create_once", killed)
        with pytest.raises(Killed):
            commit(out, name, form)


def killed(*_: Any, **__: Any) -> bool:
    raise Killed


@pytest.mark.parametrize("form", TOGETHER)
def test_a_killed_workers_picture_is_removed_and_others_stay(
    out: Out, claim: Claim, form: FormName, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(out, "a", form)
    cut_off(out, "b", form, monkeypatch)
    assert len(out.pictures().entries) == 2
    out.compact(claim)
    assert out.pictures().entries["pair_id"].to_pylist() == ["a"]
    assert held(out) == {"a 1": data_of("a")}


@pytest.mark.parametrize("form", TOGETHER)
def test_a_worker_that_wakes_up_after_its_picture_was_removed_commits_nothing(
    out: Out, claim: Claim, form: FormName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was suspended after its last look at the state, right before it creates the file of its row."""
    real = Folder.create_once

    def suspended(self: Folder, relative: str, data: bytes, *rest: Any) -> bool:
        monkeypatch.setattr(Folder, "create_once", real)
        take_over(out.folder)
        other = out.claim("r2")
        other.run_number = claim.run_number + 1
        out.compact(other)
        return real(self, relative, data)

    monkeypatch.setattr(Folder, "create_once", suspended)
    with pytest.raises(Superseded):
        commit(out, "a", form)
    assert len(out.rows("pairs")) == len(out.pictures().entries) == 0


def test_a_compaction_that_was_replaced_takes_nothing_from_the_workers_of_the_next_run(
    out: Out, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(out, "a", "tar", monkeypatch)
    take_over(out.folder)
    empty = out.rows("pairs")
    with pytest.raises(Superseded):
        shards.compact(out.folder, claim, (empty, empty), 1, shards.SHARD_SIZE)
    assert out.folder.files("ledger/pairs") == []
    assert len(out.pictures().entries) == 1


@pytest.mark.parametrize("form", TOGETHER)
def test_a_row_that_came_meanwhile_keeps_its_picture(
    out: Out, claim: Claim, form: FormName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows were listed before a worker wrote its own."""
    commit(out, "a", form)
    empty = out.rows("pairs").slice(0, 0)
    shards.compact(out.folder, claim, (empty, empty), 1, shards.SHARD_SIZE)
    assert held(out) == {"a 1": data_of("a")}
    out.compact(claim)  # now its row is in a merged file
    shards.compact(out.folder, claim, (empty, empty), 1, shards.SHARD_SIZE)
    assert held(out) == {"a 1": data_of("a")}


@pytest.mark.parametrize(
    ("method", "form"),
    [
        pytest.param("write", "tar", marks=pytest.mark.slow),
        ("writing", "parquet"),
        ("create", "tar"),
        ("move", "parquet"),
        pytest.param("remove", "tar", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_moment_of_a_merge_loses_and_doubles_nothing(
    out: Out, claim: Claim, tmp_path: Path, form: FormName, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, attempt in [("a", 1), ("b", 1), ("a", 2)]:
        commit(out, name, form, attempt)
    cut_off(out, "c", form, monkeypatch)
    expected = {"a 2": data_of("a", 2), "b 1": data_of("b")}
    for moment in range(100):
        copy = Out(str(shutil.copytree(out.address, tmp_path / str(moment))))
        own = copy.claim(claim.run_id)
        own.run_number = claim.run_number
        with monkeypatch.context() as patch:
            patch.setattr(Folder, method, dying(getattr(Folder, method), moment))
            try:
                copy.compact(own)
                break
            except Killed:
                pass
        assert held(copy).items() >= expected.items(), f"{method} number {moment}"
        copy.recover(own)
        copy.compact(own)
        assert held(copy).items() >= expected.items()
        assert Counter(copy.pictures().entries["pair_id"].to_pylist()) == Counter("ab")
        assert not list((Path(copy.address) / ASIDE).rglob("*.*"))
    assert moment >= 2


def dying(real: Callable[..., Any], moment: int) -> Callable[..., Any]:
    """A method of a process that ends with the call of that number."""
    calls = itertools.count()

    def method(*args: Any, **options: Any) -> Any:
        if next(calls) >= moment:
            raise Killed
        return real(*args, **options)

    return method


def test_shards_have_about_the_size_that_is_asked_for(out: Out, claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_parquet, "GROUP_BYTES", 1)
    for i in range(12):
        commit(out, f"p{i}", "tar")
    size = sum(info.size for info in out.folder.files("pictures")) // 12
    assert out.compact(claim, shard_size=5 * size)[1] == 2 + 3
    assert len(held(out)) == 12
    assert out.compact(claim, at_least=3, shard_size=5 * size)[1] == 2 + 3


@pytest.mark.parametrize("form", TOGETHER)
def test_files_that_are_damaged_or_foreign_are_named(out: Out, form: FormName) -> None:
    commit(out, "a", form)
    (path,) = (Path(out.address) / "pictures").iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x7f" * 2000):
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match=path.name):
            out.pictures()
        named = list[str]()
        listed = out.pictures(unreadable=lambda file, _, named=named: named.append(file))
        assert (len(listed.entries), named) == (0, [f"pictures/{path.name}"])


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"attempt": 1' + b"0" * 30 + b"}", b"[]", b"null"])
def test_an_archive_with_a_row_that_is_none_is_named(out: Out, data: bytes) -> None:
    whole = b'{"pair_id": "a", "run_id": "r", "output": "a.png", "width": 1, "height": 1, "output_sha256": "", '
    data = whole + data[1:] if data.startswith(b"{") else data
    info, sink = tarfile.TarInfo("a.json"), io.BytesIO()
    info.size = len(data)
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(info, io.BytesIO(data))
        archive.addfile(tarfile.TarInfo("a.png"))
    out.folder.write("pictures/x.tar", sink.getvalue())
    with pytest.raises(LedgerError, match=r"x\.tar: "):
        out.pictures()


def test_a_picture_without_bytes_is_merged_as_it_is(out: Out, claim: Claim) -> None:
    for name in ("a", "b"):
        commit(out, name, "parquet")
    (path, _) = (Path(out.address) / "pictures").iterdir()
    rows = pq.read_table(path)
    image = pa.array([None], rows.schema.field("image").type)
    pq.write_table(rows.set_column(rows.schema.get_field_index("image"), "image", image), path)
    out.compact(claim)
    assert len(held(out)) == 2


@pytest.mark.parametrize("form", [*TOGETHER, "files"])
def test_a_row_that_leads_out_of_out_has_no_picture(out: Out, tmp_path: Path, form: FormName) -> None:
    (tmp_path / "precious.png").write_bytes(b"mine")
    for output in ("../../precious.png", str(tmp_path / "precious.png")):
        out.commit(Lease("r1", 1, 1, form), {}, [row("a", output=output)], [])
    stored = out.pictures()
    assert set(stored.each(out.rows("pairs", damaged=True), lambda _, found: found.data)) == {None}
    assert len(out.rows("pairs")) == 0


def test_names_of_files_choose_their_form() -> None:
    assert [form_of(f"pictures/x{form.ending}") for form in FORMS.values()] == list(FORMS.values())
