"""Files inside archives and Parquet files: read by ranges, each list once, and whatever is wrong in one line."""

from __future__ import annotations

import io
import os
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from batchnst.chains import Cell
from batchnst.errors import InputError, RequestError
from batchnst.storage import addresses, archives, cells, files, retries
from batchnst.storage.addresses import store_name
from tests.storage.made import cells as structs
from tests.storage.made import make_parquet, make_tar, make_zip, sparse_tar, sparse_zip
from tests.storage.servers import BUCKET, ENVIRONMENT, Fault, Proxy, Web, s3rver

DICE = random.Random(3)
MEMBERS = {f"a/{number}.jpg": DICE.randbytes(3000 + number) for number in range(12)} | {
    "b c+%20é.txt": b"hello " * 9999
}
NAMES = list(MEMBERS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a zip of deflated and one of stored members, a tar, and a Parquet file."""
    monkeypatch.chdir(tmp_path)
    make_zip(tmp_path / "p.zip", MEMBERS)
    make_zip(tmp_path / "stored.zip", MEMBERS, zipfile.ZIP_STORED)
    make_tar(tmp_path / "p.tar", MEMBERS)
    make_tar(tmp_path / "gnu.tar", MEMBERS, tarfile.GNU_FORMAT)
    pictures = structs(MEMBERS)
    columns = {"image": pictures, "bin": list(MEMBERS.values()), "both": [[each, pictures[0]] for each in pictures]}
    make_parquet(tmp_path / "p.parquet", columns)
    return tmp_path


def addresses_of(name: str) -> Iterator[str]:
    row = NAMES.index(name)
    yield from (f"zip://{name}::p.zip", f"zip://./{name}::{Path.cwd()}/stored.zip", f"tar://{name}::p.tar")
    yield from (f"tar://{name}::file://{Path.cwd()}/gnu.tar", f"parquet://image/{row}::p.parquet")
    yield from (f"parquet://bin/{row}::p.parquet", f"parquet://both/{row}.0::p.parquet")


@pytest.mark.parametrize("name", [NAMES[0], NAMES[7], NAMES[-1]])
def test_every_file_inside_is_read_as_if_it_were_outside(folder: Path, name: str) -> None:
    data = MEMBERS[name]
    for address in addresses_of(name):
        assert files.read(address) == files.read_at_most(address, len(data), "it has") == data
        assert files.sha256_of(address) == files.sha256_of(str(written(folder, data)))
        with files.open_file(address, buffer=1000) as file:
            assert file.seek(-5, io.SEEK_END) == len(data) - 5
            assert file.read() == data[-5:]
            assert file.seek(7) == 7
            assert file.read(2000) == data[7:2007]
            assert file.seek(0) == 0
            assert file.read() == data
        with pytest.raises(InputError, match=r"MB, more than the 0 MB that it has"):
            files.read_at_most(address, len(data) - 1, "it has")


def written(folder: Path, data: bytes) -> Path:
    (folder / "outside").write_bytes(data)
    return folder / "outside"


def test_an_archive_is_a_file_of_its_store() -> None:
    assert store_name("tar://a.jpg::s3://bucket/x.tar") == "s3://bucket"
    assert store_name("parquet://image/1::https://me:secret@host/x.parquet") == "https://host"
    assert files.resolve("zip://a.jpg::photos.zip", "/night") == "zip://a.jpg::/night/photos.zip"
    assert files.resolve("tar://a b.jpg::a b.tar", "file:///night") == "tar://a b.jpg::file:///night/a%20b.tar"
    assert files.resolve("parquet://image/1::x.parquet", "s3://b/n") == "parquet://image/1::s3://b/n/x.parquet"
    assert files.resolve("zip://a::s3://b/x.zip?anon=true", "/n") == "zip://a::s3://anonymous@b/x.zip"


# What is wrong -----------------------------------------------------------------------------------------------------


def with_info(change: Callable[[tarfile.TarInfo], object]) -> bytes:
    """A tar of one member, whose header is changed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("x")
        change(info)
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def zipped(name: str = "x", data: bytes = b"data", **options: int) -> bytes:
    """A zip of one member; `options` are fields of its `ZipInfo`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        for key, value in options.items():
            setattr(info, key, value)
        archive.writestr(info, data)
    return buffer.getvalue()


def patched(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """`data` with `new` bytes at `offset` behind the last `mark`."""
    place = data.rindex(mark) + offset
    return data[:place] + new + data[place + len(new) :]


CENTRAL, END = b"PK\1\2", b"PK\5\6"
DEFLATED = zipped(data=b"data" * 5000, compress_type=zipfile.ZIP_DEFLATED)
LINK = 0o120777 << 16
TAR = with_info(lambda info: setattr(info, "size", 600))


def as_type(kind: bytes, linkname: str = "") -> bytes:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, linkname

    return with_info(change)


WRONG: dict[str, tuple[str, bytes, str]] = {
    "empty zip": ("zip", b"", "is not a zip archive, or a damaged one: File is not a zip file"),
    "cut zip": ("zip", DEFLATED[:-30], "is not a zip archive"),
    "text": ("tar", b"hello" * 1000, "is not a tar archive, or a damaged one"),
    "empty tar": ("tar", b"", "is not a tar archive, or a damaged one: empty file"),
    "zip as tar": ("tar", zipped(data=bytes(600)), "is not a tar archive"),
    "tar as zip": ("zip", TAR, "is not a zip archive"),
    "gzip": ("tar", b"\x1f\x8b" + bytes(600), "is a compressed tar, which .* beginning only; expand it by gunzip"),
    "zip link": ("zip", zipped(external_attr=LINK), "is a link; name the file itself"),
    "soft link": ("tar", as_type(tarfile.SYMTYPE, "/etc/passwd"), "is a link; name the file itself"),
    "hard link": ("tar", as_type(tarfile.LNKTYPE, "y"), "is a link; name the file itself"),
    "with holes": (
        "tar",
        with_info(lambda info: setattr(info, "pax_headers", {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999"})),
        "is stored with holes; write the archive without --sparse",
    ),
    "device": ("tar", as_type(tarfile.CHRTYPE), "is not a regular file"),
    "encrypted": ("zip", patched(zipped(), CENTRAL, 8, b"\1"), "is encrypted; write the archive without a password"),
    "bzip2": ("zip", zipped(compress_type=zipfile.ZIP_BZIP2), "is compressed by method 12; expected .* stored or defl"),
    "checksum": ("zip", patched(DEFLATED, CENTRAL, 16, b"\0\0"), "is damaged: Bad CRC-32"),
    "too short": ("zip", patched(DEFLATED, CENTRAL, 24, struct.pack("<I", 30_000)), "is damaged|ends before it does"),
    "too long": ("zip", patched(DEFLATED, CENTRAL, 24, struct.pack("<I", 10_000)), "is damaged: Bad CRC-32"),
    "beyond": (
        "zip",
        patched(DEFLATED, CENTRAL, 20, struct.pack("<I", 1 << 30)),
        "is damaged: the archive ends before",
    ),
    "elsewhere": ("zip", patched(DEFLATED, CENTRAL, 42, struct.pack("<I", 5)), "its header is not where"),
    "data": ("zip", patched(DEFLATED, b"PK\3\4", 31, b"\xff" * 8), "is damaged"),
    "huge list": (
        "zip",
        patched(zipped(), END, 12, struct.pack("<II", 1 << 31, 0)),
        "not a zip archive|claims to have",
    ),
    "missing": ("zip", zipped("y"), "the archive has no such file$"),
    "leads out": ("zip", zipped("../x"), "the archive has no such file$"),
    "folder": ("zip", zipped("x/", b""), "the archive has no such file$"),
    "cut tar": ("tar", TAR[:1000], "ends before it does"),
    "tar without its end": ("tar", TAR[:1536].replace(b"x", b"y", 1), "is not a tar archive"),
    "cut between": (
        "tar",
        with_info(lambda info: setattr(info, "name", "y"))[:512],
        "no such file, but it ends without",
    ),
    "not Parquet": ("parquet", b"PAR1" + bytes(99) + b"PAR1", "not a readable Parquet file"),
    "no Parquet": ("parquet", zipped(), "not a readable Parquet file"),
}
"""An archive's scheme, its bytes, and what is said of its member x."""


@pytest.mark.parametrize("name", WRONG)
def test_whatever_is_wrong_is_an_error_of_the_input_in_one_line(tmp_path: Path, name: str) -> None:
    scheme, data, said = WRONG[name]
    path = tmp_path / f"p.{scheme}"
    path.write_bytes(data)
    address = f"{scheme}://{'image/0' if scheme == 'parquet' else 'x'}::{path}"
    with pytest.raises(InputError, match=said) as caught:
        files.read_at_most(address, 1 << 20, "it has")
    assert str(caught.value).startswith(f"{address}: cannot be read: ")
    assert "\n" not in str(caught.value)
    assert (caught.value.transient, caught.value.unread) == (False, address)


def test_a_name_that_is_there_twice_is_no_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive, tarfile.open(tmp_path / "p.tar", "w") as tar:
        archive.writestr("a/x", b"1")
        archive.writestr("y", b"2")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/x", b"3")
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a/x"))
    for scheme in ("zip", "tar"):
        with pytest.raises(InputError, match="is there more than once; expected a name of its own"):
            files.read(f"{scheme}://a/x::{tmp_path}/p.{scheme}")
    assert files.read(f"zip://y::{tmp_path}/p.zip") == b"2"


def test_a_backslash_in_the_name_of_a_tars_member_is_a_letter(tmp_path: Path) -> None:
    make_tar(tmp_path / "p.tar", {"cats\\a.png": b"data"})
    assert files.read(f"tar://cats\\a.png::{tmp_path}/p.tar") == b"data"


def test_a_tar_that_is_damaged_in_its_midst_is_read_up_to_there(folder: Path) -> None:
    data = bytearray((folder / "gnu.tar").read_bytes())
    place = bytes(data).index(NAMES[3].encode())
    data[place : place + 200] = bytes(range(200))
    (folder / "gnu.tar").write_bytes(data)
    assert files.read(f"tar://{NAMES[2]}::gnu.tar") == MEMBERS[NAMES[2]]
    with pytest.raises(InputError, match=rf"has no such file, but it is damaged after byte {place:,}$"):
        files.read(f"tar://{NAMES[5]}::gnu.tar")


def test_names_of_old_programs_are_found_by_the_names_that_people_see(tmp_path: Path) -> None:
    for name, raw in {"photos/é.jpg": b"photos\\\xc3\xa9.jpg", "photos/é.png": b"photos\\\x82.png"}.items():
        whole = zipped("x" * len(raw), b"data").replace(b"x" * len(raw), raw)
        (tmp_path / "p.zip").write_bytes(whole)
        assert files.read(f"zip://{name}::{tmp_path}/p.zip") == b"data"
        assert files.read(f"zip://{name.replace('/', chr(92))}::{tmp_path}/p.zip") == b"data"


@pytest.mark.parametrize("lies", [False, True])
def test_a_bomb_takes_no_memory(tmp_path: Path, lies: bool) -> None:
    """Forty megabytes in a twentieth of one, and an archive that says that it is small."""
    packer = zlib.compressobj(wbits=-15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(40)) + packer.flush()
    data = zipped(data=b"")
    start = data.index(CENTRAL)
    sizes = struct.pack("<II", len(packed), 1000 if lies else 40 << 20)
    data = data[:start] + packed + patched(patched(data[start:], CENTRAL, 20, sizes), CENTRAL, 10, b"\x08")
    (tmp_path / "p.zip").write_bytes(patched(data, END, 16, struct.pack("<I", start + len(packed))))
    tracemalloc.start()
    with pytest.raises(InputError, match="is damaged: Bad CRC" if lies else "42 MB, more than the 20 MB that it has"):
        files.read_at_most(f"zip://x::{tmp_path}/p.zip", 20_000_000, "it has")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("zip://a.jpg", "expected zip://PATH::ARCHIVE"),
        ("zip://::p.zip", "expected zip://PATH::ARCHIVE"),
        ("tar://../a.jpg::p.tar", "leads out of its archive"),
        ("tar:///a.jpg::p.tar", "leads out of its archive"),
        ("parquet://image::p.parquet", "expected parquet://COLUMN/ROW::FILE"),
        ("parquet://image/-1::p.parquet", "expected parquet://COLUMN/ROW::FILE"),
        ("zip://a.jpg::zip://b.zip::p.zip", "a file inside a file inside another one"),
        ("zip://a.jpg::s3://key:secret@bucket/p.zip", "no passwords or keys in addresses"),
    ],
)
def test_what_is_no_address_is_refused(folder: Path, address: str, said: str) -> None:
    assert said in (addresses.address_problem(address) or "")
    with pytest.raises(RequestError, match=said.replace("(", "")):
        files.read(address)


