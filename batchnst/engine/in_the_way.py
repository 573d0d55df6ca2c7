"""Keeps a run from replacing the user's own pictures: those that pairs are painted from, and those in a new OUT."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.errors import RequestError
from batchnst.ledger.out import Out
from batchnst.manifest.manifest import Manifest


def check_replaces_nothing(manifest: Manifest, out: Out) -> None:
    """Raise RequestError if a pair's output is the user's own picture in `images/` of OUT."""
    inputs = pa.array(sorted(_inputs_in(manifest, out)), pa.string())
    others = pa.array(sorted(out.foreign_pictures()), pa.string())
    if not (len(inputs) or len(others)):
        return
    for block in manifest.blocks():
        for names, reason in ((inputs, "a picture that pairs are painted from"), (others, "not painted by any run")):
            hits = block.filter(pc.is_in(block["output"], names))
            if len(hits):
                pair_id, output = hits["id"][0], hits["output"][0]
                raise RequestError(
                    f"--out {out.address}: images/{output} is {reason}, and pair {pair_id} would replace it; "
                    "expected another --out, or another `output`"
                )


def _inputs_in(manifest: Manifest, out: Out) -> set[str]:
    """The pictures under `images/` of OUT that pairs are painted from, relative to it."""
    roots = {out.address, *((out.folder.root, os.path.realpath(out.folder.root)) if out.folder.local else ())}
    found = set[str]()
    for addresses in _addresses(manifest):
        for prefix in (f"{root}/images/" for root in roots):
            inside = pc.unique(addresses.filter(pc.starts_with(addresses, prefix)))
            found.update(address.removeprefix(prefix) for address in inside.to_pylist())
    return found


def _addresses(manifest: Manifest) -> Iterator[pa.Array]:
    """All addresses that pairs are painted from, in parts."""
    for block in manifest.blocks():
        yield block["content"]
        yield from (block[name].flatten() for name in ("styles", "content_masks", "style_masks"))
        yield manifest.starts(block)
