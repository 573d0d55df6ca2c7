from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from batchnst.errors import InputError, RequestError, StorageError
from batchnst.storage import addresses, files, retries
from batchnst.storage.stores import Store


def test_addresses_resolve_against_the_manifests_folder() -> None:
    assert files.resolve("a/b.png", "/data/m") == "/data/m/a/b.png"
    assert files.resolve("/b.png", "/data") == "/b.png"
    assert files.resolve("s3://x/b.png", "/data") == "s3://x/b.png"
    assert files.resolve("b.png", "s3://bucket/run") == "s3://bucket/run/b.png"
    assert files.parent("s3://bucket/run/m.csv") == "s3://bucket/run"
    assert files.parent("/data/m.csv") == "/data"


def test_a_file_is_there_whole_and_nothing_else(tmp_path: Path) -> None:
    folder = files.Folder(str(tmp_path))
    folder.write("a/b/c.bin", b"one")
    folder.write("a/b/c.bin", b"two")
    assert folder.read("a/b/c.bin") == b"two"
    assert folder.read("a/none") is None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["c.bin"]
    assert [info.path for info in folder.files("a", ending=".bin")] == [str(tmp_path / "a/b/c.bin")]
    assert folder.files("nowhere") == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files.Folder(str(tmp_path))
    folder.write("x", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: folder.write("x", b"new, and longer"), lambda: folder.create("y", b"new")):
        with pytest.raises(StorageError, match="No space left on device; make room and run the same command again"):
            write()
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x"]


def test_a_device_is_not_replaced_and_a_link_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for address in ("/dev/null", str(tmp_path / "pipe"), str(tmp_path / "link"), f"file://{tmp_path}/pipe"):
        for refused in (files.check_writable, lambda address: files.write(address, b"data")):
            with pytest.raises(RequestError, match=r": is a device, pipe or socket; expected the path of a file$"):
                refused(address)
    assert (tmp_path / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()
    (tmp_path / "latest").symlink_to("page.html")
    files.write(str(tmp_path / "latest"), b"data")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "page.html").read_bytes() == b"data"


def test_what_is_in_the_way_of_a_file_is_known_before_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing/folder")
    for name, said in {
        "file/x.png": "file is not a folder",
        "file/x/y.png": "file is not a folder",
        "loop/x.png": "Too many levels",
        "nowhere/../file/x.png": "file is not a folder",
        "x" * 252 + ".png": "File name too long",
        ".": "it is a folder; expected the path of a file",
    }.items():
        with pytest.raises(RequestError, match=said):
            files.check_writable(str(tmp_path / name))
    for name in ("file", "new", "new/deeper/x.png", "nowhere"):
        files.check_writable(str(tmp_path / name))
    for name, said in {
        "file": "it is a file; expected a folder",
        "nowhere": "No such file",
        "loop/x": "Too many levels",
    }.items():
        with pytest.raises(RequestError, match=said):
            files.Folder(str(tmp_path / name)).check_writable()
    files.Folder(str(tmp_path / "new/deeper")).check_writable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "nowhere"]


def test_unfinished_files_of_dead_runs_are_cleared(tmp_path: Path) -> None:
    folder = files.Folder(str(tmp_path))
    folder.write("x", b"kept")
    (tmp_path / folder.TEMPORARY / "left").write_bytes(b"half")
    folder.clear_temporary()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x"]


def test_reading_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such file"):
        files.read(str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        files.read(str(tmp_path))
    with pytest.raises(RequestError, match="no storage can be opened"):
        files.read("gopher://old/file")


def test_an_object_store_is_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(pafs._MockFileSystem(), "s3://bucket", "bucket", atomic_bytes=sys.maxsize)
    monkeypatch.setattr(files, "store_of", lambda address: store)
    store.filesystem.create_dir("bucket/run/a")
    folder = files.Folder("s3://bucket/run")
    folder.write("a/x.bin", b"data")
    assert folder.read("a/x.bin") == b"data"
    assert files.read("s3://bucket/run/a/x.bin") == b"data"
    assert [info.path for info in folder.files("a")] == ["bucket/run/a/x.bin"]
    assert folder.read("a/none") is None


def test_a_store_that_does_not_answer_is_a_passing_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(addresses, "S3_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(InputError, match=r"^s3://nowhere/a.png: its storage does not answer: .*NETWORK_CON") as caught:
        files.read("s3://nowhere/a.png")
    assert caught.value.transient
    with pytest.raises(StorageError, match="out/x: cannot be read: "):
        files.Folder("s3://nowhere/out").read("x")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        files.read(str(tmp_path))
