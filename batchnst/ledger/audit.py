"""Every check that ledger, pictures and manifest agree. What it finds it names; it changes nothing."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache, partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from numpy.typing import NDArray
from PIL import Image

from batchnst.collection import storage
from batchnst.collection.images import ENCODERS, Provenance, provenance
from batchnst.errors import BatchNSTError, LedgerError
from batchnst.ledger import attempts, parquet
from batchnst.ledger.schema import SCHEMAS, VERSION
from batchnst.ledger.store import Out, newest_rows

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

FEWEST, FAR, NARROWEST = 8, 5.0, 0.05
"""Outliers: pairs that are enough to say what is usual, the robust z-score that is far, the least deviation of ln loss.

Of ten thousand pairs with log-normal losses one is named by chance in about 170 nights.
"""

_PAIRS = (
    *attempts.ATTEMPT,
    *("status", "error_type", "error_message", "content", "styles", "output"),
    *("content_sha256", "style_sha256", "output_sha256", "width", "height", "fingerprint", "recipe"),
    *("weights_sha256", "steps", "stopped", "initial_total", "finished_at", "versions"),
    *("total_loss", "content_loss", "style_loss", "tv_loss"),
)

AT_ONCE = 64
"""Files that are looked at in threads before what was found is taken up."""

_FORMATS = {ending: options["format"] for ending, options in ENCODERS.items()}


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


Note = Callable[[str, int, int], None]
"""Told how far it is: what is looked at, how many are done, of how many."""


def _quiet(what: str, done: int, of: int) -> None:
    """Tell nobody."""


def audit(out: Out, asked: pa.Table | None = None, *, deep: bool = False, note: Note = _quiet) -> Audit:
    """Look at everything in OUT.

    asked: `pair_id` and `fingerprint` of every pair that there should be; deep: read contents and styles as well.
    """
    result = Audit()
    rows = pa.concat_tables([parquet.empty("pairs", _PAIRS), *_tables(out, "pairs", _PAIRS, result)])
    newest = newest_rows(rows)
    ok = newest.filter(pc.equal(newest["status"], "ok"))
    result.pairs, result.ok, result.failed = len(newest), len(ok), len(newest) - len(ok)
    list(_tables(out, "runs", SCHEMAS["runs"].names, result))
    for found in (
        _unlike_manifest(newest, asked) if asked else _failed(newest),
        _doubled(rows),
        _losses(out, rows, result, note),
        _outliers(ok),
        _odd_ones(ok, asked),
        _pictures(out, rows, ok, result, note),
        _inputs(ok, result, note) if deep else (),
    ):
        result.findings += found
    return result


def _tables(out: Out, table: str, columns: Sequence[str], result: Audit, note: Note = _quiet) -> Iterator[pa.Table]:
    """Some columns of each of a table's files; where one cannot be had, that is a finding."""
    counted = {info.path for info in out.files(table)}
    files = []
    for info in out.folder.files(f"ledger/{table}"):
        if info.path in counted:
            files.append(info)
        elif not info.path.endswith(".parquet"):
            text = f"{out.folder.relative(info.path)}: not a file of a batchnst ledger; move it out of OUT/ledger"
            result.findings.append(Finding("foreign", None, text))
    with ThreadPoolExecutor(out.folder.streams) as pool:
        for start in range(0, len(files), AT_ONCE):
            note(f"ledger, {table}", start, len(files))
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
    except LedgerError as error:
        return Finding(error.kind, None, str(error).replace(info.path, name))
    except (KeyError, ValueError, pa.ArrowException) as error:
        return Finding("schema", None, f"{name}: its columns are not those of schema {VERSION}: {error}")


def _unlike_manifest(newest: pa.Table, asked: pa.Table) -> Iterator[Finding]:
    """Pairs of the manifest that are not painted, or not as it asks now."""
    known = newest.select(["pair_id", "status", "error_type", "error_message", "fingerprint"])
    known = known.rename_columns({"fingerprint": "painted"})
    both = asked.join(known, "pair_id").sort_by("pair_id")
    same = pc.and_(pc.equal(both["status"], "ok"), pc.equal(both["painted"], both["fingerprint"]))
    for row in both.filter(pc.invert(pc.fill_null(same, False))).to_pylist():
        if row["status"] is None:
            yield Finding("missing", row["pair_id"], "the ledger knows nothing of it")
        elif row["painted"] != row["fingerprint"]:
            yield Finding("outdated", row["pair_id"], "its row, recipe or weights have changed since it was painted")
        else:
            yield _failure(row)


def _failed(newest: pa.Table) -> Iterator[Finding]:
    failed = newest.filter(pc.equal(newest["status"], "failed")).sort_by("pair_id")
    return map(_failure, failed.select(["pair_id", "error_type", "error_message"]).to_pylist())


