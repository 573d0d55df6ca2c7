"""Copies pictures of OUT, and the ledger of their pairs, to another folder, in any form.

The folder is like an OUT of its own. Pictures come before their rows, and each file whole, so an export that was cut
off goes on when it is started again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.errors import LedgerError, RequestError
from batchnst.ledger import parquet, seal
from batchnst.ledger.claim import Claim
from batchnst.ledger.leaves import in_parts
from batchnst.ledger.out import Out, newest_rows, retry_vanished
from batchnst.ledger.pictures.form import FormName, Picture, keys
from batchnst.ledger.pictures.stored import FORMS, Found, Pictures, Row
from batchnst.ledger.schema import ATTEMPT, row_without_secrets
from batchnst.progress import Progress, silent
from batchnst.storage.files import in_parallel

TABLES = ("pictures", "previous")
"""Folders of files with many pictures."""

SHOWN = 64
"""Pictures between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to export pictures. `shard_size` is the size of files with many pictures, in bytes.

    status: only pairs whose newest row has it. where: only pairs whose newest row satisfies this SQL condition.
    """

    form: FormName
    shard_size: int
    status: str | None = None
    where: str | None = None


@dataclass
class Exported:
    """Numbers of chosen pairs and of all pairs; of pictures copied now, and before. missing: why others were not."""

    chosen: int
    pairs: int
    copied: int = 0
    before: int = 0
    missing: list[str] = field(default_factory=list)


def export(out: Out, to: str, request: Request, progress: Progress = silent) -> Exported:
    """Copy the pictures of the chosen pairs to the folder `to`, and all their rows, losses, runs and seals.

    Raises RequestError if the request is wrong, StorageError if one of the folders fails.
    """
    rows = out.rows("pairs", damaged=True)
    sound, damages = out.sound(rows, "pairs", complete=True)
    newest = newest_rows(sound)
    chosen = choose(newest, request)
    dest = _destination(out, to, rows)
    _check_foreign(dest, to, sound.filter(pc.is_in(sound["pair_id"], chosen)))
    numbers = [pc.max(table["run_number"]).as_py() or 0 for table in (sound, out.rows("runs", ["run_number"]))]
    result = Exported(len(chosen), len(newest), missing=[f"{damage}; its picture was not copied" for damage in damages])
    if request.status is None and request.where is None:
        chosen = pc.unique(rows["pair_id"].combine_chunks())  # also those of damaged rows, which are copied as they are
    with dest.claim(f"export-{secrets.token_hex(6)}", above=max(numbers)) as claim:
        dest.recover(claim)
        _copy_pictures(_Way(out, dest, claim, request, progress), sound, chosen, result)
        for table in ("losses", "runs"):
            retry_vanished(partial(_copy_table, out, dest, claim, table, chosen, progress))
        _add_rows(dest, claim, "pairs", rows.filter(pc.is_in(rows["pair_id"], chosen)), _known(dest, "pairs"))
        _copy_seals(out, dest, claim)
        dest.compact(claim, shard_size=request.shard_size)
    return result


def describe(result: Exported, to: str) -> str:
    """The result as a line, and a remark on what a part of the pairs means for later commands."""
    line = f"{to}: {result.chosen} of {result.pairs} pairs, {result.copied} pictures copied now, {result.before} before"
    if result.chosen == result.pairs:
        return line
    return (
        f"{line}\nOnly a part was chosen: `status` still counts the whole run, `audit --manifest` finds other pairs\n"
        "missing, and `audit --seal` finds them removed."
    )


# Choosing -----------------------------------------------------------------------------------------------------------


def choose(newest: pa.Table, request: Request) -> pa.Array:
    """The ids of the chosen pairs; `newest` has the newest row of each. Raises RequestError if there are none."""
    if request.status:
        newest = newest.filter(pc.equal(newest["status"], request.status))
    ids = newest["pair_id"] if request.where is None else _where(newest, request.where)
    if not len(ids):
        raise RequestError("no pair is as --status and --where ask; nothing was exported")
    return pc.unique(ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids)


_SANDBOX: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
"""Settings of DuckDB for conditions that others may have written: no variables of this program, nothing from a network.

