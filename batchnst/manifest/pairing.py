"""Pair two collections of pictures, and write the pairs as a manifest."""

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

from batchnst.errors import RequestError
from batchnst.manifest.pair import derive_id
from batchnst.pictures import isolated
from batchnst.storage.files import is_uri, list_files, parent

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


def pair_rows(contents: str, styles: str, manifest: str, pairing: str, seed: int = 0) -> list[Row]:
    """Make the rows of a manifest from the pictures at `contents` and at `styles`, paired as `pairing` says.

    `contents` and `styles` are folders, prefixes, globs or single pictures. Addresses in the folder of `manifest`, the
    file to be written, become relative to it. The same pictures give the same rows and ids in every run. Raises
    RequestError if there are no pictures, or if they cannot be paired.
    """
    base = parent(manifest)
    content_addresses = [_relative(address, base) for address in list_pictures(contents)]
    style_addresses = [_relative(address, base) for address in list_pictures(styles)]
    pairs = PAIRINGS[pairing](content_addresses, style_addresses, seed)
    rows = ({"content": content, "style": style} for content, style in pairs)
    return [row | {"id": derive_id(row)} for row in rows]


def list_pictures(where: str) -> list[str]:
    """List the addresses of all pictures at `where`, sorted: files with an ending that Pillow knows.

    Raises RequestError if there are none.
    """
    endings = isolated.endings()
    addresses = [address for address in list_files(where) if PurePosixPath(address).suffix.lower() in endings]
    if not addresses:
        raise RequestError(f"{where}: no pictures there; expected a folder, a prefix, or a glob in quotes")
    return addresses


def encode_rows(rows: Sequence[Row], name: str) -> bytes:
    """Encode `rows` as a manifest in the format of the ending of `name`: .csv, .jsonl or .parquet.

    Raises RequestError for another ending, and for an address that a CSV cannot hold.
    """
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
"""Encoders of rows, by the manifest's file name ending."""


def _relative(address: str, base: str) -> str:
    """The address relative to the folder `base`, if it is in that folder."""
    if is_uri(address) != is_uri(base):
        return address
    inside = address.removeprefix(base.rstrip("/") + "/")
    return inside if inside != address and not is_uri(inside) else address
