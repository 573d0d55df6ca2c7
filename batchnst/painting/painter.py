"""Painting a batch: fit it into memory, run the algorithm, and paint it in halves where that fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from batchnst.errors import Diverged, OutOfMemory, StorageError
from batchnst.painting.inputs import Inputs
from batchnst.painting.tensors import Tensors, to_deep_pixels, to_pixels
from batchnst.pictures.decode import Pixels
from batchnst.pictures.encode import Finish, encode_picture, is_deep
from batchnst.progress import Work
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.device import Hardware, network_dtype, release_memory
from batchnst.transfer.losses import Losses
from batchnst.transfer.memory import Fitting, fit_into, memory_problem
from batchnst.transfer.stylize import Step, Stylized, stylize
from batchnst.transfer.weights import Weights

REPORT_EVERY = 1.0
"""Seconds between two Work events."""


@dataclass(frozen=True)
class Curve:
    """Every step of one picture: its scale (longest side, pixels), seconds since the start, and losses (T,)."""

    scales: list[int]
    seconds: list[float]
    losses: Losses


@dataclass(frozen=True)
class Painted:
    """A painted picture, on the host.

    `pixels` (H, W, 3), 0..255; `deep` the same with 16 bits a channel, if that was asked for. `losses` (1,) are those
    of `pixels`. `stopped` says why the optimisation ended: steps, plateau or diverged. `fitting` is how it was made to
    fit into memory.
    """

    pixels: Pixels
    deep: NDArray[np.uint16] | None
    losses: Losses
    stopped: str
    curve: Curve
    fitting: Fitting

    def check_finite(self) -> None:
        """Raise Diverged if no finite loss was reached."""
        if not math.isfinite(self.losses.total.item()):
            raise Diverged("no finite loss was reached; lower the weights or the learning_rate")

    def encode(self, name: str, finish: Finish) -> bytes:
        """The picture's file, in the format that the ending of `name` asks for; raises InputError if it cannot be."""
        deep = self.deep if is_deep(name) else None
        return encode_picture(self.pixels if deep is None else deep, name, finish)


@dataclass(frozen=True)
class Group:
    """Pictures of a batch, by their places in it, that were painted together; or one, and why it was not painted."""

    places: list[int]
    result: list[Painted] | Exception
    started: datetime


@dataclass(frozen=True)
class Retry:
    """Pictures of a batch, by their places in it, that are painted again in another way, and why."""

    places: list[int]
    reason: str


