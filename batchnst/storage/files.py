"""Read, write and list files on disks and in object stores; a file is written completely or not at all.

An address is a local path or a URI. `addresses` finds the store of a URI and lists the environment variables it uses.
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
from batchnst.storage.retries import UNREACHABLE, is_transient
from batchnst.storage.stores import DISK, Disk, Store


def is_uri(address: str) -> bool:
    """True if `address` is a URI, such as `s3://bucket/key`."""
    return "://" in address


def resolve(address: str, base: str) -> str:
    """Resolve `address` against the folder `base`; URIs stay as they are, local paths become absolute."""
    if is_uri(address):
        return address
    if is_uri(base) and not address.startswith("/"):
        return f"{base.rstrip('/')}/{address}"
    return os.path.abspath(os.path.join(base, address))


def parent(address: str) -> str:
    """The folder that contains `address`."""
    if is_uri(address):
        return address.rpartition("/")[0]
    return os.path.dirname(os.path.abspath(address))


def read(address: str) -> bytes:
    """Read the whole file at `address`.

    Raises InputError if the file is missing or unreadable, StorageError if its store does not answer.
    """
    store = _store(address)
    path = store.path(address)
    with _as_input_error(address, store, path):
        return store.read(path)


@contextmanager
def open_file(address: str, buffer: int = 1 << 20) -> Iterator[BinaryIO]:
    """Open the file at `address` for reading and seeking; it is fetched `buffer` bytes at a time.

    Raises InputError if the file is missing or unreadable, StorageError if its store does not answer; both also for
    errors while the file is read.
    """
    store = _store(address)
    path = store.path(address)
    with _as_input_error(address, store, path), store.open(path, buffer) as file:
        yield file


@contextmanager
def _as_input_error(address: str, store: Store, path: str) -> Iterator[None]:
    """Raise InputError or StorageError in place of OSError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{address}: no such file") from None
    except OSError as error:
        if _is_unreachable(store, path, error):
            raise StorageError(f"{address}: its storage does not answer: {error.strerror or error}") from None
        raise InputError(f"{address}: cannot be read: {error.strerror or error}") from None


def _is_unreachable(store: Store, path: str, error: OSError) -> bool:
    """True if `error` means that the store does not answer, not that the file is missing or unreadable.

    If the error leaves that open, a second request to the store decides.
    """
    if error.errno is not None or isinstance(store, Disk):
        return error.errno in UNREACHABLE
    if is_transient(error):
        return True
    try:
        store.filesystem.get_file_info(path)
    except PermissionError:
        return False
    except OSError as error:
        return "ACCESS_DENIED" not in str(error)
    return False


def list_files(where: str) -> list[str]:
    """List the addresses of all files in `where`, sorted: a folder, a prefix, a glob or a single file.

    Subfolders are included. In a glob, `**` stands for any number of folders. Raises StorageError if the store does not
    answer, RequestError for a folder on a web server.
    """
    store = _store(where)
    path = store.path(where).rstrip("/") or "/"
    with _as_storage_error(where, "listed"):
        info = store.retry(lambda: store.filesystem.get_file_info(path))
        if info.type == pafs.FileType.File:
            return [where]
        _check_writable(store, where, "listed")
        if any(character in path for character in "*?[") and info.type == pafs.FileType.NotFound:
            paths = store.retry(lambda: ArrowFSWrapper(store.filesystem).glob(path))
            where = re.split(r"[*?[]", where)[0].rpartition("/")[0]
        else:
            paths = [info.path for info in _files(store, path)]
    return sorted(_address(store, where, path) for path in paths)


def _address(store: Store, folder: str, path: str) -> str:
    """The address of the file at `path` on the store's filesystem, which lies in `folder`."""
    inside = path.strip("/").removeprefix(store.path(folder).strip("/"))
    base = folder if is_uri(folder) else os.path.abspath(folder)
    return f"{base.rstrip('/')}/{inside.strip('/')}"


def _files(store: Store, path: str) -> list[pafs.FileInfo]:
    """All files in the folder `path` and its subfolders."""
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    infos = store.retry(lambda: store.filesystem.get_file_info(selector))
    return [info for info in infos if info.type == pafs.FileType.File]


def check_writable(address: str) -> None:
    """Raise RequestError if `address` cannot be written to; call it before any costly work."""
    _check_writable(_store(address), address, "written")


def write(address: str, data: bytes) -> None:
    """Write `data` to `address`, completely or not at all; it is on disk when this returns.

    Raises StorageError if writing fails, RequestError if `address` cannot be written to.
    """
    store = _store(address)
    _check_writable(store, address, "written")
    path = store.path(address)
    temporary = str(PurePosixPath(path).with_name(f".{uuid.uuid4().hex}.tmp"))
    with _as_storage_error(address, "written"):
        store.retry(lambda: store.put(path, data, temporary))


