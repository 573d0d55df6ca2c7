"""Paints a pair again from its ledger row alone and compares the result with the row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.errors import InputError, LedgerError, RecipeError
from batchnst.ledger.out import Out, attempt_filter, newest_rows
from batchnst.ledger.schema import TERMS
from batchnst.painting.named_weights import load_weights
from batchnst.painting.single import Painting, report_steps, stylize
from batchnst.painting.versions import versions
from batchnst.pictures import isolated
from batchnst.pictures.decode import DecodeOptions
from batchnst.progress import Progress, silent
from batchnst.recipe import Recipe
from batchnst.storage import files
from batchnst.transfer.device import best_device, device_label, network_dtype, precision_name

CLOSE = 0.02
"""Relative difference of the final loss up to which a row holds; bf16, another batch or machine causes less."""

SAME = 1e-5
"""Relative difference up to which two losses of a step count as the same; rounding causes less."""


@dataclass(frozen=True)
class Compared:
    """One comparison with the row: `what` was compared, the result as `text`, and False if the row does not hold."""

    what: str
    text: str
    holds: bool = True


def replay(out: Out, pair_id: str, progress: Progress = silent) -> Iterator[Compared]:
    """Paint a pair again as its newest ok row says; yield each comparison with the row once it is known.

    Stops before painting if the weights or inputs are not those of the row. Raises LedgerError if the pair has no ok
    row.
    """
    row = _row(out, pair_id)
    recipe = _recipe(row)
    yield Compared("row", f"run {row['run_id']}, attempt {row['attempt']}, {row['finished_at']:%Y-%m-%d %H:%M:%S} UTC")
    preconditions = [*_weights(row, recipe), *_inputs(row)]
    yield from preconditions
    if not all(compared.holds for compared in preconditions):
        return
    if row["stopped"] != "diverged":  # the precision of a diverged row is that of its rescue
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


def _recipe(row: dict[str, Any]) -> Recipe:
    """The recipe of a row; raises LedgerError if this version does not paint by it."""
    try:
        return Recipe.from_settings(json.loads(row["recipe"]))
    except RecipeError as error:
        raise LedgerError(f"{row['pair_id']}: the recipe of its row cannot be painted: {error.problems[0]}") from None


def _row(out: Out, pair_id: str) -> dict[str, Any]:
    """The newest ok row of a pair; raises LedgerError if there is none."""
    rows = out.rows("pairs", matching=pc.field("pair_id") == pair_id, damaged=True)
    rows, damages = out.sound(rows, "pairs", complete=True)
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    if len(ok):
        return dict(newest_rows(ok).to_pylist()[0])
    if len(rows):
        failed = newest_rows(rows).to_pylist()[0]
        raise LedgerError(f"{pair_id}: was never painted: {failed['error_type']}: {failed['error_message']}")
    if damages:
        raise LedgerError(f"{pair_id}: does not count: {damages[0].where}")
    raise LedgerError(f"{pair_id}: no such pair in the ledger of {out.address}")


def _weights(row: dict[str, Any], recipe: Recipe) -> Iterator[Compared]:
    name = " ".join(recipe.network)
    yield _same("weights", name, load_weights(*recipe.network).sha256, row["weights_sha256"])
    yield _same("loss", "its definition", recipe.loss_definition, row["loss_definition"])


def _inputs(row: dict[str, Any]) -> Iterator[Compared]:
    yield _input("content", row["content"], row["content_sha256"])
    for style, sha256 in zip(row["styles"], row["style_sha256"], strict=True):
        yield _input("style", style, sha256)
    masks = [*row["content_masks"], *row["style_masks"]]
    for mask, sha256 in zip(masks, row["mask_sha256"] or [], strict=False):  # batchnst 0.1.0 had no hashes of masks
        yield _input("mask", mask, sha256)
    if row["start_sha256"]:
        yield _input("init", json.loads(row["recipe"])["init"], row["start_sha256"])


def _input(what: str, address: str, then: str) -> Compared:
    try:
        now = files.sha256_of(address)
    except InputError as error:
        return Compared(what, str(error), holds=False)
    return _same(what, address, now, then)


def _same(what: str, name: str, now: str, then: str) -> Compared:
    """Comparison of two hashes or versions, which must be equal."""
    if now == then:
        return Compared(what, f"{name}, as it was ({then[:16]})")
    return Compared(what, f"{name} has changed: {now[:16]} now, {then[:16]} then", holds=False)


def _machine(row: dict[str, Any], recipe: Recipe) -> Compared:
    """The device, precision, batch size and versions of this replay, and how they differ from the row."""
    device = best_device()
    precision = precision_name(network_dtype(recipe.precision, device))
    now = asdict(versions()) | {"device": device_label(device), "precision": precision, "batch_size": 1}
    then = {**row["versions"], **{key: row[key] for key in ("device", "precision", "batch_size")}}
    changed = [f"{key} {now[key]}, then {then[key]}" for key in then if now[key] != then[key]]
    return Compared("machine", f"{now['device']}, {now['precision']}; " + ("; ".join(changed) or "all as it was"))


def _losses(row: dict[str, Any], painting: Painting) -> Iterator[Compared]:
    for term in TERMS:
        then, now = row[f"{term}_loss"], getattr(painting.final, term).item()
        change = now / then - 1 if then else float(now != then)
        holds = term != "total" or abs(change) <= CLOSE
        yield Compared(
            term, f"{now:.6g} now, {then:.6g} then: {change:+.2%}" if change else f"{now:.6g}, as it was", holds
        )


def _curve(out: Out, row: dict[str, Any], painting: Painting) -> Compared:
    """Comparison of the total loss step by step: how many steps are the same, and the largest difference after them."""
    steps_then = out.rows("losses", ["step", "total"], matching=attempt_filter(row)).sort_by("step")
    then, now = steps_then["total"].to_numpy(), painting.losses.total.cpu().double().numpy()
    if not len(then):
        return Compared("steps", "the ledger has none for this attempt", holds=False)
    common = min(len(then), len(now))
    difference: NDArray[np.float64] = _relative(now[:common], then[:common])
    differing = np.flatnonzero(difference > SAME)
    same = int(differing[0]) if len(differing) else common
    steps = f"{len(now)}, as it was" if len(now) == len(then) else f"{len(now)} now, {len(then)} then"
    if same == common:
        return Compared("steps", f"{steps}; the losses of all the same")
    return Compared("steps", f"{steps}; the first {same} the same, then at most {difference.max():.2%} apart")


def _relative(now: NDArray[np.float64], then: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences of `now` relative to `then`; 0 where both are 0."""
    return np.abs(now - then) / np.maximum(np.abs(then), np.finfo(np.float64).tiny)


def _picture(out: Out, row: dict[str, Any], painting: Painting) -> Compared:
    """Comparison of the pixels of both pictures, each as decoded from its file."""
    stored = out.pictures([row["pair_id"]], unreadable=lambda *_: None)
    found = stored.find(row)
    name, data = found.name, found.data
    if found.problem:
        return Compared("picture", found.problem, holds=False)
    if data is None:
        return Compared("picture", stored.absence(name), holds=False)
    if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
        return Compared("picture", f"{name} is not the one that was painted: its hash is not the row's", holds=False)
    then = isolated.load(data, name, DecodeOptions()).pixels.astype(int)
    now = isolated.load(painting.encode(name), name, DecodeOptions()).pixels
    difference = np.abs(now - then)
    if not difference.any():
        return Compared("picture", f"{name}, every pixel as it was")
    same = f"{(difference == 0).mean():.1%} of all values the same"
    apart = f"the others at most {difference.max()} apart, on average {difference.mean():.2f}"
    return Compared("picture", f"{name}: {same}, {apart}")
