"""Local paths and object stores behind one small interface; writes are atomic.

An address is a local path or a URI. Object stores are served by pyarrow's filesystems.
"""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow.fs as pafs
from fsspec.implementations.arrow import ArrowFSWrapper

from batchnst.errors import InputError, RequestError, StorageError


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
    with open_file(address) as file:
        return file.read()


@contextmanager
def open_file(address: str, buffer: int = 1 << 20) -> Iterator[BinaryIO]:
    """A file to read from and seek in, fetched `buffer` bytes at a time.

    Raises, also for what goes wrong while it is read, InputError where the file is at fault, and StorageError where
    the store does not answer.
    """
    try:
        if is_uri(address):
            filesystem, path = _filesystem(address)
            with io.BufferedReader(filesystem.open_input_file(path), buffer) as file:
                yield file
        else:
            with open(address, "rb", buffering=buffer) as file:
                yield file
    except FileNotFoundError:
        raise InputError(f"{address}: no such file") from None
    except OSError as error:
        if _is_out_of_reach(address, error):
            raise StorageError(f"{address}: its storage does not answer: {error.strerror or error}") from None
        raise InputError(f"{address}: cannot be read: {error.strerror or error}") from None


_OUT_OF_REACH = {
    getattr(errno, name)
    for name in [
        "EIO",
        "ESTALE",
        "ENODEV",
        "ENOTCONN",
        "ETIMEDOUT",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETUNREACH",
    ]
}
"""What an operating system says when a disk or a server is gone, rather than a file."""


def _is_out_of_reach(address: str, error: OSError) -> bool:
    """Whether it is the store, not the file: pyarrow's stores give no number, but do not answer the next question."""
    if error.errno is not None or not is_uri(address):
        return error.errno in _OUT_OF_REACH
    filesystem, path = _filesystem(address)
    try:
        filesystem.get_file_info(path)
    except PermissionError:
        return False
    except OSError as error:
        return "ACCESS_DENIED" not in str(error)
    return False


def find(where: str) -> list[str]:
    """The addresses of all files in a folder or under a prefix, or that match a glob, or of one file; sorted.

    Folders are looked through to the bottom. In a glob `**` stands for any number of folders.
    """
    filesystem, path = _filesystem(where)
    with _as_storage_error(where, "listed"):
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [where]
        if any(character in path for character in "*?[") and info.type == pafs.FileType.NotFound:
            found = ArrowFSWrapper(filesystem).glob(path)
        else:
            selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
            found = [info.path for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    before = where[: len(where) - len(path.lstrip("/"))] if is_uri(where) else "/"
    return sorted(before + found_path.lstrip("/") for found_path in found)


def write(address: str, data: bytes) -> None:
    """Put a file in place, whole or not at all, and on disk when this returns; raises StorageError."""
    filesystem, path = _filesystem(address)
    beside = None if is_uri(address) else Path(path).with_name(f".{uuid.uuid4().hex}.tmp")
    _put(filesystem, path, data, beside)


class Folder:
    """A folder, local or in an object store, and the files under it by relative path."""

    TEMPORARY = ".batchnst/tmp"
    """Where unfinished files lie, beside everything else so that a rename is atomic."""

    def __init__(self, address: str) -> None:
        self.address = address if is_uri(address) else os.path.abspath(address)
        self.filesystem, self.root = _filesystem(self.address)
        self.local = not is_uri(self.address)

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

    def write(self, relative: str, data: bytes) -> None:
        """Put a file in place, whole or not at all, and on disk when this returns; raises StorageError."""
        temporary = Path(self.path(self.TEMPORARY)) / uuid.uuid4().hex if self.local else None
        _put(self.filesystem, self.path(relative), data, temporary)

    def read(self, relative: str) -> bytes | None:
        """A file's bytes, or None where there is none; raises StorageError."""
        path = self.path(relative)
        with _as_storage_error(path, "read"):
            if self.filesystem.get_file_info(path).type == pafs.FileType.NotFound:
                return None
            with self.filesystem.open_input_stream(path) as stream:
                return bytes(stream.read())

    def move(self, source: str, target: str) -> None:
        """Move a file, if it was not moved already; on disk when this returns. Raises StorageError."""
        path = self.path(target)
        with _as_storage_error(path, "written"):
            if self.filesystem.get_file_info(self.path(source)).type == pafs.FileType.NotFound:
                return
            if self.local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.filesystem.move(self.path(source), path)
            if self.local:
                _sync_folder(Path(path).parent)

    def remove(self, relative: str) -> None:
        """Remove a file, if it is there; raises StorageError."""
        with _as_storage_error(self.path(relative), "removed"), suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(relative))

    def files(self, relative: str, prefix: str = "", ending: str = "") -> list[pafs.FileInfo]:
        """All files under a subfolder whose names begin and end so, sorted by their path on `filesystem`."""
        selector = pafs.FileSelector(self.path(relative), recursive=True, allow_not_found=True)
        with _as_storage_error(self.path(relative), "listed"):
            infos = self.filesystem.get_file_info(selector)
        files = (info for info in infos if info.type == pafs.FileType.File)
        found = (info for info in files if info.base_name.startswith(prefix) and info.base_name.endswith(ending))
        return sorted(found, key=lambda info: str(info.path))

    def clear_temporary(self) -> None:
        """Remove what dead runs left unfinished."""
        if self.local:
            for path in Path(self.path(self.TEMPORARY)).glob("*"):
                path.unlink(missing_ok=True)


@lru_cache(maxsize=64)
def _filesystem_of(store: str) -> tuple[pafs.FileSystem, str]:
    try:
        found: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(store)
        return found
    except (ValueError, OSError, ImportError) as error:
        raise RequestError(f"{store}: no storage can be opened by this URI: {error}") from None


def _filesystem(address: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of an address, one for each store, and the path on it."""
    if not is_uri(address):
        return _LOCAL, os.path.abspath(address)
    scheme, _, rest = address.partition("://")
    store, _, inside = rest.partition("/")
    filesystem, root = _filesystem_of(f"{scheme}://{store}")
    return filesystem, f"{root.rstrip('/')}/{inside}"


_LOCAL = pafs.LocalFileSystem()


def _put(filesystem: pafs.FileSystem, path: str, data: bytes, temporary: Path | None) -> None:
    """Write by way of a temporary file and a rename on a disk, or by one put to an object store."""
    with _as_storage_error(path, "written"):
        if temporary is None:
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
        else:
            _put_on_disk(Path(path), data, temporary)


@contextmanager
def _as_storage_error(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room and run the same command again" if full else ""
        raise StorageError(f"{path}: cannot be {what}: {reason}{advice}") from None


def _put_on_disk(target: Path, data: bytes, temporary: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