def test_nothing_is_written_inside(folder: Path) -> None:
    for do in (lambda: files.write("zip://x::p.zip", b""), lambda: files.Folder("zip://x::p.zip")):
        with pytest.raises(RequestError, match="is inside another file, which can only be read"):
            do()


# Parquet -----------------------------------------------------------------------------------------------------------


def test_a_row_that_is_another_now_is_noticed(folder: Path) -> None:
    assert files.read("parquet://image/3/3.jpg::p.parquet") == MEMBERS["a/3.jpg"]
    make_parquet(folder / "p.parquet", {"image": structs(MEMBERS)[::-1]})
    with pytest.raises(InputError, match=r"the row has another picture now, 9.jpg: were its rows sorted anew\?"):
        files.read("parquet://image/3/3.jpg::p.parquet")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("image/13", "the file has 13 rows, and rows count from 0"),
        ("none/0", "the file has no column 'none' of pictures"),
        ("text/0", "the file has no column 'text' of pictures"),
        ("null/0", "the cell has no picture"),
        ("null/1", "the cell has no picture"),
        ("both/0.2", "the cell has no picture"),
        ("both/0", "the cell has no picture"),
    ],
)
def test_a_cell_without_a_picture_gets_a_line(folder: Path, cell: str, said: str) -> None:
    pictures = structs(MEMBERS)
    null = [None, {"bytes": None, "path": "x.jpg"}, *pictures[2:]]
    columns = {"image": pictures, "text": NAMES, "null": null, "both": [[each] * 2 for each in pictures]}
    make_parquet(folder / "p.parquet", columns)
    with pytest.raises(InputError, match=said):
        files.read(f"parquet://{cell}::p.parquet")


