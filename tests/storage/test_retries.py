"""Inputs that cannot be read, or not now: each read ends in time, and one bad file is not taken for a bad store."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO

import fsspec.implementations.http  # noqa: F401 - its import takes longer than a read may take here
import pytest

from batchnst.errors import InputError
from batchnst.storage import files, retries
from batchnst.storage.addresses import store_name
from batchnst.storage.retries import Patience, retry
from batchnst.storage.stores import Disk
from batchnst.storage.threads import in_threads
from tests.storage.servers import Web, expired_certificate, free_port

DATA = random.Random(1).randbytes(40_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries for a second instead of half a minute. A read still has seconds: a slow machine needs them."""
    monkeypatch.setattr(retries, "RETRY_SECONDS", 2.0)
    monkeypatch.setattr(retries, "LONGEST_WAIT_SECONDS", 0.2)
    files._patience.cache_clear()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that hang are left after a second or two."""
    monkeypatch.setattr(retries, "QUICK_SECONDS", 1.0)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(DATA) as server:
        yield server


def failure(address: str) -> InputError:
    """The error of reading a file."""
    with pytest.raises(InputError) as caught:
        files.read(address)
    assert caught.value.unread == address
    return caught.value


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_web_address_that_fails_fails_alone_and_for_a_passing_reason(web: Web, status: int) -> None:
    web.faults["/bad.jpg"] = status
    error = failure(f"{web.url}/bad.jpg")
    assert error.transient
    assert f"bad.jpg: its storage does not answer: HTTP status {status}" in str(error)
    assert web.requests["/bad.jpg"] > 2
    assert files.read(f"{web.url}/good.jpg") == DATA


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_an_answer_that_will_not_change_is_a_lasting_reason(web: Web, status: int) -> None:
    web.faults["/bad.jpg"] = status
    assert not failure(f"{web.url}/bad.jpg").transient
    assert web.requests["/bad.jpg"] <= 2  # HEAD and GET


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("circle", "too many redirects"),
        ("elsewhere", "it redirects to file:///etc/passwd"),
        ("garble", "its answer is not HTTP: "),
    ],
)
def test_a_server_that_talks_nonsense_is_a_passing_reason_in_a_short_line(web: Web, fault: str, said: str) -> None:
    web.faults["/bad.jpg"] = fault
    error = failure(f"{web.url}/bad.jpg")
    assert error.transient
    assert f"bad.jpg: its storage does not answer: {said}" in str(error)
    assert (len(str(error).splitlines()), len(str(error)) < 400) == (1, True)
    if fault != "garble":
        assert web.requests["/bad.jpg"] < 30, "redirects are not asked for again within a minute"


@pytest.mark.parametrize("as_date", [False, True])
def test_a_busy_web_server_is_left_alone_as_long_as_it_asks(
    web: Web, monkeypatch: pytest.MonkeyPatch, as_date: bool
) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", 20.0)
    if as_date:  # in whole seconds
        web.retry_after = formatdate(time.time() + 2, usegmt=True)
    web.faults["/busy.jpg"] = "busy"
    assert files.read(f"{web.url}/busy.jpg") == DATA
    assert web.refused <= 2, "HEAD and GET"


def test_a_web_server_that_is_busy_for_long_is_not_waited_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", 200.0)
    web.busy_seconds, web.retry_after = 3600, "3600"
    web.faults["/busy.jpg"] = "busy"
    began = time.monotonic()
    error = failure(f"{web.url}/busy.jpg")
    assert error.transient
    assert "HTTP status 429" in str(error)
    assert web.refused <= 2
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "retry_after",
    ["", "soon", "-5", "1.5", "9" * 400, "٣", "Fri, 99 Foo 2026 25:61:61 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"],
)
def test_nonsense_as_the_time_to_wait_is_no_error_of_ours(retry_after: str) -> None:
    assert 0 <= retries._seconds_from_now(retry_after) <= retries.REST_SECONDS


def test_a_part_without_an_end_is_read_no_further_than_asked_for(web: Web) -> None:
    web.faults["/endless.jpg"] = "endless"
    assert files.read(f"{web.url}/endless.jpg") == DATA
    assert web.sent < 16e6, "what is on its way in buffers"


def test_a_host_that_is_gone_or_unknown_is_a_passing_reason() -> None:
    error = failure(f"http://127.0.0.1:{free_port()}/a.jpg")
    assert error.transient
    assert "its storage does not answer: Cannot connect" in str(error)
    assert failure("http://no-such-host.invalid/a.jpg").transient


def test_a_certificate_that_has_expired_is_a_passing_reason_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", 200.0)
    with Web(DATA, expired_certificate(tmp_path)) as web:
        began = time.monotonic()
        error = failure(f"{web.url}/a.jpg")
        assert time.monotonic() - began < 60
    assert error.transient
    assert "certificate" in str(error)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_server_that_hangs_or_drips_is_left_in_time(web: Web, hasty: None, fault: str) -> None:
    web.faults["/slow.jpg"] = fault
    error = failure(f"{web.url}/slow.jpg")
    assert error.transient
    assert "its storage does not answer: no answer within" in str(error)
    assert files.read(f"{web.url}/good.jpg") == DATA


def failing_disk(monkeypatch: pytest.MonkeyPatch, *failing: Path, number: int = errno.EIO) -> None:
    """Let the disk fail for some files."""
    real = Disk.open

    def open_file(self: Disk, path: str, buffer: int, **options: bool) -> BinaryIO:
        if Path(path) in failing:
            raise OSError(number, "as if the disk had said it")
        return real(self, path, buffer, **options)

    monkeypatch.setattr(Disk, "open", open_file)


@pytest.mark.parametrize(("number", "transient"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False)])
def test_a_disk_with_one_bad_sector_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, transient: bool
) -> None:
    bad, good = tmp_path / "bad.jpg", tmp_path / "good.jpg"
    for path in (bad, good):
        path.write_bytes(DATA)
    failing_disk(monkeypatch, bad, number=number)
    error = failure(str(bad))
    assert str(error) == f"{bad}: cannot be read: as if the disk had said it"
    assert error.transient == transient
    assert files.read(str(good)) == DATA


def test_a_dead_store_of_many_files_takes_one_wait_in_all(
    web: Web, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PAUSE_SECONDS", 1e6)
    names = [f"/{i}.jpg" for i in range(60)]
    web.faults.update(dict.fromkeys(names, "hang"))
    errors = in_threads(lambda name: failure(web.url + name), names, 16)
    assert all(error.transient for error in errors)
    assert sum(web.requests.values()) < 40  # the last ones were not even tried


def test_a_store_that_is_back_is_read_again(web: Web, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_SECONDS", 1e6)
    silent = [f"/{i}.jpg" for i in range(retries.MOST_SILENT)]
    web.faults.update(dict.fromkeys(silent, "hang"))
    for name in (*silent, "/next.jpg"):
        assert failure(web.url + name).transient
    assert web.requests["/next.jpg"] == 0
    monkeypatch.setattr(retries, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(retries, "QUICK_SECONDS", 30.0)
    assert files.read(f"{web.url}/next.jpg") == DATA
    assert files.read(f"{web.url}/other.jpg") == DATA


def test_files_that_hang_beside_others_that_do_not_close_no_store(web: Web, hasty: None) -> None:
    silent = [f"/{i}.jpg" for i in range(2 * retries.MOST_SILENT)]
    web.faults.update(dict.fromkeys(silent, "hang"))

    def read(name: str) -> bytes | InputError:
        try:
            return files.read(web.url + name)
        except InputError as error:
            return error

    read_meanwhile = in_threads(read, [*silent, "/good.jpg"], len(silent) + 1)[-1]
    assert read_meanwhile == DATA
    assert files.read(f"{web.url}/good.jpg") == DATA


def test_bad_addresses_of_a_good_host_do_not_take_a_wait_each(web: Web) -> None:
    bad = [f"/{i}.jpg" for i in range(20)]
    web.faults.update(dict.fromkeys(bad, 500))
    for name in bad:
        failure(web.url + name)
        assert files.read(f"{web.url}/good{name}") == DATA
    assert all(web.requests[name] <= 2 * retries.LEAST_ATTEMPTS for name in bad[10:]), "HEAD and GET"


def test_a_wait_that_was_worth_it_is_not_held_against_a_store() -> None:
    patience = Patience()
    for _ in range(3):
        failures = iter([OSError(errno.EIO, "away")] * 5)

        def read(failures: Iterator[OSError] = failures) -> str:
            for error in failures:
                raise error
            return "read"

        with patience.reading("a") as deadline:
            assert deadline.run(lambda read=read: retry(read)) == "read"  # type: ignore[misc]


def test_the_time_for_a_file_grows_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "SLOWEST", 100)
    deadline = retries.Deadline(Patience(), 0.1)
    with pytest.raises(TimeoutError, match="no answer within"):
        deadline.run(lambda: time.sleep(1))
    assert deadline.is_over
    deadline = retries.Deadline(Patience(), 0.1)
    assert deadline.run(lambda: time.sleep(0.3), size=1000) is None
    assert not deadline.is_over


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://host:8080/a/b.jpg", "https://host:8080"),
        ("https://user:secret@host/a.jpg", "https://host"),
        ("s3://bucket/a.jpg", "s3://bucket"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net"),
        ("zip://a/b.jpg::https://host/photos.zip", "https://host"),
    ],
)
def test_each_host_and_bucket_is_a_store(address: str, name: str) -> None:
    assert store_name(address) == name


def test_each_mounted_disk_is_a_store(tmp_path: Path) -> None:
    assert store_name(str(tmp_path / "a.jpg")) == store_name(f"file://{tmp_path}/b.jpg")
    assert store_name("/proc/self/a.jpg").startswith("/proc on ")
    assert store_name("/processes/a.jpg").startswith("/ on ")
