"""Paint a batch: fit it into memory, run the algorithm, and paint it in halves if that fails."""

from __future__ import annotations

import errno
import math
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from batchnst.errors import BatchNSTError, Diverged, OutOfMemory, StorageError
from batchnst.painting.inputs import Inputs
from batchnst.painting.tensors import TensorCache, to_16_bit_pixels, to_pixels
from batchnst.pictures import isolated
from batchnst.pictures.decode import Pixels
from batchnst.pictures.encode import Finish, is_16_bit
from batchnst.progress import Work
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.device import Hardware, device_failure, network_dtype, release_memory
from batchnst.transfer.losses import Losses
from batchnst.transfer.memory import Fitting, fit_into, memory_problem
from batchnst.transfer.pyramid import scales
from batchnst.transfer.stylize import Step, Stylized, stylize
from batchnst.transfer.weights import Weights

REPORT_EVERY = 1.0
"""Seconds between two Work events."""


@dataclass(frozen=True)
class Curve:
    """The T steps of one picture: scale (longest side, pixels), seconds since the start, and losses (T,)."""

    scales: list[int]
    seconds: list[float]
    losses: Losses


@dataclass(frozen=True)
class Painted:
    """A painted picture, on the host.

    `pixels` (H, W, 3), 0..255; `pixels_16_bit` the same in 0..65535, None unless requested. `losses` (1,) are those of
    the picture. `stopped` is the reason why the optimisation ended: steps, plateau or diverged. `fitting` is the way in
    which the picture was made to fit into memory.
    """

    pixels: Pixels
    pixels_16_bit: NDArray[np.uint16] | None
    losses: Losses
    stopped: str
    curve: Curve
    fitting: Fitting

    def check_finite(self) -> None:
        """Raise Diverged if no finite loss was reached."""
        if not math.isfinite(self.losses.total.item()):
            raise Diverged("no finite loss was reached; lower the weights or the learning_rate")

    def encode(self, name: str, finish: Finish) -> bytes:
        """The picture as a file, in the format that the ending of `name` selects; raises InputError if that fails."""
        if self.pixels_16_bit is not None and is_16_bit(name):
            return isolated.encode(self.pixels_16_bit, name, finish)
        return isolated.encode(self.pixels, name, finish)


@dataclass(frozen=True)
class Group:
    """The result for the pictures at `indices` of a batch, painted together; or the error of a single picture.

    `started` is the time at which this attempt began.
    """

    indices: list[int]
    result: list[Painted] | Exception
    started: datetime


@dataclass(frozen=True)
class Retry:
    """The pictures at `indices` of a batch failed and are painted again in another way; `reason` is for the log."""

    indices: list[int]
    reason: str


@dataclass(frozen=True)
class _Part:
    """Pictures of a batch that are painted together: their indices, and (width, height) of their canvas."""

    indices: list[int]
    canvas: tuple[int, int]

    @classmethod
    def of(cls, batch: Sequence[Inputs], indices: list[int], least: tuple[int, int] = (1, 1)) -> _Part:
        """The pictures at `indices` of `batch` on a canvas of at least `least`; a single one needs no canvas."""
        sizes = [_size(batch[index]) for index in indices]
        width, height = map(max, zip(*sizes, least, strict=True))
        return cls(indices, (width, height) if len(indices) > 1 else sizes[0])


