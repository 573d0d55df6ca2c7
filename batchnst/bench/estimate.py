"""What a run would take: batches by size, time, memory and disk. Rough, and said to be."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch

from batchnst.bench.speed import known_speed, measure_speed
from batchnst.engine.plan import Batch, expected_dtype, largest_by_recipe, make_batches
from batchnst.engine.run import plan_run
from batchnst.ledger.out import Out
from batchnst.manifest.manifest import Manifest
from batchnst.painting.named_weights import load_networks
from batchnst.recipe import Recipe
from batchnst.transfer.device import Hardware, best_device
from batchnst.transfer.memory import Fitting, least_memory, slowdown
from batchnst.transfer.pyramid import scales

PICTURE_BYTES_A_PIXEL = 2.0
LEDGER_BYTES_A_STEP = 35
"""Disk: a painted PNG (measured, 256 pixels), and a step's row in `losses`."""

SAMPLE = 10_000
"""Pairs whose contents' headers are read; of more, the rest is taken to be alike."""

MOST_SIZES = 20
"""Working sizes that are listed, the most frequent ones."""


@dataclass(frozen=True)
class _Pace:
    """Pixel-steps a second of one worker, of so many, and where that is known from."""

    speed: float
    source: str
    workers: int
    machine: str

    @classmethod
    def here(cls, recipe: Recipe) -> _Pace:
        """This machine's."""
        gpus = torch.cuda.device_count()
        workers = gpus or os.cpu_count() or 1
        machine = f"{workers} {'GPUs' if gpus else 'CPUs'}"
        known = known_speed(recipe, best_device())
        if known:  # of all workers together
            return cls(known / workers, "as bench measured it", workers, machine)
        return cls(measure_speed(recipe), "from a short measurement", workers, machine)

    def seconds(self, batch: Batch, fitting: Fitting) -> float:
        """Seconds that a worker takes for a batch."""
        return batch.work * slowdown(fitting, batch.recipe) / self.speed


def describe(pairs: Manifest, out: str | None, *, retry_failed: bool, memory: float | None = None) -> str:
    """Everything a run on this machine, or on one whose workers have so many bytes, would decide, as text."""
    weights = load_networks(pairs.networks)
    plan = plan_run(pairs, Out(out) if out else None, weights, retry_failed=retry_failed, limit=None)
    workers = torch.cuda.device_count() or os.cpu_count() or 1
    jobs = plan.sample(SAMPLE)
    of_each = len(plan) / max(1, len(jobs))
    hardware = Hardware.here(memory)
    batches = make_batches(jobs, None, workers, largest_by_recipe(hardware.memory, hardware.device.type))
    readable = [batch for batch in batches if batch.size]
    pace = _Pace.here(readable[0].recipe) if readable else None
    lines = [
        f"pairs    {plan.pairs} in the manifest · {plan.done} done · {plan.failed} failed and left alone"
        f" · {plan.left} to paint",
        *_batch_lines(batches, of_each, hardware.memory, pace),
    ]
    if of_each > 1:
        lines.append(f"         (judging by {len(jobs)} of them, drawn at random)")
    if pace:
        lines += _cost_lines(readable, of_each, hardware.memory, pace)
    return "\n".join(lines)


def _batch_lines(batches: Sequence[Batch], of_each: float, memory: float, pace: _Pace | None) -> list[str]:
    alike: dict[tuple[str, str], list[Batch]] = {}
    for batch in batches:
        size = f"{batch.size[0]}×{batch.size[1]}" if batch.size else "unreadable, will fail"
        alike.setdefault((size, _how(batch, memory, pace)), []).append(batch)
    pairs = {key: sum(len(batch.jobs) for batch in group) for key, group in alike.items()}
    lines = []
    for (size, how), _ in sorted(alike.items(), key=lambda item: -pairs[item[0]])[:MOST_SIZES]:
        number = round(pairs[size, how] * of_each)
        count = math.ceil(len(alike[size, how]) * of_each)
        lines.append(f"batches  {size}  {number} {'pair' if number == 1 else 'pairs'} in {count}{how}")
    if len(alike) > MOST_SIZES:
        lines.append(f"         and {len(alike) - MOST_SIZES} other sizes")
    return lines


def _how(batch: Batch, memory: float, pace: _Pace | None) -> str:
    """Whether a batch fits into so many bytes, how, and what it takes."""
    if batch.size is None or pace is None:
        return ""
    fitting = batch.fitting(memory, len(batch.jobs))
    if fitting is None:
        needed = least_memory(batch.recipe, batch.size, expected_dtype(batch.recipe))
        return f" · does not fit: {needed / 1e9:.1f} GB at the least"
    tiled = "fits" if math.isinf(fitting.tile) else f"tiled at {fitting.tile}"
    parts = [tiled, *fitting.notes(batch.recipe), f"{fitting.memory / 1e9:.1f} GB"]
    each = pace.seconds(batch, fitting) / len(batch.jobs)
    return f" · {', '.join(parts)}, about {timedelta(seconds=math.ceil(each))} each"


def _steps(batch: Batch) -> int:
    return len(batch.jobs) * sum(scale.steps for scale in scales(batch.recipe, min(batch.size or (1,))))


def _cost_lines(batches: Sequence[Batch], of_each: float, memory: float, pace: _Pace) -> list[str]:
    fitted = [(batch, fitting) for batch in batches if (fitting := batch.fitting(memory, len(batch.jobs)))]
    seconds = of_each * sum(pace.seconds(*each) for each in fitted) / min(pace.workers, max(1, len(fitted)))
    most = max((fitting.memory for _, fitting in fitted), default=0)
    pixels = sum(len(batch.jobs) * math.prod(batch.size or ()) for batch in batches)
    steps = sum(_steps(batch) for batch in batches)
    disk = of_each * (PICTURE_BYTES_A_PIXEL * pixels + LEDGER_BYTES_A_STEP * steps)
    return [
        f"time     about {timedelta(seconds=round(seconds))} on this machine's {pace.machine} ({pace.source})",
        f"memory   about {most / 1e9:.1f} GB a worker, of {memory / 1e9:.1f} GB",
        f"disk     about {disk / 1e6:.1f} MB" if disk < 1e9 else f"disk     about {disk / 1e9:.1f} GB",
    ]
