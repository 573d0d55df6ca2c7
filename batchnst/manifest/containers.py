"""Collect the pictures inside archives and Parquet files."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from batchnst import chains
from batchnst.chains import Chain
from batchnst.errors import InputError, RequestError, StorageError
from batchnst.manifest import picture_columns
from batchnst.manifest.columns import Unreadable
from batchnst.manifest.left_out import LeftOut, Picture
from batchnst.manifest.readers import PARQUET_BUFFER, ending, is_counted
from batchnst.storage import walk
from batchnst.storage.cells import open_parquet
from batchnst.storage.files import list_archive, open_file, parent, resolve
from batchnst.storage.guarded import Guarded

SCHEMES = {".zip": "zip", ".tar": "tar", ".parquet": "parquet"}
"""Schemes of the addresses inside a file, by its ending."""

USUAL = "image"
"""The column that is taken if several hold pictures: that of Hugging Face's datasets."""


def is_container(address: str, path: str) -> bool:
    """True for an archive or Parquet file, by its ending; not if other programs keep notes at the relative `path`."""
    return ending(address) in SCHEMES and is_counted(path)


def pictures(address: str, folder: PurePosixPath, left_out: LeftOut) -> Iterator[Picture]:
    """The files in the archive or Parquet file at `address`, in the order of their names or rows.

    Their relative paths begin with `folder`. Raises RequestError if the file is damaged, or has no column of pictures,
    or several; StorageError if its store does not answer.
    """
    scheme = SCHEMES[ending(address)]
    if "::" in address:
        raise RequestError(f"{address}: a file that holds pictures may not have :: in its name; rename it")
    if scheme == "parquet":
        yield from _cells(address, "", folder, left_out)
    else:
        for path in _paths(scheme, address, left_out, hidden=False):
            yield Picture(str(Chain(scheme, path, address)), folder / path)


def matching(chain: Chain, left_out: LeftOut) -> Iterator[Picture]:
    """The files in an archive that `chain` names: one, those in a folder, or those that match a glob.

    In a Parquet file, the pictures of the column that it names.
    """
    if chain.scheme == "parquet":
        yield from _cells(chain.outer, unquote(chain.inside), PurePosixPath(), left_out)
        return
    if problem := chains.problem(str(chain)):
        raise RequestError(problem)
    pattern = chain.inside.strip("/")
    hidden = any(map(walk.is_hidden, pattern.split("/")))
    paths = _paths(chain.scheme, chain.outer, left_out, hidden)
    root, match = _root(pattern, paths), _compiled(pattern).match
    for path in paths:
        if path == pattern or path.startswith(f"{pattern}/") or match(path):
            yield Picture(str(Chain(chain.scheme, path, chain.outer)), PurePosixPath(path).relative_to(root))


def _compiled(glob: str) -> re.Pattern[str]:
    try:
        return re.compile(glob_translate(glob))
    except ValueError as error:
        raise RequestError(f"{glob}: not a glob: {error}") from None


def _root(pattern: str, paths: Collection[str]) -> PurePosixPath:
    """The folder in which `pattern` looks: its own if it is one of `paths`, itself, or that before its wildcards."""
    if pattern in paths:
        return PurePosixPath(pattern).parent
    return PurePosixPath(walk.split_glob(pattern)[0] if walk.has_wildcard(pattern) else pattern)


def _paths(scheme: str, address: str, left_out: LeftOut, hidden: bool) -> list[str]:
    """The paths of the members of an archive, sorted, without hidden ones unless `hidden`; others go to `left_out`."""
    with _as_request_error():
        members = list_archive(scheme, address)
    if members.damage:
        left_out.damage.append(f"{address}: {members.damage}")
    problems = {path: member.problem for path, member in members.by_path.items() if member.problem}
    odd = members.passed_over | {path: f"that {text.partition('; ')[0]}" for path, text in problems.items()}
    left_out.files.update({str(Chain(scheme, path, address)): reason for path, reason in odd.items()})
    named = members.by_path.keys() - problems.keys()
    shown = sorted(path for path in named if hidden or not any(map(walk.is_hidden, path.split("/"))))
    left_out.unnamable.update({f"{address}: {walk.shown(path)}": None for path in shown if not walk.is_utf8(path)})
    return [path for path in shown if walk.is_utf8(path)]


def _cells(address: str, column: str, folder: PurePosixPath, left_out: LeftOut) -> Iterator[Picture]:
    """The pictures in a column of a Parquet file, in the order of its rows; the usual column if `column` is empty."""
    with _as_request_error(), open_file(address, PARQUET_BUFFER) as file:
        guarded = Guarded(file, sys.maxsize)
        try:
            parquet = open_parquet(guarded)
            chosen = _column(address, parquet, column)
            found = list(picture_columns.read_column(parquet, chosen, address))
        except Unreadable as error:
            raise RequestError(f"{address}: {error}") from None
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if guarded.error:
                raise guarded.error from None
            raise RequestError(f"{address}: not a readable Parquet file: {str(error).partition(chr(10))[0]}") from None
    base = parent(address)
    for row, (text, path) in enumerate(found):
        if text is None:
            left_out.files[f"{address}: row {row}"] = "without a picture"
        else:
            yield Picture(resolve(text, base), folder / (_relative_path(path) or f"{chosen.name}-{row}"))


def _relative_path(path: str) -> str:
    """The path that a cell gives its picture, without what leads out of a folder."""
    names = re.sub("^[A-Za-z]:", "", path.replace("\\", "/")).split("/")
    return "/".join(name for name in names if name not in ("", ".", ".."))


@contextmanager
def _as_request_error() -> Iterator[None]:
    """Raise RequestError in place of InputError, or StorageError if it may pass."""
    try:
        yield
    except InputError as error:
        raise (StorageError if error.transient else RequestError)(str(error)) from None


def _column(address: str, parquet: pq.ParquetFile, name: str) -> picture_columns.Column:
    """The column of pictures called `name`; the only one, or the usual one, if `name` is empty."""
    columns = {column.name: column for column in picture_columns.picture_columns(parquet, any_name=True)}
    if not name and len(columns) > 1 and USUAL not in columns:
        names = ", ".join(columns)
        raise RequestError(
            f"{address}: has several columns of pictures, {names}; name one: parquet://COLUMN::{address}"
        )
    chosen = columns.get(name or (USUAL if USUAL in columns else next(iter(columns), "")))
    if chosen is None:
        has = ", ".join(parquet.schema_arrow.names)
        raise RequestError(f"{address}: has no column {name or 'of pictures'}; it has: {has}")
    if chosen.is_list:
        raise RequestError(f"{address}: its column {chosen.name} has lists of pictures; expected one in each row")
    return chosen
