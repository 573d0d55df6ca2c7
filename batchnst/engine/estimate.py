"""What a run would take: batches by size, time, memory and disk. Rough, and said to be."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import torch

from batchnst.collection.manifest import Pair
from batchnst.engine.plan import Batch, make_batches, make_plan
from batchnst.engine.run import LARGEST_BATCH, load_all_weights
from batchnst.engine.worker import load_backbone
from batchnst.ledger.store import Out
from batchnst.recipe import Recipe
from batchnst.transfer.pyramid import scales
from batchnst.transfer.stylize import Guide, stylize
from batchnst.transfer.weights import load_weights

PROCESS_BYTES = 800e6
BYTES_A_PIXEL = 3500
"""Memory of a worker: by itself, and for each pixel of its batch (measured on a CPU at 256 and 512 pixels, bf16)."""

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
    batches = make_batches(plan.jobs, None, workers, LARGEST_BATCH["gpu" if gpus else "cpu"])
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
    speed = measure_speed(readable[0].recipe)
    seconds = sum(batch.work for batch in readable) / speed / min(workers, len(readable))
    pixels = [len(batch.jobs) * math.prod(batch.size or ()) for batch in readable]
    memory = PROCESS_BYTES + BYTES_A_PIXEL * max(pixels)
    steps = sum(
        len(batch.jobs) * sum(s.steps for s in scales(batch.recipe, min(batch.size or (1,)))) for batch in readable
    )
    disk = PICTURE_BYTES_A_PIXEL * sum(pixels) + LEDGER_BYTES_A_STEP * steps
    return [
        f"time     about {timedelta(seconds=round(seconds))} on this machine's {machine} (from a short measurement)",
        f"memory   about {memory / 1e9:.1f} GB a worker",
        f"disk     about {disk / 1e6:.1f} MB",
    ]


def measure_speed(recipe: Recipe, steps: int = 4) -> float:
    """Pixel-steps a second of one worker on this machine, from a few steps of a small picture of noise."""
    size = 256
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe.model_copy(update={"size": size, "min_size": size, "steps": steps, "init": "content"})
    weights = load_weights(*recipe.network)
    noise = torch.rand(1, 3, size, size, device=device) * 255
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        painting = stylize(
            noise, [[Guide((noise.flip(3),), (1.0,))]], recipe, lambda own: load_backbone(own, weights, device)
        )
        next(painting).losses.total.item()  # warms up
        start = time.perf_counter()
        for step in painting:
            step.losses.total.item()
    finally:
        torch.set_num_threads(threads)
    return (steps - 1) * size * size / (time.perf_counter() - start)
