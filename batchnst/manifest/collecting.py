"""Collect the pictures of a folder, and filter them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from fsspec.utils import glob_translate

from batchnst.chains import Chain, is_cell, path_of
from batchnst.errors import RequestError
from batchnst.manifest import containers
from batchnst.manifest.left_out import LeftOut, Picture
from batchnst.pictures import isolated
from batchnst.storage.files import find_files
from batchnst.storage.threads import in_threads

NOT_DECODED = {".bufr", ".emf", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".wmf"}
"""Endings of files that Pillow recognises, but opens only by other programs or not at all."""

MORE_ENDINGS = {".mpo"}
"""Endings of pictures that are read as another format: several JPEGs in one file."""

PROBES = 16
"""Headers of pictures that are read at the same time."""


@dataclass(frozen=True)
class Filters:
    """Which pictures to leave out.

    exclude: globs; one without a slash matches any name on the way to a picture, one with a slash its relative path.
    min_side: shortest side of the pictures to keep, in pixels. max_aspect: largest ratio of their long to short side.
    """

    exclude: Sequence[str] = ()
    min_side: int | None = None
    max_aspect: float | None = None


def list_pictures(where: str) -> list[str]:
    """The addresses of all pictures at `where`, sorted: files with the ending of a format that is read.

    Raises RequestError if there are none.
    """
    return [picture.address for picture in collect(where, LeftOut())]


def collect(where: str, left_out: LeftOut, exclude: Sequence[str] = ()) -> list[Picture]:
    """Collect the pictures at `where`, a folder, prefix, glob or single picture, in the order of their addresses.

    `where` may also be an archive or Parquet file, or a folder of these; or name a folder, a glob or a column in one.
    Those that a glob of `exclude` matches, and all other files, go to `left_out`. Raises RequestError if none are left.
    """
    excluded, pictures = _Excluded(exclude), list[Picture]()
    for picture in _candidates(where, left_out):
        address = picture.address
        if excluded.has(picture):
            left_out.pictures[address] = "by --exclude"
        elif not (is_cell(address) or is_picture(address)):
            left_out.files[address] = picture.inside.suffix.lower() or "without an ending"
        else:
            pictures.append(picture)
    if not pictures and left_out.unnamable:
        raise RequestError("\n".join(left_out.lines()))
    if not pictures:
        line = f" ({left_out.line()})" if left_out.line() else ""
        raise RequestError(f"{where}: no pictures there; expected a folder, a prefix, or a glob in quotes{line}")
    return pictures


def _candidates(where: str, left_out: LeftOut) -> Iterator[Picture]:
    """All files at `where`, whether pictures or not; if there are no pictures, those in its archives, if it has any."""
    if chain := Chain.of(where):
        yield from containers.matching(chain, left_out)
        return
    listing = find_files(where)
    left_out.unnamable.update(dict.fromkeys(listing.unnamable))
    left_out.files.update(listing.odd)
    root = f"{listing.root.rstrip('/')}/"
    names = {address: address.removeprefix(root) for address in listing.addresses}
    opened = {address for address, name in names.items() if containers.is_container(address, name)}
    opened = set() if any(map(is_picture, names)) else opened
    for address, name in names.items():
        if address in opened:
            folder = PurePosixPath(name).with_suffix("") if len(opened) > 1 else PurePosixPath()
            yield from containers.pictures(address, folder, left_out)
        else:
            yield Picture(address, PurePosixPath(name))


def is_picture(address: str) -> bool:
    """True for an address with the ending of a format that is read."""
    ending = PurePosixPath(path_of(address)).suffix.lower()
    return ending in MORE_ENDINGS or (ending in isolated.endings() and ending not in NOT_DECODED)


class _Excluded:
    """The globs of `--exclude`; raises RequestError for one that is none."""

    def __init__(self, globs: Iterable[str]) -> None:
        globs = [glob.rstrip("/").removeprefix("./") for glob in globs]
        self._names = [_pattern(glob) for glob in globs if "/" not in glob]
        self._paths = [_pattern(glob) for glob in globs if "/" in glob]

    def has(self, picture: Picture) -> bool:
        """True if a glob matches the picture, or a folder that it is in."""
        parts = picture.inside.parts
        if any(glob.match(part) for part in parts for glob in self._names):
            return True
        if not self._paths:
            return False
        inside = [*map(str, picture.inside.parents[:-1]), str(picture.inside)]
        whole = [picture.address, *map(str, PurePosixPath(picture.address).parents)]
        paths = [*inside, *(f"/{path}" for path in inside), *whole]
        return any(glob.match(path) for path in paths for glob in self._paths)


def _pattern(glob: str) -> re.Pattern[str]:
    try:
        return re.compile(glob_translate(glob))
    except ValueError as error:
        raise RequestError(f"--exclude {glob}: not a glob: {error}") from None


def fitting(pictures: Sequence[Picture], filters: Filters, left_out: LeftOut) -> list[Picture]:
    """Those of `pictures` whose size passes `filters`; the others, and those that cannot be read, go to `left_out`.

    Their headers are read only if a filter needs them.
    """
    if filters.min_side is None and filters.max_aspect is None:
        return list(pictures)
    sizes = in_threads(isolated.probe, [picture.address for picture in pictures], PROBES)
    kept = []
    for picture, size in zip(pictures, sizes, strict=True):
        if reason := _reason(size, filters):
            left_out.pictures[picture.address] = reason
        else:
            kept.append(picture)
    isolated.release()
    return kept


def _reason(size: tuple[int, int] | None, filters: Filters) -> str | None:
    """Why a picture of this size (width, height) is left out; None if it is kept."""
    if size is None:
        return "that cannot be read"
    if filters.min_side is not None and min(size) < filters.min_side:
        return "by --min-side"
    if filters.max_aspect is not None and max(size) > filters.max_aspect * min(size):
        return "by --max-aspect"
    return None
