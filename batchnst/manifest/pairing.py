"""Pair two collections of pictures, and write the pairs as a manifest."""

from __future__ import annotations

import csv
import heapq
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from batchnst.chains import Chain
from batchnst.errors import RequestError
from batchnst.manifest import templates
from batchnst.manifest.collecting import Filters, collect, fitting
from batchnst.manifest.columns import OUTPUT_TEMPLATE
from batchnst.manifest.left_out import LeftOut
from batchnst.manifest.pair import derive_id
from batchnst.storage.files import is_uri, parent

Row = dict[str, str]


def _cross(contents: Sequence[str], styles: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Pair every content with every style."""
    return product(contents, styles)


def _zip(contents: Sequence[str], styles: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Pair contents and styles one to one, in the order of their names."""
    if len(contents) != len(styles):
        raise RequestError(
            f"--pairing zip: {len(contents)} contents and {len(styles)} styles; expected the same number of both "
            "(cross and random take any numbers)"
        )
    return zip(contents, styles, strict=True)


def _random(contents: Sequence[str], styles: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Pair every content with a random style, drawn from its address and `seed`: new contents change no other pair."""
    for content in contents:
        yield content, random.Random(f"{seed} {content}").choice(styles)


PAIRINGS: dict[str, Callable[[Sequence[str], Sequence[str], int], Iterator[tuple[str, str]]]] = {
    "cross": _cross,
    "zip": _zip,
    "random": _random,
}
"""Functions that pair contents with styles, by the values of `--pairing`."""


@dataclass(frozen=True)
class Options:
    """The options for making pairs of two collections.

    pairing: a key of PAIRINGS. seed: decides what is drawn. limit: largest number of pairs; they are drawn.
    output: template of the outputs, see `templates`. kind: ending for its `{format}`.
    """

    pairing: str = "cross"
    seed: int = 0
    limit: int | None = None
    output: str = OUTPUT_TEMPLATE
    kind: str = "png"
    filters: Filters = field(default_factory=Filters)


def pair_rows(contents: str, styles: str, manifest: str, options: Options) -> tuple[list[Row], LeftOut]:
    """Make the rows of a manifest from the pictures at `contents` and at `styles`; return also what was left out.

    `contents` and `styles` are folders, prefixes, globs or single pictures. Addresses in the folder of `manifest`, the
    file to be written, become relative to it. The same pictures give the same rows and ids in every run. Raises
    RequestError if there are no pictures, if they cannot be paired, or if two outputs would be one.
    """
    left_out, template = LeftOut(), templates.Template(options.output, options.kind)
    photos = collect(contents, left_out, options.filters.exclude)
    photos = fitting(photos, options.filters, left_out)
    if not photos:
        raise RequestError(f"{contents}: no pictures are left ({left_out.line()})")
    paintings = collect(styles, left_out, options.filters.exclude)
    base = parent(manifest)
    of = {_relative(picture.address, base): picture for picture in (*photos, *paintings)}
    pictures = [_relative(photo.address, base) for photo in photos]
    pairs = PAIRINGS[options.pairing](pictures, [_relative(style.address, base) for style in paintings], options.seed)
    rows = []
    for content, style in _drawn(pairs, options):
        row = {"content": content, "style": style}
        row["id"] = derive_id(row)
        rows.append(row | {"output": template.output(of[content], of[style], row["id"])})
    templates.check_outputs(rows)
    return rows, left_out


def _drawn(pairs: Iterator[tuple[str, str]], options: Options) -> Iterable[tuple[str, str]]:
    """At most `limit` of the pairs, drawn by their names and `seed`, in their order: new pairs change few others."""
    if options.limit is None:
        return pairs
    ranked = ((random.Random(f"{options.seed} {pair}").random(), number, pair) for number, pair in enumerate(pairs))
    drawn = heapq.nsmallest(options.limit, ranked)
    return (pair for _, _, pair in sorted(drawn, key=itemgetter(1)))


def encode_rows(rows: Sequence[Row], name: str) -> bytes:
    """Encode `rows` as a manifest in the format of the ending of `name`: .csv, .jsonl, .parquet or .tsv.

    Raises RequestError for another ending, and for an address that a CSV cannot hold.
    """
    writer = WRITERS.get(PurePosixPath(name).suffix.lower())
    if writer is None:
        raise RequestError(f"--out {name}: expected a name that ends in {', '.join(WRITERS)}")
    return writer(rows)


def _csv(rows: Sequence[Row], separator: str = ",") -> bytes:
    for column in ("content", "style", "output"):
        for value in sorted({row[column] for row in rows}):
            if value != value.strip() or (column == "style" and "|" in value):
                raise RequestError(f"{value!r}: a CSV cannot hold this name; write a .jsonl or .parquet manifest")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json_lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, compression="zstd")
    return bytes(sink.getvalue())


WRITERS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".tsv": partial(_csv, separator="\t"),
}
"""Encoders of rows, by the manifest's file name ending."""


def _relative(address: str, base: str) -> str:
    """The address relative to the folder `base`, if it is in that folder; or that of the file that holds it."""
    if chain := Chain.of(address):
        return str(replace(chain, outer=_relative(chain.outer, base)))
    if is_uri(address) != is_uri(base):
        return address
    inside = address.removeprefix(base.rstrip("/") + "/")
    return inside if inside != address and not is_uri(inside) else address
