"""Read, write and list files on disks and in object stores; a file is written completely or not at all.

An address is a local path or a URI. `addresses` finds the store of a URI and lists the environment variables it uses.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import posixpath
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import BinaryIO, TypeVar
from urllib.parse import quote

import pyarrow.fs as pafs
from fsspec.implementations.arrow import ArrowFSWrapper

from batchnst.chains import Chain, outer_of
from batchnst.errors import InputError, RequestError, StorageError, UnwritableName
from batchnst.storage import walk
from batchnst.storage.addresses import address_problem, store_name, store_of
from batchnst.storage.archives import Members
from batchnst.storage.inside import Outer, members, open_inside
from batchnst.storage.retries import Deadline, Patience, is_transient
from batchnst.storage.s3 import canonical
from batchnst.storage.seekable import Seekable
from batchnst.storage.stores import DISK, FILE_URIS, PIECE, Disk, Store, expand_home

_REFUSED_NAMES = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR}
"""Error numbers that say that a file system does not take a name, or has a folder or a file in its way."""

MOST_AT_ONCE = 1 << 26
"""Most bytes that are requested at once of a file that is hashed."""

LONGEST_HASHED = 100_000_000_000
"""Longest file that is hashed, in bytes."""

LONGEST_UNSIZED = 4_000_000_000
"""Most bytes that are read from a server that does not send the size of its file."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_uri(address: str) -> bool:
    """True if `address` is a URI, such as `s3://bucket/key`."""
    return "://" in address


def local_path(address: str) -> str:
    """The absolute path of a local path or `file://` URI; `~` is the user's home."""
    return FILE_URIS.path(address) if is_uri(address) else DISK.path(address)


def resolve(address: str, base: str) -> str:
    """Resolve `address` against the folder `base`; URIs stay as they are, local paths become absolute.

    Of an address inside another file, that of the other file is resolved.
    """
    if chain := Chain.of(address):
        return str(replace(chain, outer=resolve(chain.outer, base)))
    if re.match("file:/(?!/)", address):  # as Java writes it
        address = address.replace("file:/", "file:///", 1)
    if is_uri(address):
        return canonical(address)
    if is_uri(base) and not address.startswith(("/", "~")):
        # In a URI of this machine's files, a name is percent-encoded.
        return f"{base.rstrip('/')}/{quote(address) if base.startswith('file://') else address}"
    return DISK.path(address if is_uri(base) else os.path.join(base, expand_home(address)))


def parent(address: str) -> str:
    """The folder that contains `address`."""
    if is_uri(address):
        return canonical(address).rpartition("/")[0]
    return os.path.dirname(local_path(address))


def read(address: str) -> bytes:
    """Read the whole file at `address`; raises InputError, as `open_file` does."""
    with open_file(address, io.DEFAULT_BUFFER_SIZE) as file:
        return file.read()


def sha256_of(address: str) -> str:
    """SHA-256 of the file at `address`, in hexadecimal, read piece by piece; raises InputError, as `open_file` does."""
    digest, length = hashlib.sha256(), 0
    with open_file(address) as file:
        count = min(size_of(file) or PIECE, MOST_AT_ONCE)  # most files in a single request
        file.seek(0)
        while piece := file.read(count):
            digest.update(piece)
            if (length := length + len(piece)) > LONGEST_HASHED:
                raise InputError(f"{address}: more than {LONGEST_HASHED / 1e9:.0f} GB, which no input has")
    return digest.hexdigest()


def size_of(file: BinaryIO) -> int | None:
    """The size of an open file in bytes, at whose end it is then; None if its server does not send it."""
    try:
        return file.seek(0, io.SEEK_END)
    except io.UnsupportedOperation:
        return None


def read_at_most(address: str, most_bytes: int, reason: str) -> bytes:
    """Read the whole file at `address`; a server that sends without end is stopped.

    Raises InputError, as `open_file` does, and for a file of more than `most_bytes`. `reason` ends its message "more
    than the … MB that".
    """
    too_long = f"more than the {most_bytes / 1e6:.0f} MB that {reason}"
    with open_file(address) as file:
        size = size_of(file)
        if size is None:
            data = bytearray()
            while piece := file.read(PIECE):
                data += piece
                if len(data) > most_bytes:
                    raise InputError(f"{address}: {too_long}")
            return bytes(data)
        if size > most_bytes:
            raise InputError(f"{address}: {size / 1e6:.0f} MB, {too_long}")
        file.seek(0)
        return file.read()


