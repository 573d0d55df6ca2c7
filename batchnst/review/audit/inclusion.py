"""Proves that a picture was sealed, to people who have the picture and the public key, but not OUT."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchnst.ledger import merkle, seal
from batchnst.ledger.out import Out
from batchnst.pictures.decode import DecodeOptions
from batchnst.storage import files


def prove(out: Out, file: str) -> dict[str, Any] | None:
    """The inclusion proof of the picture `file`, as JSON values, from the newest seal that has it; None if none has.

    `leaf` is its leaf, `path` the nodes up to the root, and the rest is the seal. Hashes are in hexadecimal.
    Raises InputError if the picture cannot be read, LedgerError if a seal is damaged.
    """
    data = files.read_at_most(file, DecodeOptions().max_file_bytes, "a painted picture has at most")
    sha256 = hashlib.sha256(data)
    for _, name in reversed(seal.seal_names(out.folder, ".json")):
        each = seal.read_seal(out.folder, name)
        leaves, hashes = seal.read_leaves(out.folder, each)
        same = pc.equal(leaves["sha256"], pa.scalar(sha256.digest(), pa.binary(merkle.SIZE)))
        index = pc.index(pc.and_(same, pc.equal(leaves["kind"], "pictures")), True).as_py()
        if index >= 0:
            (leaf,) = leaves.slice(index, 1).to_pylist()
            path = [{side: node.hex()} for side, node in merkle.path(hashes, index)]
            return {"leaf": leaf | {"sha256": sha256.hexdigest()}, "path": path, **asdict(each)}
    return None
