"""What is left to do, and in what pieces: pairs minus done, into batches of one recipe and one size, into chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from batchnst.ledger.out import Outcomes
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import Pair, fingerprint
from batchnst.painting.inputs import StyleFile, style_files
from batchnst.pictures.decode import probe
from batchnst.recipe import Recipe, fit
from batchnst.transfer.device import best_device, network_dtype
from batchnst.transfer.memory import PROCESS_BYTES, Fitting, fit_into, largest_batch
from batchnst.transfer.pyramid import work


@dataclass(frozen=True, slots=True)
class Job:
    """A pair to be painted: which attempt this is, and the fingerprint of what is asked for."""

    pair: Pair
    fingerprint: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs of one recipe and one working size (width, height); no size where a header could not be read."""

    jobs: tuple[Job, ...]
    size: tuple[int, int] | None

    @property
    def recipe(self) -> Recipe:
        """The recipe of all its jobs."""
        return self.jobs[0].pair.recipe

    @property
    def work(self) -> int:
        """Pixel-steps of the whole batch, what its time is proportional to."""
        return len(self.jobs) * work(self.recipe, *self.size) if self.size else 0

    def fitting(self, memory: float, count: int) -> Fitting | None:
        """How so many of its pictures are painted in so many bytes, if workers are as this machine."""
        return fit_into(memory, self.recipe, self.size, count, expected_dtype(self.recipe)) if self.size else None

    def bytes_taken(self, memory: float) -> float:
        """What painting it takes of so many bytes: all of them where it has to be halved first."""
        if not self.size:
            return PROCESS_BYTES
        fitting = self.fitting(memory, len(self.jobs))
        return fitting.memory if fitting else memory


@dataclass(frozen=True)
class Chunk:
    """Batches of one network: what one task of a worker paints, and what is lost with the worker."""

    batches: tuple[Batch, ...]

    @property
    def network(self) -> tuple[str, str]:
        """Backbone and weights of all its recipes."""
        return self.batches[0].recipe.network

    @property
    def jobs(self) -> list[Job]:
        """The jobs of all its batches."""
        return [job for batch in self.batches for job in batch.jobs]

    @property
    def style_files(self) -> list[StyleFile]:
        """The style pictures that its jobs need, each once."""
        return list(dict.fromkeys(file for job in self.jobs for file in style_files(job.pair)))


@dataclass(frozen=True)
class Plan:
    """What a run would do: which rows of the manifest it paints, how many are done, and failed and left alone.

    rows, attempts: a number for each job, in the manifest's order. weights_sha256: by (backbone, weights).
    """

    manifest: Manifest
    rows: NDArray[np.int64]
    attempts: NDArray[np.int64]
    weights_sha256: Mapping[tuple[str, str], str]
    done: int
    failed: int

    @property
    def pairs(self) -> int:
        """Pairs of the manifest."""
        return len(self.manifest)

    @property
    def left(self) -> int:
        """Pairs that are not done and not given up."""
        return self.pairs - self.done - self.failed

    def __len__(self) -> int:
        return len(self.rows)

    def jobs(self, part: slice | NDArray[np.int64] = slice(None)) -> list[Job]:
        """The jobs of this plan, or those at the given places."""
        pairs = self.manifest.take(self.rows[part])
        return [
            Job(pair, fingerprint(pair, self.weights_sha256[pair.recipe.network]), int(attempt))
            for pair, attempt in zip(pairs, self.attempts[part], strict=True)
        ]

    def sample(self, most: int) -> list[Job]:
        """All jobs, or so many drawn at random, the same ones every time."""
        if len(self) <= most:
            return self.jobs()
        return self.jobs(np.sort(np.random.default_rng(0).choice(len(self), most, replace=False)))


def expected_dtype(recipe: Recipe) -> torch.dtype:
    """The network's dtype, if workers are as this machine."""
    return network_dtype(recipe.precision, best_device())


def largest_by_recipe(memory: float, device_type: str) -> Callable[[Recipe], int]:
    """For `make_batches`: the pixels of a recipe's largest batch, on workers with so many bytes."""
    return lambda recipe: largest_batch(memory, recipe, device_type, expected_dtype(recipe))


def make_plan(
    pairs: Manifest,
    outcomes: Outcomes,
    weights_sha256: Mapping[tuple[str, str], str],
    *,
    retry_failed: bool = False,
    limit: int | None = None,
) -> Plan:
    """Compare what is asked for with the newest outcome of every pair.

    A failed pair is left alone until its row changes or `retry_failed`.
    """
    left, attempts = np.ones(len(pairs), bool), np.ones(len(pairs), np.int64)
    done = failed = 0
    rows, known = outcomes.find(pairs.ids)
    for row, pair, outcome in zip(rows, pairs.take(rows), known, strict=True):
        same = outcome.fingerprint == fingerprint(pair, weights_sha256[pair.recipe.network])
        done += same and outcome.ok
        given_up = same and not outcome.ok and not retry_failed
        failed += given_up
        left[row] = not given_up and not (same and outcome.ok)
        attempts[row] = outcome.attempt + 1
    chosen = np.flatnonzero(left)[:limit]
    return Plan(pairs, chosen, attempts[chosen], weights_sha256, done, failed)


def make_batches(
    jobs: Sequence[Job], batch_size: int | None, workers: int, largest: Callable[[Recipe], int]
) -> list[Batch]:
    """Group jobs by recipe and working size, the batches that take longest first.

    batch_size: pairs in a batch; None: as many as make the `largest` pixels for their recipe, fewer where workers would
    go idle.
    """
    sizes = _working_sizes(jobs)
    pixels = sum(math.prod(sizes[job.pair.id] or (0, 0)) for job in jobs)
    key = {job.pair.id: (*_kind(job), sizes[job.pair.id] or (0, 0)) for job in jobs}
    batches: list[Batch] = []
    for _, group in groupby(sorted(jobs, key=lambda job: key[job.pair.id]), lambda job: key[job.pair.id]):
        members = list(group)
        size = sizes[members[0].pair.id]
        each = math.prod(size or (1, 1))
        most = largest(members[0].pair.recipe) // each
        count = batch_size or _even(len(members), min(most, math.ceil(pixels / workers / each)))
        parts = (members[start : start + count] for start in range(0, len(members), count))
        batches += [Batch(tuple(part), size) for part in parts]
    return sorted(batches, key=lambda batch: -batch.work)


def _kind(job: Job) -> tuple[str, int]:
    """What pairs must share to be optimised together, beside their size: the recipe and the number of parts."""
    return job.pair.recipe.json_text, len(job.pair.content_masks)


def _even(count: int, most: int) -> int:
    """Members of a batch, at most `most`, so that all batches are of much the same size."""
    return math.ceil(count / math.ceil(count / max(1, most)))


def _working_sizes(jobs: Sequence[Job]) -> dict[str, tuple[int, int] | None]:
    """Each pair's working size by its id, from the headers of its content, each read once."""
    contents = sorted({job.pair.content for job in jobs})
    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(contents, pool.map(probe, contents), strict=True))
    sizes: dict[str, tuple[int, int] | None] = {}
    for job in jobs:
        size = found[job.pair.content]
        sizes[job.pair.id] = fit(*size, job.pair.recipe.size) if size else None
    return sizes
