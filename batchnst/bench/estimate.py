"""Estimate what a run takes: batches, time, memory and disk space. All figures are rough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta

from batchnst.bench.speed import known_speed, measure_speed
from batchnst.engine.back_again import describe_back_again
from batchnst.engine.in_the_way import check_replaces_nothing
from batchnst.engine.newer import describe_newer
from batchnst.engine.plan import Batch, Plan, largest_by_recipe, make_batches
from batchnst.engine.repaint import Redo, choose, named_rows
from batchnst.engine.run import hashes_of, plan_run
from batchnst.errors import RecipeError
from batchnst.ledger.out import Out
from batchnst.manifest.manifest import Manifest
from batchnst.painting.named_weights import load_networks
from batchnst.recipe import PRESETS, Recipe
from batchnst.transfer.device import Hardware, best_device, gpu_count, keeps_shapes, usable_cpus
from batchnst.transfer.memory import Fitting, least_memory, slowdown
from batchnst.transfer.pyramid import scales, work
from batchnst.transfer.weights import Weights

PNG_BYTES_PER_PIXEL = 2.0
"""Disk space of a painted PNG for each pixel, in bytes (measured at 256 pixels)."""

LEDGER_BYTES_PER_STEP = 42
"""Disk space of a row in `losses`, in bytes."""

ALL = 10_000
"""Largest number of pairs whose content headers are all read."""

SAMPLE = 2_000
"""Number of pairs, drawn at random, from which more than ALL are estimated: shares have a standard error of 1 %."""

MAX_SIZES = 20
"""Number of working sizes that are listed, the most frequent ones."""


def describe(manifest: Manifest, out: str | None, *, redo: Sequence[str] = (), memory: float | None = None) -> str:
    """Describe everything that a run would decide, on this machine or on workers with `memory` bytes.

    `redo` are the values of `--redo`. Raises RequestError if one of them matches nothing.
    """
    folder = Out(out) if out else None
    if folder:
        folder.folder.check_writable()
    weights = load_networks(manifest.networks)
    plan, notices = _plan(manifest, folder, weights, redo)
    gpus = gpu_count()
    workers = gpus or usable_cpus()
    jobs = plan.jobs() if len(plan) <= ALL else plan.sample(SAMPLE)
    pairs_per_job = len(plan) / max(1, len(jobs))
    hardware = Hardware.here(memory)
    batches = make_batches(jobs, None, workers, largest_by_recipe(hardware), mixed=keeps_shapes(hardware.device))
    readable = [batch for batch in batches if batch.size]
    speed, source = _worker_speed(readable[0].recipe, workers) if readable else (0.0, "")
    lines = [
        f"pairs    {plan.pairs} in the manifest · {plan.done} done · {plan.failed} failed and left alone"
        f" · {plan.left} to paint" + (f", {plan.again} of them failed for a passing reason" if plan.again else ""),
        *_redo_lines(plan, notices),
        *_batch_lines(batches, pairs_per_job, hardware, speed),
    ]
    if folder and (back := describe_back_again(plan, folder)):
        lines.append(f"back     {back}")
    if folder and folder.damage:
        lines.append(f"ledger   {folder.damage.notice(str(out))}")
    if out and (newer := plan.inputs.newer()):
        lines.append(f"inputs   {describe_newer(newer, out)}")
    if too_large := sum(len(batch.jobs) for batch in readable if batch.memory_problem(hardware)):
        lines.append(_too_large_line(round(too_large * pairs_per_job), plan, hardware.memory))
    if pairs_per_job > 1:
        lines.append(f"         (estimated from {len(jobs)} of them, drawn at random)")
    if readable:
        fittings = [(batch, batch.halved(hardware)) for batch in readable]
        fitted = [(batch, fitting) for batch, fitting in fittings if fitting]
        seconds = sum(_batch_seconds(batch, fitting, speed) for batch, fitting in fitted)
        share = pairs_per_job / min(workers, max(1, len(fitted)))
        duration = timedelta(seconds=round(share * seconds))
        peak = max((fitting.memory for _, fitting in fitted), default=0)
        lines += [
            f"time     about {duration} on this machine's {workers} {'GPUs' if gpus else 'CPUs'} ({source})",
            f"presets  {_presets_text(fitted, speed, share)}",
            f"memory   about {peak / 1e9:.1f} GB a worker, of {hardware.memory / 1e9:.1f} GB",
            f"disk     about {_size_text(pairs_per_job * _disk_bytes(readable))}",
        ]
    return "\n".join(lines)


def _plan(
    manifest: Manifest, out: Out | None, weights: Mapping[tuple[str, str], Weights], values: Sequence[str]
) -> tuple[Plan, list[str]]:
    """The plan of a run, and the notices of `--redo`; `values` are those of this option."""
    named_rows(values, manifest)
    if out:
        check_replaces_nothing(manifest, out)
    notices, redo = list[str](), Redo(tuple(values))
    choosing = choose(values, manifest, out, hashes_of(weights)) if out else None
    while choosing:
        try:
            notices.append(next(choosing).text)
        except StopIteration as end:
            choosing, redo = None, end.value
    return plan_run(manifest, out, weights, redo=redo, limit=None), notices


def _redo_lines(plan: Plan, notices: Sequence[str]) -> list[str]:
    """The number of settled pairs that are painted again, by reason, and the notices of how they were found."""
    if not plan.redo.values:
        return []
    counts = ", ".join(f"{count} {why}" for why, count in plan.redone.items())
    return [f"again    {counts or 'no pair'}", *(f"         {notice}" for notice in notices)]


def _worker_speed(recipe: Recipe, workers: int) -> tuple[float, str]:
    """Pixel-steps a second of one of this machine's workers, and the source of this figure."""
    if known := known_speed(recipe, best_device()):  # the speed of all workers together
        return known / workers, "as bench measured it"
    return measure_speed(recipe), "from a short measurement"


