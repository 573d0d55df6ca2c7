"""Paint one chunk: load inputs ahead, paint, commit. An error of a pair becomes its row in the ledger."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Self

import torch

from batchnst.engine import failing_stores, rows
from batchnst.engine.events import Event, Finished
from batchnst.engine.mixing import Size, mix
from batchnst.engine.plan import Batch, Chunk, Job
from batchnst.errors import Diverged, OutOfMemory, OutputError, StorageError, UnwritableName
from batchnst.ledger.claim import Lease
from batchnst.ledger.out import Out
from batchnst.ledger.schema import LossRow, PairRow
from batchnst.painting.ahead import ahead
from batchnst.painting.inputs import Inputs, LoadedStyle, StyleCache, StyleFile, gather_pair
from batchnst.painting.painter import Painted, Painter, Retry, as_pair_error
from batchnst.painting.tensors import TensorCache
from batchnst.pictures.credentials import Credentials
from batchnst.pictures.decode import Pixels
from batchnst.pictures.encode import Provenance, encode_picture, is_16_bit
from batchnst.progress import Work
from batchnst.redaction import get_logger
from batchnst.transfer.device import Hardware, network_dtype
from batchnst.transfer.weights import Weights

log = get_logger(__name__)

RESCUED = "its loss exploded or was not finite; painted again from its best picture, in fp32 and by L-BFGS"
"""Error message in the row of a picture that diverged and was then painted successfully."""


def paint_chunk(
    chunk: Chunk,
    weights: Weights,
    out: str,
    lease: Lease,
    hardware: Hardware,
    get_style: Callable[[StyleFile], LoadedStyle] | None = None,
    credentials: Credentials | None = None,
) -> Generator[Event, None, None]:
    """Paint every pair of `chunk` into `out` and commit it; yields events.

    Loading begins at once, everything else with the first `next`. `get_style` loads a style; by default each style is
    read once from its address. Pictures are signed with `credentials`, if there are any. Raises StorageError if `out`
    cannot be written, Superseded if `lease` is no longer valid, and DeviceFailed.
    """
    batches = ahead(partial(_load, get_style or StyleCache(), hardware), chunk.batches)
    return _paint(batches, weights, out, lease, hardware, credentials)


def _paint(
    batches: Iterator[tuple[Batch, list[Inputs | Exception]]],
    weights: Weights,
    out: str,
    lease: Lease,
    hardware: Hardware,
    credentials: Credentials | None,
) -> Generator[Event, None, None]:
    tensors = TensorCache(hardware.device)
    with _CommitThread() as commits:
        for batch, loaded in batches:
            dtype = network_dtype(batch.recipe.precision, hardware.device)
            committer = _Committer(Out(out), lease, weights.sha256, hardware.device, dtype, credentials)
            jobs, inputs = list[Job](), list[Inputs]()
            for job, result in zip(batch.jobs, loaded, strict=True):
                if isinstance(result, Exception):
                    yield committer.fail(job, result, datetime.now(UTC))
                else:
                    jobs.append(job)
                    inputs.append(result)
            for group in _groups(batch, jobs, inputs):
                yield from _paint_group(batch, group, committer, weights, hardware, tensors, commits)
        yield from commits.wait()


_Group = tuple[list[Job], list[Inputs], Size]
"""Pictures of a batch that are painted together, and (width, height) of their canvas."""


def _groups(batch: Batch, jobs: list[Job], inputs: list[Inputs]) -> Iterator[_Group]:
    """The pictures of `batch` as one group; if their sizes were not known before, in groups of similar shapes."""
    if not batch.assumed or len(jobs) < 2:
        yield jobs, inputs, batch.size or (1, 1)
        return
    sizes = [(each.content.shape[1], each.content.shape[0]) for each in inputs]
    for indices, canvas in mix(sizes, max(sizes[0]), lambda canvas: len(jobs)):
        yield [jobs[i] for i in indices], [inputs[i] for i in indices], canvas


def _paint_group(
    batch: Batch,
    group: _Group,
    committer: _Committer,
    weights: Weights,
    hardware: Hardware,
    tensors: TensorCache,
    commits: _CommitThread,
) -> Iterator[Event]:
    jobs, inputs, canvas = group
    painter = Painter(batch.recipe, weights, hardware, tensors, on_snapshot=partial(_write_snapshot, committer, jobs))
    want_16_bit = [is_16_bit(job.pair.output) for job in jobs]
    for event in painter.paint(inputs, want_16_bit=want_16_bit, canvas=canvas):
        if isinstance(event, Work):
            yield event
            yield from commits.finished()
            continue
        members = [jobs[index] for index in event.indices]
        if isinstance(event, Retry):
            committer.warn(members, event.reason)
        elif isinstance(event.result, Exception):
            (index,) = event.indices
            yield committer.fail(jobs[index], event.result, event.started, inputs[index])
        else:
            painted = [inputs[index] for index in event.indices]
            yield from commits.submit(partial(committer.commit, members, painted, event.result, event.started))


def _load(get_style: Callable[[StyleFile], LoadedStyle], hardware: Hardware, batch: Batch) -> list[Inputs | Exception]:
    """Load the inputs of each job of `batch`; an error of a pair is returned.

    Pictures that do not fit on `hardware` are not even read.
    """
    if problem := batch.memory_problem(hardware):
        return [OutOfMemory(problem) for _ in batch.jobs]
    return [_load_job(job, get_style) for job in batch.jobs]


def _load_job(job: Job, get_style: Callable[[StyleFile], LoadedStyle]) -> Inputs | Exception:
    try:
        return gather_pair(job.pair, get_style)
    except Exception as error:  # a decoder may raise anything on a file from outside; only this pair fails
        return error


def _write_snapshot(committer: _Committer, jobs: Sequence[Job], index: int, step: int, pixels: Pixels) -> None:
    name = f"{jobs[index].pair.id}/step-{step:05d}.jpg"
    with committer.refused_names("snapshots"):
        committer.out.write_snapshot(committer.lease, name, encode_picture(pixels, name))


class _CommitThread:
    """Commits one group of pictures in a thread while the next group is painted."""

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
        """Wait for the previous commit and start `commit`; returns the pairs that the previous one finished."""
        finished = self.wait()
        self._pending = self._pool.submit(commit)
        return finished

    def finished(self) -> list[Finished]:
        """The pairs committed since the last call; does not wait."""
        return self.wait() if self._pending and self._pending.done() else []

    def wait(self) -> list[Finished]:
        """Wait for the running commit; returns the pairs that it finished, raises what it raised."""
        pending, self._pending = self._pending, None
        return pending.result() if pending else []


class _Committer:
    """Writes the pictures and ledger rows of one batch's jobs."""

    def __init__(
        self,
        out: Out,
        lease: Lease,
        weights_sha256: str,
        device: torch.device,
        dtype: torch.dtype,
        credentials: Credentials | None,
    ) -> None:
        self.out, self.lease, self.weights_sha256 = out, lease, weights_sha256
        self.device, self.dtype, self.credentials = device, dtype, credentials

    def commit(
        self, jobs: Sequence[Job], inputs: Sequence[Inputs], painted: Sequence[Painted], started: datetime
    ) -> list[Finished]:
        """Commit a group of pictures; an error becomes a failed row of its pair, only a StorageError is raised."""
        group = list(zip(jobs, inputs, painted, strict=True))
        try:
            return self._commit(group, len(group), started)
        except StorageError:
            raise
        except Exception:
            return [self._commit_alone(*member, len(group), started) for member in group]

    def _commit_alone(self, job: Job, inputs: Inputs, painted: Painted, batch_size: int, started: datetime) -> Finished:
        """Commit one picture of a group that could not be committed together."""
        try:
            (finished,) = self._commit([(job, inputs, painted)], batch_size, started)
        except StorageError:
            raise
        except Exception as error:
            return self.fail(job, error, started, inputs)
        return finished

    @contextmanager
    def refused_names(self, top: str) -> Iterator[None]:
        """Raise OutputError if the file system refuses a name in the folder `top` of OUT, but not OUT itself."""
        try:
            yield
        except UnwritableName as error:
            if self.out.folder.local and not os.path.isdir(self.out.folder.path(top)):
                raise
            raise OutputError(str(error)) from None

    def fail(self, job: Job, error: Exception, started: datetime, inputs: Inputs | None = None) -> Finished:
        """Write the ledger row of a failed attempt."""
        error = as_pair_error(error)
        row = rows.failed(self._row(job, started), error)
        self.out.commit(self.lease, {}, [rows.with_inputs(row, inputs) if inputs else row], [])
        self._log(logging.INFO, job, f"failed: {row.error_message}")
        return failing_stores.failed(job.pair, error, row.error_message or "")

    def warn(self, jobs: Sequence[Job], text: str) -> None:
        """Log a warning about each job."""
        for job in jobs:
            self._log(logging.WARNING, job, text)

    def _commit(
        self, group: Sequence[tuple[Job, Inputs, Painted]], batch_size: int, started: datetime
    ) -> list[Finished]:
        pictures: dict[str, bytes] = {}
        pair_rows: list[PairRow] = []
        losses: list[LossRow] = []
        for job, inputs, painted in group:
            row, data = self._encode(job, inputs, painted, batch_size, started)
            pair_rows.append(row)
            losses += rows.loss_rows(job, self.lease.run_id, painted)
            if data is not None:
                pictures[job.pair.output] = data
        previous = {job.pair.id: job.previous for job, *_ in group if job.previous}
        with self.refused_names("images"):
            self.out.commit(self.lease, pictures, pair_rows, losses, previous)
        for (job, *_), row in zip(group, pair_rows, strict=True):
            outcome = row.error_message or f"loss {row.total_loss:.4g} after {row.steps} steps"
            self._log(logging.INFO, job, f"{row.status}: {outcome}")
        return [
            failing_stores.painted(job.pair, row.error_message if row.status == "failed" else None)
            for (job, *_), row in zip(group, pair_rows, strict=True)
        ]

    def _encode(
        self, job: Job, inputs: Inputs, painted: Painted, batch_size: int, started: datetime
    ) -> tuple[PairRow, bytes | None]:
        """The row and the file of a picture; a failed row and None if it is not finite or cannot be encoded."""
        row = rows.with_painting(rows.with_inputs(self._row(job, started), inputs), job, painted, batch_size)
        try:
            painted.check_finite()
            data = painted.encode(job.pair.output, replace(inputs.finish, provenance=self._provenance(job)))
            if self.credentials:
                data = self.credentials.sign(data, job.pair.output, rows.ingredients(row), rows.facts(row))
        except Exception as error:  # whatever it is, no other picture of the batch fails for it
            return rows.failed(row, as_pair_error(error)), None
        row = rows.with_picture(row, painted, data)
        if painted.stopped == "diverged":
            row = replace(rows.with_error(row, Diverged(RESCUED)), precision="fp32")
        return row, data

    def _provenance(self, job: Job) -> Provenance:
        return Provenance(job.pair.id, self.lease.run_id, job.attempt, job.fingerprint, version("batchnst"))

    def _row(self, job: Job, started: datetime) -> PairRow:
        row = rows.attempt_row(job, self.lease, self.weights_sha256, started)
        return rows.with_device(row, self.device, self.dtype)

    def _log(self, level: int, job: Job, text: str) -> None:
        log.log(level, "run %s, pair %s, attempt %d: %s", self.lease.run_id, job.pair.id, job.attempt, text)
