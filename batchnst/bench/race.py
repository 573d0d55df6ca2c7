"""Race the recipe against the textbook loop: same pair, same machine, time to the same loss."""

from __future__ import annotations

import io
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from batchnst.bench.textbook import LOSS_SCALES, STEPS, Moment, Textbook
from batchnst.errors import RequestError
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.progress import Progress
from batchnst.recipe import Recipe
from batchnst.transfer.device import best_device, free_memory, network_dtype, synchronize, tune_process
from batchnst.transfer.memory import largest_batch
from batchnst.transfer.stylize import Guide, stylize
from batchnst.transfer.weights import Weights

REPEATS = 3
"""Runs of the recipe, of which the median counts. The textbook runs once: it takes minutes and varies little."""


@dataclass(frozen=True)
class Race:
    """Two curves of loss against seconds for one pair, and their comparison. Losses are those of clamped pictures.

    `batch` is the number of pictures that the recipe painted at once; its seconds are those of one picture.
    `seconds_to_equal` is the time after which the recipe is below the textbook's final loss, None if it never is.
    `ratio` is the textbook's time divided by that. `loss_ratio` and `content_ratio` compare the final losses, the
    recipe's divided by the textbook's. The recipe's curve has no losses of coarser scales, but its time includes them.
    """

    batch: int
    textbook: list[Moment]
    recipe: list[Moment]
    seconds_to_equal: float | None
    ratio: float | None
    loss_ratio: float
    content_ratio: float


def race(content: Tensor, style: Tensor, recipe: Recipe, progress: Progress) -> Race:
    """Run the textbook and the recipe on `content` and `style`, (1, 3, h, w) each, RGB, 0..255, at the recipe's size.

    On a GPU the recipe paints as many pictures at once as a run would. Raises RequestError if the recipe's loss
    is not the textbook's.
    """
    if recipe.loss not in LOSS_SCALES or recipe.preserve_color != "none" or recipe.octaves:
        expected = f"loss = {' or '.join(LOSS_SCALES)}, preserve_color = none and octaves = false"
        raise RequestError(f"--against textbook: expected {expected}")
    tune_process()
    device = best_device()
    weights = load_weights(*recipe.network)
    content, style = content.to(device), style.to(device)
    batch = _batch_size(recipe, device, content[0, 0].numel())
    textbook = _run_textbook(content, style, recipe, weights, progress)
    contents = [content] * batch
    _run_recipe(contents, style, recipe.model_copy(update={"steps": 2}), weights)  # warms up
    runs = [_run_recipe(contents, style, recipe, weights) for _ in range(REPEATS)]
    return _compare(batch, textbook, runs)


def _batch_size(recipe: Recipe, device: torch.device, pixels: int) -> int:
    """Number of pictures of `pixels` that a run would paint at once; 1 on a CPU."""
    if device.type == "cpu":
        return 1
    dtype = network_dtype(recipe.precision, device)
    return max(1, largest_batch(free_memory(device), recipe, device.type, dtype) // pixels)


def _run_textbook(content: Tensor, style: Tensor, recipe: Recipe, weights: Weights, progress: Progress) -> list[Moment]:
    def report(moment: Moment) -> None:
        progress(f"textbook: step {moment.step}, loss {moment.total:.4g}", moment.step, STEPS)

    shortened = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True  # torch's default, with which people run the loop
    try:
        return Textbook(content, style, recipe, weights).run(STEPS, report)
    finally:
        torch.backends.cudnn.allow_tf32 = shortened


def _run_recipe(contents: Sequence[Tensor], style: Tensor, recipe: Recipe, weights: Weights) -> list[Moment]:
    """Paint `contents` (1, 3, h, w), all the same; returns the best loss of the first after each step at full size."""
    batch, device = len(contents), style.device
    guides: list[list[Guide]] = [[Guide((style,), (1.0,))]] * batch
    curve, best, content_loss = [], float("inf"), 0.0
    synchronize(device)
    start = time.perf_counter()
    for step in stylize(contents, guides, recipe, lambda recipe: load_backbone(recipe, weights, device)):
        if step.scale == recipe.pixels:
            total = step.losses.total[0].item()
            if total < best:
                best, content_loss = total, step.losses.content[0].item()
            curve.append(Moment(step.index + 1, (time.perf_counter() - start) / batch, best, content_loss))
    return curve


def _compare(batch: int, textbook: list[Moment], runs: list[list[Moment]]) -> Race:
    """Compare the textbook with the median of the recipe's runs."""
    end = textbook[-1]
    times = [next((moment.seconds for moment in run if moment.total <= end.total), math.inf) for run in runs]
    seconds = statistics.median(times)
    curve = sorted(runs, key=lambda run: run[-1].seconds)[len(runs) // 2]
    return Race(
        batch=batch,
        textbook=textbook,
        recipe=curve,
        seconds_to_equal=seconds if math.isfinite(seconds) else None,
        ratio=end.seconds / seconds if math.isfinite(seconds) else None,
        loss_ratio=curve[-1].total / end.total,
        content_ratio=curve[-1].content / end.content,
    )


def describe(race: Race) -> list[str]:
    """The result of `race` as lines of text."""
    reached = f"{race.seconds_to_equal:.1f} s, {race.ratio:.1f} times as fast" if race.ratio else "not with this recipe"
    together = f", {race.batch} pairs at once, seconds for each" if race.batch > 1 else ""
    return [
        f"textbook   {_end(race.textbook)}",
        f"batchnst   {_end(race.recipe)} (median of {REPEATS}{together})",
        f"ratio      final loss {race.loss_ratio:.2f}, content loss {race.content_ratio:.2f} of the textbook's",
        f"to the textbook's final loss: {reached}",
    ]


def _end(curve: list[Moment]) -> str:
    """The end of a curve as text."""
    end = curve[-1]
    return f"{end.step} steps, {end.seconds:.1f} s: loss {end.total:.4g}, content {end.content:.4g}"


def draw(race: Race) -> bytes:
    """The two curves of `race` as an SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds for a pair", ylabel="loss of the written picture")
    axes.set(xscale="log", yscale="log")
    for name, curve in (("textbook, fp32", race.textbook), ("batchnst", race.recipe)):
        shown = [moment for moment in curve if moment.step > 0]
        axes.plot([moment.seconds for moment in shown], [moment.total for moment in shown], label=name)
    axes.axhline(race.textbook[-1].total, color="gray", linestyle=":", label="the textbook's final loss")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