@contextmanager
def open_file(address: str, buffer: int = 1 << 20) -> Iterator[BinaryIO]:
    """Open the input at `address` for reading and seeking; it is fetched `buffer` bytes at a time.

    Raises InputError if the file is missing or unreadable, or its store does not answer or takes too long; also for
    errors while it is read. RequestError if no store can be opened by this address.
    """

    chain = Chain.of(address)
    with (
        _as_input_error(address),
        _patience(store_name(address)).reading(address) as deadline,
        _open_inside(chain, buffer, deadline) if chain else _open(address, buffer, deadline) as file,
    ):
        yield file


@contextmanager
def _open(address: str, buffer: int, deadline: Deadline, *, in_parts: bool = False) -> Iterator[BinaryIO]:
    """Open a file of a store, whose reads are over at `deadline`; `in_parts` as for `Store.open`."""

    def open_it() -> BinaryIO:
        store = _store(address)
        return store.open(store.path(address), buffer, in_parts=in_parts)

    with io.BufferedReader(_Input(deadline.run(open_it), deadline), buffer) as file:
        yield file


def _outer(address: str, deadline: Deadline) -> Outer:
    """The archive or Parquet file at `address`, as it is now."""

    def stamp() -> tuple[int, int | None]:
        store = _store(address)
        return store.stamp(store.path(address))

    return Outer(address, deadline.run(stamp), lambda buffer: _open(address, buffer, deadline, in_parts=True))


def _open_inside(chain: Chain, buffer: int, deadline: Deadline) -> AbstractContextManager[BinaryIO]:
    if problem := address_problem(str(chain)):
        raise RequestError(problem)
    return open_inside(chain, _outer(chain.outer, deadline), buffer)


def list_archive(scheme: str, address: str) -> Members:
    """The members of the archive at `address`; `scheme` is zip or tar. Raises InputError, as `open_file` does."""
    with _as_input_error(address), _patience(store_name(address)).reading(address) as deadline:
        return members(scheme, _outer(address, deadline))


@lru_cache(maxsize=1024)
def _patience(store: str) -> Patience:
    """This process's patience with a store, by its name."""
    return Patience()


class _Input(Seekable):
    """A file whose reads have a deadline."""

    def __init__(self, file: BinaryIO, deadline: Deadline) -> None:
        self._file, self._deadline = file, deadline

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def _take(self, count: int) -> bytes:
        return self._deadline.run(lambda: self._file.read(count), count)

    def readall(self) -> bytes:
        here = self.tell()
        try:
            size = self.seek(0, io.SEEK_END) - here
        except io.UnsupportedOperation:  # the server does not send the size
            return self._read_pieces()
        self.seek(here)
        return self._deadline.run(self._file.read, size)

    def _read_pieces(self) -> bytes:
        data = bytearray()
        while piece := self._deadline.run(lambda: self._file.read(PIECE), PIECE):
            data += piece
            if len(data) > LONGEST_UNSIZED:
                raise OSError(errno.EFBIG, f"its server sends more than {LONGEST_UNSIZED / 1e9:.0f} GB without an end")
        return bytes(data)

    def close(self) -> None:
        if not self.closed and not self._deadline.is_over:  # else a thread may still be reading
            self._file.close()
        super().close()


@contextmanager
def _as_input_error(address: str) -> Iterator[None]:
    """Raise InputError in place of OSError, and of the StorageError of a store that cannot be opened."""
    try:
        yield
    except FileNotFoundError:
        outer = outer_of(address)
        said = "no such file" if outer == address else f"no such file: {outer}"
        raise InputError(f"{address}: {said}", unread=address, missing=True) from None
    except StorageError as error:
        raise InputError(f"{address}: {error}", transient=True, unread=address) from None
    except OSError as error:
        transient = is_transient(error)
        problem = "its storage does not answer" if transient and is_uri(address) else "cannot be read"
        reason = error.strerror or error
        raise InputError(f"{address}: {problem}: {reason}", transient=transient, unread=address) from None


