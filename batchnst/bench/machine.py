"""This machine's speed: its ceiling, a step and its parts, several workers, a whole run. All of it is measured."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Barrier

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from batchnst.bench.speed import Painting, remember_speed, seconds_a_call
from batchnst.engine.events import Finished
from batchnst.engine.run import Options, Planned, run
from batchnst.errors import EngineError
from batchnst.manifest.reading import read_manifest
from batchnst.painting.inputs import decode_options, load_picture
from batchnst.painting.tensors import to_tensors
from batchnst.progress import Work
from batchnst.recipe import Recipe
from batchnst.transfer.device import (
    best_device,
    device_name,
    free_memory,
    network_dtype,
    peak_memory_bytes,
    precision_name,
    synchronize,
    tune_process,
)
from batchnst.transfer.memory import largest_batch
from batchnst.transfer.pyramid import scales, work

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ceiling:
    """What the machine gives at best, in FLOP/s, in the network's precision."""

    matrix: float
    convolution: float


@dataclass(frozen=True)
class StepSpeed:
    """A step of a batch at one scale: seconds for each picture, FLOP/s, the most memory so far in bytes."""

    size: int
    batch: int
    seconds: float
    flops: float
    memory: int


@dataclass(frozen=True)
class Shares:
    """Where the time of a step goes; the three add up to 1."""

    convolutions: float
    grams: float
    rest: float


@dataclass(frozen=True)
class WorkersSpeed:
    """Several workers at once on this machine, each with so many threads (or a GPU of its own)."""

    workers: int
    threads: int
    pixel_steps: float  # a second, all together
    pairs_an_hour: float


@dataclass(frozen=True)
class RunSpeed:
    """A run in one process, from manifest to ledger; busy: the share of its time spent optimising."""

    pairs: int
    seconds: float
    pairs_an_hour: float
    busy: float


@dataclass(frozen=True)
class Bench:
    """All that was measured."""

    device: str
    precision: str
    threads: int
    torch: str
    ceiling: Ceiling
    steps: list[StepSpeed]
    shares: Shares
    workers: list[WorkersSpeed]
    run: RunSpeed


