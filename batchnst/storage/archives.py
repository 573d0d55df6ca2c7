"""Read the lists of zip and tar archives, and single members, without reading the archive.

A zip has a list of its members at its end. A tar has none: its headers are read one after the other, and the members
between them passed over, so its list takes a request to a store for each member. Both lists are made by Python's own
`zipfile` and `tarfile`; fsspec's file systems would read a whole tar, and look the list up anew for each file.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from batchnst.storage.guarded import Guarded, Window

LIST_BUFFER = 1 << 14
"""Bytes of a tar that are read at once to find its headers."""

MOST_LIST_BYTES = 128 << 20
"""Longest list of members of a zip, in bytes: a million members take about as much."""

MOST_HEADER_BYTES = 1 << 20
"""Longest header of a member of a tar, in bytes."""

MOST_MEMBERS = 2_000_000
"""Most members of an archive."""

BLOCK = tarfile.BLOCKSIZE

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
"""First bytes of compressed files, and the program that decompresses them."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""The header of a member in a zip: its mark, and the lengths of its name and of its extra field."""

_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, ValueError, OverflowError),
    *(RuntimeError, NotImplementedError, LookupError, MemoryError),
)
"""Exceptions that `zipfile` and `tarfile` raise for damaged and hostile archives."""


class Member(NamedTuple):
    """A file in an archive.

    offset: of its header in a zip, of its data in a tar. stored: its bytes in the archive; size: those that it has.
    check: CRC-32 of its data in a zip, of its header in a tar. deflated: True if it is compressed.
    problem: why it cannot be read; empty if it can.
    """

    offset: int
    stored: int
    size: int
    check: int
    deflated: bool = False
    problem: str = ""


@dataclass
class Members:
    """The list of an archive of `length` bytes: its members by their path, with `/` between names.

    passed_over: reasons why others are left out, by path. damage: what is wrong behind the last of them; may be empty.
    """

    length: int
    by_path: dict[str, Member] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    damage: str = ""

    @property
    def weight(self) -> int:
        """Number of members that are kept in memory."""
        return len(self.by_path) + len(self.passed_over)

    def add(self, path: str, member: Member) -> None:
        """Add a member; `path` is as the archive has it."""
        path = path.removeprefix("./")
        if path.startswith("/") or re.match("[A-Za-z]:", path) or ".." in path.split("/"):
            self.passed_over[path] = "with a name that leads out of its archive"
            return
        if len(self.by_path) >= MOST_MEMBERS:
            raise OSError(f"has more than {MOST_MEMBERS:,} members; divide it")
        if not member.problem and member.offset + member.stored > self.length:
            member = member._replace(problem="is damaged: the archive ends before it does")
        if path in self.by_path:
            member = member._replace(problem="is there more than once; expected a name of its own")
        self.by_path[path] = member

    def find(self, path: str) -> Member:
        """The member at `path`; raises OSError if there is none, or if it cannot be read."""
        path = path.removeprefix("./")
        member = self.by_path.get(path) or self.by_path.get(path.replace("\\", "/"))
        if member is None:
            raise OSError(f"the archive has no such file{f', but {self.damage}' if self.damage else ''}")
        if member.problem:
            raise OSError(member.problem)
        return member


# Zip ---------------------------------------------------------------------------------------------------------------


def list_zip(file: BinaryIO) -> Members:
    """Read the list of a zip; raises OSError if it is damaged, or no zip."""
    members = Members(file.seek(0, io.SEEK_END))
    guarded = Guarded(file, MOST_LIST_BYTES)
    with _as_damage(guarded, "is not a zip archive, or a damaged one"), zipfile.ZipFile(guarded) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                members.add(_zip_path(info), _zip_member(info))
    return members