def _failure(row: dict[str, Any]) -> Finding:
    return Finding("failed", row["pair_id"], f"{row['error_type']}: {row['error_message']}")


def _doubled(rows: pa.Table) -> Iterator[Finding]:
    """Two ok rows in turn for the same thing: somebody painted what was done already."""
    rows = rows.select(["pair_id", "status", "fingerprint", "run_id", "finished_at"])
    rows = rows.sort_by([("pair_id", "ascending"), ("finished_at", "ascending")])
    if len(rows) < 2:
        return
    earlier, later = rows.slice(0, len(rows) - 1), rows.slice(1)
    same = [pc.equal(earlier[name], later[name]) for name in ("pair_id", "status", "fingerprint")]
    double = pc.and_(pc.and_(*same[:2]), pc.and_(same[2], pc.equal(later["status"], "ok")))
    runs = zip(earlier["run_id"].filter(double).to_pylist(), later.filter(double).to_pylist(), strict=True)
    for first, row in runs:
        yield Finding("doubled", row["pair_id"], f"painted by run {first}, and again by run {row['run_id']}")


def _losses(out: Out, rows: pa.Table, result: Audit, note: Note) -> Iterator[Finding]:
    """Attempts whose losses are incomplete, or not what their row says; of each what is worst."""
    parts = [attempts.summarize(part) for part in _tables(out, "losses", attempts.COLUMNS, result, note)]
    known = attempts.merge(parts)
    result.attempts, result.steps = len(known), pc.sum(known["rows"]).as_py() or 0
    result.unfinished = len(known.join(rows.select(attempts.ATTEMPT), attempts.ATTEMPT, join_type="left anti"))
    ok = rows.filter(pc.equal(rows["status"], "ok")).select([*attempts.ATTEMPT, *_OUTCOME])
    both = ok.join(known, attempts.ATTEMPT).sort_by([(name, "ascending") for name in ("pair_id", "attempt", "run_id")])
    kinds = _kinds(both)
    wrong = kinds != ""
    for kind, row in zip(kinds[wrong].tolist(), both.filter(pa.array(wrong)).to_pylist(), strict=True):
        text = _LOSS_TEXTS[kind].format_map(row)
        yield Finding(kind, row["pair_id"], f"attempt {row['attempt']} of run {row['run_id']}: {text}")


_FINAL = {term: f"{term}_loss" for term in attempts.TERMS} | {"initial": "initial_total"}
"""What of a curve is in `pairs` as well, and under which name."""

_OUTCOME = ["steps", "stopped", *_FINAL.values()]

_LOSS_TEXTS = {
    "losses-missing": "none of its {steps} steps is there",
    "losses-gap": "{rows} of its {steps} steps are there, or not each once",
    "not-finite": "some of its losses are no numbers",
    "losses-differ": "its row says {initial_total:.6g} to {total_loss:.6g}, its steps {initial:.6g} to {total:.6g}",
    "rescued": "it diverged, and was painted again from its best picture, in fp32 and by L-BFGS",
    "rose": "its finest scale ended with a higher loss than it began with",
}


def _kinds(both: pa.Table) -> NDArray[np.str_]:
    """What is worst about each attempt, "" for nothing."""

    def column(name: str, otherwise: Any) -> NDArray[Any]:
        return np.asarray(pc.fill_null(both[name], otherwise).to_numpy())

    rows, stopped = column("rows", 0), column("stopped", "")
    differs = [column(term, np.nan) != column(name, np.nan) for term, name in _FINAL.items()]
    numbers = column("finite", True) & np.isfinite(column("total_loss", np.nan))
    conditions = {
        "losses-missing": rows == 0,
        "losses-gap": ~column("whole", True) | (rows != column("steps", 0)),
        "not-finite": ~numbers & (stopped != "diverged"),
        "losses-differ": np.any(differs, axis=0),
        "rescued": stopped == "diverged",
        "rose": column("rose", False),
    }
    return np.select(list(conditions.values()), list(conditions), "")