@dataclass(frozen=True)
class Listing:
    """The files in a folder, or those that match a glob.

    root: the folder's address, or that of the part of a glob before its first wildcard.
    addresses: of the files, sorted.
    unnamable: what was passed over because its name is not UTF-8, as texts for the user.
    odd: addresses of what was passed over because it is neither a file nor a folder, with what it is.
    """

    root: str
    addresses: list[str]
    unnamable: list[str] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)


def list_files(where: str) -> list[str]:
    """The addresses of all files in `where`, sorted, as of `find_files`."""
    return find_files(where).addresses


def find_files(where: str) -> Listing:
    """Find all files in `where`: a folder, a prefix, a glob or a single file.

    Subfolders are included; on a disk links are followed, and each file is listed once, however many links lead to it.
    In a glob, `**` stands for any number of folders. Hidden and system files are left out, see `walk.is_hidden`,
    unless the glob names one. Raises StorageError if the store does not answer, RequestError for a folder on a web
    server.
    """
    where = canonical(where)
    store = _store(where)
    with _as_storage_error(where, "listed"):
        return _find_on_disk(store, where) if isinstance(store, Disk) else _find_in_store(store, where)


def _find_on_disk(store: Disk, where: str) -> Listing:
    path = store.path(where)
    if os.path.isfile(path):
        return Listing(parent(where), [where])
    if not walk.is_utf8(path):
        return Listing(parent(where), [], [walk.shown(path)])
    root, pattern = (path, "**") if os.path.lexists(path) else walk.split_glob(path)
    found = walk.find(root, pattern)

    def address(path: str) -> str:
        return f"file://{quote(path)}" if is_uri(where) else path

    odd = {address(path): kind for path, kind in found.odd.items()}
    return Listing(address(root), list(map(address, found.paths)), found.unnamable, odd)


def _find_in_store(store: Store, where: str) -> Listing:
    path = store.path(where).rstrip("/") or "/"
    info = store.retry(lambda: store.filesystem.get_file_info(path))
    if info.type == pafs.FileType.File:
        return Listing(parent(where), [where])
    _check_writable(store, where, "listed")
    hidden = False
    if walk.has_wildcard(path) and info.type == pafs.FileType.NotFound:
        paths = store.retry(lambda: ArrowFSWrapper(store.filesystem).glob(path))
        hidden = any(map(walk.is_hidden, path.split("/")))
        where = walk.split_glob(where)[0]
    else:
        paths = [info.path for info in store.retry(lambda: store.list(path))]
    inside = (path.strip("/").removeprefix(store.path(where).strip("/")).strip("/") for path in paths)
    shown = (name for name in inside if hidden or not any(map(walk.is_hidden, name.split("/"))))
    root = where.rstrip("/")
    return Listing(root, sorted(f"{root}/{name}" for name in shown))


def check_writable(address: str) -> None:
    """Raise RequestError if no file can be written to `address`; call it before any costly work."""
    store = _store(address)
    _check_obstacle(store, address, _target(store, address))


def write(address: str, data: bytes) -> None:
    """Write `data` to `address`, completely or not at all; it is on disk when this returns.

    Raises StorageError if writing fails, RequestError if `address` cannot be written to.
    """
    store = _store(address)
    path = _target(store, address)
    temporary = str(PurePosixPath(path).with_name(f".{uuid.uuid4().hex}.tmp"))
    with _as_storage_error(address, "written"):
        store.retry(lambda: store.put(path, data, temporary))


def _target(store: Store, address: str) -> str:
    """The path of the file to write for `address`; on a disk, links are followed, so that they stay.

    Raises RequestError if that cannot be a file.
    """
    _check_writable(store, address, "written")
    on_disk = isinstance(store, Disk)
    path = os.path.realpath(store.path(address)) if on_disk else store.path(address)
    if not PurePosixPath(path).name:
        raise RequestError(f"{address}: names no file; expected the path of one")
    if on_disk and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise RequestError(f"{address}: is a device, pipe or socket; expected the path of a file")
    return path