class Painter:
    """Paints pictures of one recipe."""

    def __init__(
        self,
        recipe: Recipe,
        weights: Weights,
        hardware: Hardware,
        tensors: TensorCache,
        *,
        on_step: Callable[[Step], None] = lambda step: None,
        on_snapshot: Callable[[int, int, Pixels], None] = lambda index, step, pixels: None,
    ) -> None:
        """`on_step` is called after every step; `on_snapshot` with a picture's index in the batch, step and pixels."""
        self.recipe, self.weights, self.hardware, self.tensors = recipe, weights, hardware, tensors
        self.on_step, self.on_snapshot = on_step, on_snapshot
        self.dtype = network_dtype(recipe.precision, hardware.device)

    def paint(
        self, batch: Sequence[Inputs], *, want_16_bit: Sequence[bool], canvas: tuple[int, int] = (1, 1)
    ) -> Iterator[Work | Retry | Group]:
        """Paint `batch`; every picture is in exactly one Group. `want_16_bit` marks those that need `pixels_16_bit`.

        Pictures with the same scales are painted together, on a canvas of at least `canvas` (width, height); in tiles
        only pictures of one size. An error becomes the result of a Group; only a StorageError, which `on_snapshot` may
        raise, and DeviceFailed are raised.
        """
        for part in self._parts(batch, canvas):
            yield from self._paint_or_halve(batch, want_16_bit, part, self.hardware.memory)

    def _parts(self, batch: Sequence[Inputs], canvas: tuple[int, int]) -> Iterator[_Part]:
        """Divide `batch` into parts to paint together."""
        for indices in _grouped(batch, lambda inputs: tuple(scales(self.recipe, *_size(inputs)))):
            part = _Part.of(batch, indices, canvas)
            fitting = self._find_fitting(part, self.hardware.memory)
            if fitting and fitting.tile >= max(part.canvas):
                yield part
            else:
                of_one_size = _grouped([batch[index] for index in indices], _size)
                yield from (_Part.of(batch, [indices[i] for i in same]) for same in of_one_size)

    def _paint_or_halve(
        self, batch: Sequence[Inputs], want_16_bit: Sequence[bool], part: _Part, memory: float
    ) -> Iterator[Work | Retry | Group]:
        """Paint the pictures of `part` together in at most `memory` bytes.

        If that fails, each half is painted by itself, so that no picture fails because of another one. A single picture
        that ran out of memory is painted again in half the memory.
        """
        started, indices = datetime.now(UTC), part.indices
        try:
            fitting = self._require_fitting(part, memory)
            painted = yield from self._optimize(batch, want_16_bit, part, fitting)
        except StorageError:
            raise
        except Exception as error:
            failure = as_pair_error(error)
            if sick := device_failure(failure):
                raise sick from error
        else:
            yield Group(indices, painted, started)
            return
        half = len(indices) // 2
        if half:
            reason = f"failed in a batch of {len(indices)}, painted again in halves: {failure}"
            tries = [(_Part.of(batch, some, part.canvas), memory) for some in (indices[:half], indices[half:])]
        elif isinstance(failure, OutOfMemory) and self._find_fitting(part, memory / 2):
            reason, tries = f"painted again in half the memory: {failure}", [(part, memory / 2)]
        else:
            yield Group(indices, failure, started)
            return
        failure.__traceback__ = None  # it keeps the batch's tensors in memory
        try:
            release_memory(self.hardware.device)
        except RuntimeError as error:  # what failed before was the GPU
            raise device_failure(error) or error from None
        yield Retry(indices, reason)
        for smaller, smaller_memory in tries:
            yield from self._paint_or_halve(batch, want_16_bit, smaller, smaller_memory)

    def _find_fitting(self, part: _Part, memory: float) -> Fitting | None:
        """The way to paint the pictures of `part` in `memory` bytes; None if there is none."""
        return fit_into(memory, self.recipe, part.canvas, len(part.indices), self.dtype)

    def _require_fitting(self, part: _Part, memory: float) -> Fitting:
        """Like `_find_fitting`, with all devices of the worker; raises OutOfMemory if there is no way."""
        fitting = self._find_fitting(part, memory)
        if fitting is None:
            if len(part.indices) > 1:
                raise OutOfMemory("they do not fit into memory together")
            raise OutOfMemory(memory_problem(memory, self.recipe, part.canvas, self.dtype))
        return replace(fitting, devices=self.hardware.devices)

    def _optimize(
        self, batch: Sequence[Inputs], want_16_bit: Sequence[bool], part: _Part, fitting: Fitting
    ) -> Generator[Work, None, list[Painted]]:
        """Run the algorithm on the pictures of `part`; yields progress, returns the pictures."""
        indices, (width, height) = part.indices, part.canvas
        group = [batch[index] for index in indices]
        painting = stylize(
            self.tensors.contents(group),
            self.tensors.guides(group),
            self.recipe,
            lambda recipe: load_backbone(recipe, self.weights, self.hardware.device),
            self.tensors.starts(group),
            fitting,
            (height, width),
        )
        history = _History(len(group))
        reported, steps, pixel_steps = time.perf_counter(), 0, 0
        while True:
            try:
                step = next(painting)
            except StopIteration as end:
                painted = self._to_host(end.value, history, fitting, [want_16_bit[index] for index in indices])
                yield Work(steps, pixel_steps, time.perf_counter() - reported)
                return painted
            history.add(step)
            self._show(step, indices, history)
            steps, pixel_steps = steps + len(step.active), pixel_steps + len(step.active) * step.pixels
            now = time.perf_counter()
            if now - reported > REPORT_EVERY:
                yield Work(steps, pixel_steps, now - reported)
                reported, steps, pixel_steps = time.perf_counter(), 0, 0

    @staticmethod
    def _to_host(result: Stylized, history: _History, fitting: Fitting, want_16_bit: Sequence[bool]) -> list[Painted]:
        """Fetch pictures and losses from the device."""
        losses, curves = Losses.cat([result.losses]), history.curves()
        return [
            Painted(
                pixels=to_pixels(picture),
                pixels_16_bit=to_16_bit_pixels(picture) if want_16_bit[i] else None,
                losses=losses.select(torch.tensor([i])),
                stopped=result.stopped[i],
                curve=curves[i],
                fitting=fitting,
            )
            for i, picture in enumerate(result.pictures)
        ]

    def _show(self, step: Step, indices: Sequence[int], history: _History) -> None:
        """Call `on_step`, and `on_snapshot` for each picture that is due for a snapshot."""
        self.on_step(step)
        every = self.recipe.snapshot_every
        due = [i for i in step.active if every and (history.steps[i] - 1) % every == 0]
        if due:
            pictures = dict(zip(step.active, step.render(), strict=True))
            for i in due:
                self.on_snapshot(indices[i], history.steps[i] - 1, to_pixels(pictures[i]))


