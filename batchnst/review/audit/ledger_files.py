"""Reading a ledger file by file: a file that cannot be read is a finding, and the others are read all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.fs as pafs

from batchnst.errors import LedgerError
from batchnst.ledger import parquet
from batchnst.ledger.compaction import without_doubles
from batchnst.ledger.out import Out
from batchnst.ledger.schema import VERSION
from batchnst.progress import Progress, silent
from batchnst.review.audit.findings import Audit, Finding

AT_ONCE = 64
"""Files that are read in threads before their findings are taken up."""


def tables(
    out: Out, table: str, columns: Sequence[str], result: Audit, progress: Progress = silent
) -> Iterator[pa.Table]:
    """Some columns of each of a table's files; where one cannot be had, that is a finding."""
    listed = out.folder.files(f"ledger/{table}")
    for info in listed:
        if not info.path.endswith(".parquet"):
            text = f"{out.folder.relative(info.path)}: not a file of a batchnst ledger; move it out of OUT/ledger"
            result.findings.append(Finding("foreign", None, text))
    files = without_doubles(out.folder, table, [info for info in listed if info.path.endswith(".parquet")])
    with ThreadPoolExecutor(out.folder.streams) as pool:
        for start in range(0, len(files), AT_ONCE):
            progress(f"ledger, {table} {start}/{len(files)}", start, len(files))
            for found in pool.map(partial(_read, out, table, columns), files[start : start + AT_ONCE]):
                if isinstance(found, Finding):
                    result.findings.append(found)
                else:
                    yield found


def _read(out: Out, table: str, columns: Sequence[str], info: pafs.FileInfo) -> pa.Table | Finding:
    name = out.folder.relative(info.path)
    schema = parquet.empty(table, columns).schema
    try:
        rows = parquet.read(out.folder.filesystem, info)
        # Columns that came later may be missing.
        later = [pa.field(f.name, f.type) for f in schema if f.nullable and f.name not in rows.column_names]
        rows = pa.concat_tables([rows, pa.schema(later).empty_table()], promote_options="default")
        return rows.select(columns).cast(schema)
    except FileNotFoundError:
        raise LedgerError(f"{name}: has been merged with others while it was looked at; look again") from None
    except LedgerError as error:
        return Finding(error.kind, None, str(error).replace(info.path, name))
    except (KeyError, ValueError, pa.ArrowException) as error:
        return Finding("schema", None, f"{name}: its columns are not those of schema {VERSION}: {error}")
