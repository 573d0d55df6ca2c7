"""Files on local paths and in object stores behind one small interface; writes are whole or not at all.

An address is a local path or a URI; `schemes` says which store it lies in, and what that takes from the environment.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import BinaryIO

import pyarrow.fs as pafs
from fsspec.implementations.arrow import ArrowFSWrapper

from batchnst.errors import InputError, RequestError, StorageError
from batchnst.storage.addresses import store_of
from batchnst.storage.retries import OUT_OF_REACH, may_pass
from batchnst.storage.stores import DISK, Disk, Store


def is_uri(address: str) -> bool:
    """Whether an address names a store, as in `s3://bucket/key`."""
    return "://" in address


def resolve(address: str, base: str) -> str:
    """`address` as it stands if absolute or a URI, else relative to the folder `base`; local ones made absolute."""
    if is_uri(address):
        return address
    if is_uri(base) and not address.startswith("/"):
        return f"{base.rstrip('/')}/{address}"
    return os.path.abspath(os.path.join(base, address))


def parent(address: str) -> str:
    """The folder an address lies in."""
    if is_uri(address):
        return address.rpartition("/")[0]
    return os.path.dirname(os.path.abspath(address))


def read(address: str) -> bytes:
    """Everything at an address; raises InputError with the reason in a few words."""
    store = _store(address)
    path = store.path(address)
    with _as_input_error(address, store, path):
        return store.read(path)


@contextmanager
def open_file(address: str, buffer: int = 1 << 20) -> Iterator[BinaryIO]:
    """A file to read from and seek in, fetched `buffer` bytes at a time.

    Raises, also for what goes wrong while it is read, InputError where the file is at fault, and StorageError where
    the store does not answer.
    """
    store = _store(address)
    path = store.path(address)
    with _as_input_error(address, store, path), store.open(path, buffer) as file:
        yield file


@contextmanager
def _as_input_error(address: str, store: Store, path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{address}: no such file") from None
    except OSError as error:
        if _is_out_of_reach(store, path, error):
            raise StorageError(f"{address}: its storage does not answer: {error.strerror or error}") from None
        raise InputError(f"{address}: cannot be read: {error.strerror or error}") from None


def _is_out_of_reach(store: Store, path: str, error: OSError) -> bool:
    """Whether it is the store, not the file: one whose client gives no clear sign does not answer the next question."""
    if error.errno is not None or isinstance(store, Disk):
        return error.errno in OUT_OF_REACH
    if may_pass(error):
        return True
    try:
        store.filesystem.get_file_info(path)
    except PermissionError:
        return False
    except OSError as error:
        return "ACCESS_DENIED" not in str(error)
    return False


def find(where: str) -> list[str]:
    """The addresses of all files in a folder or under a prefix, or that match a glob, or of one file; sorted.

    Folders are looked through to the bottom. In a glob `**` stands for any number of folders. Raises StorageError, and
    RequestError for a folder of a web server.
    """
    store = _store(where)
    path = store.path(where).rstrip("/") or "/"
    with _as_storage_error(where, "listed"):
        info = store.attempt(lambda: store.filesystem.get_file_info(path))
        if info.type == pafs.FileType.File:
            return [where]
        _check_writable(store, where, "listed")
        if any(character in path for character in "*?[") and info.type == pafs.FileType.NotFound:
            found = store.attempt(lambda: ArrowFSWrapper(store.filesystem).glob(path))
            where = re.split(r"[*?[]", where)[0].rpartition("/")[0]
        else:
            found = [info.path for info in _files(store, path)]
    return sorted(_address(store, where, path) for path in found)


def _address(store: Store, folder: str, path: str) -> str:
    """The address of a file under a folder, from its path on the store's filesystem."""
    inside = path.strip("/").removeprefix(store.path(folder).strip("/"))
    base = folder if is_uri(folder) else os.path.abspath(folder)
    return f"{base.rstrip('/')}/{inside.strip('/')}"


def _files(store: Store, path: str) -> list[pafs.FileInfo]:
    """All files under a folder."""
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    infos = store.attempt(lambda: store.filesystem.get_file_info(selector))
    return [info for info in infos if info.type == pafs.FileType.File]


def check_writable(address: str) -> None:
    """Raise RequestError, before anything is made for it, for an address that cannot be written to."""
    _check_writable(_store(address), address, "written")