def test_names_of_columns_are_encoded_in_addresses(folder: Path) -> None:
    make_parquet(folder / "p.parquet", {"a/b::c é": list(MEMBERS.values())})
    cell = Cell("a/b::c é", 4)
    assert Cell.of(cell.address("p.parquet").removeprefix("parquet://").rpartition("::")[0]) == cell
    assert files.read(cell.address("p.parquet")) == MEMBERS[NAMES[4]]


def test_large_row_groups_are_read_in_part_and_little_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "WHOLE_GROUP", 10_000)
    monkeypatch.setattr(cells, "READ_AHEAD", 3_000)
    monkeypatch.setattr(cells, "BATCH_BYTES", 3_000)
    monkeypatch.setattr(cells, "PICTURES", kept := cells.Pictures(12_000))
    make_parquet(folder / "p.parquet", {"image": list(MEMBERS.values())[:12]}, rows_in_group=12)
    for row in (5, 6, 0, 11, 3):
        assert files.read(f"parquet://image/{row}::p.parquet") == MEMBERS[NAMES[row]]
        assert 0 < kept._bytes <= 12_000


# Stores ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server, and the folder in which it keeps its files."""
    folder = tmp_path_factory.mktemp("server")
    with s3rver(folder) as url:
        yield url, folder / BUCKET


