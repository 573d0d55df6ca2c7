"""The recipe against the textbook loop, on the same pair and machine: how much faster to the same loss."""

from __future__ import annotations

import io
import statistics
import time
from dataclasses import dataclass

import torch

from batchnst.bench.textbook import STEPS, Moment, Textbook
from batchnst.errors import RequestError
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.progress import Progress
from batchnst.recipe import Recipe
from batchnst.transfer.device import best_device, free_memory, network_dtype, synchronize, tune_process
from batchnst.transfer.memory import largest_batch
from batchnst.transfer.stylize import Guide, stylize

REPEATS = 3
"""The recipe is run so often, the textbook once: it takes minutes, and repeats itself to a few percent."""


@dataclass(frozen=True)
class Race:
    """Two curves of loss against seconds, of the written picture and for one pair, and what follows from them.

    seconds_to_equal: when the recipe is below the textbook's final loss, None if never; ratio: how many times sooner
    that is. Losses at coarser scales are of other pictures and left out of the recipe's curve, their time is not.
    """

    batch: int
    textbook: list[Moment]
    recipe: list[Moment]
    seconds_to_equal: float | None
    ratio: float | None
    loss_ratio: float
    content_ratio: float


def race(content: torch.Tensor, style: torch.Tensor, recipe: Recipe, progress: Progress) -> Race:
    """Run both on content and style, (1, 3, h, w) each, RGB, 0..255, at the recipe's size.

    On a GPU the recipe paints as many pictures at once as `auto` would, and each is counted with its share of the time.
    """
    if recipe.loss != "neural-style" or recipe.preserve_color != "none":
        raise RequestError("--against textbook: its loss is neural-style, without preserve_color")
    tune_process()
    device = best_device()
    weights = load_weights(*recipe.network)
    content, style = content.to(device), style.to(device)
    dtype = network_dtype(recipe.precision, device)
    largest = largest_batch(free_memory(device), recipe, device.type, dtype)
    batch = 1 if device.type == "cpu" else max(1, largest // content[0, 0].numel())
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # torch's own default: the loop as everybody runs it
    textbook = Textbook(content, style, recipe, weights).run(
        STEPS, lambda look: progress(f"textbook: step {look.step}, loss {look.total:.4g}", look.step, STEPS)
    )
    torch.set_float32_matmul_precision(precision)
    goal = textbook[-1].total

    def paint(recipe: Recipe) -> list[Moment]:
        guides: list[list[Guide]] = [[Guide((style,), (1.0,))]] * batch
        curve, best, content_loss = [], float("inf"), 0.0
        synchronize(device)
        start = time.perf_counter()
        everyone = content.expand(batch, -1, -1, -1).contiguous()
        for step in stylize(everyone, guides, recipe, lambda own: load_backbone(own, weights, device)):
            if step.scale == recipe.size:
                total = step.losses.total[0].item()
                if total < best:
                    best, content_loss = total, step.losses.content[0].item()
                curve.append(Moment(step.index + 1, (time.perf_counter() - start) / batch, best, content_loss))
        return curve

    paint(recipe.model_copy(update={"steps": 2}))  # warms up
    runs = sorted((paint(recipe) for _ in range(REPEATS)), key=lambda run: run[-1].seconds)
    curve = runs[REPEATS // 2]
    reached = [next((moment.seconds for moment in run if moment.total <= goal), float("inf")) for run in runs]
    equal = statistics.median(reached)
    known = equal < float("inf")
    return Race(
        batch=batch,
        textbook=textbook,
        recipe=curve,
        seconds_to_equal=equal if known else None,
        ratio=textbook[-1].seconds / equal if known else None,
        loss_ratio=curve[-1].total / goal,
        content_ratio=curve[-1].content / textbook[-1].content,
    )


def describe(race: Race) -> list[str]:
    """The race in a few lines."""
    reached = (
        f"{race.seconds_to_equal:.1f} s, {race.ratio:.1f} times as fast" if race.ratio else "never, at these settings"
    )
    together = f", {race.batch} pairs together, time for each" if race.batch > 1 else ""
    return [
        f"textbook   {_end(race.textbook)}",
        f"batchnst   {_end(race.recipe)} (median of {REPEATS}{together})",
        f"ratio      final loss {race.loss_ratio:.2f}, content loss {race.content_ratio:.2f} of the textbook's",
        f"to the textbook's final loss: {reached}",
    ]


def _end(curve: list[Moment]) -> str:
    end = curve[-1]
    return f"{end.step} steps, {end.seconds:.1f} s: loss {end.total:.4g}, content {end.content:.4g}"


def draw(race: Race) -> bytes:
    """The two curves as an SVG picture."""
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