def write(address: str, data: bytes) -> None:
    """Put a file in place, whole or not at all, and on disk when this returns.

    Raises StorageError, and RequestError for an address that cannot be written to.
    """
    store = _store(address)
    _check_writable(store, address, "written")
    path = store.path(address)
    temporary = str(PurePosixPath(path).with_name(f".{uuid.uuid4().hex}.tmp"))
    with _as_storage_error(address, "written"):
        store.attempt(lambda: store.put(path, data, temporary))


class Folder:
    """A folder, local or in an object store, and the files under it by relative path."""

    TEMPORARY = ".batchnst/tmp"
    """Where unfinished files lie, beside everything else so that a rename is atomic."""

    def __init__(self, address: str) -> None:
        """Raises RequestError for one that no store serves, or only for reading."""
        self.address = address if is_uri(address) else os.path.abspath(address)
        self._store = _store(address)
        _check_writable(self._store, address, "written, nor listed")
        self.filesystem, self.root = self._store.filesystem, self._store.path(self.address)
        self.local = isinstance(self._store, Disk)

    @property
    def streams(self) -> int:
        """Files that are worth reading at the same time."""
        return 4 if self.local else 32

    def path(self, relative: str) -> str:
        """The path on `filesystem` of a file under this folder."""
        return str(PurePosixPath(self.root) / relative)

    def relative(self, path: str) -> str:
        """What `path` was made from."""
        return str(PurePosixPath(path).relative_to(self.root))

    def write(self, relative: str, data: bytes, before: Callable[[], None] = lambda: None) -> None:
        """Put a file in place, whole or not at all, and on disk when this returns; raises StorageError.

        before: called before each try; what it raises ends them.
        """
        path, temporary = self.path(relative), self.path(f"{self.TEMPORARY}/{uuid.uuid4().hex}")
        self._check_links(relative)

        def put() -> None:
            before()
            self._store.put(path, data, temporary)

        with _as_storage_error(path, "written"):
            self._store.attempt(put)

    def read(self, relative: str) -> bytes | None:
        """A file's bytes, or None where there is none; raises StorageError."""
        path = self.path(relative)
        with _as_storage_error(path, "read"), suppress(FileNotFoundError, NotADirectoryError):
            return self._store.read(path, may_change=not self.local)
        return None

    def move(self, source: str, target: str) -> None:
        """Move a file, if it was not moved already; on disk when this returns. Raises StorageError."""
        before, after = self.path(source), self.path(target)
        self._check_links(target)

        def move() -> None:
            if self.filesystem.get_file_info(before).type != pafs.FileType.NotFound:
                self._store.move(before, after)

        with _as_storage_error(after, "written"):
            self._store.attempt(move)

    def remove(self, relative: str) -> None:
        """Remove a file, if it is there; raises StorageError."""
        path = self.path(relative)
        with _as_storage_error(path, "removed"), suppress(FileNotFoundError):
            self._store.attempt(lambda: self.filesystem.delete_file(path))

    def files(self, relative: str, prefix: str = "", ending: str = "") -> list[pafs.FileInfo]:
        """All files under a subfolder whose names begin and end so, sorted by their path on `filesystem`."""
        path = self.path(relative)
        with _as_storage_error(path, "listed"):
            files = _files(self._store, path)
        found = (info for info in files if info.base_name.startswith(prefix) and info.base_name.endswith(ending))
        return sorted(found, key=lambda info: str(info.path))

    def _check_links(self, relative: str) -> None:
        """Raise StorageError for a file that would be written somewhere else, by way of a link."""
        inside = PurePosixPath(relative).parents[:-1] if self.local else ()
        for path in (self.path(str(folder)) for folder in inside):
            if os.path.islink(path):
                raise StorageError(f"{path}: is a link; expected a folder of its own (OUT itself may be one)")

    def clear_temporary(self) -> None:
        """Remove what dead runs left unfinished."""
        for info in self.files(self.TEMPORARY):
            self.remove(self.relative(info.path))


def _store(address: str) -> Store:
    return store_of(address) if is_uri(address) else DISK


def _check_writable(store: Store, address: str, what: str) -> None:
    if not store.writable:
        raise RequestError(f"{address}: cannot be {what}: a web server's files can be read alone, each by its address")


@contextmanager
def _as_storage_error(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room and run the same command again" if full else ""
        raise StorageError(f"{path}: cannot be {what}: {reason}{advice}") from None
