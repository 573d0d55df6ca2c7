"""Find files on this machine's disks: links are followed, each file is found once, and hidden ones are passed over."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from batchnst.errors import RequestError

SYSTEM_NAMES = {
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network storage
    *("$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows
    *("__macosx", "network trash folder", "temporary items", "icon\r"),  # macOS
    "lost+found",  # Linux
}
"""Files and folders, in lower case, in which systems keep thumbnails, deleted files and notes of their own."""

DANGLING, NO_FILE = "links that lead nowhere", "pipes, sockets or devices"
"""What is neither a file nor a folder."""

_WILDCARD = re.compile(r"[*?[]")


def is_hidden(name: str) -> bool:
    """True for the name of a hidden or system file or folder, such as `._a.jpg` or `@eaDir`."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def has_wildcard(path: str) -> bool:
    """True if `path` may be a glob."""
    return bool(_WILDCARD.search(path))


def split_glob(path: str) -> tuple[str, str]:
    """Split a glob into the folder before its first wildcard, and the rest; the rest is empty if there is none."""
    match = _WILDCARD.search(path)
    if match is None:
        return path, ""
    folder = path[: match.start()].rpartition("/")[0]
    return folder, path[len(folder) + 1 :]


@dataclass(frozen=True)
class Found:
    """The `paths` of files, sorted, and what was passed over.

    unnamable: texts that name files and folders whose names are not UTF-8. odd: paths of what is neither a file nor a
    folder, with what it is.
    """

    paths: list[str]
    unnamable: list[str]
    odd: dict[str, str]


def find(root: str, pattern: str) -> Found:
    """Find the regular files below the folder `root` that match the glob `pattern`, in which `**` is any folders.

    No files are found if `root` is missing. Raises OSError if a folder cannot be read.
    """
    search = _Search()
    paths = set(search.match(root or "/", [part for part in pattern.split("/") if part]))
    return Found(_each_once(root, paths) if search.linked else sorted(paths), sorted(search.unnamable), search.odd)


class _Search:
    """A search, and what it met: `linked` is True if it followed a link, `unnamable` and `odd` are those of Found."""

    def __init__(self) -> None:
        self.linked = False
        self.unnamable = set[str]()
        self.odd = dict[str, str]()

    def match(self, folder: str, parts: Sequence[str]) -> Iterator[str]:
        """Yield the paths of files below `folder` whose relative path matches `parts`."""
        if not parts:
            return
        first, rest = parts[0], parts[1:]
        if first == "**":
            for each in self._folders(folder):
                yield from self.match(each, rest or ["*"])
            return
        for entry in self._entries(folder, first):
            if rest and _is(entry.is_dir):
                yield from self.match(entry.path, rest)
            elif not rest and _is(entry.is_file):
                yield entry.path
            elif not rest and not _is(entry.is_dir):
                self.odd[entry.path] = DANGLING if entry.is_symlink() and not os.path.exists(entry.path) else NO_FILE

    def _folders(self, root: str) -> Iterator[str]:
        """Yield `root` and all folders below it, each once: those that are reached without a link come first."""
        seen, folders, links = set[tuple[int, int]](), [root], list[str]()
        while folders or links:
            folder = folders.pop() if folders else links.pop(0)
            try:
                status = os.stat(folder)
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            yield folder
            for entry in self._entries(folder, "*"):
                if _is(entry.is_dir):
                    (links if entry.is_symlink() else folders).append(entry.path)

    def _entries(self, folder: str, pattern: str) -> list[os.DirEntry[str]]:
        """The entries of `folder` whose names match `pattern`, sorted; hidden ones only if `pattern` is hidden too."""
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        matching = [
            entry
            for entry in entries
            if fnmatchcase(entry.name, pattern) and (not is_hidden(entry.name) or is_hidden(pattern))
        ]
        self.linked = self.linked or any(entry.is_symlink() for entry in matching)
        self.unnamable.update(shown(entry.path) for entry in matching if not is_utf8(entry.name))
        return [entry for entry in matching if is_utf8(entry.name)]


def _is(check: Callable[[], bool]) -> bool:
    """The answer of a check of an entry; False for a link that leads nowhere."""
    try:
        return check()
    except OSError:
        return False


def is_utf8(name: str) -> bool:
    """False if `name` has bytes that are not UTF-8."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def check_utf8(name: str) -> None:
    """Raise RequestError if `name` has bytes that are not UTF-8: no ledger, page or address can hold it."""
    if not is_utf8(name):
        raise RequestError(f"{shown(name)}: its name is not UTF-8; rename it")


def shown(path: str) -> str:
    """`path` with the bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _each_once(root: str, paths: set[str]) -> list[str]:
    """The `paths`, sorted, but of those that lead to one file only one: the file's own, else the first."""
    found: dict[str, str] = {}
    real_root = os.path.realpath(root)
    for path in sorted(paths):
        real = os.path.realpath(path)
        if real not in found or real == f"{real_root}{path[len(root) :]}":
            found[real] = path
    return sorted(found.values())
