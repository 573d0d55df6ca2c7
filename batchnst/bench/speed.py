"""The speed of this machine: measure it, or look up what `bench` measured."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer.device import (
    best_device,
    device_name,
    gpu_count,
    network_dtype,
    synchronize,
    tune_process,
    usable_cpus,
)
from batchnst.transfer.graph import EAGER_CALLS
from batchnst.transfer.stylize import Guide, stylize

SIZE = 256
"""Width of the picture that a short measurement paints, in pixels."""

ROUNDS = 3
"""Rounds of each measurement; the result is their median."""

ROUND_SECONDS = 1.0
"""Duration of a round, in seconds."""


class NoisePainting:
    """Paints noise at one scale without end, one step at a time."""

    def __init__(self, recipe: Recipe, device: torch.device, size: int, batch: int) -> None:
        """Start with `batch` pictures in the ratio 4:3, `size` pixels wide. `pixels` is the area of one."""
        changes = {"size": size, "min_size": size, "steps": 1_000_000, "tolerance": 0, "init": "content"}
        recipe = recipe.model_copy(update=changes)
        weights = load_weights(*recipe.network)
        self.pixels = size * (size * 3 // 4)
        contents = torch.rand(batch, 3, size * 3 // 4, size, device=device) * 255
        guides: list[list[Guide]] = [[Guide((255 - contents[:1],), (1.0,))]] * batch
        network = partial(load_backbone, weights=weights, device=device)
        self._painting = stylize(list(contents[:, None]), guides, recipe, network)
        self.step()

    def step(self) -> None:
        """Take one step of every picture."""
        next(self._painting)


def seconds_per_call(function: Callable[[], Tensor | None], device: torch.device) -> float:
    """Seconds for each of many successive calls of `function`: the median of ROUNDS."""
    for _ in range(EAGER_CALLS + 2 if device.type == "cuda" else 1):  # a step is recorded as a graph first
        function()
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    count = max(1, round(ROUND_SECONDS / (time.perf_counter() - start)))
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            function()
        synchronize(device)
        rounds.append((time.perf_counter() - start) / count)
    return statistics.median(rounds)


def measure_speed(recipe: Recipe) -> float:
    """Measure the pixel-steps a second of one worker with one thread, in a few steps at SIZE pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tune_process()
    try:
        painting = NoisePainting(recipe, best_device(), SIZE, 1)
        return painting.pixels / seconds_per_call(painting.step, best_device())
    finally:
        torch.set_num_threads(threads)


def known_speed(recipe: Recipe, device: torch.device) -> float | None:
    """Pixel-steps a second of all workers of this machine together, from `bench`; None if it did not measure them."""
    speed: float | None = _speeds().get(_speed_key(recipe, device))
    return speed


def remember_speed(recipe: Recipe, device: torch.device, speed: float) -> None:
    """Store the pixel-steps a second that `bench` measured, for `known_speed`."""
    path = _speeds_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_speeds() | {_speed_key(recipe, device): speed}, indent=1))


def _speeds() -> dict[str, float]:
    """All stored speeds; none if the file is missing or damaged."""
    try:
        speeds: dict[str, float] = json.loads(_speeds_path().read_text())
    except (OSError, ValueError):
        return {}
    return speeds


def _speeds_path() -> Path:
    return user_cache_path("batchnst") / "speeds.json"


def _speed_key(recipe: Recipe, device: torch.device) -> str:
    """Everything that a speed depends on: the machine, and the recipe keys that change the cost of a pixel-step."""
    count = gpu_count() or usable_cpus()
    machine = [device_name(device), count, version("torch"), str(network_dtype(recipe.precision, device))]
    return json.dumps([*machine, recipe.backbone, recipe.pooling, recipe.layers, recipe.optimizer])