class Folder:
    """A folder on disk or in an object store; its files are named by paths relative to it."""

    TEMPORARY = ".batchnst/tmp"
    """Subfolder for unfinished files: in the same folder, so that a rename is atomic."""

    def __init__(self, address: str) -> None:
        """Raises RequestError if `address` is empty, read-only or of no store, StorageError if that does not answer."""
        if not address:  # often a variable of a script that is not set
            raise RequestError("'' is no folder: expected a path or URI, such as out")
        self.address = resolve(address, ".")
        walk.check_utf8(self.address)
        self._store = _store(address)
        _check_writable(self._store, address, "written or listed")
        self.filesystem, self.root = self._store.filesystem, self._store.path(self.address)
        self.local = isinstance(self._store, Disk)

    def check_writable(self) -> None:
        """Raise RequestError if no files can be written into this folder; call it before any costly work."""
        _check_obstacle(self._store, self.address, self.root, folder=True)

    @property
    def streams(self) -> int:
        """Number of files to read in parallel."""
        return 4 if self.local else 32

    def path(self, relative: str) -> str:
        """The path on `filesystem` of the file at `relative`."""
        return posixpath.join(self.root, relative)

    def relative(self, path: str) -> str:
        """The path relative to this folder of the file at `path` on `filesystem`."""
        return posixpath.relpath(path, self.root)

    def open(self, path: str, buffer: int) -> BinaryIO:
        """Open the file at `path` on `filesystem` for reading and seeking; it is fetched `buffer` bytes at a time."""
        return self._store.open(path, buffer)

    def write(self, relative: str, data: bytes, before: Callable[[], None] = lambda: None) -> None:
        """Write `data` to `relative`, completely or not at all; it is on disk when this returns.

        `before` is called before each attempt, as late as possible; if it raises, nothing is written and there is no
        further attempt. Raises StorageError.
        """
        path = self._checked(relative)
        with _as_storage_error(path, "written"):
            self._store.retry(lambda: self._store.put(path, data, self._temporary(), before))

    @contextmanager
    def writing(self, relative: str, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
        """A large file to write to, piece by piece; it is at `relative` once the block has ended without an error.

        `before` as in `write`. Raises StorageError.
        """
        path, temporary = self._checked(relative), self._temporary()
        try:
            with _as_storage_error(path, "written"), self._store.scratch(temporary) as file:
                yield file
                self._store.retry(lambda: self._store.put_scratch(file, path, temporary, before))
        finally:
            if self.local:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)

    def create_once(self, relative: str, data: bytes, before: Callable[[], None] = lambda: None) -> bool:
        """Write `data` to `relative`, unless another file is there: then it returns False. Raises StorageError.

        `before` as in `write`. A file with the same data is taken for this one: the answer may have been lost.
        """
        path = self._checked(relative)

        def create() -> None:
            before()
            self._store.create(path, data, self._temporary())

        with _as_storage_error(path, "written"):
            try:
                self._store.retry(create)
            except FileExistsError:
                return self.read(relative) == data
        return True

    def create(self, relative: str, data: bytes) -> bool:
        """Write `data` to `relative` if there is no such file; returns False if there is one. Raises StorageError.

        After StorageError the file may be there or not: the answer may have been lost.
        """
        path = self._checked(relative)
        with _as_storage_error(path, "written"):
            try:
                self._store.create(path, data, self._temporary())
            except FileExistsError:
                return False
        return True

    def version(self, relative: str) -> str | None:
        """The version of the file at `relative`, for `replace`; None if there is no such file. Raises StorageError."""
        path = self._checked(relative)
        with _as_storage_error(path, "read"):
            return self._store.retry(lambda: self._store.version(path))

    def replace(self, relative: str, data: bytes, version: str | None, before: Callable[[], None]) -> bool:
        """Write `data` to `relative` if the file there still has `version`; returns False if it has another one.

        Only stores with conditional writes compare versions. `before` as in `write`. Raises StorageError.
        """
        path = self._checked(relative)
        with _as_storage_error(path, "written"):
            try:
                self._store.retry(lambda: self._store.replace(path, data, self._temporary(), version, before))
            except FileExistsError:
                return False
        return True

    def read(self, relative: str) -> bytes | None:
        """Read the whole file at `relative`; None if there is no such file. Raises StorageError."""
        path = self.path(relative)
        with _as_storage_error(path, "read"), suppress(FileNotFoundError, NotADirectoryError):
            return self._store.read(path, may_change=not self.local)
        return None

    def exists(self, relative: str) -> bool:
        """True if there is a file or folder at `relative`; raises StorageError."""
        path = self._checked(relative)
        with _as_storage_error(path, "read"):
            return self._store.retry(lambda: self._store.exists(path))

    def move(self, source: str, target: str) -> None:
        """Move the file at `source` to `target`; do nothing if there is no file at `source`.

        The move is on disk when this returns. Raises StorageError.
        """
        old_path, new_path = self._checked(source), self._checked(target)

        def move() -> None:
            if self._store.exists(old_path):
                self._store.move(old_path, new_path)

        with _as_storage_error(new_path, "written"), suppress(FileNotFoundError):
            self._store.retry(move)

    def remove(self, relative: str) -> None:
        """Remove the file at `relative` if it exists; raises StorageError."""
        path = self._checked(relative)
        with _as_storage_error(path, "removed"), suppress(FileNotFoundError):
            self._store.retry(lambda: self._store.delete(path))

    def files(self, relative: str, prefix: str = "", ending: str | tuple[str, ...] = "") -> list[pafs.FileInfo]:
        """Files in the subfolder `relative` whose names begin with `prefix` and end with `ending`, or one of them.

        Deeper subfolders are included, links are not followed; the files are sorted by their path on `filesystem`.
        Raises StorageError.
        """
        path = self._checked(relative)
        if self.local and os.path.islink(path):
            raise StorageError(_link_problem(path))
        with _as_storage_error(path, "listed"):
            files = self._store.retry(lambda: self._store.list(path))
        matching = (info for info in files if info.base_name.startswith(prefix) and info.base_name.endswith(ending))
        return sorted(matching, key=lambda info: str(info.path))

    def links(self, relative: str) -> list[str]:
        """Links in the subfolder `relative`, as paths relative to this folder, sorted: `files` passes them over."""
        with _as_storage_error(self._checked(relative), "listed"), suppress(FileNotFoundError):
            names = os.scandir(self.path(relative)) if self.local else ()
            return sorted(f"{relative}/{entry.name}" for entry in names if entry.is_symlink())
        return []

    def _temporary(self) -> str:
        """A path on `filesystem` for an unfinished file."""
        return self._checked(f"{self.TEMPORARY}/{uuid.uuid4().hex}")

    def _checked(self, relative: str) -> str:
        """The path on `filesystem` of the file at `relative`.

        Raises StorageError if `relative` leads out of this folder, by `..`, as an absolute path or through a link.
        """
        if relative.startswith("/") or ".." in relative.split("/"):
            raise StorageError(f"{relative}: leads out of {self.address}; nothing was changed")
        for folder in PurePosixPath(relative).parents[:-1] if self.local else ():
            if os.path.islink(path := self.path(str(folder))):
                raise StorageError(_link_problem(path))
        return self.path(relative)

    def clear_temporary(self) -> None:
        """Remove unfinished files, left by processes that died."""
        for info in self.files(self.TEMPORARY):
            self.remove(self.relative(info.path))


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], streams: int) -> list[Result]:
    """The results of `function` for each of `items`, of which up to `streams` are worked on at the same time."""
    if streams == 1:
        return list(map(function, items))
    with ThreadPoolExecutor(streams) as pool:
        return list(pool.map(function, items))


def _link_problem(path: str) -> str:
    return f"{path}: is a link; expected a real folder (only OUT itself may be a link)"


def _store(address: str) -> Store:
    return store_of(address) if is_uri(address) else DISK


def _check_writable(store: Store, address: str, action: str) -> None:
    """Raise RequestError if `store` is read-only; `action` is a participle, such as "written"."""
    if not store.writable:
        raise RequestError(
            f"{address}: cannot be {action}: files on a web server can only be read, each by its own address"
        )


def _check_obstacle(store: Store, address: str, path: str, *, folder: bool = False) -> None:
    """Raise RequestError if the disk shows that the file `path`, or files in the `folder`, cannot be written."""
    if isinstance(store, Disk) and (obstacle := store.obstacle(path, folder=folder)):
        raise RequestError(f"{address}: cannot be written: {obstacle}")


@contextmanager
def _as_storage_error(path: str, action: str) -> Iterator[None]:
    """Raise StorageError in place of OSError; `action` is a participle, such as "written"."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room and run the same command again" if full else ""
        kind = UnwritableName if error.errno in _REFUSED_NAMES else StorageError
        raise kind(f"{path}: cannot be {action}: {reason}{advice}") from None
