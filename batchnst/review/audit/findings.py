"""What an audit can find, and how it says so."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

KINDS = {
    "unreadable": "a ledger file that is torn or no Parquet",
    "foreign": "a file under ledger/ that batchnst did not write",
    "schema": "a ledger file of another schema version",
    "missing": "a row of the manifest without an ok row",
    "outdated": "a row of the manifest that was painted from something else: it has changed since",
    "failed": "a pair whose newest attempt failed",
    "doubled": "a pair painted twice as one and the same",
    "picture-missing": "an ok row without its picture",
    "picture-damaged": "a picture that cannot be decoded",
    "picture-format": "a picture that is not what its name says",
    "picture-size": "a picture of another size than its row says",
    "picture-changed": "a picture whose hash is not its row's",
    "picture-unknown": "a picture without a row",
    "losses-missing": "an attempt without losses",
    "losses-gap": "an attempt with steps missing or twice",
    "not-finite": "an attempt with losses that are no numbers",
    "rescued": "an attempt that diverged, and was painted again from its best picture",
    "losses-differ": "a row in pairs whose losses are not those in losses",
    "rose": "an attempt whose loss was higher at the end than at the beginning of its finest scale",
    "outlier": "a loss far from what is usual for its style, size and recipe",
    "other-weights": "a row made with other tensors than the rest, by the same name",
    "other-recipe": "a row made by another recipe than most",
    "other-versions": "a row made by other software than most",
    "input-missing": "a content or style that cannot be read any more",
    "input-changed": "a content or style whose hash is not its row's",
}
"""What an audit can find, and what it means."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: its kind (a key of KINDS), the pair it concerns, and what was found."""

    kind: str
    pair_id: str | None
    text: str


@dataclass
class Audit:
    """What was looked at, and what was found."""

    pairs: int = 0
    ok: int = 0
    failed: int = 0
    attempts: int = 0
    steps: int = 0
    unfinished: int = 0  # attempts with losses but no row: their workers were lost
    pictures: int = 0
    inputs: int = 0
    findings: list[Finding] = field(default_factory=list)


def describe(result: Audit) -> str:
    """Findings, a line each, and what was looked at."""
    lines = [line(finding) for finding in result.findings]
    looked = f"{result.ok} of {result.pairs} pairs ok, {result.failed} failed"
    looked += f"; {result.pictures} pictures, {result.steps} steps of {result.attempts} attempts"
    looked += f", {result.inputs} inputs" if result.inputs else ""
    if result.unfinished:
        looked += f"; {result.unfinished} attempts were cut off and left losses without a row"
    kinds = Counter(finding.kind for finding in result.findings)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return "\n".join([*lines, looked, f"found: {found}" if found else "found nothing wrong"])


def line(finding: Finding) -> str:
    """A finding as text."""
    return f"{finding.kind}: {f'{finding.pair_id}: ' if finding.pair_id else ''}{finding.text}"