def _size(inputs: Inputs) -> tuple[int, int]:
    """(width, height) of a picture."""
    height, width = inputs.content.shape[:2]
    return width, height


def _grouped(batch: Sequence[Inputs], key: Callable[[Inputs], object]) -> list[list[int]]:
    """Indices of the pictures in `batch` with the same `key`."""
    groups: dict[object, list[int]] = {}
    for index, inputs in enumerate(batch):
        groups.setdefault(key(inputs), []).append(index)
    return list(groups.values())


class _History:
    """Collects the steps of a group of pictures; their losses stay on the device until the end."""

    def __init__(self, pictures: int) -> None:
        self.steps = [0] * pictures
        self._started = time.perf_counter()
        self._entries: list[tuple[float, int, list[int], Losses]] = []  # seconds, scale, active pictures, losses

    def add(self, step: Step) -> None:
        """Add a step of all active pictures."""
        # Rounded to about a thousandth: more bits would only enlarge the ledger.
        seconds = round((time.perf_counter() - self._started) * 1024) / 1024
        for i in step.active:
            self.steps[i] += 1
        self._entries.append((seconds, step.scale, step.active, step.losses))

    def curves(self) -> list[Curve]:
        """The curve of each picture; fetches all losses from the device at once."""
        losses = Losses.cat([losses for *_, losses in self._entries])
        rows: list[list[int]] = [[] for _ in self.steps]
        scales: list[list[int]] = [[] for _ in self.steps]
        seconds: list[list[float]] = [[] for _ in self.steps]
        count = 0
        for when, scale, active, _ in self._entries:
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
    """The network of `recipe` on `device`; the last few are cached in this process."""
    dtype = network_dtype(recipe.precision, device)
    return _cached_backbone(recipe.backbone, weights, tuple(recipe.layers), recipe.pooling, dtype, device)


_OUT_OF_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|out of memory|std::bad_alloc"
    r"|ALLOC(ATION)?_FAILED|ErrorMemoryAllocation",
    re.IGNORECASE,
)
"""Messages of the errors by which torch and the libraries below it say that they were refused memory."""


def as_pair_error(error: Exception) -> Exception:
    """Convert any out-of-memory error, of a GPU or of a CPU, to OutOfMemory; return other errors unchanged."""
    if isinstance(error, BatchNSTError):
        return error
    if any(map(_is_out_of_memory, _with_context(error))):
        return OutOfMemory("the device ran out of memory; lower size")
    return error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def _with_context(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those during which it was raised: recording a graph ends with an error of its own."""
    while error:
        yield error
        error = error.__context__