def _outliers(ok: pa.Table) -> Iterator[Finding]:
    """Losses far from the median of their style, size and recipe, by the robust z-score of their logarithm.

    z = 0.6745 (x − median) / MAD (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers).
    """
    loss = np.log(np.maximum(pc.fill_null(ok["total_loss"], np.nan).to_numpy(), 1e-30))
    long_side = pc.max_element_wise(ok["width"], ok["height"]).to_pylist()
    same: dict[Any, list[int]] = defaultdict(list)
    for i, (styles, size, recipe) in enumerate(zip(ok["styles"].to_pylist(), long_side, _recipes(ok), strict=True)):
        if np.isfinite(loss[i]):
            same[tuple(styles), size, recipe].append(i)
    for (styles, size, _), rows in same.items():
        if len(rows) < FEWEST:
            continue
        usual = np.median(loss[rows])
        deviation = max(float(np.median(np.abs(loss[rows] - usual))), NARROWEST)
        for i, z in zip(rows, 0.6745 * (loss[rows] - usual) / deviation, strict=True):
            if abs(z) > FAR:
                found, name = ok["total_loss"][i].as_py(), " and ".join(PurePosixPath(style).name for style in styles)
                text = f"loss {found:.4g} where {np.exp(usual):.4g} is usual for {name} at {size} pixels (z = {z:+.1f})"
                yield Finding("outlier", ok["pair_id"][i].as_py(), text)


def _odd_ones(ok: pa.Table, asked: pa.Table | None) -> Iterator[Finding]:
    """Rows made otherwise than most; weights and recipe that the manifest asks for as they are, are not odd."""
    names, recipes = ok["pair_id"].to_pylist(), _recipes(ok)
    not_asked: list[int] = np.flatnonzero(~_as_asked(ok, asked)).tolist()
    by_network: dict[str, list[int]] = defaultdict(list)
    for i in not_asked:
        by_network[_network(recipes[i])].append(i)
    hashes = ok["weights_sha256"].to_pylist()
    for network, rows in by_network.items():
        for i, usual in _odd([hashes[i] for i in rows], 0):
            text = f"{hashes[rows[i]][:12]}…, where most by the name of {network} have {usual[:12]}…"
            yield Finding("other-weights", names[rows[i]], text)
    for i, usual in _odd([recipes[i] for i in not_asked], 0.5):
        yield Finding("other-recipe", names[not_asked[i]], _difference(recipes[not_asked[i]], usual))
    versions = [json.dumps(version) for version in ok["versions"].to_pylist()]
    for i, usual in _odd(versions, 0):
        yield Finding("other-versions", names[i], _difference(versions[i], usual))


def _odd(values: Sequence[str], share: float) -> Iterator[tuple[int, str]]:
    """Where values are not the most frequent one, and that one; nothing unless it is more than a share of all."""
    for usual, count in Counter(values).most_common(1):
        if count > share * len(values):
            yield from ((i, usual) for i, value in enumerate(values) if value != usual)


def _difference(found: str, usual: str) -> str:
    """The keys in which two JSON objects differ."""
    one, other = json.loads(found), json.loads(usual)
    keys = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    return ", ".join(f"{key} {one.get(key)}, not {other.get(key)}" for key in keys)


def _recipes(ok: pa.Table) -> list[str]:
    """The recipes, as JSON, but for the seed: that is each pair's own."""
    return list(map(cache(_without_seed), ok["recipe"].to_pylist()))


def _without_seed(recipe: str) -> str:
    return json.dumps({key: value for key, value in json.loads(recipe).items() if key != "seed"})


@lru_cache(maxsize=1024)
def _network(recipe: str) -> str:
    keys = json.loads(recipe)
    return f"{keys.get('backbone')} {keys.get('weights')}"


def _as_asked(ok: pa.Table, asked: pa.Table | None) -> NDArray[np.bool_]:
    """Whether each row is what the manifest, if there is one, asks for now."""
    if asked is None:
        return np.zeros(len(ok), bool)
    places = pc.index_in(ok["pair_id"], asked["pair_id"].combine_chunks())
    same = pc.equal(asked["fingerprint"].take(places), ok["fingerprint"])
    return np.asarray(pc.fill_null(same, False).to_numpy())


def _pictures(out: Out, rows: pa.Table, ok: pa.Table, result: Audit, note: Note) -> Iterator[Finding]:
    """Pictures that are not as their rows say, then those that no row knows."""
    there = {out.folder.relative(info.path) for info in out.folder.files("images")}
    columns = ["pair_id", "output", "output_sha256", "width", "height"]
    result.pictures = len(ok)
    yield from _in_threads(partial(_picture, out, there), ok.select(columns).sort_by("pair_id"), "pictures", out, note)
    painted = pc.unique(rows["output"].filter(pc.equal(rows["status"], "ok"))).to_pylist()
    for name in sorted(there - {f"images/{output}" for output in painted}):
        yield Finding("picture-unknown", None, f"{name}: no row says that it was painted")