def measure(recipe: Recipe, say: Say) -> Bench:
    """Measure everything, saying each line as it is known; `plan` remembers the best workers' speed."""
    tune_process()
    device = best_device()
    dtype = network_dtype(recipe.precision, device)
    precision = precision_name(dtype)
    threads = torch.get_num_threads()
    say(f"machine    {device_name(device)} · {threads} CPU threads · {precision} · torch {version('torch')}")
    ceiling = measure_ceiling(device, dtype)
    say(f"ceiling    {_flops(ceiling.matrix)} matrix product · {_flops(ceiling.convolution)} convolution")
    steps = []
    for size in [scale.size for scale in scales(recipe, recipe.size * 3 // 4)]:
        for batch in _batches(device, recipe, size):
            steps.append(measure_step(recipe, device, size, batch))
            say(_step_line(steps[-1], ceiling))
    shares = measure_shares(recipe, device)
    say(
        f"a step     {shares.convolutions:.0%} convolutions · {shares.grams:.0%} Gram matrices"
        f" · {shares.rest:.0%} everything else"
    )
    workers = []
    for count, each in _crews(device):
        workers.append(measure_workers(recipe, count, each))
        threads_each = f" × {each} {'thread' if each == 1 else 'threads'}" if device.type == "cpu" else ""
        say(f"workers    {count}{threads_each}: {workers[-1].pairs_an_hour:.0f} pairs an hour")
    remember_speed(recipe, device, max(crew.pixel_steps for crew in workers))
    whole = measure_run(recipe)
    say(
        f"a run      {whole.pairs} pairs from manifest to ledger in one process: {whole.pairs_an_hour:.0f} pairs an"
        f" hour, {whole.busy:.0%} of the time optimising"
    )
    return Bench(device_name(device), precision, threads, version("torch"), ceiling, steps, shares, workers, whole)


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """A large matrix product and a large convolution of the kind that the network is made of."""
    side, channels, pixels = (8192, 256, 256) if device.type == "cuda" else (2048, 256, 64)
    matrix = torch.randn(side, side, device=device).to(dtype)
    maps = torch.randn(1, channels, pixels, pixels, device=device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    return Ceiling(
        matrix=2 * side**3 / seconds_a_call(lambda: matrix @ matrix, device),
        convolution=2 * 9 * channels**2 * pixels**2 / seconds_a_call(lambda: F.conv2d(maps, kernel, padding=1), device),
    )


def measure_step(recipe: Recipe, device: torch.device, size: int, batch: int) -> StepSpeed:
    """One step, optimiser and all, of a batch of 4:3 pictures whose longest side is `size`."""
    painting = Painting(recipe, device, size, batch)
    with FlopCounterMode(display=False) as counter:
        painting.step()
    seconds = seconds_a_call(painting.step, device)
    memory = peak_memory_bytes(device)
    return StepSpeed(size, batch, seconds / batch, counter.get_total_flops() / seconds, memory)


def measure_shares(recipe: Recipe, device: torch.device, steps: int = 10) -> Shares:
    """The profile of a few steps at the recipe's size, by what each operation is for."""
    painting = Painting(recipe, device, recipe.size, _batches(device, recipe, recipe.size)[-1])
    for _ in range(steps):
        painting.step()  # until memory has settled
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            painting.step()
        synchronize(device)
    seconds = {"convolutions": 0.0, "grams": 0.0, "rest": 0.0}
    on_gpu = device.type == "cuda"
    for event in profiler.events() or []:
        seconds[_purpose(event)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(seconds.values())
    return Shares(**{purpose: part / total for purpose, part in seconds.items()})


def _purpose(event: FunctionEvent) -> str:
    """What an operation is for: the optimiser's own products are no Gram matrices."""
    if "convolution" in event.name:
        return "convolutions"
    above: FunctionEvent | None = event
    while above is not None and above.name != "optimizer":
        above = above.cpu_parent
    return "grams" if above is None and event.name in ("aten::bmm", "aten::baddbmm_") else "rest"


def measure_workers(recipe: Recipe, workers: int, threads: int) -> WorkersSpeed:
    """So many processes at once, each painting batches of the recipe's size without files or ledger."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    with ProcessPoolExecutor(workers, context, _start_worker, (barrier,)) as pool:
        speeds = pool.map(_worker_speed, *zip(*[(recipe, i, threads) for i in range(workers)], strict=True))
        pixel_steps = sum(speeds)
    pair = work(recipe, recipe.size, recipe.size * 3 // 4)
    return WorkersSpeed(workers, threads, pixel_steps, 3600 * pixel_steps / pair)


def _start_worker(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


_barrier: Barrier
"""Where the processes of `measure_workers` wait for one another."""


def _worker_speed(recipe: Recipe, number: int, threads: int) -> float:
    """Pixel-steps a second of this process while the others work too."""
    torch.set_num_threads(threads)
    tune_process()
    device = best_device()
    if device.type == "cuda":
        torch.cuda.set_device(number)
    batch = _batches(device, recipe, recipe.size)[-1]
    painting = Painting(recipe, device, recipe.size, batch)
    painting.step()
    _barrier.wait()
    return batch * painting.pixels / seconds_a_call(painting.step, device)


def measure_run(recipe: Recipe, pairs: int = 2) -> RunSpeed:
    """Two pairs, one after the other, from files to files; what starting takes is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        content, style = made_pictures(recipe.size)
        content.save(Path(folder, "content.png"))
        style.save(Path(folder, "style.png"))
        rows = "".join(f"content.png,style.png,pair-{i}\n" for i in range(pairs))
        Path(folder, "manifest.csv").write_text("content,style,id\n" + rows)
        manifest = read_manifest(str(Path(folder, "manifest.csv")), recipe.model_dump())
        started, busy = 0.0, 0.0
        for event in run(manifest, Options(out=str(Path(folder, "out")), engine="inline", batch_size=1)):
            if isinstance(event, Planned):
                started = time.perf_counter()
            elif isinstance(event, Work):
                busy += event.seconds
            elif isinstance(event, Finished) and event.error:
                raise EngineError(f"bench: a pair of its run failed: {event.error}")
        seconds = time.perf_counter() - started
    return RunSpeed(pairs, seconds, 3600 * pairs / seconds, busy / seconds)


def load_pair(paths: Sequence[str], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Content and style at the recipe's size, (1, 3, h, w), RGB, 0..255: those given, or made-up ones."""
    pair = [load_picture(path, decode_options(recipe)).pixels for path in paths]
    content, style = pair or (np.asarray(picture) for picture in made_pictures(recipe.size))
    cpu = torch.device("cpu")
    return to_tensors([content], cpu), to_tensors([style], cpu)


def made_pictures(size: int) -> tuple[Image.Image, Image.Image]:
    """A landscape and a marbled paper, 4:3, to measure with where no pictures are given; the same every time."""
    height, width = size * 3 // 4, size
    random = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width] / width
    landscape = np.stack([0.5 + 0.3 * y, 0.65 + 0.2 * y, 0.95 - 0.1 * y], 2) + 0.1 * _noise(random, height, width, 1.8)
    for distance in range(4):
        ridge = 0.2 + 0.13 * distance + 0.06 * np.sin(x * (5 + 3 * distance) + random.uniform(0, 6))
        shade = np.array([0.3, 0.45, 0.35]) * (1 - 0.2 * distance) + 0.15 * _noise(random, height, width, 1.0)
        landscape = np.where((y > ridge)[..., None], shade, landscape)
    field = _noise(random, height, width, 2.0)
    bands = 0.5 + 0.5 * np.sin(5 * field + np.array([0.0, 0.9, 2.2]))
    marble = bands + 0.05 * _noise(random, height, width, 0.5)
    first, second = ((255 * picture.clip(0, 1)).astype(np.uint8) for picture in (landscape, marble))
    return Image.fromarray(first), Image.fromarray(second)


def _noise(random: np.random.Generator, height: int, width: int, falloff: float) -> NDArray[np.float64]:
    """Noise whose amplitude falls with the frequency to that power, as in photographs; (H, W, 1), deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).clip(1 / width)
    noise = np.fft.irfft2(np.fft.rfft2(random.normal(size=(height, width))) / frequency**falloff, s=(height, width))
    even: NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return even[..., None]


def _batches(device: torch.device, recipe: Recipe, size: int) -> list[int]:
    """The batch sizes to measure, the last one what `auto` takes at that size."""
    dtype = network_dtype(recipe.precision, device)
    most = max(1, largest_batch(free_memory(device), recipe, device.type, dtype) // (size * (size * 3 // 4)))
    return sorted({1, max(1, most // 4), most}) if device.type == "cuda" else sorted({1, min(4, most)})


def _crews(device: torch.device) -> list[tuple[int, int]]:
    """The numbers of workers and of each one's threads to compare."""
    if device.type == "cuda":
        return [(torch.cuda.device_count(), 1)]
    cpus = os.cpu_count() or 1
    return sorted({(cpus, 1), (1, cpus)})


def _step_line(step: StepSpeed, ceiling: Ceiling) -> str:
    share = step.flops / ceiling.matrix
    return (
        f"{step.size:4} pixels, batch {step.batch:2}   {1e3 * step.seconds:7.1f} ms a step and picture"
        f" · {_flops(step.flops)}, {share:.0%} of the matrix product · {step.memory / 1e9:.1f} GB"
    )


def _flops(flops: float) -> str:
    return f"{flops / 1e12:.1f} TFLOP/s" if flops > 1e13 else f"{flops / 1e9:.0f} GFLOP/s"
