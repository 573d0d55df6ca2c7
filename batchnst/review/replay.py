"""A pair painted again from its ledger row alone, and what comes out otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.errors import InputError, LedgerError
from batchnst.ledger.out import Out, newest_rows, of_attempt
from batchnst.ledger.schema import TERMS
from batchnst.painting.named_weights import load_weights
from batchnst.painting.single import Painting, report_steps, stylize
from batchnst.painting.versions import versions
from batchnst.pictures import decode
from batchnst.progress import Progress, silent
from batchnst.recipe import Recipe
from batchnst.storage import files
from batchnst.transfer.device import best_device, device_label, network_dtype, precision_name

CLOSE = 0.02
"""Share by which the final loss may differ: more than bf16, another batch or another machine changes."""

SAME = 1e-5
"""Share by which a step's loss differs at the most where nothing but rounding does."""


@dataclass(frozen=True)
class Compared:
    """One thing that was compared, in a line, and whether the row holds as far as it goes."""

    what: str
    text: str
    holds: bool = True


def replay(out: Out, pair_id: str, progress: Progress = silent) -> Iterator[Compared]:
    """Paint a pair again as its newest ok row says, and compare; yields each thing as it is known.

    Ends before the painting where weights or inputs are not those of the row. Raises LedgerError for a pair without an
    ok row.
    """
    row = _row(out, pair_id)
    recipe = Recipe.from_settings(json.loads(row["recipe"]))
    yield Compared("row", f"run {row['run_id']}, attempt {row['attempt']}, {row['finished_at']:%Y-%m-%d %H:%M:%S} UTC")
    given = [*_weights(row, recipe), *_inputs(row)]
    yield from given
    if not all(compared.holds for compared in given):
        return
    if row["stopped"] != "diverged":  # else the row's precision is that of its rescue
        recipe = Recipe.from_settings({**json.loads(row["recipe"]), "precision": row["precision"]})
    yield _machine(row, recipe)
    painting = stylize(
        row["content"],
        row["styles"],
        recipe,
        style_weights=row["style_weights"],
        content_masks=row["content_masks"],
        style_masks=row["style_masks"],
        on_step=report_steps(progress),
    )
    yield from _losses(row, painting)
    yield _curve(out, row, painting)
    yield _picture(out, row, painting)


def _row(out: Out, pair_id: str) -> dict[str, Any]:
    """The newest ok row of a pair."""
    found = out.rows("pairs", matching=pc.field("pair_id") == pair_id)
    ok = found.filter(pc.equal(found["status"], "ok"))
    if len(ok):
        return dict(newest_rows(ok).to_pylist()[0])
    if len(found):
        failed = newest_rows(found).to_pylist()[0]
        raise LedgerError(f"{pair_id}: was never painted: {failed['error_type']}: {failed['error_message']}")
    raise LedgerError(f"{pair_id}: the ledger of {out.address} knows no such pair")


def _weights(row: dict[str, Any], recipe: Recipe) -> Iterator[Compared]:
    found, then = load_weights(*recipe.network).sha256, row["weights_sha256"]
    name = " ".join(recipe.network)
    yield _same("weights", name, found, then)
    yield _same("loss", "its definition", recipe.loss_definition, row["loss_definition"])


def _inputs(row: dict[str, Any]) -> Iterator[Compared]:
    yield _input("content", row["content"], row["content_sha256"])
    for style, sha256 in zip(row["styles"], row["style_sha256"], strict=True):
        yield _input("style", style, sha256)


def _input(what: str, address: str, then: str) -> Compared:
    try:
        found = hashlib.sha256(files.read(address)).hexdigest()
    except InputError as error:
        return Compared(what, str(error), holds=False)
    return _same(what, address, found, then)


def _same(what: str, name: str, found: str, then: str) -> Compared:
    if found == then:
        return Compared(what, f"{name}, as it was ({then[:16]})")
    return Compared(what, f"{name} has changed: {found[:16]} now, {then[:16]} then", holds=False)


def _machine(row: dict[str, Any], recipe: Recipe) -> Compared:
    """What paints, and what of that was otherwise then."""
    device = best_device()
    precision = precision_name(network_dtype(recipe.precision, device))
    now = asdict(versions()) | {"device": device_label(device), "precision": precision, "batch_size": 1}
    then = {**row["versions"], **{key: row[key] for key in ("device", "precision", "batch_size")}}
    other = [f"{key} {now[key]}, then {then[key]}" for key in then if now[key] != then[key]]
    return Compared("machine", f"{now['device']}, {now['precision']}; " + ("; ".join(other) or "all as it was"))


def _losses(row: dict[str, Any], painting: Painting) -> Iterator[Compared]:
    for term in TERMS:
        then, now = row[f"{term}_loss"], getattr(painting.final, term).item()
        change = now / then - 1 if then else float(now != then)
        holds = term != "total" or abs(change) <= CLOSE
        yield Compared(
            term, f"{now:.6g} now, {then:.6g} then: {change:+.2%}" if change else f"{now:.6g}, as it was", holds
        )


def _curve(out: Out, row: dict[str, Any], painting: Painting) -> Compared:
    """How long the losses of the steps were the same, and how far apart they came."""
    found = out.rows("losses", ["step", "total"], matching=of_attempt(row)).sort_by("step")
    then, now = found["total"].to_numpy(), painting.losses.total.cpu().double().numpy()
    if not len(then):
        return Compared("steps", "the ledger has none of this attempt", holds=False)
    both = min(len(then), len(now))
    apart: NDArray[np.float64] = np.abs(now[:both] / then[:both] - 1)
    differing = np.flatnonzero(apart > SAME)
    alike = int(differing[0]) if len(differing) else both
    steps = f"{len(now)}, as it was" if len(now) == len(then) else f"{len(now)} now, {len(then)} then"
    if alike == both:
        return Compared("steps", f"{steps}; the losses of all the same")
    return Compared("steps", f"{steps}; the first {alike} the same, then at most {apart.max():.2%} apart")


def _picture(out: Out, row: dict[str, Any], painting: Painting) -> Compared:
    """How the pictures differ, both as they are when written."""
    name = f"images/{row['output']}"
    data = out.folder.read(name)
    if data is None:
        return Compared("picture", f"{name} is not there", holds=False)
    if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
        return Compared("picture", f"{name} is not the one that was painted: its hash is not the row's", holds=False)
    then = np.asarray(decode.decode_rgb(data, name)).astype(int)
    now = np.asarray(decode.decode_rgb(painting.encode(name), name))
    apart = np.abs(now - then)
    if not apart.any():
        return Compared("picture", f"{name}, every pixel as it was")
    same = f"{(apart == 0).mean():.1%} of all values the same"
    return Compared("picture", f"{name}: {same}, the others at most {apart.max()} apart, on average {apart.mean():.2f}")