def trace(file: str, out: Out | None = None) -> tuple[Provenance, Finding | None]:
    """What a picture says of itself, and, if its OUT is given, what is wrong about that; raises InputError."""
    data = storage.read(file)
    said = provenance(data, file)
    if out is None:
        return said, None
    rows = out.rows("pairs", [*attempts.ATTEMPT, "output_sha256"])
    for name in attempts.ATTEMPT:
        rows = rows.filter(pc.equal(rows[name], getattr(said, name)))
    found = hashlib.sha256(data).hexdigest()
    if not len(rows):
        return said, Finding("picture-unknown", said.pair_id, f"{file}: no row says that it was painted")
    if found not in rows["output_sha256"].to_pylist():
        text = f"{file} has SHA-256 {found[:12]}…, not {rows['output_sha256'][0].as_py()[:12]}…"
        return said, Finding("picture-changed", said.pair_id, text)
    return said, None


def _picture(out: Out, there: set[str], row: dict[str, Any]) -> Finding | None:
    name, pair_id = f"images/{row['output']}", row["pair_id"]
    if name not in there:
        return Finding("picture-missing", pair_id, f"{name} is not there")
    data = out.folder.read(name) or b""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            kind, size = image.format, image.size
    except Exception as error:  # whatever a decoder does with a damaged file
        return Finding("picture-damaged", pair_id, f"{name} cannot be decoded: {error}")
    expected = _FORMATS[PurePosixPath(name).suffix.lower()]
    if kind != expected:
        return Finding("picture-format", pair_id, f"{name} is {kind}, not {expected}")
    if size != (row["width"], row["height"]):
        return Finding(
            "picture-size", pair_id, f"{name} has {size[0]}×{size[1]} pixels, not {row['width']}×{row['height']}"
        )
    found = hashlib.sha256(data).hexdigest()
    if found != row["output_sha256"]:
        return Finding(
            "picture-changed", pair_id, f"{name} has SHA-256 {found[:12]}…, not {row['output_sha256'][:12]}…"
        )
    return None


def _inputs(ok: pa.Table, result: Audit, note: Note) -> Iterator[Finding]:
    """Contents and styles that are not what they were, each named once, with the first pair it concerns."""
    uses: dict[tuple[str, str], list[str]] = defaultdict(list)
    columns = ["pair_id", "content", "content_sha256", "styles", "style_sha256"]
    for row in ok.select(columns).sort_by("pair_id").to_pylist():
        inputs = [(row["content"], row["content_sha256"]), *zip(row["styles"], row["style_sha256"], strict=True)]
        for used in dict.fromkeys(inputs):
            uses[used].append(row["pair_id"])
    result.inputs = len(uses)
    table = pa.Table.from_pylist(
        [{"address": address, "sha256": sha256, "pairs": pairs} for (address, sha256), pairs in uses.items()]
    )
    yield from _in_threads(_input, table, "inputs", None, note)


def _input(row: dict[str, Any]) -> Finding | None:
    first, others = row["pairs"][0], len(row["pairs"]) - 1
    also = f" (and of {others} more {'pair' if others == 1 else 'pairs'})" if others else ""
    try:
        found = hashlib.sha256(storage.read(row["address"])).hexdigest()
    except BatchNSTError as error:
        return Finding("input-missing", first, f"{error}{also}")
    if found != row["sha256"]:
        text = f"{row['address']} has SHA-256 {found[:12]}…, not {row['sha256'][:12]}…{also}"
        return Finding("input-changed", first, text)
    return None


def _in_threads(
    look: Callable[[dict[str, Any]], Finding | None], rows: pa.Table, what: str, out: Out | None, note: Note
) -> Iterator[Finding]:
    """What a look at each row finds, a block of rows at a time."""
    with ThreadPoolExecutor(out.folder.streams if out else 16) as pool:
        for start in range(0, len(rows), AT_ONCE):
            note(what, start, len(rows))
            yield from filter(None, pool.map(look, rows.slice(start, AT_ONCE).to_pylist()))


def describe(result: Audit) -> str:
    """Findings, a line each, and what was looked at."""
    lines = [_line(finding) for finding in result.findings]
    looked = f"{result.ok} of {result.pairs} pairs ok, {result.failed} failed"
    looked += f"; {result.pictures} pictures, {result.steps} steps of {result.attempts} attempts"
    looked += f", {result.inputs} inputs" if result.inputs else ""
    if result.unfinished:
        looked += f"; {result.unfinished} attempts were cut off and left losses without a row"
    kinds = Counter(finding.kind for finding in result.findings)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return "\n".join([*lines, looked, f"found: {found}" if found else "found nothing wrong"])


def describe_picture(said: Provenance, finding: Finding | None) -> str:
    """What a picture says of itself, a line a thing."""
    lines = [f"{name:12} {value}" for name, value in asdict(said).items()]
    return "\n".join([*lines, *([_line(finding)] if finding else [])])


def _line(finding: Finding) -> str:
    return f"{finding.kind}: {f'{finding.pair_id}: ' if finding.pair_id else ''}{finding.text}"
