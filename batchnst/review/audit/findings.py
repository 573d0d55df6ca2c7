"""The kinds of findings, and the result of an audit as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from batchnst.ledger.leaves import NAMES

KINDS = {
    "unreadable": "a ledger file that is damaged or not Parquet",
    "foreign": "a file under ledger/ that batchnst did not write",
    "schema": "a ledger file of another schema version",
    "row-damaged": "a row of the ledger with a value that no run writes; it does not count",
    "missing": "a row of the manifest that has no row in the ledger",
    "outdated": "a row of the manifest that has changed, or its recipe or weights, since it was painted",
    "failed": "a pair whose newest attempt failed",
    "doubled": "a pair painted twice with the same fingerprint",
    "picture-missing": "an ok row without its picture",
    "picture-damaged": "a picture that cannot be decoded",
    "picture-format": "a picture in another format than its name says",
    "picture-size": "a picture of another size than its row says",
    "picture-changed": "a picture whose hash is not its row's",
    "picture-unknown": "a picture without an ok row",
    "picture-doubled": "a picture that is there twice",
    "previous-changed": "a picture of an earlier attempt whose hash is not its row's",
    "previous-unknown": "a picture of an earlier attempt without an ok row",
    "losses-missing": "an attempt without losses",
    "losses-gap": "an attempt with steps missing or twice",
    "not-finite": "an attempt with losses that are NaN or infinite",
    "rescued": "an attempt that diverged and was painted again from its best picture",
    "losses-differ": "a row in pairs whose losses are not those in losses",
    "rose": "an attempt whose loss is higher at the end of its finest scale than at the beginning",
    "outlier": "a loss that is unusual for its style, size and recipe",
    "other-weights": "a row made with other weights than most rows that name the same backbone and weights",
    "other-recipe": "a row made with another recipe than most",
    "other-versions": "a row made with other software versions than most",
    "input-missing": "a content, style, mask or start picture that can no longer be read",
    "input-changed": "a content, style, mask or start picture whose hash is not its row's",
    "seal-missing": "a seal that is not there: a gap in their numbers, leaves without their seal, or no seal at all",
    "seal-damaged": "a seal, or its leaves, that are not what was signed",
    "seal-key": "a seal by another key",
    "seal-chain": "a seal that does not follow the one before it",
    "seal-root": "a root that no seal has",
    "sealed-altered": "a row, curve or picture that is another than the sealed one",
    "sealed-removed": "a row, curve or picture that was sealed and is gone",
    "sealed-added": "a row, curve or picture of a sealed run that was not there when it was sealed",
    "sealed-moved": "a row, curve or picture that was sealed for another pair",
}
"""Kinds of findings and their meanings."""


@dataclass(frozen=True)
class Finding:
    """A problem: its `kind` (a key of KINDS), the pair it concerns if there is one, and a description as `text`."""

    kind: str
    pair_id: str | None
    text: str


@dataclass
class Audit:
    """The result of an audit: how much was checked, and the findings."""

    pairs: int = 0
    ok: int = 0
    failed: int = 0
    attempts: int = 0
    steps: int = 0
    unfinished: int = 0  # attempts with losses but no row in `pairs`: their workers were lost
    pictures: int = 0
    previous: int = 0  # pictures of earlier attempts
    inputs: int = 0
    seals: int = 0  # valid ones
    root_of: int | None = None  # number of the seal with the root that was asked for
    unsealed: dict[str, int] = field(default_factory=dict)  # rows, curves and pictures after the last seal, by kind
    findings: list[Finding] = field(default_factory=list)


def describe(result: Audit) -> str:
    """`result` as text: a line for each finding, then the counts."""
    lines = [line(finding) for finding in result.findings]
    counts = f"{result.ok} of {result.pairs} pairs ok, {result.failed} failed"
    counts += f"; {result.pictures} pictures, {result.steps} steps of {result.attempts} attempts"
    counts += f", {result.previous} pictures of earlier attempts" if result.previous else ""
    counts += f", {result.inputs} inputs" if result.inputs else ""
    if result.unfinished:
        counts += f"; {result.unfinished} attempts were cut off and left losses without a row"
    counts += _seals(result)
    kinds = Counter(finding.kind for finding in result.findings)
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return "\n".join([*lines, counts, f"found: {summary}" if summary else "found nothing wrong"])


def _seals(result: Audit) -> str:
    """The counts of seals, and of what none of them covers, as lines of text; none if they were not checked."""
    if not result.unsealed:
        return ""
    of_root = f", the root is that of seal {result.root_of}" if result.root_of else ""
    later = ", ".join(f"{NAMES[kind]} {count}" for kind, count in result.unsealed.items() if count)
    return f"\nvalid seals: {result.seals}{of_root}; not sealed: {later or 'nothing'}"


def line(finding: Finding) -> str:
    """A finding as a line of text."""
    return f"{finding.kind}: {f'{finding.pair_id}: ' if finding.pair_id else ''}{finding.text}"
