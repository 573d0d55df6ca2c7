"""The pairs that a manifest asks for, as the ledger identifies them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from batchnst.ledger.out import Out
from batchnst.manifest.reading import read_manifest
from batchnst.painting.named_weights import load_networks
from batchnst.redaction import stored
from batchnst.storage.files import resolve


def expected_pairs(manifests: Sequence[str], out: Out) -> pa.Table:
    """Table of `pair_id` and `fingerprint` for every pair of these manifests; of a pair in several, the last counts.

    The recipe file and options are those of each manifest's newest run; if it has none, those of the newest run of all.
    Raises ManifestError.
    """
    fingerprints = dict[str, str]()
    for manifest in manifests:
        fingerprints.update(_fingerprints(manifest, out))
    columns = [pa.array(list(values), pa.string()) for values in (fingerprints, fingerprints.values())]
    return pa.table(columns, ["pair_id", "fingerprint"])


def _fingerprints(manifest: str, out: Out) -> Iterator[tuple[str, str]]:
    """Id and fingerprint of every pair of a manifest."""
    runs = out.runs()
    address = stored(resolve(manifest, "."))
    same_manifest = [run for run in runs if run["manifest"] == address]
    settings = json.loads((same_manifest or runs)[-1]["settings"]) if runs else {}
    pairs = read_manifest(manifest, settings)
    hashes = {network: weights.sha256 for network, weights in load_networks(pairs.networks).items()}
    for block in pairs.blocks():
        yield from zip(block["id"].to_pylist(), pairs.fingerprints(block, hashes).to_pylist(), strict=True)
