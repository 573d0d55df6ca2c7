"""Measure this machine: its peak speed, a step and its parts, several workers, a whole run."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, conv_flop_count

from batchnst.bench.speed import NoisePainting, remember_speed, seconds_per_call
from batchnst.engine.events import Finished
from batchnst.engine.run import Options, Planned, run
from batchnst.errors import EngineError, RequestError
from batchnst.manifest.reading import read_manifest
from batchnst.painting.inputs import check_size, decode_options, load_picture
from batchnst.painting.tensors import to_tensor
from batchnst.pictures.decode import Pixels
from batchnst.progress import Work
from batchnst.recipe import ORIGINAL, Recipe
from batchnst.transfer.device import (
    best_device,
    device_name,
    free_memory,
    gpu_count,
    network_dtype,
    peak_memory_bytes,
    precision_name,
    synchronize,
    tune_process,
    usable_cpus,
)
from batchnst.transfer.graph import EAGER_CALLS
from batchnst.transfer.memory import largest_batch
from batchnst.transfer.pyramid import scales, work

Figures = dict[str, float]
"""Measured figures by name."""


@dataclass(frozen=True)
class StepSpeed:
    """One step of a batch at one scale: seconds for each picture, FLOP/s, and peak memory so far in bytes."""

    size: int
    batch: int
    seconds: float
    flops: float
    memory: int


@dataclass(frozen=True)
class WorkersSpeed:
    """Several workers at once on this machine, each with `threads` threads, or with its own GPU."""

    workers: int
    threads: int
    pixel_steps: float  # a second, of all workers together
    pairs_an_hour: float


@dataclass(frozen=True)
class Bench:
    """All measurements, with the names in bench.json.

    `ceiling` is what `measure_ceiling` returns, `shares` what `measure_shares` and `run` what `measure_run` returns.
    """

    device: str
    precision: str
    threads: int
    torch: str
    ceiling: Figures
    steps: list[StepSpeed]
    shares: Figures
    workers: list[WorkersSpeed]
    run: Figures


def measure(recipe: Recipe, print_line: Callable[[str], None]) -> Bench:
    """Measure everything and print each result when it is known; the fastest workers' speed is stored for `plan`."""
    tune_process()
    device = best_device()
    dtype = network_dtype(recipe.precision, device)
    precision = precision_name(dtype)
    threads = torch.get_num_threads()
    print_line(f"machine    {device_name(device)} · {threads} CPU threads · {precision} · torch {version('torch')}")
    ceiling = measure_ceiling(device, dtype)
    print_line(f"ceiling    {_flops(ceiling['matrix'])} matrix product · {_flops(ceiling['convolution'])} convolution")
    steps = []
    for size in [scale.size for scale in scales(recipe, recipe.pixels, recipe.pixels * 3 // 4)]:
        for batch in batches(device, recipe, size):
            steps.append(measure_step(recipe, device, size, batch))
            print_line(_step_line(steps[-1], ceiling["matrix"]))
    shares = measure_shares(recipe, device)
    print_line(
        f"a step     {shares['convolutions']:.0%} convolutions · {shares['grams']:.0%} Gram matrices"
        f" · {shares['rest']:.0%} everything else"
    )
    workers = []
    for count, worker_threads in _worker_counts(device):
        workers.append(measure_workers(recipe, count, worker_threads))
        each = f" × {worker_threads} {'thread' if worker_threads == 1 else 'threads'}" if device.type == "cpu" else ""
        print_line(f"workers    {count}{each}: {workers[-1].pairs_an_hour:.0f} pairs an hour")
    remember_speed(recipe, device, max(speed.pixel_steps for speed in workers))
    whole_run = measure_run(recipe)
    print_line(
        f"a run      {whole_run['pairs']} pairs from manifest to ledger in one process:"
        f" {whole_run['pairs_an_hour']:.0f} pairs an hour, {whole_run['busy']:.0%} of the time optimising"
    )
    return Bench(device_name(device), precision, threads, version("torch"), ceiling, steps, shares, workers, whole_run)


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Figures:
    """FLOP/s of a large `matrix` product and of a large `convolution` like those of the network."""
    side, channels, pixels = (8192, 256, 256) if device.type == "cuda" else (2048, 256, 64)
    matrix = torch.randn(side, side, device=device).to(dtype)
    maps = torch.randn(1, channels, pixels, pixels, device=device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    convolution_seconds = seconds_per_call(lambda: F.conv2d(maps, kernel, padding=1), device)
    return {
        "matrix": 2 * side**3 / seconds_per_call(lambda: matrix @ matrix, device),
        "convolution": 2 * 9 * channels**2 * pixels**2 / convolution_seconds,
    }


def measure_step(recipe: Recipe, device: torch.device, size: int, batch: int) -> StepSpeed:
    """Measure one step, with the optimiser, of `batch` pictures in the ratio 4:3 whose longest side is `size`."""
    painting = NoisePainting(recipe, device, size, batch)
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        painting.step()
    seconds = seconds_per_call(painting.step, device)
    memory = peak_memory_bytes(device)
    return StepSpeed(size, batch, seconds / batch, counter.get_total_flops() / seconds, memory)


def _convolution_flops(x_shape: list[int], w_shape: list[int], *_: object, out_shape: list[int], **__: object) -> int:
    """FLOPs of a convolution with bias and ReLU in one kernel."""
    return conv_flop_count(x_shape, w_shape, out_shape)


def _product_flops(_: list[int], a_shape: list[int], b_shape: list[int], **__: object) -> int:
    """FLOPs of a batch of matrix products that is added in place."""
    flops: int = bmm_flop(a_shape, b_shape)
    return flops


_FORMULAS: dict[Any, Any] = {
    torch.ops.mkldnn._convolution_pointwise: _convolution_flops,
    torch.ops.aten.cudnn_convolution_relu: _convolution_flops,
    torch.ops.aten.baddbmm_: _product_flops,
}
"""Formulas for operations of the network that torch's counter does not know."""


def measure_shares(recipe: Recipe, device: torch.device, steps: int = 10) -> Figures:
    """Profile some steps at the recipe's size; returns the shares of time in `convolutions`, `grams` and `rest`.

    The shares sum to 1.
    """
    painting = NoisePainting(recipe, device, recipe.pixels, batches(device, recipe, recipe.pixels)[-1])
    if device.type == "cuda":
        steps = EAGER_CALLS - 1  # a step that is recorded as a graph is one operation to the profiler
    else:
        for _ in range(steps):
            painting.step()  # until memory use is stable
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            painting.step()
        synchronize(device)
    seconds = {"convolutions": 0.0, "grams": 0.0, "rest": 0.0}
    on_gpu = device.type == "cuda"
    for event in profiler.events() or []:
        if event.device_type == DeviceType.CPU:  # a kernel's time counts in the operation that has started it
            seconds[_purpose(event)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(seconds.values())
    return {purpose: part / total for purpose, part in seconds.items()}


def _purpose(event: FunctionEvent) -> str:
    """The share that an operation counts in. Matrix products of the optimiser are no Gram matrices."""
    if "convolution" in event.name:
        return "convolutions"
    above: FunctionEvent | None = event
    while above is not None and above.name != "optimizer":
        above = above.cpu_parent
    return "grams" if above is None and event.name in ("aten::bmm", "aten::baddbmm_") else "rest"


def measure_workers(recipe: Recipe, workers: int, threads: int) -> WorkersSpeed:
    """Measure `workers` processes at once, which paint batches of the recipe's size without files or ledger."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    with ProcessPoolExecutor(workers, context, _start_worker, (barrier,)) as pool:
        speeds = pool.map(_worker_speed, *zip(*[(recipe, i, threads) for i in range(workers)], strict=True))
        pixel_steps = sum(speeds)
    pair = work(recipe, recipe.pixels, recipe.pixels * 3 // 4)
    return WorkersSpeed(workers, threads, pixel_steps, 3600 * pixel_steps / pair)


def _start_worker(barrier: Barrier) -> None:
    """Give this process the barrier that all of them share."""
    global _barrier
    _barrier = barrier


_barrier: Barrier
"""Barrier at which the processes of `measure_workers` wait for one another."""


def _worker_speed(recipe: Recipe, number: int, threads: int) -> float:
    """Measure the pixel-steps a second of this process, number `number`, while the others work too."""
    torch.set_num_threads(threads)
    tune_process()
    device = best_device()
    if device.type == "cuda":
        torch.cuda.set_device(number)
    batch = batches(device, recipe, recipe.pixels)[-1]
    painting = NoisePainting(recipe, device, recipe.pixels, batch)
    painting.step()
    _barrier.wait()
    return batch * painting.pixels / seconds_per_call(painting.step, device)


def measure_run(recipe: Recipe, pairs: int = 2) -> Figures:
    """Measure a run in one process, one pair after another, from files to ledger, without its start.

    Returns `pairs`, `seconds`, `pairs_an_hour` and `busy`, the share of the time that is spent optimising. Raises
    EngineError if a pair fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        content, style = generate_pictures(recipe.pixels)
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
                raise EngineError(f"bench: a pair of the measured run failed: {event.error}")
        seconds = time.perf_counter() - started
    return {"pairs": pairs, "seconds": seconds, "pairs_an_hour": 3600 * pairs / seconds, "busy": busy / seconds}


def load_pair(paths: Sequence[str], recipe: Recipe) -> tuple[Tensor, Tensor, Recipe]:
    """Content and style, (1, 3, h, w) each, RGB, 0..255, and the recipe with their size as a number.

    The pictures at `paths`, a content and a style, or none: then they are generated. The style gets the longest side of
    the content. Raises RequestError if there are none and the recipe's size is theirs, InputError if one is unusable.
    """
    if paths:
        content = _load(paths[0], recipe)
        recipe = recipe.for_picture(content.shape[1], content.shape[0])
        style = _load(paths[1], recipe)
    else:
        check_size_is_known(recipe)
        content, style = (np.asarray(picture) for picture in generate_pictures(recipe.pixels))
    cpu = torch.device("cpu")
    return to_tensor(content, cpu), to_tensor(style, cpu), recipe


def _load(path: str, recipe: Recipe) -> Pixels:
    """The picture (h, w, 3) at `path`, at the recipe's size; raises InputError."""
    pixels = load_picture(path, decode_options(recipe)).pixels
    check_size(pixels, path, recipe)
    return pixels


def check_size_is_known(recipe: Recipe) -> None:
    """Raise RequestError if there must be a picture to know the recipe's size."""
    if recipe.size == ORIGINAL:
        raise RequestError(f"size = {ORIGINAL}: there is no picture to take it from; expected --size PIXELS")


def generate_pictures(size: int) -> tuple[Image.Image, Image.Image]:
    """Generate a landscape and a marbled paper, `size` pixels wide, in the ratio 4:3; the same every time."""
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
    """Noise (H, W, 1) with mean 0 and standard deviation 1.

    Its amplitude falls with the frequency to the power of `falloff`, as in photographs.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).clip(1 / width)
    noise = np.fft.irfft2(np.fft.rfft2(random.normal(size=(height, width))) / frequency**falloff, s=(height, width))
    normalised: NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return normalised[..., None]


def batches(device: torch.device, recipe: Recipe, size: int) -> list[int]:
    """The batch sizes to measure at `size`; the last is the one that a run chooses."""
    dtype = network_dtype(recipe.precision, device)
    most = max(1, largest_batch(free_memory(device), recipe, device.type, dtype) // (size * (size * 3 // 4)))
    return sorted({1, max(1, most // 4), most}) if device.type != "cpu" else sorted({1, min(4, most)})


def _worker_counts(device: torch.device) -> list[tuple[int, int]]:
    """Pairs (number of workers, threads of each) to compare."""
    if device.type != "cpu":
        return [(gpu_count(), 1)]
    cpus = usable_cpus()
    return sorted({(cpus, 1), (1, cpus)})


def _step_line(step: StepSpeed, matrix_flops: float) -> str:
    """The speed of a step as text; `matrix_flops` are the FLOP/s of a matrix product."""
    share = step.flops / matrix_flops
    return (
        f"{step.size:4} pixels, batch {step.batch:2}   {1e3 * step.seconds:7.1f} ms a step and picture"
        f" · {_flops(step.flops)}, {share:.0%} of the matrix product · {step.memory / 1e9:.1f} GB"
    )


def _flops(flops: float) -> str:
    """FLOP/s as text."""
    return f"{flops / 1e12:.1f} TFLOP/s" if flops > 1e13 else f"{flops / 1e9:.0f} GFLOP/s"
