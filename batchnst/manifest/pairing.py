"""A manifest from two collections of pictures: which content goes with which style."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from batchnst.errors import RequestError
from batchnst.manifest.pair import derive_id
from batchnst.storage.files import find, is_uri, parent

Row = dict[str, str]


def _cross(contents: Sequence[str], styles: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Every content in every style."""
    return product(contents, styles)


def _zip(contents: Sequence[str], styles: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """The first content with the first style, and so on, by the order of their names."""
    if len(contents) != len(styles):
        raise RequestError(
            f"--pairing zip: {len(contents)} contents and {len(styles)} styles; expected as many of both; "
            "cross and random take any number"
        )
    return zip(contents, styles, strict=True)


def _random(contents: Sequence[str], styles: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Every content in one style, drawn by the content's own name: a content more changes nothing for the others."""
    for content in contents:
        yield content, random.Random(f"{seed} {content}").choice(styles)


PAIRINGS: dict[str, Callable[[Sequence[str], Sequence[str], int], Iterator[tuple[str, str]]]] = {
    "cross": _cross,
    "zip": _zip,
    "random": _random,
}


def pair(contents: str, styles: str, manifest: str, pairing: str, seed: int = 0) -> list[Row]:
    """A row for each pair of a picture in `contents` and one in `styles`, folders, prefixes, globs or single pictures.

    Addresses are relative to where the manifest will lie if they are under it. The same pictures give the same rows and
    ids in every run. Raises RequestError.
    """
    base = parent(manifest)
    of_contents, of_styles = ([_from(address, base) for address in pictures(where)] for where in (contents, styles))
    chosen = PAIRINGS[pairing](of_contents, of_styles, seed)
    rows = ({"content": content, "style": style} for content, style in chosen)
    return [row | {"id": derive_id(row)} for row in rows]


def pictures(where: str) -> list[str]:
    """The addresses of all pictures at a place, sorted: what ends like something that Pillow reads."""
    endings = set(Image.registered_extensions())
    found = [address for address in find(where) if PurePosixPath(address).suffix.lower() in endings]
    if not found:
        raise RequestError(f"{where}: no pictures there; expected a folder, a prefix, or a glob in quotes")
    return found


def encode(rows: Sequence[Row], name: str) -> bytes:
    """The rows as the manifest's ending asks: .csv, .jsonl or .parquet; raises RequestError."""
    writer = WRITERS.get(PurePosixPath(name).suffix.lower())
    if writer is None:
        raise RequestError(f"--out {name}: expected a name that ends in {', '.join(WRITERS)}")
    return writer(rows)


def _csv(rows: Sequence[Row]) -> bytes:
    contents, styles = ({row[column] for row in rows} for column in ("content", "style"))
    for address in sorted(contents | styles):
        if address != address.strip() or (address in styles and "|" in address):
            raise RequestError(f"{address!r}: a CSV cannot hold this name; write a .jsonl or .parquet manifest")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["content", "style", "id"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json_lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, compression="zstd")
    return bytes(sink.getvalue())


WRITERS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}


def _from(address: str, base: str) -> str:
    """An address as the manifest has it."""
    if is_uri(address) != is_uri(base):
        return address
    inside = address.removeprefix(base.rstrip("/") + "/")
    return inside if inside != address and not is_uri(inside) else address