Files are barred once the rows are there.
"""


def _where(pairs: pa.Table, condition: str) -> pa.ChunkedArray:
    """The ids of those of `pairs` that satisfy a condition in SQL."""
    import duckdb

    with duckdb.connect(config=_SANDBOX) as connection:
        connection.register("pairs", pairs)
        connection.execute("SET enable_external_access = false")
        try:
            chosen = connection.table("pairs").filter(condition)  # takes one expression, and nothing around it
            return chosen.project("pair_id").to_arrow_table()["pair_id"].cast(pa.string())
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise RequestError(f"--where {' '.join(condition.split())}: {reason}") from None


def _destination(out: Out, to: str, rows: pa.Table) -> Out:
    """The folder to export to; raises RequestError if it is in OUT, or holds what is not of OUT."""
    dest = Out(to)
    dest.folder.check_writable()
    if f"{_real(dest)}/".startswith(f"{_real(out)}/"):
        raise RequestError(f"--out {to}: is in {out.address}; expected another folder")
    runs = pa.chunked_array([*rows["run_id"].chunks, *out.rows("runs", ["run_id"])["run_id"].chunks], pa.string())
    try:
        there = dest.rows("pairs", ["run_id"])["run_id"]
        dest.pictures([], tables=TABLES)  # the merge at the end reads them
    except LedgerError as error:
        raise RequestError(f"--out {to}: {error}; expected an empty folder, or one with an earlier export") from None
    if not pc.all(pc.is_in(there, runs.combine_chunks()), min_count=0).as_py():
        raise RequestError(f"--out {to}: holds pairs of other runs than {out.address}; expected another folder")
    return dest


def _real(out: Out) -> str:
    """The address of a folder; of one on disk, its path without links."""
    return os.path.realpath(out.folder.root) if out.folder.local else out.address


def _check_foreign(dest: Out, to: str, rows: pa.Table) -> None:
    """Raise RequestError if the picture of one of `rows` would replace one that no run or export has written."""
    others = rows.filter(pc.is_in(rows["output"], pa.array(sorted(dest.foreign_pictures()), pa.string())))
    if len(others):
        text = f"images/{others['output'][0]} is there and not of a run; it would be replaced"
        raise RequestError(f"--out {to}: {text}; expected an empty folder, or one with an earlier export")


# Pictures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """From where to where."""

    out: Out
    dest: Out
    claim: Claim
    request: Request
    progress: Progress


def _copy_pictures(way: _Way, rows: pa.Table, chosen: pa.Array, result: Exported) -> None:
    """Copy the pictures that count: the newest of each pair and of each output."""
    stored = way.out.pictures(tables=TABLES, unreadable=lambda *_: None)
    result.missing += [f"{problem}; its pictures were not copied" for problem in sorted(stored.unread)]
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    owners, newest = newest_rows(ok, by="output"), newest_rows(ok)
    together = newest.filter(pc.or_(pc.is_in(keys(newest), keys(owners)), pc.is_valid(stored.places(newest))))
    others = owners.filter(pc.invert(pc.is_in(keys(owners), keys(together))))
    parts = {"pictures": owners} if way.request.form == "files" else {"pictures": together, "previous": others}
    for table, part in parts.items():
        wanted = part.filter(pc.is_in(part["pair_id"], chosen))
        left = _left(way, wanted)
        result.before += len(wanted) - len(left)
        copy = _copy_files(way, stored, left) if way.request.form == "files" else _write(way, stored, left, table)
        for count, problem in enumerate(copy):
            if count % SHOWN == 0:
                way.progress(f"pictures {count}/{len(left)}", count, len(left))
            if problem:
                result.missing.append(problem)
            else:
                result.copied += 1


def _left(way: _Way, rows: pa.Table) -> pa.Table:
    """Those of `rows` whose pictures an earlier export has not copied."""
    if way.request.form != "files":
        there = way.dest.pictures(rows["pair_id"].to_pylist(), tables=TABLES)
        return rows.filter(pc.is_null(there.places(rows)))
    existing = {way.dest.folder.relative(info.path) for info in way.dest.folder.files("images")}

    def is_left(row: Row) -> bool:
        name = f"images/{row['output']}"
        return name not in existing or _sha256(way.dest.folder.read(name) or b"") != row["output_sha256"]

    names = rows.select(["output", "output_sha256"]).to_pylist()
    return rows.filter(pa.array(in_parallel(is_left, names, way.dest.folder.streams), pa.bool_()))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _copy_files(way: _Way, stored: Pictures, rows: pa.Table) -> Iterator[str | None]:
    """Write each picture to a file of its own; yields a text for each that cannot be, and None for the others."""

    def copy(row: Row, found: Found) -> str | None:
        if problem := _problem(stored, row, found):
            return problem
        way.dest.folder.write(f"images/{row['output']}", found.data or b"", before=way.claim.check)
        return None

    yield from stored.each(rows, copy)


def _write(way: _Way, stored: Pictures, rows: pa.Table, table: str) -> Iterator[str | None]:
    """Write pictures into files of about the shard size; yields as `_copy_files`, once a file is complete."""
    missing, written = list[str](), 0
    found = stored.each(rows, lambda row, found: (row, found))
    pictures = (picture for row, found in found if (picture := _picture(stored, row, found, missing)))
    for first in pictures:
        count = _write_one(way, table, chain([first], pictures))
        written += count
        yield from [None] * count
    yield from missing


def _picture(stored: Pictures, row: Row, found: Found, missing: list[str]) -> Picture | None:
    if problem := _problem(stored, row, found):
        missing.append(problem)
        return None
    return Picture(found.data or b"", row_without_secrets(row))


def _problem(stored: Pictures, row: Row, found: Found) -> str | None:
    """Why a picture cannot be copied; None if it is there and that of its row."""
    if found.data is None:
        return f"{row['pair_id']}: {found.problem or stored.absence(found.name)}"
    if _sha256(found.data) != row["output_sha256"]:
        return f"{row['pair_id']}: {found.name} is another picture than its row says; it was not copied"
    return None


def _write_one(way: _Way, table: str, pictures: Iterator[Picture]) -> int:
    """Write a file of about the shard size; return its number of pictures."""
    name, count = f"{table}/export-{uuid.uuid4().hex}.{way.request.form}", 0
    file = way.dest.folder.writing(name, before=way.claim.check)
    with file as sink, FORMS[way.request.form].writer(sink) as writer:
        for picture in pictures:
            writer.add(picture)
            count += 1
            if writer.size >= way.request.shard_size:
                break
    return count


# Rows ---------------------------------------------------------------------------------------------------------------


def _copy_table(out: Out, dest: Out, claim: Claim, table: str, chosen: pa.Array, progress: Progress) -> None:
    """Copy the rows of `losses` of the chosen pairs, or all rows of `runs`, some files at a time."""
    files, done, known = out.files(table), 0, _known(dest, table)
    for group in in_parts(files):
        progress(f"ledger, {table} {done}/{len(files)}", done, len(files))
        rows = out.rows_of(group, table, damaged=True)
        _add_rows(
            dest, claim, table, rows.filter(pc.is_in(rows["pair_id"], chosen)) if table != "runs" else rows, known
        )
        done += len(group)


def _add_rows(dest: Out, claim: Claim, table: str, rows: pa.Table, known: pa.Array) -> None:
    """Add those of `rows` whose identities are not among those `known`."""
    rows = rows.filter(pc.invert(pc.is_in(_identities(table, rows), known)))
    for start in range(0, len(rows), parquet.ROW_GROUP):
        data = parquet.encode(rows.slice(start, parquet.ROW_GROUP), table, statistics=True)
        dest.folder.write(f"ledger/{table}/export-{uuid.uuid4().hex}.parquet", data, before=claim.check)


def _known(dest: Out, table: str) -> pa.Array:
    """The attempts, or the runs, that have rows in `dest`."""
    columns = ["run_id"] if table == "runs" else ATTEMPT
    read = partial(dest.rows_of, table=table, columns=columns, damaged=True)
    parts = (pc.unique(_identities(table, read([info]))) for info in dest.files(table))
    return pa.concat_arrays([pa.array([], pa.string()), *parts])


def _identities(table: str, rows: pa.Table) -> pa.Array:
    """For each row, a text that identifies its attempt, or its run."""
    return rows["run_id"].combine_chunks() if table == "runs" else keys(rows)


def _copy_seals(out: Out, dest: Out, claim: Claim) -> None:
    """Copy all seals, the leaves of each first."""
    there = set(seal.file_names(dest.folder))
    for name in sorted(seal.file_names(out.folder), key=lambda name: (name.endswith(".json"), name)):
        data = out.folder.read(f"{seal.SEALS}/{name}")
        if data is not None and name not in there:
            dest.folder.write(f"{seal.SEALS}/{name}", data, before=claim.check)