def _batch_lines(batches: Sequence[Batch], pairs_per_job: float, hardware: Hardware, speed: float) -> list[str]:
    """One line for all batches with the same size and the same way of painting; the most frequent come first."""
    groups: dict[tuple[str, str], list[Batch]] = {}
    for batch in batches:
        size = f"{batch.size[0]}×{batch.size[1]}" if batch.size else "unreadable, will fail"
        size = f"at most {size}" if batch.assumed else size
        groups.setdefault((size, _fitting_text(batch, hardware, speed)), []).append(batch)
    pairs = {key: sum(len(batch.jobs) for batch in group) for key, group in groups.items()}
    lines = []
    for size, fitting in sorted(groups, key=lambda key: -pairs[key])[:MAX_SIZES]:
        number = round(pairs[size, fitting] * pairs_per_job)
        count = math.ceil(len(groups[size, fitting]) * pairs_per_job)
        lines.append(f"batches  {size}  {number} {'pair' if number == 1 else 'pairs'} in {count}{fitting}")
    if len(groups) > MAX_SIZES:
        lines.append(f"         and {len(groups) - MAX_SIZES} other sizes")
    return lines


def _fitting_text(batch: Batch, hardware: Hardware, speed: float) -> str:
    """Text on how a batch fits on `hardware`, and on the time for each pair; empty if the size is unknown."""
    if batch.size is None:
        return ""
    fitting = batch.halved(hardware)
    if fitting is None:
        needed = least_memory(batch.recipe, batch.size, hardware.network_dtype(batch.recipe.precision))
        return f" · does not fit: needs {needed / 1e9:.1f} GB"
    tiled = "fits" if math.isinf(fitting.tile) else f"tiled at {fitting.tile}"
    parts = [tiled, *fitting.notes(batch.recipe), f"{fitting.memory / 1e9:.1f} GB"]
    seconds = _batch_seconds(batch, fitting, speed) / len(batch.jobs)
    return f" · {', '.join(parts)}, about {timedelta(seconds=math.ceil(seconds))} each"


def _too_large_line(pairs: int, plan: Plan, memory: float) -> str:
    """Text on the number of pairs that do not fit into `memory` bytes."""
    if pairs == plan.pairs:
        return f"         none fits into {memory / 1e9:.1f} GB: `run` would refuse; lower size"
    do = "pair does not fit" if pairs == 1 else "pairs do not fit"
    return f"         {pairs} {do} into {memory / 1e9:.1f} GB and will fail; lower size"


def _batch_seconds(batch: Batch, fitting: Fitting, speed: float) -> float:
    """Seconds that a worker takes for a batch; `speed` is in pixel-steps a second."""
    return batch.work * slowdown(fitting, batch.recipe) / speed


def _presets_text(fitted: Sequence[tuple[Batch, Fitting]], speed: float, share: float) -> str:
    """Text on the time of a run in which all batches have the recipe keys of each preset.

    `share` is the number of seconds that the run takes for each second of a batch.
    """
    texts = []
    for name in PRESETS:
        try:
            seconds = sum(_preset_seconds(name, batch, fitting, speed) for batch, fitting in fitted)
        except RecipeError:  # its layers are those of another backbone
            continue
        texts.append(f"{name} {timedelta(seconds=round(share * seconds))}")
    return " · ".join(texts).replace(" ", " about ", 1)


def _preset_seconds(name: str, batch: Batch, fitting: Fitting, speed: float) -> float:
    """Seconds that a worker takes for a batch with the keys of the preset `name`, at the same size and speed."""
    recipe = batch.recipe.changed(PRESETS[name], reset={key for preset in PRESETS.values() for key in preset})
    pixel_steps = len(batch.jobs) * work(recipe, *batch.size) if batch.size else 0
    return pixel_steps * slowdown(fitting, recipe) / speed


def _disk_bytes(batches: Sequence[Batch]) -> float:
    """Disk space of the pictures and losses of all batches, in bytes."""
    pixels = sum(len(batch.jobs) * math.prod(batch.size or ()) for batch in batches)
    steps = sum(_steps(batch) for batch in batches)
    return PNG_BYTES_PER_PIXEL * pixels + LEDGER_BYTES_PER_STEP * steps


def _steps(batch: Batch) -> int:
    """Steps of all pictures of a batch through all scales."""
    size = batch.size or (1, 1)
    return len(batch.jobs) * sum(scale.steps for scale in scales(batch.recipe, *size))


def _size_text(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
