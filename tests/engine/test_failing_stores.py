"""An input that cannot be read fails its pair; a store that fails for many files stops the run."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image

from batchnst import read_ledger
from batchnst.engine import failing_stores, run
from batchnst.engine.events import Finished
from batchnst.engine.failing_stores import MAX_UNREAD, FailingStores
from batchnst.engine.plan import Plan
from batchnst.errors import InputError, StorageError
from batchnst.storage import files, retries
from batchnst.storage.stores import Disk
from tests.helpers import batchnst, pair
from tests.storage.servers import Web, expired_certificate, free_port

QUICK = ["--engine", "inline", "--size", "48", "--steps", "2"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds instead of a minute."""
    monkeypatch.setattr(retries, "RETRY_SECONDS", 2.0)
    monkeypatch.setattr(retries, "QUICK_SECONDS", 1.0)
    monkeypatch.setattr(retries, "LONGEST_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(run, "AGAIN_SECONDS", 0.0)
    files._patience.cache_clear()


@pytest.fixture
def web(images: Path) -> Iterator[Web]:
    small = io.BytesIO()  # a file may take a second more for each 32 kB
    with Image.open(images / "coffee.png") as picture:
        picture.resize((60, 40)).save(small, "png")
    with Web(small.getvalue()) as server:
        yield server


def write_manifest(path: Path, style: Path, contents: dict[str, object]) -> Path:
    rows = [f"{content},{style},{name}" for name, content in contents.items()]
    path.write_text("\n".join(["content,style,id", *rows]) + "\n")
    return path


def newest(out: Path) -> dict[str, tuple[str, str | None, int]]:
    """Status, kind of error and attempt of the newest row of each pair."""
    rows = read_ledger(str(out), "pairs").to_table().sort_by([("run_number", "ascending"), ("attempt", "ascending")])
    return {row["pair_id"]: (row["status"], row["error_kind"], row["attempt"]) for row in rows.to_pylist()}


def test_bad_inputs_of_all_kinds_fail_their_pairs_and_those_that_may_pass_are_tried_again(
    images: Path, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = tmp_path / "sick.png"
    sick.write_bytes((images / "coffee.png").read_bytes())
    real, broken = Disk.open, [True]

    def open_file(self: Disk, path: str, buffer: int, **options: bool) -> BinaryIO:
        if path == str(sick) and broken:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, path, buffer, **options)

    monkeypatch.setattr(Disk, "open", open_file)
    web.faults.update({"/error.png": 500, "/drip.png": "drip", "/denied.png": 403})
    with Web(b"", expired_certificate(tmp_path)) as expired:
        contents = {
            "good": images / "coffee.png",
            "web": f"{web.url}/good.png",
            "error": f"{web.url}/error.png",
            "drip": f"{web.url}/drip.png",
            "dead": f"http://127.0.0.1:{free_port()}/a.png",
            "expired": f"{expired.url}/a.png",
            "unknown": "http://no-such-host.invalid/a.png",
            "sick": sick,
            "denied": f"{web.url}/denied.png",
            "gone": tmp_path / "gone.png",
        }
        manifest, out = write_manifest(tmp_path / "m.csv", images / "swirls.png", contents), tmp_path / "out"
        first = batchnst("run", manifest, "--out", out, *QUICK)
    assert first.exit_code == 1, first.output
    assert "2 of 10 pairs done (2 now" in first.stdout
    assert "8 failed" in first.stdout
    assert "6 pairs failed for a reason that may have passed: tried once more" in first.stderr
    passing = ("error", "drip", "dead", "expired", "unknown", "sick")
    expected: dict[str, Any] = dict.fromkeys(passing, ("failed", "transient", 2))
    expected |= dict.fromkeys(("denied", "gone"), ("failed", "permanent", 1))
    assert newest(out) == expected | dict.fromkeys(("good", "web"), ("ok", None, 1))

    assert "6 for a passing reason: the next run tries them again" in batchnst("status", out).stdout
    planned = batchnst("plan", manifest, "--out", out, *QUICK[2:])
    assert "2 failed and left alone · 6 to paint, 6 of them failed for a passing reason" in planned.stdout
    web.faults.clear()
    broken.clear()
    second = batchnst("run", manifest, "--out", out, *QUICK)
    assert second.exit_code == 1
    assert "6 pairs failed in an earlier run for a passing reason and are tried again" in second.stderr
    assert "2 pairs failed in an earlier run and are left alone" in second.stderr
    assert {name for name, (status, *_) in newest(out).items() if status == "ok"} == {
        *("good", "web", "error", "drip", "sick")
    }
    assert newest(out)["denied"][2] == 1


def test_a_host_that_is_back_at_the_end_of_the_run_costs_nothing(
    images: Path, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.faults["/a.png"] = 503
    contents = {"a": f"{web.url}/a.png", "b": f"{web.url}/b.png", "c": images / "coffee.png"}
    manifest, out = write_manifest(tmp_path / "m.csv", images / "swirls.png", contents), tmp_path / "out"
    real = run._failed_in_passing

    def mended(*arguments: Any) -> Plan:
        web.faults.clear()
        return real(*arguments)

    monkeypatch.setattr(run, "_failed_in_passing", mended)
    result = batchnst("run", manifest, "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    assert "3 of 3 pairs done (3 now" in result.stdout
    assert "0 failed" in result.stdout
    assert newest(out)["a"] == ("ok", None, 2)


@pytest.mark.slow
def test_a_dead_style_host_fails_its_pairs_only(images: Path, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}/style.png"
    lines = [f"{images}/coffee.png,{dead},dead{i}" for i in range(MAX_UNREAD + 5)]
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(["content,style,id", *lines, f"{images}/coffee.png,{images}/swirls.png,good"]) + "\n")
    result = batchnst("run", manifest, "--out", tmp_path / "out", *QUICK)
    assert result.exit_code == 1
    assert f"1 of {MAX_UNREAD + 6} pairs done" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", 500])
def test_a_store_that_fails_for_many_files_stops_the_run_in_a_line_and_soon(
    images: Path, web: Web, tmp_path: Path, fault: int | str
) -> None:
    contents: dict[str, object] = {f"p{i}": f"{web.url}/{i}.png" for i in range(3 * MAX_UNREAD)}
    web.faults.update({f"/{i}.png": fault for i in range(3 * MAX_UNREAD)})
    manifest, out = write_manifest(tmp_path / "m.csv", images / "swirls.png", contents), tmp_path / "out"
    began = time.monotonic()
    result = batchnst("run", manifest, "--out", out, *QUICK)
    assert time.monotonic() - began < 60
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("batchnst: ")]
    assert f"{web.url}: {MAX_UNREAD} of its files in a row could not be read; run the same command again" in line
    assert len(newest(out)) == MAX_UNREAD
    web.faults.clear()
    files._patience.cache_clear()
    again = batchnst("run", manifest, "--out", out, *QUICK)
    assert again.exit_code == 0, again.output


def unread(number: int) -> Finished:
    address = f"http://host/{number}.jpg"
    return failing_stores.failed(pair(f"p{number}"), InputError("away", transient=True, unread=address), "away")


def test_files_inside_an_archive_are_files_of_its_store() -> None:
    stores = FailingStores()
    with pytest.raises(StorageError, match=r"^s3://bucket: 20 of its files in a row could not be read"):
        for number in range(MAX_UNREAD):
            error = InputError("away", transient=True, unread=f"tar://{number}.jpg::s3://bucket/a.tar")
            stores.add(failing_stores.failed(pair(f"p{number}"), error, "away"))
    assert "s3://bucket" in failing_stores.painted(pair("a", "zip://a::s3://bucket/b.zip"), None).answered


def test_files_count_once_and_an_answer_starts_anew() -> None:
    stores = FailingStores()
    for _ in range(3 * MAX_UNREAD):
        stores.add(unread(0))
    for answer in (
        failing_stores.painted(pair("a", content="http://host/a.jpg"), None),
        failing_stores.failed(pair("b"), InputError("no such file", unread="http://host/b.jpg"), "no such file"),
    ):
        for number in range(MAX_UNREAD - 1):
            stores.add(unread(number))
        stores.add(answer)
    for number in range(MAX_UNREAD - 1):
        stores.add(unread(number))
    stores.add(failing_stores.painted(pair("c", content="http://another/c.jpg"), None))
    with pytest.raises(StorageError, match=r"^http://host: 20 of its files in a row .*The last error: away$"):
        stores.add(unread(MAX_UNREAD))
