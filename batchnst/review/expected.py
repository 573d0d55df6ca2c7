"""The pairs that a manifest asks for, as the ledger identifies them."""

from __future__ import annotations

import json

import pyarrow as pa

from batchnst.ledger.out import Out
from batchnst.manifest.reading import read_manifest
from batchnst.painting.named_weights import load_networks
from batchnst.redaction import stored
from batchnst.storage.files import resolve


def expected_pairs(manifest: str, out: Out) -> pa.Table:
    """Table of `pair_id` and `fingerprint` for every pair of a manifest.

    The recipe file and options are those of the manifest's newest run; if it has none, those of the newest run of all.
    Raises ManifestError.
    """
    runs = out.runs()
    address = stored(resolve(manifest, "."))
    same_manifest = [run for run in runs if run["manifest"] == address]
    settings = json.loads((same_manifest or runs)[-1]["settings"]) if runs else {}
    pairs = read_manifest(manifest, settings)
    hashes = {network: weights.sha256 for network, weights in load_networks(pairs.networks).items()}
    ids, fingerprints = zip(
        *((block["id"], pairs.fingerprints(block, hashes)) for block in pairs.blocks()), strict=True
    )
    return pa.table({"pair_id": pa.concat_arrays(ids), "fingerprint": pa.concat_arrays(fingerprints)})
