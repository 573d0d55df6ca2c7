"""What a run would take: batches by size, time, memory and disk. Rough, and said to be."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import torch

from batchnst.collection.manifest import Pair
from batchnst.engine.plan import Batch, make_batches, make_plan
from batchnst.engine.run import load_all_weights
from batchnst.engine.speed import known_speed, measure_speed
from batchnst.ledger.store import Out
from batchnst.transfer.device import BYTES_A_PIXEL, best_device, largest_batch
from batchnst.transfer.pyramid import scales

PROCESS_BYTES = 800e6
"""Memory of a worker before it paints."""

PICTURE_BYTES_A_PIXEL = 2.0
LEDGER_BYTES_A_STEP = 60
"""Disk: a painted PNG (measured, 256 pixels), and a step's row in `losses`."""


def describe(pairs: Sequence[Pair], out: str | None, *, retry_failed: bool) -> str:
    """Everything a run on this machine would decide, as text."""
    weights = load_all_weights(pairs)
    outcomes = Out(out).newest() if out else {}
    hashes = {network: own.sha256 for network, own in weights.items()}
    plan = make_plan(pairs, outcomes, hashes, retry_failed=retry_failed)
    gpus = torch.cuda.device_count()
    workers = gpus or os.cpu_count() or 1
    batches = make_batches(plan.jobs, None, workers, largest_batch(best_device()))
    lines = [
        f"pairs    {plan.pairs} in the manifest · {plan.done} done · {plan.failed} failed and left alone"
        f" · {plan.left} to paint",
        *_batch_lines(batches),
    ]
    if any(batch.size for batch in batches):
        lines += _cost_lines(batches, workers, f"{workers} {'GPUs' if gpus else 'CPUs'}")
    return "\n".join(lines)


def _batch_lines(batches: Sequence[Batch]) -> list[str]:
    by_size: Counter[tuple[int, int] | None] = Counter()
    pairs: Counter[tuple[int, int] | None] = Counter()
    for batch in batches:
        by_size[batch.size] += 1
        pairs[batch.size] += len(batch.jobs)
    names = {size: f"{size[0]}×{size[1]}" if size else "unreadable, will fail" for size in by_size}
    return [
        f"batches  {names[size]}  {pairs[size]} {'pair' if pairs[size] == 1 else 'pairs'} in {by_size[size]}"
        for size in by_size
    ]


def _cost_lines(batches: Sequence[Batch], workers: int, machine: str) -> list[str]:
    readable = [batch for batch in batches if batch.size]
    recipe, device = readable[0].recipe, best_device()
    known = known_speed(recipe, device)
    # `bench` has measured all workers together.
    speed, source = (
        (known / workers, "as bench measured it") if known else (measure_speed(recipe), "from a short measurement")
    )
    seconds = sum(batch.work for batch in readable) / speed / min(workers, len(readable))
    pixels = [len(batch.jobs) * math.prod(batch.size or ()) for batch in readable]
    memory = PROCESS_BYTES + BYTES_A_PIXEL * max(pixels)
    steps = sum(
        len(batch.jobs) * sum(s.steps for s in scales(batch.recipe, min(batch.size or (1,)))) for batch in readable
    )
    disk = PICTURE_BYTES_A_PIXEL * sum(pixels) + LEDGER_BYTES_A_STEP * steps
    return [
        f"time     about {timedelta(seconds=round(seconds))} on this machine's {machine} ({source})",
        f"memory   about {memory / 1e9:.1f} GB a worker",
        f"disk     about {disk / 1e6:.1f} MB",
    ]
