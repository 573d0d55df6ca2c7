"""The audit: runs all checks in turn."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.ledger import parquet
from batchnst.ledger.out import Out, newest_rows
from batchnst.ledger.schema import ATTEMPT, SCHEMAS
from batchnst.progress import Progress, silent
from batchnst.redaction import stored
from batchnst.review.audit import pairs as checks
from batchnst.review.audit.findings import Audit
from batchnst.review.audit.hashes import INPUTS, inputs, pictures
from batchnst.review.audit.ledger_files import Rows, tables
from batchnst.review.audit.seals import seals
from batchnst.review.audit.steps import losses
from batchnst.review.audit.superseded import previous_pictures
from batchnst.storage.files import resolve

_PAIRS = (
    *ATTEMPT,
    *("status", "error_type", "error_message", "output", "output_sha256", "width", "height", "fingerprint"),
    *INPUTS,
    *("weights_sha256", "steps", "stopped", "initial_total", "run_number", "finished_at", "versions"),
    *("total_loss", "content_loss", "style_loss", "tv_loss"),
)


def audit(
    out: Out,
    expected: pa.Table | None = None,
    *,
    manifests: Sequence[str] = (),
    deep: bool = False,
    public_key: str | None = None,
    root: str | None = None,
    progress: Progress = silent,
) -> Audit:
    """Run all checks on OUT and return the counts and findings.

    expected: table of `pair_id` and `fingerprint` of every pair that `manifests` ask for. deep: also read all inputs,
    and compare their hashes. public_key: file of the key of the seals, which are checked then; one of them must have
    this `root`, if one is given. Raises RequestError for a file without a public key.
    """
    result = Audit()
    nothing = parquet.empty("pairs", _PAIRS)
    parts = [Rows(nothing, nothing.cast(parquet.with_gaps(nothing.schema))), *tables(out, "pairs", _PAIRS, result)]
    rows, damaged = map(pa.concat_tables, zip(*parts, strict=True))
    newest = newest_rows(rows)
    ok = newest.filter(pc.equal(newest["status"], "ok"))
    result.pairs, result.ok, result.failed = len(newest), len(ok), len(newest) - len(ok)
    runs = [run for part in tables(out, "runs", SCHEMAS["runs"].names, result) for run in part.sound.to_pylist()]
    redone = {run["run_id"] for run in runs if set(run["redo"] or ()) - {"failed"}}
    own = {stored(resolve(manifest, ".")) for manifest in manifests}
    others = {run["run_id"]: run["manifest"] for run in runs if run["manifest"] not in own}
    for findings in (
        checks.manifest_differences(newest, expected, others) if expected is not None else checks.failed(newest),
        checks.doubled(rows, redone),
        losses(out, rows, damaged, result, progress),
        checks.outliers(ok),
        checks.unusual_rows(ok, expected),
        pictures(out, rows, damaged, ok, result, progress),
        previous_pictures(out, rows, damaged, newest, result, progress),
        inputs(ok, result, progress) if deep else (),
        seals(out, public_key, root, result, progress) if public_key else (),
    ):
        result.findings += findings
    return result