@pytest.fixture
def proxy(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(server[0]) as proxy:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(addresses, "S3_ATTEMPTS", 1)
        monkeypatch.setattr(retries, "LONGEST_WAIT_SECONDS", 0.02)
        addresses._open.cache_clear()
        yield proxy
    addresses._open.cache_clear()


@pytest.mark.parametrize(("scheme", "make", "most"), [("zip", sparse_zip, 60_000), ("tar", sparse_tar, 260_000)])
def test_of_ten_gigabytes_in_a_store_some_kilobytes_are_read(
    server: tuple[str, Path], proxy: Proxy, scheme: str, make: Callable[[Path, str, bytes], Path], most: int
) -> None:
    """The server's own file is sparse: nobody could upload so much in a test."""
    address, data = f"s3://{BUCKET}/huge.{scheme}", DICE.randbytes(20_000)
    files.write(address, b"small")
    (own,) = (path for path in server[1].glob(f"huge.{scheme}*") if path.read_bytes() == b"small")
    make(own, "a/x.jpg", data)
    proxy.sent = 0
    assert files.read(f"{scheme}://a/x.jpg::{address}") == data
    assert len(data) < proxy.sent < most
    proxy.sent = 0
    assert files.read(f"{scheme}://a/x.jpg::{address}") == data
    assert len(data) < proxy.sent < 24_000  # the list is kept


def test_one_list_for_many_threads_and_pairs(folder: Path, proxy: Proxy) -> None:
    for scheme in ("zip", "tar"):
        address = f"s3://{BUCKET}/many.{scheme}"
        files.write(address, (folder / f"p.{scheme}").read_bytes())
        proxy.requests.clear()
        with ThreadPoolExecutor(8) as pool:
            read = pool.map(files.read, [f"{scheme}://{name}::{address}" for name in NAMES * 2])
        assert list(read) == list(MEMBERS.values()) * 2
        assert len(proxy.requests) < 2 * 4 * len(NAMES) + 30  # a list for each would take as many again


def test_a_row_group_is_read_once_for_its_pairs(folder: Path, proxy: Proxy) -> None:
    data = {f"{number}.jpg": DICE.randbytes(50_000) for number in range(40)}
    make_parquet(folder / "p.parquet", {"image": structs(data), "more": list(data.values())}, rows_in_group=20)
    address = f"s3://{BUCKET}/p.parquet"
    files.write(address, (folder / "p.parquet").read_bytes())
    proxy.sent = 0
    with ThreadPoolExecutor(4) as pool:
        read = pool.map(files.read, [f"parquet://image/{row}::{address}" for row in range(20)])
    assert list(read) == list(data.values())[:20]
    assert 1_000_000 < proxy.sent < 1_200_000  # of four megabytes: one row group of one column


@pytest.mark.parametrize("scheme", ["zip", "tar", "parquet"])
def test_a_file_that_changes_is_read_anew(folder: Path, scheme: str) -> None:
    make = {"zip": make_zip, "tar": make_tar}
    for turn in range(3):
        members = {f"{turn}{name}": bytes([turn]) * 1000 for name in "abc"}
        path = folder / f"turn.{scheme}"
        if scheme == "parquet":
            make_parquet(path, {"image": structs(members)})
        else:
            make[scheme](path, members)
        os.utime(path, ns=(turn, turn))  # of the same size, and within one tick of the clock
        inside = "image/1" if scheme == "parquet" else f"{turn}b"
        assert files.read(f"{scheme}://{inside}::{path}") == bytes([turn]) * 1000


@pytest.mark.parametrize("fault", [Fault.CUT_ANSWER, Fault.SLOW_DOWN])
@pytest.mark.parametrize("scheme", ["zip", "tar", "parquet"])
def test_what_passes_is_waited_for_and_no_damage(folder: Path, proxy: Proxy, scheme: str, fault: Fault) -> None:
    address = f"s3://{BUCKET}/{scheme}-{fault.name}"
    files.write(address, (folder / f"p.{scheme}").read_bytes())
    inside = f"{scheme}://{'image/5' if scheme == 'parquet' else NAMES[5]}::{address}"
    proxy.first(fault, times=2)
    assert files.read(inside) == MEMBERS[NAMES[5]]


@pytest.mark.parametrize("scheme", ["zip", "tar", "parquet"])
def test_a_store_that_goes_away_amid_a_list_makes_no_archive_a_damaged_one(
    folder: Path, proxy: Proxy, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{BUCKET}/away-{scheme}"
    files.write(address, (folder / f"p.{scheme}").read_bytes())
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.1)
    proxy.faults = lambda method, path: Fault.DROP if method == "GET" else None
    inside = f"{scheme}://{'image/5' if scheme == 'parquet' else NAMES[5]}::{address}"
    with pytest.raises(InputError, match="its storage does not answer") as caught:
        files.read(inside)
    assert (caught.value.transient, caught.value.unread) == (True, inside)


def test_a_web_server_that_sends_no_parts_is_not_read_whole_for_each_member(folder: Path) -> None:
    with (
        Web((folder / "p.zip").read_bytes()) as web,
        pytest.raises(InputError, match="sends no parts of files") as caught,
    ):
        files.read(f"zip://{NAMES[0]}::{web.url}/p.zip")
    assert not caught.value.transient


def test_a_list_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 5)
    os.utime(folder / "p.tar", ns=(1, 1))
    with pytest.raises(InputError, match="has more than 5 members; divide it"):
        files.read(f"tar://{NAMES[0]}::p.tar")


def test_an_arrow_table_of_views_is_read_too(folder: Path) -> None:
    table = {"image": pa.array(list(MEMBERS.values()), pa.binary_view()), "large": pa.array(NAMES, pa.large_binary())}
    make_parquet(folder / "p.parquet", table)
    assert files.read("parquet://image/2::p.parquet") == MEMBERS[NAMES[2]]
    assert files.read("parquet://large/2::p.parquet") == NAMES[2].encode()
