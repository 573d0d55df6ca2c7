"""One chunk of work, wherever it runs: load ahead, paint, commit; every error of a pair becomes its row."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import torch

from batchnst.collection import images
from batchnst.engine import rows
from batchnst.engine.loading import Loaded, Loader, Unloadable, ahead, to_blends, to_pixels, to_tensors
from batchnst.engine.plan import Batch, Job
from batchnst.errors import Diverged, OutOfMemory, StorageError
from batchnst.ledger.schema import LossRow, PairRow
from batchnst.ledger.store import Out
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone, network_dtype
from batchnst.transfer.losses import Losses
from batchnst.transfer.stylize import Stylized, stylize
from batchnst.transfer.weights import Weights

log = logging.getLogger(__name__)

REPORT_EVERY = 1.0
"""Seconds between two Progress events."""


@dataclass(frozen=True)
class Chunk:
    """Batches of one network: what is sent to a worker at once, and lost with it."""

    batches: tuple[Batch, ...]

    @property
    def network(self) -> tuple[str, str]:
        """Backbone and weights of all its recipes."""
        return self.batches[0].recipe.network


@dataclass(frozen=True)
class Progress:
    """Work done since the last event, in steps of one picture and in pixel-steps."""

    steps: int
    work: int


@dataclass(frozen=True)
class Finished:
    """A pair's attempt has ended and its row is in the ledger; `error` is None if that says `ok`."""

    pair_id: str
    error: str | None


Event = Progress | Finished


def paint_chunk(chunk: Chunk, weights: Weights, out: str, run_id: str, device: torch.device) -> Iterator[Event]:
    """Paint every pair of a chunk into OUT and commit it; yields what happened.

    Raises StorageError if OUT cannot be written, or belongs to another run by now.
    """
    for batch, loaded in ahead(Loader().load, chunk.batches):
        yield from _Painter(batch.recipe, weights, Out(out), run_id, device).paint(loaded)


