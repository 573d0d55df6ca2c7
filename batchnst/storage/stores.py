"""Kinds of store: reading, writing and moving files, each as safely as the store allows."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from batchnst.storage.retries import is_transient, retry
from batchnst.storage.s3 import canonical
from batchnst.storage.seekable import Seekable

PIECE = 1 << 20
"""Bytes that are read at once from a file of unknown size."""

NO_PARTS = "its web server sends no parts of files, so nothing inside can be read; copy it to a disk or a store"

T = TypeVar("T")


class ConditionalClient(Protocol):
    """Writes that depend on what is there, decided by the store itself; paths are those on the store's filesystem."""

    def create(self, path: str, data: bytes) -> None:
        """Write a file; raises FileExistsError if there is one."""

    def version(self, path: str) -> str | None:
        """The version of a file, which every write changes; None if there is no file."""

    def replace(self, path: str, data: bytes, version: str | None) -> None:
        """Write a file if it still has `version`, or if `version` is None and there is none; else FileExistsError."""


@dataclass(frozen=True, eq=False)
class Store:
    """A filesystem that holds the addresses that begin with `prefix`, at the path `root`.

    atomic_bytes: files up to this many bytes are written directly, because they appear completely or not at all; larger
    ones are written to a temporary file, then moved.
    writable: False if the store can be neither written nor listed.
    conditional: client for conditional writes; None if the store has none.
    """

    filesystem: pafs.FileSystem
    prefix: str
    root: str
    atomic_bytes: int = 0
    writable: bool = True
    conditional: ConditionalClient | None = None

    def path(self, address: str) -> str:
        """The path of `address` on the filesystem."""
        return f"{self.root.rstrip('/')}/{canonical(address).removeprefix(self.prefix).removeprefix('/')}"

    def retry(self, action: Callable[[], T]) -> T:
        """Call `action` and return its result; retry for a while if the store does not answer."""
        return retry(action)

    def open(self, path: str, buffer: int, *, in_parts: bool = False) -> BinaryIO:
        """Open a file for reading and seeking; it is fetched `buffer` bytes at a time.

        With `in_parts`, raises OSError if a web server sends it only from its beginning.
        """
        return open_reader(self.filesystem, path, buffer, in_parts=in_parts)

    def stamp(self, path: str) -> tuple[int, int | None]:
        """The size of a file, and the time of its last change if the store tells it, in nanoseconds since 1970.

        Raises OSError if there is no such file, or if its size is not known.
        """
        if isinstance(self.filesystem, pafs.PyFileSystem):  # fsspec calls every error of a web server a missing file
            with self.open(path, PIECE, in_parts=True) as file:
                return file.seek(0, io.SEEK_END), None
        info = self.retry(lambda: self.filesystem.get_file_info(path))
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return info.size or 0, info.mtime_ns

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

    def list(self, path: str) -> list[pafs.FileInfo]:
        """All files in the folder `path` and its subfolders; on disk, links are followed."""
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        return [info for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]

    def exists(self, path: str) -> bool:
        """True if there is a file or a folder at `path`."""
        return bool(self.filesystem.get_file_info(path).type != pafs.FileType.NotFound)

    def delete(self, path: str) -> None:
        """Delete a file; raises FileNotFoundError if there is none."""
        self.filesystem.delete_file(path)

    def create(self, path: str, data: bytes, temporary: str) -> None:
        """Write `data` to `path`; raises FileExistsError if there is a file.

        Without `conditional` two processes that create the same file at the same moment may both succeed.
        """
        if self.conditional:
            self.conditional.create(path, data)
        elif self.exists(path):
            raise FileExistsError(path)
        else:
            self.put(path, data, temporary)

    def version(self, path: str) -> str | None:
        """The version of a file for `replace`; None if there is no file, empty if the store has no versions."""
        if self.conditional:
            return self.conditional.version(path)
        return "" if self.exists(path) else None

    def replace(self, path: str, data: bytes, temporary: str, version: str | None, before: Callable[[], None]) -> None:
        """Write `data` to `path` if its file still has `version`; raises FileExistsError if it has another one.

        A store without versions writes in any case. `before` is called as late as possible; if it raises, nothing is
        written.
        """
        if self.conditional:
            before()
            self.conditional.replace(path, data, version)
        else:
            self.put(path, data, temporary, before)

    def put(self, path: str, data: bytes, temporary: str, before: Callable[[], None] = lambda: None) -> None:
        """Write `data` to `path`, completely or not at all; large files are first written to `temporary`.

        `before` is called as late as possible; if it raises, nothing is written.
        """
        if len(data) <= self.atomic_bytes:
            before()
            self._send(path, data)
        else:
            self._make_folder(temporary)
            try:
                self._send(temporary, data)
                before()
                self.move(temporary, path)
            except BaseException:
                with suppress(OSError):
                    self.filesystem.delete_file(temporary)
                raise

    def scratch(self, temporary: str) -> BinaryIO:
        """A file on this machine to write to, for `put_scratch`; it vanishes when it is closed."""
        return tempfile.TemporaryFile()

    def put_scratch(self, file: BinaryIO, path: str, temporary: str, before: Callable[[], None]) -> None:
        """Write a file of `scratch` to `path`, completely or not at all, piece by piece; `before` as in `put`."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if size <= self.atomic_bytes:
            self.put(path, file.read(), temporary, before)
            return
        try:
            self._stream(file, temporary, size)
            before()
            self.move(temporary, path)
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(temporary)
            raise

    def _stream(self, file: BinaryIO, path: str, size: int) -> None:
        self._make_folder(path)
        with self.filesystem.open_output_stream(path) as stream:
            shutil.copyfileobj(file, stream, PIECE)
        if (kept := self.filesystem.get_file_info(path).size) not in (size, None):
            raise OSError(f"the store kept {kept} bytes of {size}")

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


def expand_home(address: str) -> str:
    """The local `address` with the home of a user in place of `~` or `~name`; unchanged if there is no such user."""
    try:
        return os.path.expanduser(address)
    except ValueError:  # the name has a character that none may have
        return address


class Disk(Store):
    """The local disk; a write or move is on disk when it returns."""

    def path(self, address: str) -> str:
        """The absolute path of `address`; `~` is the user's home."""
        return os.path.abspath(expand_home(address))

    def retry(self, action: Callable[[], T]) -> T:
        """Call `action` once: the operating system has its own retries."""
        return action()

    def open(self, path: str, buffer: int, *, in_parts: bool = False) -> BinaryIO:
        """Open a file for reading and seeking, with a buffer of `buffer` bytes.

        Raises OSError for anything but a regular file: a pipe would keep its reader waiting.
        """
        return open(path, "rb", buffering=buffer, opener=_open_regular)

    def list(self, path: str) -> list[pafs.FileInfo]:
        """All files in the folder `path` and its subfolders; links are not followed, and not listed."""
        infos = []
        for folder, subfolders, names in os.walk(path, onerror=_raise_unless_missing):
            subfolders[:] = [name for name in subfolders if not os.path.islink(os.path.join(folder, name))]
            for name in names:
                with suppress(FileNotFoundError):
                    status = os.lstat(file := os.path.join(folder, name))
                    if stat.S_ISREG(status.st_mode):
                        infos.append(pafs.FileInfo(file, pafs.FileType.File, size=status.st_size))
        return infos

    def obstacle(self, path: str, *, folder: bool = False) -> str | None:
        """Why nothing can be written to the file `path`, or into the `folder` there; None if it seems possible."""
        nearest = Path(path)
        while True:
            try:
                status = os.stat(nearest)
                break
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR) or nearest.is_symlink():
                    return f"{nearest}: {error.strerror}"
                nearest = nearest.parent
        if not folder and str(nearest) == path:
            if stat.S_ISDIR(status.st_mode):
                return "it is a folder; expected the path of a file"
            nearest = nearest.parent
        elif not stat.S_ISDIR(status.st_mode):
            return "it is a file; expected a folder" if str(nearest) == path else f"{nearest} is not a folder"
        return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} is read-only for this user"

    def create(self, path: str, data: bytes, temporary: str) -> None:
        """Write `data` to `path`; raises FileExistsError if there is a file.

        The file appears complete, by a hard link; on a file system without links it is opened exclusively and then
        written.
        """
        target, unfinished = Path(path), Path(temporary)
        _make_folder(target.parent)
        try:
            _write_synced(unfinished, data)
            try:
                os.link(unfinished, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _write_synced(target, data)
        finally:
            unfinished.unlink(missing_ok=True)
        _sync_folder(target.parent)

    def put(self, path: str, data: bytes, temporary: str, before: Callable[[], None] = lambda: None) -> None:
        """Write `data` to `temporary`, sync it to disk, call `before`, and rename the file to `path`."""
        target, unfinished = Path(path), Path(temporary)
        try:
            _write_synced(unfinished, data)
            before()
            _make_folder(target.parent)
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def scratch(self, temporary: str) -> BinaryIO:
        """A file to write to at `temporary`, for `put_scratch`."""
        _make_folder(Path(temporary).parent)
        return open(temporary, "xb")

    def put_scratch(self, file: BinaryIO, path: str, temporary: str, before: Callable[[], None]) -> None:
        """Sync a file of `scratch` to disk, call `before`, and rename it to `path`."""
        file.flush()
        os.fsync(file.fileno())
        before()
        self.move(temporary, path)

    def move(self, source: str, target: str) -> None:
        """Move a file, replacing `target`; raises FileNotFoundError if there is no file at `source`."""
        _make_folder(Path(target).parent)
        Path(source).replace(target)
        _sync_folder(Path(target).parent)


class FileUris(Disk):
    """The local disk by `file://` URIs, in which names are percent-encoded."""

    def path(self, address: str) -> str:
        """The path that `address` names; taken literally if only that exists, as by programs that encode nothing."""
        literal = os.path.abspath(f"/{address.removeprefix('file://').partition('/')[2]}")
        decoded = unquote(literal, errors="surrogateescape")
        return literal if os.path.lexists(literal) and not os.path.lexists(decoded) else decoded


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file; raises OSError for a folder, pipe, socket or device."""
    _check_regular(os.stat(path))
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # should it become a pipe meanwhile
    try:
        _check_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory; this is not a regular file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")


DISK = Disk(pafs.LocalFileSystem(), "", "/")
"""The store of all local paths."""

FILE_URIS = FileUris(pafs.LocalFileSystem(), "file://", "/")
"""The store of all `file://` URIs."""


_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of file systems that have no hard links."""

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EISDIR}
"""Errors of file systems that cannot sync a folder."""


