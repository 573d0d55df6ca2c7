"""Real servers that speak S3's protocol, and what happens on the way to them."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest
from PIL import Image

from batchnst import read_ledger
from batchnst.errors import InputError, RequestError, StorageError, Superseded
from batchnst.ledger.out import Out
from batchnst.ledger.pictures.form import FormName
from batchnst.pictures.isolated import probe
from batchnst.review.export import Request, export
from batchnst.storage import addresses, files, retries, stores
from batchnst.storage.azure import AzureAccount
from batchnst.storage.conditional import ObjectStoreClient, gs_client
from batchnst.storage.stores import Store
from tests.helpers import batchnst, row
from tests.storage.servers import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    BUCKET,
    ENVIRONMENT,
    PASSING,
    QUICK,
    Fault,
    Generations,
    Proxy,
    azurite,
    moto,
    s3rver,
)

BIG = 21 << 20
"""Bytes that pyarrow sends to S3 in three parts."""


@pytest.fixture(scope="module", params=[moto, s3rver], ids=["moto", "s3rver"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with request.param(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What s3:// leads to. The tries are our own: pyarrow's client has one at each request."""
    with Proxy(server) as proxy:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(addresses, "S3_ATTEMPTS", 1)
        monkeypatch.setattr(retries, "LONGEST_WAIT_SECONDS", 0.02)
        addresses._open.cache_clear()
        yield proxy
    addresses._open.cache_clear()


