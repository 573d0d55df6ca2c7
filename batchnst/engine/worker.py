"""One chunk of work, wherever it runs: load ahead, paint, commit; every error of a pair becomes its row."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import torch
from numpy.typing import NDArray

from batchnst.collection import outputs
from batchnst.engine import rows
from batchnst.engine.events import Event, Finished, Progress
from batchnst.engine.loading import (
    Loaded,
    Loader,
    Style,
    StyleFile,
    Tensors,
    Unloadable,
    ahead,
    style_files,
    to_deep_pixels,
    to_pixels,
)
from batchnst.engine.plan import Batch, Job
from batchnst.errors import Diverged, OutOfMemory, PairError, StorageError
from batchnst.ledger.claim import Lease
from batchnst.ledger.schema import PairRow
from batchnst.ledger.store import Out
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.device import Hardware, network_dtype, release_memory
from batchnst.transfer.losses import Losses
from batchnst.transfer.memory import Fitting, fit_into
from batchnst.transfer.stylize import Step, Stylized, stylize
from batchnst.transfer.weights import Weights

log = logging.getLogger(__name__)

RESCUED = "its loss exploded or was no number; painted again from its best picture, in fp32 and by L-BFGS"

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

    @property
    def style_files(self) -> list[StyleFile]:
        """The style pictures that its jobs need, each once."""
        jobs = (job for batch in self.batches for job in batch.jobs)
        return list(dict.fromkeys(file for job in jobs for file in style_files(job.pair)))


def paint_chunk(
    chunk: Chunk,
    weights: Weights,
    out: str,
    lease: Lease,
    hardware: Hardware,
    get_style: Callable[[StyleFile], Style] | None = None,
) -> Iterator[Event]:
    """Paint every pair of a chunk into OUT and commit it; yields what happened.

    get_style: where styles come from; if left out, each is read once from where it lies.
    Raises StorageError if OUT cannot be written, or Superseded if the lease allows it no more.
    """
    tensors = Tensors(hardware.device)
    with _Writer() as writer:
        for batch, loaded in ahead(Loader(get_style).load, chunk.batches):
            yield from _Painter(batch.recipe, weights, Out(out), lease, hardware, tensors, writer).paint(loaded)
        yield from writer.wait()


class _Writer:
    """Commits one batch in a thread of its own while the next one is painted."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[list[Finished]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def submit(self, commit: Callable[[], list[Finished]]) -> list[Finished]:
        """Begin a commit once the one before has ended; returns what that one finished."""
        finished = self.wait()
        self._pending = self._pool.submit(commit)
        return finished

    def ended(self) -> list[Finished]:
        """What has been finished since the last question."""
        return self.wait() if self._pending and self._pending.done() else []

    def wait(self) -> list[Finished]:
        """What the commit in hand finishes; raises what it raises."""
        pending, self._pending = self._pending, None
        return pending.result() if pending else []


@dataclass(frozen=True)
class _Painted:
    """A painted batch on the host: pixels (H, W, 3) of each picture, as deep as its format, their losses (B,), why each
    stopped, and every step.
    """

    pixels: list[NDArray[Any]]
    losses: Losses
    stopped: list[str]
    history: rows.History
    fitting: Fitting


