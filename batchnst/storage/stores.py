"""Kinds of store: reading, writing and moving files, each as safely as the store allows."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from batchnst.storage.retries import is_transient, retry

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Store:
    """A filesystem that holds the addresses that begin with `prefix`, at the path `root`.

    atomic_bytes: files up to this many bytes are written directly, because they appear completely or not at all; larger
    ones are written to a temporary file, then moved.
    writable: False if the store can be neither written nor listed.
    """

    filesystem: pafs.FileSystem
    prefix: str
    root: str
    atomic_bytes: int = 0
    writable: bool = True

    def path(self, address: str) -> str:
        """The path of `address` on the filesystem."""
        return f"{self.root.rstrip('/')}/{address.removeprefix(self.prefix).removeprefix('/')}"

    def retry(self, action: Callable[[], T]) -> T:
        """Call `action` and return its result; retry for a while if the store does not answer."""
        return retry(action)

    def open(self, path: str, buffer: int) -> BinaryIO:
        """Open a file for reading and seeking; it is fetched `buffer` bytes at a time."""
        return open_reader(self.filesystem, path, buffer)

    def read(self, path: str, *, may_change: bool = False) -> bytes:
        """Read a whole file; with `may_change`, read it again if it was replaced meanwhile."""

        def read_all() -> bytes:
            with self.open(path, io.DEFAULT_BUFFER_SIZE) as file:
                data = file.read()
            if may_change and self.filesystem.get_file_info(path).size != len(data):
                # Only as many bytes were requested as the previous file had.
                raise ConnectionError("was replaced while it was read")
            return data

        return self.retry(read_all)

    def put(self, path: str, data: bytes, temporary: str) -> None:
        """Write `data` to `path`, completely or not at all; large files are first written to `temporary`."""
        if len(data) <= self.atomic_bytes:
            self._send(path, data)
        else:
            self._make_folder(temporary)
            try:
                self._send(temporary, data)
                self.move(temporary, path)
            except BaseException:
                with suppress(OSError):
                    self.filesystem.delete_file(temporary)
                raise

    def move(self, source: str, target: str) -> None:
        """Move a file, replacing `target`; raises FileNotFoundError if there is no file at `source`."""
        self._make_folder(target)
        self._rename(source, target)

    def _make_folder(self, path: str) -> None:
        if not self.atomic_bytes:  # object stores have no folders
            self.filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)

    def _send(self, path: str, data: bytes) -> None:
        """Write `data` to `path`; raises OSError if the file in the store then has another size."""
        if isinstance(self.filesystem, pafs.PyFileSystem):
            self.filesystem.handler.fs.pipe_file(path, data)
        else:
            # pyarrow closes the stream even after an error, which completes a partial upload: only a file that is
            # sent in one request is safe without a temporary path.
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
        size = self.filesystem.get_file_info(path).size
        if size not in (len(data), None):
            advice = "; try AWS_REQUEST_CHECKSUM_CALCULATION=when_required" if size > len(data) else ""
            raise OSError(f"the store kept {size} bytes of {len(data)}{advice}")

    def _rename(self, source: str, target: str) -> None:
        try:
            self.filesystem.move(source, target)
        except NotImplementedError:  # Azure, without a hierarchical namespace
            self.filesystem.copy_file(source, target)
            with suppress(FileNotFoundError):  # the client repeats a deletion whose answer was lost
                self.filesystem.delete_file(source)
        except OSError as error:
            # Some stores do not replace a file: they raise FileExistsError, Hadoop an error without a reason.
            if is_transient(error) or not (isinstance(error, FileExistsError) or self.filesystem.type_name == "hdfs"):
                raise
            self.filesystem.delete_file(target)
            self.filesystem.move(source, target)


class Disk(Store):
    """The local disk; a write or move is on disk when it returns."""

    def path(self, address: str) -> str:
        """The absolute path of `address`."""
        return os.path.abspath(address.removeprefix(self.prefix))

    def retry(self, action: Callable[[], T]) -> T:
        """Call `action` once: the operating system has its own retries."""
        return action()

    def open(self, path: str, buffer: int) -> BinaryIO:
        """Open a file for reading and seeking, with a buffer of `buffer` bytes."""
        return open(path, "rb", buffering=buffer)

    def put(self, path: str, data: bytes, temporary: str) -> None:
        """Write `data` to `temporary`, sync it to disk and rename it to `path`."""
        target, unfinished = Path(path), Path(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def move(self, source: str, target: str) -> None:
        """Move a file, replacing `target`; raises FileNotFoundError if there is no file at `source`."""
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(source).replace(target)
        _sync_folder(Path(target).parent)


DISK = Disk(pafs.LocalFileSystem(), "", "/")
"""The store of all local paths."""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_reader(filesystem: pafs.FileSystem, path: str, buffer: int = 1 << 20) -> BinaryIO:
    """Open a file for reading and seeking; one in a store is fetched `buffer` bytes at a time, with retries."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        file: BinaryIO = filesystem.open_input_file(path)
        return file
    return io.BufferedReader(_Remote(filesystem, path), buffer)


class _Remote(io.RawIOBase):
    """A file in a store; a read that returns too few bytes is retried."""

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self._file = retry(lambda: filesystem.open_input_file(path))
        self._size: int = self._file.size()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._fetch(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._fetch(self._size)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _fetch(self, limit: int) -> bytes:
        """Read the next bytes, at most `limit`."""
        count = max(0, min(limit, self._size - self._position))
        try:
            data = self._part(self._position, count) if count else b""
        except ValueError:  # the web server does not support range requests
            self._file = pa.BufferReader(self._part(0, self._size))
            return self._fetch(limit)
        self._position += count
        return data

    def _part(self, start: int, count: int) -> bytes:
        def read_part() -> bytes:
            data: bytes = self._file.read_at(count, start)
            if len(data) != count:
                raise ConnectionError(f"received {len(data)} of {count} bytes")
            return data

        return retry(read_part)


def from_fsspec(filesystem: Any) -> pafs.PyFileSystem:
    """Wrap a filesystem of fsspec as one of pyarrow."""
    return pafs.PyFileSystem(_Handler(filesystem))


class _Handler(pafs.FSSpecHandler):  # type: ignore[misc]
    """pyarrow's adapter for fsspec, without fsspec's cache of listings, and safe to read from many threads."""

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self.fs.invalidate_cache()
        return super().get_file_info(paths)  # type: ignore[no-any-return]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self.fs.invalidate_cache()
        return super().get_file_info_selector(selector)  # type: ignore[no-any-return]

    def open_input_file(self, path: str) -> pa.NativeFile:
        file = self.fs.open(path, "rb")
        if isinstance(file, io.BytesIO):  # fsspec's memory store returns one file object to all threads
            return pa.BufferReader(file.getvalue())
        if getattr(file, "size", 0) is None:  # the web server does not send the size
            with file:
                return pa.BufferReader(file.read())
        return pa.PythonFile(file, mode="r")