class Painter:
    """Paints pictures of one recipe."""

    def __init__(
        self,
        recipe: Recipe,
        weights: Weights,
        hardware: Hardware,
        tensors: Tensors,
        *,
        on_step: Callable[[Step], None] = lambda step: None,
        on_snapshot: Callable[[int, int, Pixels], None] = lambda place, step, pixels: None,
    ) -> None:
        """`on_snapshot` is called with a picture's place in the batch, the step and the pixels (H, W, 3)."""
        self.recipe, self.weights, self.hardware, self.tensors = recipe, weights, hardware, tensors
        self.on_step, self.on_snapshot = on_step, on_snapshot
        self.dtype = network_dtype(recipe.precision, hardware.device)

    def paint(self, batch: Sequence[Inputs], *, deep: Sequence[bool]) -> Iterator[Work | Retry | Group]:
        """Paint a batch; every picture is in exactly one Group. `deep` says which pictures need 16 bits a channel.

        Pictures of one shape are painted together. Raises only what `on_snapshot` raises as StorageError.
        """
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, inputs in enumerate(batch):
            by_shape.setdefault(inputs.content.shape, []).append(place)
        for places in by_shape.values():
            yield from self._paint_or_halve(batch, deep, places, self.hardware.memory)

    def _paint_or_halve(
        self, batch: Sequence[Inputs], deep: Sequence[bool], places: list[int], memory: float
    ) -> Iterator[Work | Retry | Group]:
        """Paint pictures of one shape together, in at most `memory` bytes.

        If that fails, each half is painted by itself, so that no picture fails because of another one. A single picture
        that ran out of memory is painted again in half the memory.
        """
        started = datetime.now(UTC)
        try:
            fitting = self._fit(batch, places, memory)
            painted = yield from self._optimize(batch, deep, places, fitting)
        except StorageError:
            raise
        except Exception as error:
            failure = as_pair_error(error)
        else:
            yield Group(places, painted, started)
            return
        half = len(places) // 2
        if half:
            reason = f"failed with {len(places) - 1} others, halved: {failure}"
            tries = [(places[:half], memory), (places[half:], memory)]
        elif isinstance(failure, OutOfMemory) and self._fits(batch, places, memory / 2):
            reason, tries = f"tried again in half the memory: {failure}", [(places, memory / 2)]
        else:
            yield Group(places, failure, started)
            return
        failure.__traceback__ = None  # it would keep the batch's tensors in memory
        release_memory(self.hardware.device)
        yield Retry(places, reason)
        for part, part_memory in tries:
            yield from self._paint_or_halve(batch, deep, part, part_memory)

    def _fits(self, batch: Sequence[Inputs], places: list[int], memory: float) -> Fitting | None:
        height, width = batch[places[0]].content.shape[:2]
        return fit_into(memory, self.recipe, (width, height), len(places), self.dtype)

    def _fit(self, batch: Sequence[Inputs], places: list[int], memory: float) -> Fitting:
        fitting = self._fits(batch, places, memory)
        if fitting is None:
            if len(places) > 1:
                raise OutOfMemory("they do not fit into memory together")
            height, width = batch[places[0]].content.shape[:2]
            raise OutOfMemory(memory_problem(memory, self.recipe, (width, height), self.dtype))
        return replace(fitting, devices=self.hardware.devices)

    def _optimize(
        self, batch: Sequence[Inputs], deep: Sequence[bool], places: list[int], fitting: Fitting
    ) -> Generator[Work, None, list[Painted]]:
        """Run the algorithm on pictures of one shape."""
        group = [batch[place] for place in places]
        painting = stylize(
            self.tensors.contents(group),
            self.tensors.guides(group),
            self.recipe,
            lambda recipe: load_backbone(recipe, self.weights, self.hardware.device),
            self.tensors.starts(group),
            fitting,
        )
        history = _History(len(group))
        reported, steps, pixel_steps = time.perf_counter(), 0, 0
        while True:
            try:
                step = next(painting)
            except StopIteration as end:
                painted = self._to_host(end.value, history, fitting, [deep[place] for place in places])
                yield Work(steps, pixel_steps, time.perf_counter() - reported)
                return painted
            history.add(step)
            self._show(step, places, history)
            steps, pixel_steps = steps + len(step.active), pixel_steps + len(step.active) * step.pixels
            now = time.perf_counter()
            if now - reported > REPORT_EVERY:
                yield Work(steps, pixel_steps, now - reported)
                reported, steps, pixel_steps = time.perf_counter(), 0, 0

    @staticmethod
    def _to_host(result: Stylized, history: _History, fitting: Fitting, deep: Sequence[bool]) -> list[Painted]:
        losses, pixels, curves = Losses.cat([result.losses]), to_pixels(result.pictures), history.curves()
        return [
            Painted(
                pixels=pixels[i],
                deep=to_deep_pixels(result.pictures[i]) if deep[i] else None,
                losses=losses.select(torch.tensor([i])),
                stopped=result.stopped[i],
                curve=curves[i],
                fitting=fitting,
            )
            for i in range(len(pixels))
        ]

    def _show(self, step: Step, places: Sequence[int], history: _History) -> None:
        self.on_step(step)
        every = self.recipe.snapshot_every
        due = [i for i in step.active if every and (history.steps[i] - 1) % every == 0]
        if due:
            pictures = dict(zip(step.active, to_pixels(step.render()), strict=True))
            for i in due:
                self.on_snapshot(places[i], history.steps[i] - 1, pictures[i])


class _History:
    """The steps of a group; their losses stay on the device until the end."""

    def __init__(self, pictures: int) -> None:
        self.steps = [0] * pictures
        self._started = time.perf_counter()
        self._moments: list[tuple[float, int, list[int], Losses]] = []

    def add(self, step: Step) -> None:
        """Remember a step."""
        # Rounded to about a thousandth: more bits would only enlarge the ledger.
        seconds = round((time.perf_counter() - self._started) * 1024) / 1024
        for i in step.active:
            self.steps[i] += 1
        self._moments.append((seconds, step.scale, step.active, step.losses))

    def curves(self) -> list[Curve]:
        """The steps of each picture; fetches all losses from the device at once."""
        losses = Losses.cat([losses for *_, losses in self._moments])
        rows: list[list[int]] = [[] for _ in self.steps]
        scales: list[list[int]] = [[] for _ in self.steps]
        seconds: list[list[float]] = [[] for _ in self.steps]
        count = 0
        for when, scale, active, _ in self._moments:
            for i in active:
                rows[i].append(count)
                scales[i].append(scale)
                seconds[i].append(when)
                count += 1
        return [
            Curve(scales[i], seconds[i], losses.select(torch.tensor(rows[i], dtype=torch.long)))
            for i in range(len(self.steps))
        ]


@lru_cache(maxsize=4)
def _cached_backbone(
    backbone: str, weights: Weights, layers: tuple[str, ...], pooling: str, dtype: torch.dtype, device: torch.device
) -> Backbone:
    return Backbone(backbone, weights, layers, pooling=pooling, dtype=dtype, device=device)


def load_backbone(recipe: Recipe, weights: Weights, device: torch.device) -> Backbone:
    """The network of a recipe; the last few are kept in this process."""
    dtype = network_dtype(recipe.precision, device)
    return _cached_backbone(recipe.backbone, weights, tuple(recipe.layers), recipe.pooling, dtype, device)


def as_pair_error(error: Exception) -> Exception:
    """The error as OutOfMemory if that is what it says, else as it is."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        return OutOfMemory("does not fit this device's memory, even alone; lower size")
    return error