class _Painter:
    """Paints jobs of one recipe and commits them."""

    def __init__(self, recipe: Recipe, weights: Weights, out: Out, run_id: str, device: torch.device) -> None:
        self.recipe, self.weights, self.out, self.run_id, self.device = recipe, weights, out, run_id, device
        self.dtype = network_dtype(recipe.precision, device)
        self.backbone = load_backbone(recipe, weights, self.dtype, device)

    def paint(self, loaded: Sequence[Loaded | Unloadable]) -> Iterator[Event]:
        """Commit the failures of what could not be loaded, then paint the rest, one working size at a time."""
        by_shape: dict[tuple[int, ...], list[Loaded]] = {}
        for item in loaded:
            if isinstance(item, Unloadable):
                yield self._commit_failure(item.job, item.error, datetime.now(UTC))
            else:
                by_shape.setdefault(item.content.pixels.shape, []).append(item)
        for group in by_shape.values():
            yield from self._paint_or_halve(group)

    def _paint_or_halve(self, group: Sequence[Loaded]) -> Iterator[Event]:
        """Paint a group as one batch; if that fails, each half by itself, so that nobody fails with a neighbour."""
        started = datetime.now(UTC)
        error = yield from self._try(group, started)
        if error is None:
            return
        _free_memory(self.device)
        if len(group) == 1:
            yield self._commit_failure(group[0].job, error, started, group[0])
        else:
            log.warning("%d pairs failed together, each half is tried by itself: %s", len(group), error)
            yield from self._paint_or_halve(group[: len(group) // 2])
            yield from self._paint_or_halve(group[len(group) // 2 :])

    def _try(self, group: Sequence[Loaded], started: datetime) -> Generator[Event, None, Exception | None]:
        """Paint and commit a group, or return why it could not be done."""
        try:
            result, seconds = yield from self._optimize(group)
            finished = self._commit(group, result, seconds, started)
        except StorageError:
            raise
        except Exception as error:
            # Its traceback would keep the batch's tensors in memory.
            return error.with_traceback(None)
        yield from finished
        return None

    def _optimize(self, group: Sequence[Loaded]) -> Generator[Event, None, tuple[Stylized, list[float]]]:
        """Paint a group, reporting now and then; returns the result and each step's seconds since the start."""
        start = reported = time.perf_counter()
        contents = to_tensors([item.content.pixels for item in group], self.device)
        styles = [[style.pixels for style in item.styles] for item in group]
        blends = to_blends(styles, [item.job.pair.style_weights for item in group], self.device)
        painting = stylize(contents, blends, self.recipe, self.backbone)
        seconds: list[float] = []
        steps = work = 0
        while True:
            try:
                step = next(painting)
            except StopIteration as end:
                yield Progress(steps, work)
                return end.value, seconds
            now = time.perf_counter()
            seconds.append(now - start)
            steps, work = steps + len(group), work + len(group) * step.pixels
            if now - reported > REPORT_EVERY:
                yield Progress(steps, work)
                reported, steps, work = now, 0, 0

    def _commit(
        self, group: Sequence[Loaded], result: Stylized, seconds: list[float], started: datetime
    ) -> list[Finished]:
        """Put pictures in place, then their rows."""
        history = Losses.stack([step.losses for step in result.history])
        best = Losses.stack([result.losses])
        pair_rows: list[PairRow] = []
        loss_rows: list[LossRow] = []
        for i, (item, pixels) in enumerate(zip(group, to_pixels(result.pictures), strict=True)):
            if not best.total[0, i].isfinite():
                error = Diverged("no finite loss was reached; try precision fp32 or a smaller learning_rate")
                columns = {**rows.inputs(item), **rows.failure(error), "stopped": "diverged"}
                pair_rows.append(self._row(item.job, started, "failed", **columns))
                continue
            data = images.encode(pixels, item.job.pair.output)
            self.out.write_picture(item.job.pair.output, data)
            columns = {
                "output_sha256": hashlib.sha256(data).hexdigest(),
                "width": pixels.shape[1],
                "height": pixels.shape[0],
                "batch_size": len(group),
                **rows.losses_of(best, history, i),
            }
            pair_rows.append(self._row(item.job, started, "ok", **rows.inputs(item), **columns))
            loss_rows += rows.loss_rows(item.job, self.run_id, result, history, seconds, i)
        self.out.append(self.run_id, pair_rows, loss_rows)
        return [Finished(row.pair_id, row.error_message) for row in pair_rows]

    def _commit_failure(self, job: Job, error: Exception, started: datetime, loaded: Loaded | None = None) -> Finished:
        error = as_pair_error(error)
        read = rows.inputs(loaded) if loaded else {}
        row = self._row(job, started, "failed", **rows.failure(error), **read)
        self.out.append(self.run_id, [row], [])
        return Finished(job.pair.id, str(error))

    def _row(self, job: Job, started: datetime, status: str, **columns: object) -> PairRow:
        device = rows.device_columns(self.device, self.dtype)
        return rows.pair_row(job, self.run_id, self.weights.sha256, started, status, **device, **columns)


@lru_cache(maxsize=4)
def _cached_backbone(
    backbone: str, weights: Weights, layers: tuple[str, ...], pooling: str, dtype: torch.dtype, device: torch.device
) -> Backbone:
    return Backbone(backbone, weights, layers, pooling=pooling, dtype=dtype, device=device)


def load_backbone(recipe: Recipe, weights: Weights, dtype: torch.dtype, device: torch.device) -> Backbone:
    """The network of a recipe, kept in this process from one call to the next."""
    return _cached_backbone(recipe.backbone, weights, tuple(recipe.layers), recipe.pooling, dtype, device)


def as_pair_error(error: Exception) -> Exception:
    """What a pair's row says of an error: out of memory by that name, what is foreseen and what is not as it is."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        return OutOfMemory("does not fit this device's memory, even alone; lower size")
    return error


def _free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
