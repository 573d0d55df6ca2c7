"""Nothing outside OUT is deleted, moved or written, whatever links and names there are in OUT."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from batchnst.errors import StorageError
from batchnst.storage.files import Folder, list_files

ACTIONS: dict[str, Callable[[Folder, str], object]] = {
    "write": lambda folder, name: folder.write(name, b"ours"),
    "create": lambda folder, name: folder.create(name, b"ours"),
    "replace": lambda folder, name: folder.replace(name, b"ours", folder.version(name), lambda: None),
    "remove": lambda folder, name: folder.remove(name),
    "move from": lambda folder, name: folder.move(name, "taken"),
    "move to": lambda folder, name: folder.move("mine", name),
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is not OUT, with a file."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "precious").write_bytes(b"theirs")
    (folder / "deep" / "precious").write_bytes(b"theirs")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """OUT, with a file."""
    folder = Folder(str(tmp_path / "out"))
    folder.write("mine", b"ours")
    return folder


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("name", ["../outside/precious", "images/../../outside/precious", "{outside}/precious"])
def test_a_name_that_leads_out_is_refused(
    folder: Folder, outside: Path, name: str, action: Callable[[Folder, str], object]
) -> None:
    before = contents(outside.parent)
    with pytest.raises(StorageError, match="leads out of"):
        action(folder, name.format(outside=outside))
    assert contents(outside.parent) == before


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_a_link_on_the_way_is_refused(folder: Folder, outside: Path, action: Callable[[Folder, str], object]) -> None:
    (Path(folder.address) / "images").symlink_to(outside)
    before = contents(outside)
    for name in ("images/precious", "images/deep/precious", "images/new"):
        with pytest.raises(StorageError, match=r"images: is a link; expected a real folder"):
            action(folder, name)
    assert contents(outside) == before


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_a_file_that_is_a_link_is_replaced_or_removed_itself(
    folder: Folder, outside: Path, action: Callable[[Folder, str], object]
) -> None:
    (Path(folder.address) / "x.png").symlink_to(outside / "precious")
    action(folder, "x.png")
    assert (outside / "precious").read_bytes() == b"theirs"
    assert (outside / "precious").stat().st_nlink == 1


@pytest.mark.parametrize("link", [".batchnst", ".batchnst/tmp"])
def test_what_lies_behind_a_linked_temporary_folder_stays(folder: Folder, outside: Path, link: str) -> None:
    path = Path(folder.address) / link
    path.rename(outside.parent / "aside")
    path.symlink_to(outside)
    (outside / "tmp").mkdir()
    (outside / "tmp" / "precious").write_bytes(b"theirs")
    before = contents(outside)
    with pytest.raises(StorageError, match="is a link; expected a real folder"):
        folder.clear_temporary()
    with pytest.raises(StorageError, match="is a link; expected a real folder"):
        folder.write("x", b"ours")
    assert contents(outside) == before


def test_links_in_the_temporary_folder_are_not_followed(folder: Folder, outside: Path) -> None:
    temporary = Path(folder.address) / Folder.TEMPORARY
    (temporary / "folder").symlink_to(outside)
    (temporary / "file").symlink_to(outside / "precious")
    (temporary / "circle").symlink_to(temporary)
    (temporary / "half").write_bytes(b"ha")
    before = contents(outside)
    folder.clear_temporary()
    assert contents(outside) == before
    assert not (temporary / "half").exists()


def test_out_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    folder = Folder(str(tmp_path / "out"))
    folder.write("a/x", b"ours")
    folder.clear_temporary()
    assert (tmp_path / "disk" / "a" / "x").read_bytes() == b"ours"
    assert [folder.relative(info.path) for info in folder.files("a")] == ["a/x"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EIO])
def test_a_file_system_that_cannot_sync_a_folder_is_no_fault(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EIO:  # a disk that fails is one
        with pytest.raises(StorageError, match="x: cannot be written: Input/output error"):
            folder.write("a/x", b"ours")
        return
    folder.write("a/x", b"ours")
    assert folder.create("a/y", b"ours")
    folder.move("a/y", "b/z")
    assert folder.read("a/x") == folder.read("b/z") == b"ours"


def test_hidden_files_are_listed_only_if_they_are_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg", ".trash/b.jpg", "deep/_c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_files(str(tmp_path)) == [f"{tmp_path}/a.jpg", f"{tmp_path}/deep/_c.jpg"]
    assert list_files(f"{tmp_path}/*.jpg") == [f"{tmp_path}/a.jpg"]
    assert list_files(f"{tmp_path}/._*.jpg") == [f"{tmp_path}/._a.jpg"]
    assert list_files(f"{tmp_path}/.trash") == list_files(f"{tmp_path}/.trash/*") == [f"{tmp_path}/.trash/b.jpg"]
