"""What a manifest asks for, in the words of the ledger."""

from __future__ import annotations

import json

import pyarrow as pa

from batchnst.ledger.out import Out
from batchnst.manifest.pair import fingerprint
from batchnst.manifest.reading import read_manifest
from batchnst.painting.named_weights import load_networks
from batchnst.storage.files import resolve


def expected_pairs(manifest: str, out: Out) -> pa.Table:
    """`pair_id` and `fingerprint` of every pair of a manifest, with the recipe file and options of its newest run.

    Where the ledger has no run of this manifest, with those of the newest run. Raises ManifestError.
    """
    runs = out.runs()
    own = [run for run in runs if run["manifest"] == resolve(manifest, ".")]
    settings = json.loads((own or runs)[-1]["settings"]) if runs else {}
    pairs = read_manifest(manifest, settings)
    hashes = {network: weights.sha256 for network, weights in load_networks(pairs.networks).items()}
    marks = [fingerprint(pair, hashes[pair.recipe.network]) for pair in pairs]
    return pa.table({"pair_id": pairs.ids.combine_chunks(), "fingerprint": pa.array(marks, pa.string())})