@pytest.fixture
def where() -> str:
    """A place of one test's own."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def folder(proxy: Proxy, where: str) -> files.Folder:
    return files.Folder(where)


def names(folder: files.Folder, relative: str = "") -> list[str]:
    return [folder.relative(info.path) for info in folder.files(relative)]


def use(folder: files.Folder) -> None:
    """Everything that a run does in a folder, and what must come out."""
    data = random.Random(1).randbytes(200_000)
    folder.write("a/one.bin", b"old")
    folder.write("a/one.bin", data)
    assert folder.read("a/one.bin") == data
    assert folder.read("a/none") is None
    folder.write("a/ü b+c%20#.bin", b"two")
    assert files.read(f"{folder.address}/a/ü b+c%20#.bin") == b"two"
    assert names(folder) == ["a/one.bin", "a/ü b+c%20#.bin"]
    assert [(info.base_name, info.size) for info in folder.files("a", "one", ".bin")] == [("one.bin", len(data))]
    assert files.list_files(f"{folder.address}/a/*ne.bin") == [f"{folder.address}/a/one.bin"]
    assert files.list_files(f"{folder.address}/") == [f"{folder.address}/{name}" for name in names(folder)]
    for _ in range(2):
        folder.move("a/one.bin", "b/c/moved.bin")
        folder.remove("a/ü b+c%20#.bin")
        assert names(folder) == ["b/c/moved.bin"]
    assert folder.read("b/c/moved.bin") == data
    assert folder.files("nowhere") == []


def test_a_bucket_is_a_folder(folder: files.Folder) -> None:
    use(folder)


def test_of_two_that_create_a_file_one_succeeds_and_nobody_replaces_what_changed(folder: files.Folder) -> None:
    check_conditions(folder)


def check_conditions(folder: files.Folder) -> None:
    assert folder.version("state/1.json") is None
    assert folder.create("state/1.json", b"first")
    assert not folder.create("state/1.json", b"second")
    assert folder.read("state/1.json") == b"first"
    version = folder.version("state/1.json")
    assert folder.replace("state/1.json", b"third", version, lambda: None)
    if not ignores_conditions(folder):
        assert not folder.replace("state/1.json", b"by a run that was suspended", version, lambda: None)
        assert not folder.replace("state/1.json", b"by another one", None, lambda: None)
    assert folder.read("state/1.json") == b"third"


def ignores_conditions(folder: files.Folder) -> bool:
    """True for s3rver, which answers a conditional request as if it had no condition."""
    version = folder.version("state/1.json")
    folder.write("state/probe", b"1")
    old = folder.version("state/probe")
    folder.write("state/probe", b"2")
    assert version
    return folder.replace("state/probe", b"3", old, lambda: None)


@pytest.mark.parametrize(
    ("server", "fault"),
    [
        *((moto, fault) for fault in QUICK),
        (s3rver, Fault.DROP),
        *(pytest.param(moto, fault, marks=pytest.mark.slow) for fault in PASSING if fault not in QUICK),
        *(pytest.param(s3rver, fault, marks=pytest.mark.slow) for fault in PASSING if fault is not Fault.DROP),
    ],
    indirect=["server"],
)
def test_what_passes_is_waited_for(folder: files.Folder, proxy: Proxy, fault: Fault) -> None:
    proxy.first(fault, times=2)
    use(folder)
    assert max(map(proxy.requests.count, proxy.requests)) >= 2


def test_many_at_once_through_faults_of_all_kinds(folder: files.Folder, proxy: Proxy) -> None:
    written = {f"{i}.bin": random.Random(i).randbytes(10_000 + i) for i in range(20)}
    proxy.sometimes(seed=1, share=0.3)
    with ThreadPoolExecutor(folder.streams) as pool:
        list(pool.map(folder.write, written, written.values()))
        assert dict(zip(written, pool.map(folder.read, written), strict=True)) == written
        list(pool.map(folder.move, written, [f"moved/{name}" for name in written]))
        assert names(folder) == sorted(f"moved/{name}" for name in written)
        moved = pool.map(files.read, files.list_files(folder.address))
    assert sorted(moved) == sorted(written.values())


def test_what_is_wrong_is_not_asked_again(folder: files.Folder, proxy: Proxy) -> None:
    folder.write("x", b"data")
    proxy.requests.clear()
    with pytest.raises(InputError, match=r"/none: no such file$"):
        files.read(f"{folder.address}/none")
    assert len(proxy.requests) == 1
    proxy.faults = lambda method, path: Fault.DENY
    with pytest.raises(InputError, match=r"/x: cannot be read: .*ACCESS_DENIED"):
        files.read(f"{folder.address}/x")
    with pytest.raises(StorageError, match=r"/x: cannot be written: .*ACCESS_DENIED"):
        folder.write("x", b"new")
    assert len(proxy.requests) <= 4
    proxy.faults = lambda method, path: None
    with pytest.raises(StorageError, match=r"cannot be written: .*bucket does not exist"):
        files.write("s3://no-such-bucket/x", b"")


def test_a_store_that_stays_away_is_told_of(
    folder: files.Folder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.1)
    folder.write("x", b"data")
    proxy.requests.clear()
    proxy.faults = lambda method, path: Fault.DROP
    with pytest.raises(InputError, match=r"/x: its storage does not answer: .*NETWORK_CONNECTION") as caught:
        files.read(f"{folder.address}/x")
    assert caught.value.transient
    assert len(proxy.requests) > 2
    for do in (lambda: folder.write("x", b"new"), lambda: folder.read("x"), lambda: folder.files("")):
        with pytest.raises(StorageError, match=r"cannot be (written|read|listed): .*NETWORK_CONNECTION"):
            do()


def test_a_write_that_is_cut_off_leaves_what_was_there(
    folder: files.Folder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.0)
    folder.write("x", b"old")
    parts = ("partNumber=1", "partNumber=2", "partNumber=3", "uploads", "uploadId")
    for failing in parts:
        proxy.faults = lambda method, path, failing=failing: Fault.DROP if failing in path else None  # type: ignore[misc]
        with pytest.raises(StorageError, match="cannot be written"):
            folder.write("x", bytes(BIG))
        assert folder.read("x") == b"old"
    proxy.faults = lambda method, path: Fault.DROP if method == "PUT" else None
    with pytest.raises(StorageError, match="cannot be written"):
        folder.write("x", b"new")
    assert folder.read("x") == b"old"
    assert names(folder) == ["x"]


def test_a_large_file_arrives_whole_through_faults(folder: files.Folder, proxy: Proxy) -> None:
    data = random.Random(0).randbytes(BIG)
    proxy.first(Fault.CUT_REQUEST, times=2)
    folder.write("x", data)
    proxy.first(Fault.CUT_ANSWER, times=2)
    assert folder.read("x") == data


def test_a_writer_that_is_killed_leaves_nothing(folder: files.Folder, proxy: Proxy) -> None:
    begun, proxy.delay_seconds = threading.Event(), 60

    def hang(method: str, path: str) -> Fault | None:
        if "partNumber=2" in path:
            begun.set()
            return Fault.DELAY
        return None

    proxy.faults = hang
    script = f"from batchnst.storage.files import write; write({folder.address + '/x'!r}, bytes({BIG}))"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        assert begun.wait(60)
        process.send_signal(signal.SIGKILL)
    assert folder.files("") == []
    assert folder.read("x") is None


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(folder: files.Folder, proxy: Proxy) -> None:
    """Else as much of the new one would be read as the old one was long."""
    other = files.Folder(folder.address)
    folder.write("claim", b"[1]")
    left = [b"[1, 2, 3, 4]"]

    def replace(method: str, path: str) -> Fault | None:
        if method == "GET" and path.endswith("/claim") and left:
            other.write("claim", left.pop())
        return None

    proxy.faults = replace
    assert folder.read("claim") == b"[1, 2, 3, 4]"


def test_whoever_may_not_write_any_more_does_not_try_again(folder: files.Folder, proxy: Proxy) -> None:
    proxy.first(Fault.DROP, times=2)
    tries = []

    def check() -> None:
        tries.append(1)
        if len(tries) == 2:
            raise Superseded("another run has taken over")

    with pytest.raises(Superseded):
        folder.write("x", b"late", check)
    assert folder.read("x") is None


def test_a_store_that_keeps_something_else_is_noticed(
    folder: files.Folder, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of 2024 and before do with the checksums that AWS's clients send since 2025."""
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    addresses._open.cache_clear()
    sent = b"as it is"
    with suppress(StorageError):
        files.write(f"{folder.address}/x", sent)
        assert folder.read("x") == sent
        return
    with pytest.raises(StorageError, match=r"kept \d+ bytes of 8; try AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        files.write(f"{folder.address}/x", sent)


def test_a_pictures_size_is_had_from_its_first_bytes(folder: files.Folder, proxy: Proxy, tmp_path: Path) -> None:
    Image.effect_noise((2000, 1500), 90).save(tmp_path / "noise.jpg", quality=95)
    data = (tmp_path / "noise.jpg").read_bytes()
    folder.write("noise.jpg", data)
    proxy.requests.clear()
    proxy.sent = 0
    assert probe(f"{folder.address}/noise.jpg") == (2000, 1500)
    assert len(proxy.requests) == 2
    assert proxy.sent <= 1 << 14 < len(data) / 100


def test_pyarrow_alone_tries_again_too(folder: files.Folder, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "S3_ATTEMPTS", 3)
    addresses._open.cache_clear()
    folder = files.Folder(folder.address)
    folder.write("x", bytes(5000))
    for fault in (Fault.DROP, Fault.CUT_ANSWER, Fault.BAD_GATEWAY):
        proxy.first(fault)
        with folder.filesystem.open_input_file(folder.path("x")) as file:
            assert file.read() == bytes(5000)


@pytest.mark.parametrize("server", [s3rver], ids=["s3rver"], indirect=True)  # moto wants a signature
def test_a_web_server_is_read_and_no_more(proxy: Proxy, folder: files.Folder) -> None:
    data = random.Random(2).randbytes(100_000)
    folder.write("x.bin", data)
    address = f"{proxy.url}/{folder.root}/x.bin"
    for fault in PASSING:
        proxy.first(fault)
        assert files.read(address) == data
        with files.open_file(address, buffer=1000) as file:
            assert file.seek(-5, 2) == len(data) - 5
            assert file.read(100) == data[-5:]
            assert file.seek(7) == 7
            assert file.read(3) == data[7:10]
    proxy.faults = lambda method, path: Fault.DENY
    with pytest.raises(InputError, match=r"x.bin: cannot be read: access denied \(HTTP status 403\)"):
        files.read(address)
    proxy.faults = lambda method, path: None
    with pytest.raises(InputError, match=r"none: no such file"):
        files.read(f"{proxy.url}/{folder.root}/none")
    assert files.list_files(address) == [address]
    for do in (files.Folder, files.list_files, lambda address: files.write(address, b"")):
        with pytest.raises(RequestError, match="files on a web server can only be read"):
            do(f"{proxy.url}/{folder.root}/new")


def test_a_web_server_without_parts_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)))
    with plain_web_server(tmp_path) as url, files.open_file(f"{url}/x", buffer=16) as file:
        assert file.read(2) == b"\0\1"
        assert file.seek(250) == 250
        assert file.read() == bytes(range(250, 256))
    assert files.parent(f"{url}/x") == url


