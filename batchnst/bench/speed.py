"""How fast this machine paints: measured now, or remembered from `bench`."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer.device import best_device, device_name, network_dtype, synchronize, tune_process
from batchnst.transfer.stylize import Guide, stylize

ROUNDS = 3
"""Every figure is the median of so many rounds."""

ROUND_SECONDS = 1.0


class Painting:
    """A painting of noise at one scale that can be made to go on a step at a time."""

    def __init__(self, recipe: Recipe, device: torch.device, size: int, batch: int) -> None:
        changes = {"size": size, "min_size": size, "steps": 1_000_000, "tolerance": 0, "init": "content"}
        recipe = recipe.model_copy(update=changes)
        weights = load_weights(*recipe.network)
        self.pixels = size * (size * 3 // 4)
        contents = torch.rand(batch, 3, size * 3 // 4, size, device=device) * 255
        guides: list[list[Guide]] = [[Guide((255 - contents[:1],), (1.0,))]] * batch
        self._painting = stylize(contents, guides, recipe, lambda own: load_backbone(own, weights, device))
        self.step()

    def step(self) -> None:
        """One step of every picture."""
        next(self._painting)


def seconds_a_call(function: Callable[[], Tensor | None], device: torch.device) -> float:
    """Seconds of one call, when many follow one another: the median of some rounds."""
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
    """Pixel-steps a second of one worker on this machine, from a few steps of a small picture."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tune_process()
    try:
        painting = Painting(recipe, best_device(), 256, 1)
        return painting.pixels / seconds_a_call(painting.step, best_device())
    finally:
        torch.set_num_threads(threads)


def known_speed(recipe: Recipe, device: torch.device) -> float | None:
    """Pixel-steps a second of all workers of this machine, as `bench` has measured them; None if it has not."""
    speed: float | None = _speeds().get(_speed_key(recipe, device))
    return speed


def remember_speed(recipe: Recipe, device: torch.device, speed: float) -> None:
    """Keep what `bench` has measured, for `known_speed`."""
    path = _speeds_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_speeds() | {_speed_key(recipe, device): speed}, indent=1))


def _speeds() -> dict[str, float]:
    try:
        speeds: dict[str, float] = json.loads(_speeds_path().read_text())
    except (OSError, ValueError):
        return {}
    return speeds


def _speeds_path() -> Path:
    return user_cache_path("batchnst") / "speeds.json"


def _speed_key(recipe: Recipe, device: torch.device) -> str:
    """What a speed depends on: the machine, and all of a recipe that decides what a pixel-step costs."""
    count = torch.cuda.device_count() or os.cpu_count()
    machine = [device_name(device), count, version("torch"), str(network_dtype(recipe.precision, device))]
    return json.dumps([*machine, recipe.backbone, recipe.pooling, recipe.layers, recipe.optimizer])
