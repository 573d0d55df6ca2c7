"""Stores of files: how each of them puts a file in place whole, moves it, and reads it."""

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

from batchnst.storage.retries import may_pass, persist

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Store:
    """A filesystem, and where the addresses that begin with `prefix` lie on it.

    whole: files of so many bytes appear at once, or not at all, when they are put in place; larger ones, in parts, by a
    copy. writable: it can be written to, and listed.
    """

    filesystem: pafs.FileSystem
    prefix: str
    root: str
    whole: int = 0
    writable: bool = True

    def path(self, address: str) -> str:
        """The path on the filesystem of an address."""
        return f"{self.root.rstrip('/')}/{address.removeprefix(self.prefix).removeprefix('/')}"

    def attempt(self, do: Callable[[], T]) -> T:
        """What `do` returns; it is done again for a while where the store does not answer."""
        return persist(do)

    def open(self, path: str, buffer: int) -> BinaryIO:
        """A file to read from and seek in."""
        return reader(self.filesystem, path, buffer)

    def read(self, path: str, *, may_change: bool = False) -> bytes:
        """Everything in a file, also in one that may be replaced at any time."""

        def whole() -> bytes:
            with self.open(path, io.DEFAULT_BUFFER_SIZE) as file:
                data = file.read()
            if may_change and self.filesystem.get_file_info(path).size != len(data):
                # As much was asked for as the one before was long.
                raise ConnectionError("was replaced while it was read")
            return data

        return self.attempt(whole)

    def put(self, path: str, data: bytes, temporary: str) -> None:
        """Put a file in place, whole or not at all, by way of `temporary` if need be."""
        if len(data) <= self.whole:
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
        """Move a file; raises FileNotFoundError."""
        self._make_folder(target)
        self._rename(source, target)

    def _make_folder(self, path: str) -> None:
        if not self.whole:  # in object stores there are none
            self.filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)

    def _send(self, path: str, data: bytes) -> None:
        """Raises OSError where the store holds something else than was sent."""
        if isinstance(self.filesystem, pafs.PyFileSystem):
            self.filesystem.handler.fs.pipe_file(path, data)
        else:
            # pyarrow closes a stream after an error too, and so completes what has arrived of a large file.
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
        size = self.filesystem.get_file_info(path).size
        if size not in (len(data), None):
            longer = "; try AWS_REQUEST_CHECKSUM_CALCULATION=when_required" if size > len(data) else ""
            raise OSError(f"the store kept {size} bytes of {len(data)}{longer}")

    def _rename(self, source: str, target: str) -> None:
        try:
            self.filesystem.move(source, target)
        except NotImplementedError:  # Azure, without a hierarchical namespace
            self.filesystem.copy_file(source, target)
            with suppress(FileNotFoundError):  # its client deletes it again where the answer was lost
                self.filesystem.delete_file(source)
        except OSError as error:
            # Hadoop does not say why, but does not replace; others say that there is one.
            if may_pass(error) or not (isinstance(error, FileExistsError) or self.filesystem.type_name == "hdfs"):
                raise
            self.filesystem.delete_file(target)
            self.filesystem.move(source, target)


class Disk(Store):
    """A local path: what is written is on disk when it is said to be."""

    def path(self, address: str) -> str:
        """The absolute path."""
        return os.path.abspath(address.removeprefix(self.prefix))

    def attempt(self, do: Callable[[], T]) -> T:
        """What `do` returns: the operating system has tried already."""
        return do()

    def open(self, path: str, buffer: int) -> BinaryIO:
        """A file to read from and seek in."""
        return open(path, "rb", buffering=buffer)

    def put(self, path: str, data: bytes, temporary: str) -> None:
        """Put a file in place, whole or not at all, by a rename."""
        target, beside = Path(path), Path(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def move(self, source: str, target: str) -> None:
        """Move a file; raises FileNotFoundError."""
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(source).replace(target)
        _sync_folder(Path(target).parent)


DISK = Disk(pafs.LocalFileSystem(), "", "/")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reader(filesystem: pafs.FileSystem, path: str, buffer: int = 1 << 20) -> BinaryIO:
    """A file to read from and seek in; in a store, fetched `buffer` bytes at a time, with patience."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        file: BinaryIO = filesystem.open_input_file(path)
        return file
    return io.BufferedReader(_Remote(filesystem, path), buffer)


class _Remote(io.RawIOBase):
    """A file in a store: what is read of it is whole, and asked for again where it is not."""

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self._file = persist(lambda: filesystem.open_input_file(path))
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

    def _fetch(self, most: int) -> bytes:
        count = max(0, min(most, self._size - self._position))
        try:
            data = self._part(self._position, count) if count else b""
        except ValueError:  # a web server that serves no parts
            self._file = pa.BufferReader(self._part(0, self._size))
            return self._fetch(most)
        self._position += count
        return data

    def _part(self, start: int, count: int) -> bytes:
        def whole() -> bytes:
            data: bytes = self._file.read_at(count, start)
            if len(data) != count:
                raise ConnectionError(f"{len(data)} of {count} bytes came")
            return data

        return persist(whole)


def wrapped(filesystem: Any) -> pafs.PyFileSystem:
    """One of fsspec's filesystems as one of pyarrow's."""
    return pafs.PyFileSystem(_Handler(filesystem))


class _Handler(pafs.FSSpecHandler):  # type: ignore[misc]
    """fsspec's filesystems to pyarrow, always asked anew, and safe to be read by many threads."""

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self.fs.invalidate_cache()
        return super().get_file_info(paths)  # type: ignore[no-any-return]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self.fs.invalidate_cache()
        return super().get_file_info_selector(selector)  # type: ignore[no-any-return]

    def open_input_file(self, path: str) -> pa.NativeFile:
        file = self.fs.open(path, "rb")
        if isinstance(file, io.BytesIO):  # fsspec's memory: the same one for all
            return pa.BufferReader(file.getvalue())
        if getattr(file, "size", 0) is None:  # a web server that does not say
            with file:
                return pa.BufferReader(file.read())
        return pa.PythonFile(file, mode="r")