class _Painter:
    """Paints jobs of one recipe and has them committed."""

    def __init__(
        self,
        recipe: Recipe,
        weights: Weights,
        out: Out,
        lease: Lease,
        hardware: Hardware,
        tensors: Tensors,
        writer: _Writer,
    ) -> None:
        self.recipe, self.weights, self.out, self.lease = recipe, weights, out, lease
        self.hardware, self.tensors, self.writer, self.device = hardware, tensors, writer, hardware.device
        self.dtype = network_dtype(recipe.precision, hardware.device)

    def paint(self, loaded: Sequence[Loaded | Unloadable]) -> Iterator[Event]:
        """Commit the failures of what could not be loaded, then paint the rest, one working size at a time."""
        by_shape: dict[tuple[int, ...], list[Loaded]] = {}
        for item in loaded:
            if isinstance(item, Unloadable):
                yield self._commit_failure(item.job, item.error, datetime.now(UTC))
            else:
                by_shape.setdefault(item.pictures.content.shape, []).append(item)
        for group in by_shape.values():
            yield from self._paint_or_halve(group, self.hardware.memory)

    def _paint_or_halve(self, group: Sequence[Loaded], memory: float) -> Iterator[Event]:
        """Paint a group as one batch in so many bytes.

        If that fails, each half by itself, so that nobody fails with a neighbour; one alone for which memory was short
        is tried in half of it.
        """
        started = datetime.now(UTC)
        error = yield from self._try(group, memory, started)
        if error is None:
            return
        release_memory(self.device)
        if len(group) > 1:
            for item in group:
                self._log(logging.WARNING, item.job, f"failed with {len(group) - 1} others, halved: {error}")
            yield from self._paint_or_halve(group[: len(group) // 2], memory)
            yield from self._paint_or_halve(group[len(group) // 2 :], memory)
        elif isinstance(error, OutOfMemory) and self._fit(group, memory / 2):
            self._log(logging.WARNING, group[0].job, f"tried again in half the memory: {error}")
            yield from self._paint_or_halve(group, memory / 2)
        else:
            yield self._commit_failure(group[0].job, error, started, group[0])

    def _fit(self, group: Sequence[Loaded], memory: float) -> Fitting | None:
        height, width = group[0].pictures.content.shape[:2]
        return fit_into(memory, self.recipe, (width, height), len(group), self.dtype)

    def _try(
        self, group: Sequence[Loaded], memory: float, started: datetime
    ) -> Generator[Event, None, Exception | None]:
        """Paint a group and have it committed, or return why it could not be painted."""
        try:
            fitting = self._fit(group, memory)
            if fitting is None:
                raise OutOfMemory(f"takes more than the {memory / 1e9:.1f} GB that there are; lower size")
            painted = yield from self._optimize(group, replace(fitting, devices=self.hardware.devices))
        except StorageError:
            raise
        except Exception as error:
            # Its traceback would keep the batch's tensors in memory.
            return as_pair_error(error.with_traceback(None))
        yield from self.writer.submit(partial(self._commit_all, group, painted, started))
        return None

    def _optimize(self, group: Sequence[Loaded], fitting: Fitting) -> Generator[Event, None, _Painted]:
        """Paint a group, reporting now and then."""
        batch = [item.pictures for item in group]
        contents, starts = self.tensors.contents(batch), self.tensors.starts(batch)
        guides = self.tensors.guides(batch)
        painting = stylize(contents, guides, self.recipe, self._load_backbone, starts, fitting)
        history = rows.History(len(group))
        reported, steps, work = time.perf_counter(), 0, 0
        while True:
            try:
                step = next(painting)
            except StopIteration as end:
                result: Stylized = end.value
                history.to_host()
                pixels: list[NDArray[Any]] = [*to_pixels(result.pictures)]
                for i, item in enumerate(group):
                    if outputs.is_deep(item.job.pair.output):
                        pixels[i] = to_deep_pixels(result.pictures[i])
                painted = _Painted(pixels, Losses.cat([result.losses]), result.stopped, history, fitting)
                yield Progress(steps, work, time.perf_counter() - reported)
                return painted
            history.add(step)
            self._snapshot(step, group, history)
            steps, work = steps + len(step.active), work + len(step.active) * step.pixels
            now = time.perf_counter()
            if now - reported > REPORT_EVERY:
                yield Progress(steps, work, now - reported)
                yield from self.writer.ended()
                reported, steps, work = time.perf_counter(), 0, 0

    def _load_backbone(self, recipe: Recipe) -> Backbone:
        return load_backbone(recipe, self.weights, self.device)

    def _snapshot(self, step: Step, group: Sequence[Loaded], history: rows.History) -> None:
        every = self.recipe.snapshot_every
        due = [i for i in step.active if every and (history.steps[i] - 1) % every == 0]
        if due:
            pictures = dict(zip(step.active, to_pixels(step.render()), strict=True))
            for i in due:
                name = f"{group[i].job.pair.id}/step-{history.steps[i] - 1:05d}.jpg"
                self.out.write_snapshot(name, outputs.encode(pictures[i], name))

    def _commit_all(self, group: Sequence[Loaded], painted: _Painted, started: datetime) -> list[Finished]:
        """Commit a batch, or why it cannot be; nothing but StorageError gets out of the writer's thread."""
        try:
            return self._commit(group, painted, started)
        except StorageError:
            raise
        except Exception as error:
            return [self._commit_failure(item.job, error, started, item) for item in group]

    def _commit(self, group: Sequence[Loaded], painted: _Painted, started: datetime) -> list[Finished]:
        """Put pictures in place, then their rows."""
        self.out.check(self.lease)
        loss_rows = painted.history.rows([item.job for item in group], self.lease.run_id)
        pair_rows: list[PairRow] = []
        for i, (item, pixels) in enumerate(zip(group, painted.pixels, strict=True)):
            columns = {
                **rows.inputs(item),
                **rows.fitting(item, painted.fitting),
                "batch_size": len(group),
                "stopped": painted.stopped[i],
            }
            try:
                data = self._encode(pixels, item, painted.losses.total[i].item())
            except PairError as error:
                pair_rows.append(self._row(item.job, started, "failed", **columns, **rows.failure(error)))
                continue
            self.out.write_picture(item.job.pair.output, data)
            columns |= rows.picture(data, pixels) | rows.losses(painted.losses, i, loss_rows[i])
            if painted.stopped[i] == "diverged":
                columns |= rows.failure(Diverged(RESCUED)) | {"precision": "fp32"}
            pair_rows.append(self._row(item.job, started, "ok", **columns))
        self.out.append(self.lease, pair_rows, [row for of_one in loss_rows for row in of_one])
        for item, row in zip(group, pair_rows, strict=True):
            said = row.error_message or f"loss {row.total_loss:.4g} after {row.steps} steps"
            self._log(logging.INFO, item.job, f"{row.status}: {said}")
        return [Finished(row.pair_id, row.error_message if row.status == "failed" else None) for row in pair_rows]

    def _encode(self, pixels: NDArray[Any], item: Loaded, loss: float) -> bytes:
        """The picture's file; raises Diverged for one that never had a finite loss."""
        if not math.isfinite(loss):
            raise Diverged("no finite loss was reached; lower the weights or the learning_rate")
        job = item.job
        provenance = outputs.Provenance(
            job.pair.id, self.lease.run_id, job.attempt, job.fingerprint, version("batchnst")
        )
        return outputs.encode(pixels, job.pair.output, replace(item.finish, provenance=provenance))

    def _commit_failure(self, job: Job, error: Exception, started: datetime, loaded: Loaded | None = None) -> Finished:
        error = as_pair_error(error)
        read = rows.inputs(loaded) if loaded else {}
        row = self._row(job, started, "failed", **rows.failure(error), **read)
        self.out.append(self.lease, [row], [])
        self._log(logging.WARNING, job, f"failed: {error}")
        return Finished(job.pair.id, str(error))

    def _log(self, level: int, job: Job, text: str) -> None:
        log.log(level, "run %s, pair %s, attempt %d: %s", self.lease.run_id, job.pair.id, job.attempt, text)

    def _row(self, job: Job, started: datetime, status: str, **columns: object) -> PairRow:
        columns = rows.device(self.device, self.dtype) | columns
        return rows.pair_row(job, self.lease.run_id, self.weights.sha256, started, status, **columns)


@lru_cache(maxsize=4)
def _cached_backbone(
    backbone: str, weights: Weights, layers: tuple[str, ...], pooling: str, dtype: torch.dtype, device: torch.device
) -> Backbone:
    return Backbone(backbone, weights, layers, pooling=pooling, dtype=dtype, device=device)


def load_backbone(recipe: Recipe, weights: Weights, device: torch.device) -> Backbone:
    """The network of a recipe, kept in this process from one call to the next."""
    dtype = network_dtype(recipe.precision, device)
    return _cached_backbone(recipe.backbone, weights, tuple(recipe.layers), recipe.pooling, dtype, device)


def as_pair_error(error: Exception) -> Exception:
    """What a pair's row says of an error: out of memory by that name, what is foreseen and what is not as it is."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        return OutOfMemory("does not fit this device's memory, even alone; lower size")
    return error