def _zip_path(info: zipfile.ZipInfo) -> str:
    """The path of a member; names of old programs are UTF-8 if they can be, else cp437, with `/` for `\\`."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _zip_member(info: zipfile.ZipInfo) -> Member:
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    return Member(info.header_offset, info.compress_size, info.file_size, info.CRC, deflated, _zip_problem(info))


def _zip_problem(info: zipfile.ZipInfo) -> str:
    """Why a member cannot be read; empty if it can."""
    if info.flag_bits & 0x2061:  # encrypted, also strongly or with its list; or a patch to another file
        return "is encrypted; write the archive without a password"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link; name the file itself"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}; expected a member that is stored or deflated"
    return ""


def open_zip_member(file: BinaryIO, member: Member) -> io.RawIOBase:
    """Open a member of the zip `file`; it is decompressed as far as it is read, and its checksum compared at its end.

    Raises OSError if it is damaged.
    """
    file.seek(member.offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise OSError("is damaged: its header is not where the archive's list says")
    _, name, extra = _LOCAL_HEADER.unpack(header)
    return _ZipMember(file, member.offset + _LOCAL_HEADER.size + name + extra, member)


class _ZipMember(Window):
    """A member of a zip, whose size is known without reading it; errors of `zipfile` become OSError."""

    def __init__(self, file: BinaryIO, start: int, member: Member) -> None:
        super().__init__(file, start, member.size)
        info = zipfile.ZipInfo()
        info.compress_type = zipfile.ZIP_DEFLATED if member.deflated else zipfile.ZIP_STORED
        info.compress_size, info.file_size, info.CRC = member.stored, member.size, member.check
        self._info = info
        file.seek(start)
        self._guarded = Guarded(file, max(member.stored, zipfile.ZipExtFile.MIN_READ_SIZE))
        self._member = zipfile.ZipExtFile(self._guarded, "r", info)

    def _fetch(self, count: int) -> bytes:
        with _as_damage(self._guarded, "is damaged"):
            if self._member.tell() != self._position:
                self._member.seek(self._position)
            return self._member.read(count)


# Tar ---------------------------------------------------------------------------------------------------------------


def list_tar(file: BinaryIO) -> Members:
    """Read the headers of a tar; raises OSError if it is compressed, or no tar.

    If one in its midst is damaged, `damage` says so.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(BLOCK)
    for mark, program in _COMPRESSED.items():
        if head.startswith(mark):
            raise OSError(f"is a compressed tar, which is read from its beginning only; expand it by {program}")
    members, guarded = Members(length), Guarded(file, MOST_HEADER_BYTES)
    with _as_damage(guarded, "is not a tar archive, or a damaged one"):
        guarded.seek(0)
        with tarfile.open(fileobj=guarded, mode="r:", errors="surrogateescape") as archive:
            for info in _tar_infos(archive, members):
                if not info.isdir():
                    members.add(info.name, _tar_member(file, info))
            members.damage = members.damage or _damage(file, archive.offset)
    return members


def _tar_infos(archive: tarfile.TarFile, members: Members) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar, up to the first that is damaged."""
    end = 0
    while True:
        try:
            info = archive.next()
        except tarfile.ReadError:
            if not end:
                raise
            members.damage = f"it is damaged after byte {end:,}"
            return
        if info is None:
            return
        if info.size < 0 or archive.offset <= end:
            raise tarfile.ReadError("its headers lead backwards")
        end = archive.offset
        archive.members = []  # type: ignore[attr-defined]  # else all of them are kept
        yield info


def _tar_member(file: BinaryIO, info: tarfile.TarInfo) -> Member:
    problem = ""
    if info.issym() or info.islnk():
        problem = "is a link; name the file itself"
    elif not info.isreg():
        problem = "is not a regular file"
    elif info.issparse():
        problem = "is stored with holes; write the archive without --sparse"
    here = file.tell()
    file.seek(info.offset_data - BLOCK)
    check = zlib.crc32(file.read(BLOCK))
    file.seek(here)
    return Member(info.offset_data, info.size, info.size, check, problem=problem)


def _damage(file: BinaryIO, end: int) -> str:
    """The problem behind the last header that was read, which ends at the byte `end`; empty if there is none."""
    file.seek(end)
    block = file.read(BLOCK)
    if not block:
        return "it ends without its end mark: a part of it may be missing"
    return f"it is damaged after byte {end:,}" if block.strip(b"\0") else ""


def open_tar_member(file: BinaryIO, member: Member) -> io.RawIOBase:
    """Open a member of the tar `file`; raises ConnectionError if its header is no more where it was."""
    file.seek(member.offset - BLOCK)
    if zlib.crc32(file.read(BLOCK)) != member.check:
        raise ConnectionError("its archive was changed while it was read")
    return Window(file, member.offset, member.size)


# Both --------------------------------------------------------------------------------------------------------------


@contextmanager
def _as_damage(guarded: Guarded, what: str) -> Iterator[None]:
    """Raise OSError in place of what `zipfile` and `tarfile` raise; `what` is wrong then.

    An error of the file itself is raised as it is.
    """
    try:
        yield
    except Exception as error:
        if guarded.error:
            raise guarded.error from None
        if not isinstance(error, _ERRORS):
            raise
        reason = str(error).partition("\n")[0]
        raise OSError(f"{what}{f': {reason}' if reason else ''}") from None


LISTERS: dict[str, Callable[[BinaryIO], Members]] = {"zip": list_zip, "tar": list_tar}
"""Readers of lists, by the scheme of the members' addresses."""

OPENERS: dict[str, Callable[[BinaryIO, Member], io.RawIOBase]] = {"zip": open_zip_member, "tar": open_tar_member}
"""Openers of members, by the scheme of their addresses."""
