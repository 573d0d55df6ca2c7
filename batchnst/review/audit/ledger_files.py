"""Reads the ledger file by file: unreadable files and damaged rows become findings, the others are still checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from batchnst.errors import LedgerError
from batchnst.ledger import parquet
from batchnst.ledger.compaction import current_files, is_counted
from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS, VERSION
from batchnst.ledger.soundness import split
from batchnst.progress import Progress, silent
from batchnst.review.audit.findings import Audit, Finding

AT_ONCE = 64
"""Files whose rows, or what is kept of them, may wait together for the caller."""


class Rows(NamedTuple):
    """The `sound` rows of a ledger file, or what is kept of them, and the `damaged` ones, which may lack any value."""

    sound: pa.Table
    damaged: pa.Table


def tables(
    out: Out,
    table: str,
    columns: Sequence[str],
    result: Audit,
    progress: Progress = silent,
    keep: Callable[[pa.Table], pa.Table] = lambda sound: sound,
) -> Iterator[Rows]:
    """The rows of each file of a table, reduced to `columns`; of the sound ones only what `keep` makes of them.

    Files are read and reduced by several threads. Adds a finding to `result` for each unreadable file and each damaged
    row.
    """

    def read(info: pafs.FileInfo) -> tuple[Rows, list[Finding]]:
        rows, findings = _read(out, table, info)
        return Rows(keep(rows.sound.select(columns)), rows.damaged.select(columns)), findings

    for info in out.folder.files(f"ledger/{table}"):
        name = out.folder.relative(info.path)
        if is_counted(name) and not name.endswith(".parquet"):
            text = f"{name}: not a file of a batchnst ledger; move it out of OUT/ledger"
            result.findings.append(Finding("foreign", None, text))
    for name in filter(is_counted, out.folder.links(f"ledger/{table}")):
        text = f"{name}: is a link, so its rows do not count; put the file itself there"
        result.findings.append(Finding("foreign", None, text))
    files = current_files(out.folder, table)
    with ThreadPoolExecutor(out.folder.streams) as pool:
        for start in range(0, len(files), AT_ONCE):
            progress(f"ledger, {table} {start}/{len(files)}", start, len(files))
            for rows, findings in pool.map(read, files[start : start + AT_ONCE]):
                result.findings += findings
                yield rows


def _read(out: Out, table: str, info: pafs.FileInfo) -> tuple[Rows, list[Finding]]:
    """The rows of a file, and findings on the damaged ones; raises LedgerError if it was merged meanwhile."""
    name = out.folder.relative(info.path)
    schema = SCHEMAS[table]
    try:
        rows = parquet.read(out.folder, info)
        # A file of an earlier version may lack columns; they become null.
        missing = [pa.field(f.name, f.type) for f in schema if f.nullable and f.name not in rows.column_names]
        rows = pa.concat_tables([rows, pa.schema(missing).empty_table()], promote_options="default")
        rows = rows.select(schema.names).cast(parquet.with_gaps(schema))
        sound, damages = split(rows, table, complete=True)
        findings = [Finding("row-damaged", damage.pair_id, f"{name}: {damage.where}") for damage in damages]
        return Rows(sound, rows.take(pa.array([damage.place for damage in damages], pa.int64()))), findings
    except FileNotFoundError:
        raise LedgerError(f"{name}: was merged with other files during the audit; run the audit again") from None
    except LedgerError as error:
        finding = Finding(error.kind, None, str(error).replace(info.path, name))
    except (KeyError, ValueError, pa.ArrowException) as error:
        finding = Finding("schema", None, f"{name}: its columns are not those of schema {VERSION}: {error}")
    return Rows(schema.empty_table(), parquet.with_gaps(schema).empty_table()), [finding]