@contextmanager
def plain_web_server(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_memory_is_a_folder() -> None:
    folder = files.Folder("memory://batchnst/run")
    use(folder)
    assert isinstance(folder.filesystem, pafs.PyFileSystem)


def test_a_store_without_whole_puts_shows_no_half_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Azure, Hadoop and SFTP, by pyarrow or fsspec: there a file is to be seen while it is written."""
    filesystem = fsspec.filesystem("memory")
    store = Store(stores.from_fsspec(filesystem), "sftp://host", "/host")
    monkeypatch.setattr(files, "store_of", lambda address: store)
    folder = files.Folder("sftp://host/run")
    use(folder)

    def half(path: str, data: bytes) -> None:
        with filesystem.open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise PermissionError("the line was cut")

    monkeypatch.setattr(filesystem, "pipe_file", half)
    folder_files = names(folder)
    with pytest.raises(StorageError, match="the line was cut"):
        folder.write("b/c/moved.bin", b"new")
    assert names(folder) == folder_files
    assert folder.read("b/c/moved.bin") != b"n"


def test_a_store_whose_rename_does_not_replace_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = fsspec.filesystem("memory")
    store = Store(stores.from_fsspec(filesystem), "smb://host", "/other")
    monkeypatch.setattr(files, "store_of", lambda address: store)
    real = filesystem.mv

    def rename(source: str, target: str, **options: object) -> None:
        if filesystem.exists(target):
            raise FileExistsError(target)
        real(source, target)

    monkeypatch.setattr(filesystem, "mv", rename)
    use(files.Folder("smb://host/run"))


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with azurite(tmp_path) as url, Proxy(url) as proxy:
        connection = f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};BlobEndpoint={proxy.url}/{AZURE_ACCOUNT};"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
        monkeypatch.setattr(retries, "LONGEST_WAIT_SECONDS", 0.02)
        addresses._open.cache_clear()
        yield proxy
    addresses._open.cache_clear()


def test_a_container_of_azure_is_a_folder(azure: Proxy) -> None:
    for scheme in ("az", "abfs"):
        use(files.Folder(f"{scheme}://{BUCKET}/{scheme}"))


def test_of_two_that_replace_a_blob_of_azure_one_succeeds(azure: Proxy) -> None:
    check_conditions(files.Folder(f"az://{BUCKET}/conditions"))


def test_of_two_that_replace_an_object_of_googles_one_succeeds() -> None:
    with Generations() as server:
        client = gs_client(BUCKET, server.url, seconds=10)
        assert client
        path = f"{BUCKET}/state/ü 1.json"
        assert client.version(path) is None
        client.create(path, b"first")
        version = client.version(path)
        client.replace(path, b"second", version)
        for late in (version, None):
            with pytest.raises(FileExistsError):
                client.replace(path, b"by a run that was suspended", late)
        with pytest.raises(FileExistsError):
            client.create(path, b"by another one")
        assert [body for _, body in server.objects.values()] == [b"second"]
        racing = ThreadPoolExecutor(8).map(lambda i: created(client, f"{BUCKET}/race", b"%d" % i), range(8))
        assert sorted(racing) == [False] * 7 + [True]


def created(client: ObjectStoreClient, path: str, data: bytes) -> bool:
    with suppress(FileExistsError):
        client.create(path, data)
        return True
    return False


@pytest.mark.slow  # its client waits for seconds
@pytest.mark.parametrize("fault", PASSING, ids=[fault.name for fault in PASSING])
def test_azure_is_waited_for(azure: Proxy, fault: Fault) -> None:
    azure.first(fault)
    use(files.Folder(f"az://{BUCKET}/{fault.name}"))


def test_addresses_that_no_store_serves_are_refused_in_a_line() -> None:
    with pytest.raises(RequestError, match=r"^gopher://old: no storage can be opened .*: Protocol not known: gopher$"):
        files.read("gopher://old/file")
    with pytest.raises(RequestError, match=r"^s3://bucket/run: options after a \? are not read; .* AWS_ENDPOINT_URL"):
        files.Folder("s3://bucket/run?endpoint_override=localhost:9000&scheme=http")
    with pytest.raises(RequestError, match=r"^s3://bucket/x: no passwords or keys in addresses: .* AWS_SECRET"):
        files.read("s3://key:secret@bucket/x")


def test_a_package_that_a_store_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    with pytest.raises(RequestError, match=r"^sftp://host: no storage can be opened by this URI: .*paramiko"):
        files.read("sftp://host/x")


def test_the_environments_account_of_azure_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECTION_STRING", "ACCOUNT", "ACCOUNT_NAME", "ACCOUNT_KEY", "KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    with pytest.raises(RequestError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        files.read("az://pictures/x")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1")
    assert AzureAccount.of("").for_pyarrow() == {"account_name": "ours", "sas_token": "sv=1"}
    assert AzureAccount.of("").for_obstore() == {"account_name": "ours", "sas_key": "sv=1"}
    assert AzureAccount.of("theirs").name == "theirs"


@pytest.mark.parametrize(
    ("connection", "host", "endpoint"),
    [
        ("AccountName=a;AccountKey=x==", "", None),
        (
            "BlobEndpoint=https://a.blob.core.windows.net/;SharedAccessSignature=sv=1",
            ".blob.core.windows.net",
            "https://a.blob.core.windows.net",
        ),
        (
            "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=x==;EndpointSuffix=core.chinacloudapi.cn",
            ".blob.core.chinacloudapi.cn",
            "https://a.blob.core.chinacloudapi.cn",
        ),
        (
            "AccountName=a;AccountKey=x==;BlobEndpoint=http://127.0.0.1:10000/a;",
            "127.0.0.1:10000",
            "http://127.0.0.1:10000/a",
        ),
    ],
)
def test_a_connection_string_of_azure_is_understood(
    monkeypatch: pytest.MonkeyPatch, connection: str, host: str, endpoint: str | None
) -> None:
    for name in ("ACCOUNT", "ACCOUNT_NAME", "ACCOUNT_KEY", "KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    account = AzureAccount.of("")
    assert (account.name, account.host, account.for_obstore().get("endpoint")) == ("a", host, endpoint)
    assert bool(account.key) != bool(account.signature)
    assert account.for_pyarrow().get("dfs_storage_authority", "") == host.replace("blob", "dfs")


def make_request(where: str, images: Path) -> list[str]:
    """A manifest of three pairs with its pictures in a store, and how to run it into the same store."""
    for name in ("coffee.png", "woodcut.png", "rocket.jpg"):
        files.write(f"{where}/in/{name}", (images / name).read_bytes())
    manifest = batchnst("manifest", f"{where}/in", f"{where}/in/wood*", "--out", f"{where}/m.csv")
    assert manifest.exit_code == 0, manifest.output
    return ["run", f"{where}/m.csv", "--out", f"{where}/out", "--engine", "inline", "--size", "48", "--steps", "3"]


def check_all(where: str) -> None:
    """Every command that looks at a run says that nothing is missing or wrong."""
    out, manifest = f"{where}/out", f"{where}/m.csv"
    audit = batchnst("audit", out, "--deep", "--manifest", manifest)
    assert (audit.exit_code, "found nothing wrong" in audit.output) == (0, True), audit.output
    status = batchnst("status", out)
    assert "3 of 3 done, 0 failed, 0 left" in status.output
    pair_id = read_ledger(out, "pairs").to_table()["pair_id"][0].as_py()
    replay = batchnst("replay", out, pair_id)
    assert (replay.exit_code, "every pixel as it was" in replay.output) == (0, True), replay.output


@pytest.mark.parametrize(
    "server", [pytest.param(moto, marks=pytest.mark.slow), s3rver], ids=["moto", "s3rver"], indirect=True
)
def test_a_whole_run_from_a_store_to_a_store(proxy: Proxy, where: str, images: Path) -> None:
    run = make_request(where, images)
    for limit in (["--limit", "1"], []):
        result = batchnst(*run, *limit)
        assert result.exit_code == 0, result.output
    compacted = batchnst("ledger", "compact", f"{where}/out")
    assert (compacted.exit_code, "files of ledger and pictures, now 3\n" in compacted.output) == (0, True), (
        compacted.output
    )
    assert batchnst("report", f"{where}/out").exit_code == 0
    assert b"rocket" in files.read(f"{where}/out/report.html")
    again = batchnst(*run)
    assert (again.exit_code, "3 of 3 pairs done (0 now" in again.output) == (0, True), again.output
    check_all(where)
    left = {address.split("/out/.batchnst/")[1].split("/")[0] for address in files.list_files(f"{where}/out/.batchnst")}
    assert left <= {"state", "retired"}, "something unfinished is left"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whole_runs_through_faults_lose_and_tear_nothing(
    proxy: Proxy, server: str, where: str, images: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "S3_ATTEMPTS", 5)
    addresses._open.cache_clear()
    run = make_request(where, images)
    proxy.sometimes(seed, share=0.2)
    for _ in range(3):
        assert batchnst(*run, "--limit", "1").exit_code == 0
        assert batchnst("ledger", "compact", f"{where}/out").exit_code == 0
    check_all(where)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    addresses._open.cache_clear()
    check_all(where)


@pytest.mark.slow
@pytest.mark.parametrize("server", [pytest.param(moto, marks=pytest.mark.slow), s3rver], indirect=True)
@pytest.mark.parametrize("form", [pytest.param("parquet", marks=pytest.mark.slow), "tar"])
def test_pictures_in_files_together_in_a_store(proxy: Proxy, where: str, form: FormName) -> None:
    data = random.Random(2).randbytes(300_000)
    sha256 = hashlib.sha256(data).hexdigest()
    out = Out(f"{where}/out")
    with out.claim("r1", form) as claim:
        for name in ("a.b", "c"):
            painted = row(name, run_number=1, output=f"{name}.png", output_sha256=sha256, width=3, height=2)
            out.commit(claim.lease(1), {f"{name}.png": data}, [painted], [])
        out.compact(claim)
    assert len(names(out.folder, "pictures")) == 1
    assert set(out.pictures().each(out.rows("pairs"), lambda row, found: (row["pair_id"], found.data))) == {
        ("a.b", data), ("c", data),
    }  # fmt: skip
    result = export(out, f"{where}/copy", Request(form="files", shard_size=10**6))
    assert (result.copied, files.read(f"{where}/copy/images/a.b.png")) == (2, data)


def test_a_large_file_is_written_piece_by_piece_to_a_store(folder: files.Folder) -> None:
    data = random.Random(3).randbytes(1 << 20)
    with folder.writing("big.bin") as sink:
        for _ in range(BIG >> 20):
            sink.write(data)
    assert folder.read("big.bin") == data * (BIG >> 20)
    with pytest.raises(RuntimeError), folder.writing("torn.bin") as sink:
        sink.write(data)
        raise RuntimeError
    assert names(folder) == ["big.bin"]