class Folder:
    """A folder on disk or in an object store; its files are named by paths relative to it."""

    TEMPORARY = ".batchnst/tmp"
    """Subfolder for unfinished files: in the same folder, so that a rename is atomic."""

    def __init__(self, address: str) -> None:
        """Raises RequestError if no store serves `address` or it is read-only, StorageError if it does not answer."""
        self.address = address if is_uri(address) else os.path.abspath(address)
        self._store = _store(address)
        _check_writable(self._store, address, "written or listed")
        self.filesystem, self.root = self._store.filesystem, self._store.path(self.address)
        self.local = isinstance(self._store, Disk)

    @property
    def streams(self) -> int:
        """Number of files to read in parallel."""
        return 4 if self.local else 32

    def path(self, relative: str) -> str:
        """The path on `filesystem` of the file at `relative`."""
        return str(PurePosixPath(self.root) / relative)

    def relative(self, path: str) -> str:
        """The path relative to this folder of the file at `path` on `filesystem`."""
        return str(PurePosixPath(path).relative_to(self.root))

    def write(self, relative: str, data: bytes, before: Callable[[], None] = lambda: None) -> None:
        """Write `data` to `relative`, completely or not at all; it is on disk when this returns.

        `before` is called before each attempt; if it raises, there is no further attempt. Raises StorageError.
        """
        path, temporary = self.path(relative), self.path(f"{self.TEMPORARY}/{uuid.uuid4().hex}")
        self._check_links(relative)

        def put() -> None:
            before()
            self._store.put(path, data, temporary)

        with _as_storage_error(path, "written"):
            self._store.retry(put)

    def read(self, relative: str) -> bytes | None:
        """Read the whole file at `relative`; None if there is no such file. Raises StorageError."""
        path = self.path(relative)
        with _as_storage_error(path, "read"), suppress(FileNotFoundError, NotADirectoryError):
            return self._store.read(path, may_change=not self.local)
        return None

    def move(self, source: str, target: str) -> None:
        """Move the file at `source` to `target`; do nothing if there is no file at `source`.

        The move is on disk when this returns. Raises StorageError.
        """
        old_path, new_path = self.path(source), self.path(target)
        self._check_links(target)

        def move() -> None:
            if self.filesystem.get_file_info(old_path).type != pafs.FileType.NotFound:
                self._store.move(old_path, new_path)

        with _as_storage_error(new_path, "written"):
            self._store.retry(move)

    def remove(self, relative: str) -> None:
        """Remove the file at `relative` if it exists; raises StorageError."""
        path = self.path(relative)
        with _as_storage_error(path, "removed"), suppress(FileNotFoundError):
            self._store.retry(lambda: self.filesystem.delete_file(path))

    def files(self, relative: str, prefix: str = "", ending: str = "") -> list[pafs.FileInfo]:
        """Files in the subfolder `relative` whose names begin with `prefix` and end with `ending`.

        Deeper subfolders are included; the files are sorted by their path on `filesystem`. Raises StorageError.
        """
        path = self.path(relative)
        with _as_storage_error(path, "listed"):
            files = _files(self._store, path)
        matching = (info for info in files if info.base_name.startswith(prefix) and info.base_name.endswith(ending))
        return sorted(matching, key=lambda info: str(info.path))

    def _check_links(self, relative: str) -> None:
        """Raise StorageError if a link would lead a write to `relative` out of this folder."""
        subfolders = PurePosixPath(relative).parents[:-1] if self.local else ()
        for path in (self.path(str(folder)) for folder in subfolders):
            if os.path.islink(path):
                raise StorageError(f"{path}: is a link; expected a real folder (only OUT itself may be a link)")

    def clear_temporary(self) -> None:
        """Remove unfinished files, left by processes that died."""
        for info in self.files(self.TEMPORARY):
            self.remove(self.relative(info.path))


def _store(address: str) -> Store:
    return store_of(address) if is_uri(address) else DISK


def _check_writable(store: Store, address: str, action: str) -> None:
    """Raise RequestError if `store` is read-only; `action` is a participle, such as "written"."""
    if not store.writable:
        raise RequestError(
            f"{address}: cannot be {action}: files on a web server can only be read, each by its own address"
        )


@contextmanager
def _as_storage_error(path: str, action: str) -> Iterator[None]:
    """Raise StorageError in place of OSError; `action` is a participle, such as "written"."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room and run the same command again" if full else ""
        raise StorageError(f"{path}: cannot be {action}: {reason}{advice}") from None
