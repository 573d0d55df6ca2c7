"""Checks OUT against its seals: their signatures and order, and what has changed since each."""

from __future__ import annotations

from collections.abc import Iterator

from batchnst.errors import LedgerError
from batchnst.ledger import keys, seal
from batchnst.ledger.leaves import hashes_of, leaves_of
from batchnst.ledger.out import Out
from batchnst.progress import Progress
from batchnst.review.audit.changes import Changes, State
from batchnst.review.audit.findings import Audit, Finding


def seals(out: Out, public: str, root: str | None, result: Audit, progress: Progress) -> Iterator[Finding]:
    """Findings on the seals of OUT by the public key in the file `public`, then on what changed since each of them.

    root: one that was kept elsewhere; it must be that of one of these seals. Sets `result.seals`, `result.root_of` and
    `result.unsealed`. Raises RequestError if the file has no public key.
    """
    chain = _Chain(out, keys.read_public(public).hex())
    yield from chain.findings()
    result.seals = len(chain.valid)
    if root is not None:
        result.root_of = next(
            (each.seal.number for each in chain.valid if each.seal.root == root.strip().lower()), None
        )
        if result.root_of is None:
            yield Finding("seal-root", None, f"no seal by this key has the root {root}")
    yield from _changes(out, chain.valid, result, progress)


def _changes(out: Out, valid: list[seal.Seal], result: Audit, progress: Progress) -> Iterator[Finding]:
    """Findings on the changes between each of the seals and the next one, and from the last one to OUT now."""
    last = State.empty()
    for number, each in enumerate(valid):
        progress(f"seals {number}/{len(valid)}", number, len(valid))
        try:
            state = State(each.seal.number, *seal.read_leaves(out.folder, each))
        except LedgerError as error:
            yield Finding(error.kind, None, str(error))
            continue
        yield from Changes(last, state).findings()
        last = state
    leaves, _ = leaves_of(out, progress, skip_unreadable=True)
    changes = Changes(last, State(None, leaves, hashes_of(leaves)))
    yield from changes.findings()
    result.unsealed = changes.unsealed()


class _Chain:
    """The seals of OUT, of which `valid` are whole and signed by `key`."""

    def __init__(self, out: Out, key: str) -> None:
        self.valid = list[seal.Seal]()
        self._folder, self._key = out.folder, key
        self._roots = dict[int, str]()  # by number; "" if unknown

    def findings(self) -> Iterator[Finding]:
        """Findings on the seals themselves; fills `valid`."""
        for number, name in seal.seal_names(self._folder, ".json"):
            if number > (expected := max(self._roots, default=0) + 1):
                gap = f"seal {expected}" if number == expected + 1 else f"seals {expected} to {number - 1}"
                yield Finding("seal-missing", None, f"not there: {gap}, but seal {number} is")
            yield from self._check(number, name)
        if not self._roots:
            yield Finding("seal-missing", None, "there is no seal")
        for name in seal.orphans(self._folder):
            yield Finding("seal-missing", None, f"{name} has no seal: it was removed, or cut off when it was made")
        for name in seal.foreign_names(self._folder):
            yield Finding("foreign", None, f"{seal.SEALS}/{name}: not a seal; move it out of OUT/ledger")

    def _check(self, number: int, name: str) -> Iterator[Finding]:
        path, known = f"{seal.SEALS}/{name}", number in self._roots
        self._roots.setdefault(number, "")
        try:
            each = seal.read_seal(self._folder, name)
        except LedgerError as error:
            yield Finding(error.kind, None, str(error))
            return
        self._roots[number] = each.seal.root
        if each.public_key != self._key:
            yield Finding("seal-key", None, f"{path}: was made by another key, {each.public_key[:12]}…")
        elif not each.is_signed():
            yield Finding("seal-damaged", None, f"{path}: its signature is not that of what it says")
        else:
            self.valid.append(each)
        before = self._roots.get(number - 1, "") if number > 1 else None
        if known:
            yield Finding("seal-chain", None, f"{path}: there is another seal {number}")
        elif before != "" and each.seal.previous != before:
            yield Finding("seal-chain", None, f"{path}: the seal before it was another one")
