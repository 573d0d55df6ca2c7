"""What a run would take: batches by size, time, memory and disk. Rough, and said to be."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import torch

from batchnst.collection.manifest import Manifest
from batchnst.engine.plan import Batch, make_batches
from batchnst.engine.run import load_all_weights, plan_run
from batchnst.engine.speed import known_speed, measure_speed
from batchnst.ledger.store import Out
from batchnst.transfer.device import BYTES_A_PIXEL, PROCESS_BYTES, best_device, largest_batch, room
from batchnst.transfer.pyramid import scales

PICTURE_BYTES_A_PIXEL = 2.0
LEDGER_BYTES_A_STEP = 35
"""Disk: a painted PNG (measured, 256 pixels), and a step's row in `losses`."""

SAMPLE = 10_000
"""Pairs whose contents' headers are read; of more, the rest is taken to be alike."""

MOST_SIZES = 20
"""Working sizes that are listed, the most frequent ones."""


def describe(pairs: Manifest, out: str | None, *, retry_failed: bool) -> str:
    """Everything a run on this machine would decide, as text."""
    weights = load_all_weights(pairs)
    plan = plan_run(pairs, Out(out) if out else None, weights, retry_failed=retry_failed, limit=None)
    gpus = torch.cuda.device_count()
    workers = gpus or os.cpu_count() or 1
    jobs = plan.sample(SAMPLE)
    of_each = len(plan) / max(1, len(jobs))
    device = best_device()
    batches = make_batches(jobs, None, workers, largest_batch(device.type, room(device)))
    lines = [
        f"pairs    {plan.pairs} in the manifest · {plan.done} done · {plan.failed} failed and left alone"
        f" · {plan.left} to paint",
        *_batch_lines(batches, of_each),
    ]
    if of_each > 1:
        lines.append(f"         (judging by {len(jobs)} of them, drawn at random)")
    if any(batch.size for batch in batches):
        lines += _cost_lines(batches, of_each, workers, f"{workers} {'GPUs' if gpus else 'CPUs'}")
    return "\n".join(lines)


def _batch_lines(batches: Sequence[Batch], of_each: float) -> list[str]:
    by_size: Counter[tuple[int, int] | None] = Counter()
    pairs: Counter[tuple[int, int] | None] = Counter()
    for batch in batches:
        by_size[batch.size] += 1
        pairs[batch.size] += len(batch.jobs)
    lines = []
    for size, count in pairs.most_common(MOST_SIZES):
        name = f"{size[0]}×{size[1]}" if size else "unreadable, will fail"
        number = round(count * of_each)
        lines.append(
            f"batches  {name}  {number} {'pair' if number == 1 else 'pairs'} in {math.ceil(by_size[size] * of_each)}"
        )
    if len(pairs) > MOST_SIZES:
        lines.append(f"         and {len(pairs) - MOST_SIZES} other sizes")
    return lines


def _cost_lines(batches: Sequence[Batch], of_each: float, workers: int, machine: str) -> list[str]:
    readable = [batch for batch in batches if batch.size]
    recipe, device = readable[0].recipe, best_device()
    known = known_speed(recipe, device)
    # `bench` has measured all workers together.
    speed, source = (
        (known / workers, "as bench measured it") if known else (measure_speed(recipe), "from a short measurement")
    )
    seconds = of_each * sum(batch.work for batch in readable) / speed / min(workers, len(readable))
    pixels = [len(batch.jobs) * math.prod(batch.size or ()) for batch in readable]
    memory = PROCESS_BYTES + BYTES_A_PIXEL * max(pixels)
    too_much = max(pixels) > room(device)
    steps = sum(
        len(batch.jobs) * sum(s.steps for s in scales(batch.recipe, min(batch.size or (1,)))) for batch in readable
    )
    disk = of_each * (PICTURE_BYTES_A_PIXEL * sum(pixels) + LEDGER_BYTES_A_STEP * steps)
    return [
        f"time     about {timedelta(seconds=round(seconds))} on this machine's {machine} ({source})",
        f"memory   about {memory / 1e9:.1f} GB a worker" + (", more than this machine has" if too_much else ""),
        f"disk     about {disk / 1e6:.1f} MB" if disk < 1e9 else f"disk     about {disk / 1e9:.1f} GB",
    ]
