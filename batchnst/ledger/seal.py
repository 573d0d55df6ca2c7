"""Seals of OUT: the root of a Merkle tree over everything in it, signed, in `ledger/seals/`.

Seal number 3 is two files: `000003-<root>.json` with what was signed, and `000003-<root>.parquet` with the leaves,
which the root binds. Names have the first 12 hexadecimal digits of the root.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from batchnst.errors import LedgerError, StorageError
from batchnst.ledger import merkle
from batchnst.ledger.claim import Claim
from batchnst.ledger.compaction import is_counted
from batchnst.ledger.keys import is_signed
from batchnst.ledger.leaves import LEAVES, NAMES, hashes_of, leaves_of
from batchnst.ledger.out import Out
from batchnst.ledger.parquet import readable
from batchnst.progress import Progress, silent
from batchnst.storage.files import Folder

SEALS = "ledger/seals"
"""Folder of the seals in OUT."""

FORMAT = "batchnst-seal/1"
"""Name and version of what is signed, of the canonical form, and of the leaves."""

_NAME = re.compile(r"(?P<number>\d{6,})-[0-9a-f]{12}\.(?:json|parquet)")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The signed contents of a seal. `previous` is the root of the seal before, null for the first one.

    counts: number of leaves of each kind. time: of the host that sealed, UTC.
    """

    format: str
    number: int
    root: str
    previous: str | None
    leaves: int
    counts: dict[str, int]
    time: str
    batchnst: str

    @property
    def message(self) -> bytes:
        """The bytes that are signed: JSON with sorted keys, without spaces, in ASCII."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, kw_only=True)
class Seal:
    """A signed statement. `public_key` and the signature `ed25519` are in hexadecimal."""

    seal: Statement
    public_key: str
    ed25519: str

    def is_signed(self) -> bool:
        """True if the signature is that of the statement by the owner of the public key."""
        return is_signed(self.seal.message, bytes.fromhex(self.ed25519), bytes.fromhex(self.public_key))


@dataclass(frozen=True)
class Sealed:
    """The newest seal of OUT, made now if it is `new`: else nothing had changed since.

    differing: pictures that are missing or differ from their rows, and are sealed as they are. unfinished: names of
    leaves without a seal.
    """

    seal: Seal
    new: bool
    differing: int
    unfinished: tuple[str, ...]


def seal(out: Out, claim: Claim, key: Ed25519PrivateKey, progress: Progress = silent) -> Sealed:
    """Seal OUT as it is now, under a claim, unless its newest seal by the same key has the same root.

    Raises LedgerError if a file of the ledger cannot be read, Superseded if the claim is lost, StorageError.
    """
    listed = seal_names(out.folder, ".json")
    number, name = listed[-1] if listed else (0, "")
    previous = read_seal(out.folder, name) if number else None
    leaves, differing = leaves_of(out, progress)
    root = merkle.root(hashes_of(leaves)).hex()
    unfinished = tuple(orphans(out.folder))
    public_key = key.public_key().public_bytes_raw().hex()
    if previous and (previous.seal.root, previous.public_key) == (root, public_key):
        return Sealed(previous, False, differing, unfinished)
    statement = Statement(
        format=FORMAT,
        number=number + 1,
        root=root,
        previous=previous.seal.root if previous else None,
        leaves=len(leaves),
        counts=_counts(leaves),
        time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        batchnst=version("batchnst"),
    )
    new = Seal(seal=statement, public_key=public_key, ed25519=key.sign(statement.message).hex())
    _write(out.folder, claim, new, leaves)
    return Sealed(new, True, differing, unfinished)


def describe(sealed: Sealed) -> str:
    """A seal as text: what it covers, and its root."""
    statement = sealed.seal.seal
    counts = ", ".join(f"{name} {statement.counts[kind]}" for kind, name in NAMES.items())
    what = f"seal {statement.number}: {counts}" if sealed.new else f"nothing has changed since seal {statement.number}"
    advice = "Mail this root, or keep it elsewhere: then even the key's holder cannot change anything unnoticed."
    return f"{what}\nroot {statement.root}\n{advice}"


def warnings(sealed: Sealed) -> list[str]:
    """Return the warnings about a new seal, as lines for the user."""
    texts = [f"{name} has no seal: it was removed, or cut off when it was made" for name in sealed.unfinished]
    if sealed.differing:
        texts.append(f"{sealed.differing} pictures are missing or differ from their rows; `batchnst audit` names them")
    return texts


def _counts(leaves: pa.Table) -> dict[str, int]:
    """The number of leaves of each kind."""
    return {kind: pc.sum(pc.equal(leaves["kind"], kind)).as_py() or 0 for kind in NAMES}


def _write(folder: Folder, claim: Claim, new: Seal, leaves: pa.Table) -> None:
    """Write the leaves, then the seal; neither stays if it is interrupted in between."""
    name = f"{SEALS}/{_stem(new)}"
    sink = pa.BufferOutputStream()
    pq.write_table(leaves, sink, compression="zstd", use_dictionary=["kind", "run_id", "attempt"])
    try:
        folder.write(f"{name}.parquet", sink.getvalue().to_pybytes(), before=claim.check)
        _create(folder, f"{name}.json", json.dumps(asdict(new), indent=1).encode())
    except BaseException:
        with suppress(StorageError):
            if not folder.exists(f"{name}.json"):
                folder.remove(f"{name}.parquet")
        raise


def _create(folder: Folder, name: str, data: bytes) -> None:
    if not folder.create(name, data):
        raise StorageError(f"{folder.path(name)}: is there already")


def seal_names(folder: Folder, ending: str) -> list[tuple[int, str]]:
    """Number and name of the files of seals, sorted: of the statements for `.json`, of the leaves for `.parquet`."""
    matches = (_NAME.fullmatch(name) for name in file_names(folder) if name.endswith(ending))
    return sorted((int(match["number"]), match[0]) for match in matches if match)


def orphans(folder: Folder) -> list[str]:
    """Paths of leaves whose seal is not there, and no other seal of that number."""
    numbers = {number for number, _ in seal_names(folder, ".json")}
    return [f"{SEALS}/{name}" for number, name in seal_names(folder, ".parquet") if number not in numbers]


def foreign_names(folder: Folder) -> list[str]:
    """The names of files among the seals that are none."""
    return [name for name in file_names(folder) if not _NAME.fullmatch(name)]


def file_names(folder: Folder) -> list[str]:
    """The names of all files among the seals, as paths below their folder."""
    paths = (folder.relative(info.path) for info in folder.files(SEALS))
    return [path.removeprefix(f"{SEALS}/") for path in paths if is_counted(path)]


def read_seal(folder: Folder, name: str) -> Seal:
    """The seal in the file `name`, whoever signed it; raises LedgerError if it is damaged."""
    try:
        seal = _parse(json.loads(folder.read(f"{SEALS}/{name}") or b""))
        if name == f"{_stem(seal)}.json":
            return seal
        raise ValueError(name)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise LedgerError(f"{SEALS}/{name}: is damaged; restore it from a copy", "seal-damaged") from None


def _parse(values: Any) -> Seal:
    statement = Statement(**values["seal"])
    if statement.format != FORMAT:
        raise ValueError(statement.format)
    kinds = {"number": int, "leaves": int, "counts": dict, "previous": str | None}
    for field, value in asdict(statement).items():
        if not isinstance(value, kinds.get(field, str)):
            raise TypeError(field)
    for text in (statement.root, values["public_key"], values["ed25519"]):
        bytes.fromhex(text)
    return Seal(seal=statement, public_key=values["public_key"], ed25519=values["ed25519"])


def _stem(seal: Seal) -> str:
    """The name of the files of a seal, without their ending."""
    return f"{seal.seal.number:06}-{seal.seal.root[:12]}"


def read_leaves(folder: Folder, of: Seal) -> tuple[pa.Table, bytes]:
    """The leaves that belong to a seal, and their hashes; raises LedgerError if they are not those that it binds."""
    name = f"{SEALS}/{_stem(of)}.parquet"
    data = folder.read(name)
    if data is None:
        raise LedgerError(f"{name}: is not there", "seal-damaged")
    try:
        with readable(name):
            leaves = pq.read_table(pa.BufferReader(data)).select(LEAVES.names).cast(LEAVES)
    except (LedgerError, KeyError, ValueError, pa.ArrowException):
        raise LedgerError(f"{name}: is damaged; restore it from a copy", "seal-damaged") from None
    hashes = hashes_of(leaves)
    if merkle.root(hashes).hex() != of.seal.root:
        raise LedgerError(f"{name}: its leaves are not those that were sealed", "seal-damaged")
    return leaves, hashes