def _make_folder(folder: Path) -> None:
    """Create a folder and those around it, if missing; raises NotADirectoryError if a file is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None


def _write_synced(path: Path, data: bytes) -> None:
    """Create a file and sync it to disk; raises FileExistsError if there is one."""
    _make_folder(path.parent)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Sync a folder to disk, on file systems that can: some network file systems do it by themselves."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def open_reader(filesystem: pafs.FileSystem, path: str, buffer: int = 1 << 20, *, in_parts: bool = False) -> BinaryIO:
    """Open a file for reading and seeking; one in a store is fetched `buffer` bytes at a time, with retries.

    `in_parts` as for `Store.open`.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        file: BinaryIO = filesystem.open_input_file(path)
        return file
    return io.BufferedReader(_Remote(filesystem, path, in_parts), buffer)


class _Remote(Seekable):
    """A file in a store; a read that returns too few bytes is retried."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, in_parts: bool) -> None:
        self._filesystem, self._path, self._in_parts = filesystem, path, in_parts
        self._file = retry(lambda: filesystem.open_input_file(path))
        self._position = 0
        try:
            self._size: int | None = self._file.size()
        except io.UnsupportedOperation:
            self._size = None  # the web server does not send it
        if in_parts and self._size is None:
            raise OSError(errno.EOPNOTSUPP, NO_PARTS)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self._size is None:
            raise io.UnsupportedOperation("the server does not send the size of this file")
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size or 0}[whence]
        self._position = max(0, start + offset)
        return self._position

    def _take(self, count: int) -> bytes:
        return self._fetch(count)

    def readall(self) -> bytes:
        if self._size is not None:
            return self._fetch(self._size)
        return b"".join(iter(lambda: self._fetch(PIECE), b""))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _fetch(self, limit: int) -> bytes:
        """Read the next bytes, at most `limit`."""
        count = limit if self._size is None else max(0, min(limit, self._size - self._position))
        try:
            data = self._part(self._position, count) if count else b""
        except ValueError:  # the web server does not support range requests
            if self._in_parts:
                raise OSError(errno.EOPNOTSUPP, NO_PARTS) from None
            self._file = retry(lambda: self._filesystem.handler.open_stream(self._path))
            return self._fetch(limit)
        self._position += len(data)
        return data

    def _part(self, start: int, count: int) -> bytes:
        def read_part() -> bytes:
            data: bytes = self._file.read_at(count, start)
            if len(data) != count and self._size is not None:
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
            return self.open_stream(path, file)
        return pa.PythonFile(file, mode="r")

    def open_stream(self, path: str, file: Any = None) -> pa.NativeFile:
        """Open a file of a web server that sends it from its beginning only; `file` is it, if it is open already."""
        return pa.PythonFile(_Streamed(lambda: self.fs.open(path, "rb", block_size=0), file), mode="r")


class _Streamed(Seekable):
    """A file that arrives from its beginning only; what has arrived is kept, so that it can be read again.

    After an error `open_file` opens it anew.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], file: BinaryIO | None) -> None:
        self._open, self._file = open_file, file
        self._arrived, self._position = bytearray(), 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the size of this file is not known")
        self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def read(self, count: int = -1) -> bytes:
        """Read `count` bytes, or fewer at the end of the file."""
        end = self._position + count
        while len(self._arrived) < end and (piece := self._next(min(PIECE, end - len(self._arrived)))):
            self._arrived += piece
        data = bytes(self._arrived[self._position : end])
        self._position += len(data)
        return data

    def _next(self, count: int) -> bytes:
        if self._file is None:
            self._file = self._open()
        try:
            return self._file.read(count)
        except BaseException:
            self._file = None
            self._arrived.clear()
            raise

    def close(self) -> None:
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()
