"""Plan a run: find the pairs that are left, and group them into batches of one recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnst.chains import is_cell
from batchnst.engine.mixing import Size, mix
from batchnst.engine.newer import DoneInputs
from batchnst.engine.repaint import NOTHING, Redo
from batchnst.ledger.out import Out
from batchnst.ledger.outcomes import Outcomes
from batchnst.ledger.previous import Previous
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import Pair
from batchnst.painting.inputs import StyleFile, style_files
from batchnst.pictures import isolated
from batchnst.recipe import Recipe
from batchnst.storage.threads import in_threads
from batchnst.transfer.device import Hardware
from batchnst.transfer.memory import Fitting, fit_into, largest_batch, memory_problem
from batchnst.transfer.pyramid import scales, work

PROBES = 16
"""Headers of contents that are read at the same time."""


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at a pair. `fingerprint` is that of the pair as the manifest has it now; `attempt` counts from 1.

    `previous` is the attempt that painted the picture which this one replaces; None if there is none.
    """

    pair: Pair
    fingerprint: str
    attempt: int
    previous: Previous | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs with one recipe, which are painted together.

    `size` is (width, height) of the canvas that holds all of its pictures, in pixels: their working size, if they have
    the same; None if the header of the content cannot be read. If it is `assumed`, it holds pictures of any shape.
    """

    jobs: tuple[Job, ...]
    size: Size | None

    @property
    def recipe(self) -> Recipe:
        """The recipe of all jobs."""
        return self.jobs[0].pair.recipe

    @property
    def assumed(self) -> bool:
        """True if the contents are in Parquet files, which only workers read: until then no size is known."""
        return self.size is not None and is_cell(self.jobs[0].pair.content)

    @property
    def work(self) -> int:
        """Pixel-steps of the whole canvas, in proportion to its painting time; 0 if the size is unknown."""
        return len(self.jobs) * work(self.recipe, *self.size) if self.size else 0

    def fitting(self, hardware: Hardware, count: int) -> Fitting | None:
        """The way to paint `count` of its pictures on `hardware`; None if there is none or the size is unknown."""
        if not self.size:
            return None
        return fit_into(hardware.memory, self.recipe, self.size, count, hardware.network_dtype(self.recipe.precision))

    def halved(self, hardware: Hardware) -> Fitting | None:
        """The way to paint it on `hardware`, in halves if need be; None if not even one picture fits."""
        count = len(self.jobs)
        while count > 1 and not self.fitting(hardware, count):
            count = math.ceil(count / 2)
        return self.fitting(hardware, count)

    def memory_problem(self, hardware: Hardware) -> str | None:
        """Explain why not even one of its pictures fits on `hardware`; None if one fits or its size is unknown.

        `plan`, `run` and its workers all ask here.
        """
        if not self.size or self.assumed or self.fitting(hardware, 1):
            return None
        dtype = hardware.network_dtype(self.recipe.precision)
        return memory_problem(hardware.memory, self.recipe, self.size, dtype)

    def memory_needed(self, hardware: Hardware) -> float:
        """Bytes needed, at most those of `hardware`: a batch that needs more is halved until it fits.

        All of them if the size is unknown: the header may be readable by the time the batch is painted.
        """
        fitting = self.fitting(hardware, len(self.jobs))
        return fitting.memory if fitting else hardware.memory


@dataclass(frozen=True)
class Chunk:
    """Batches of one network that a worker paints in one task."""

    batches: tuple[Batch, ...]

    @property
    def network(self) -> tuple[str, str]:
        """The backbone and weights of all its recipes."""
        return self.batches[0].recipe.network

    @property
    def jobs(self) -> list[Job]:
        """The jobs of all its batches."""
        return [job for batch in self.batches for job in batch.jobs]

    @property
    def style_files(self) -> list[StyleFile]:
        """The style files that its jobs need, without duplicates."""
        return list(dict.fromkeys(file for job in self.jobs for file in style_files(job.pair)))


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, kept as columns.

    `rows` are the manifest rows to paint, in ascending order, and `attempts` the number of each one's attempt.
    `weights_sha256` has the hash for each (backbone, weights). `done` and `failed` are numbers of other pairs: those
    that are done, and those that failed in an earlier run and are not tried again. `inputs` are files of the done ones.
    `again` is the number of pairs that failed in an earlier run for a passing reason and are tried again. `redo` is
    what `--redo` asks for, and `redone` the number of settled pairs that are painted again for it, by reason.
    `otherwise` counts pairs that are painted again as they were before another run, by the number of that run.
    """

    manifest: Manifest
    rows: NDArray[np.int64]
    attempts: NDArray[np.int64]
    weights_sha256: Mapping[tuple[str, str], str]
    done: int
    failed: int
    inputs: DoneInputs
    again: int
    redo: Redo = NOTHING
    redone: Counter[str] = field(default_factory=Counter)
    otherwise: Counter[int] = field(default_factory=Counter)

    @property
    def pairs(self) -> int:
        """Number of pairs in the manifest."""
        return len(self.manifest)

    @property
    def left(self) -> int:
        """Number of pairs that are neither done nor failed."""
        return self.pairs - self.done - self.failed

    def __len__(self) -> int:
        return len(self.rows)

    def jobs(self, part: slice | NDArray[np.int64] = slice(None)) -> list[Job]:
        """The jobs of this plan: all, or the selected `part`."""
        block = self.manifest.take_block(self.rows[part])
        fingerprints = self.manifest.fingerprints(block, self.weights_sha256).to_pylist()
        each = zip(self.manifest.pairs(block), fingerprints, self.attempts[part].tolist(), strict=True)
        return [Job(pair, mark, attempt) for pair, mark, attempt in each]

    def once_more(self, outcomes: Outcomes, pair_ids: Collection[str]) -> Plan:
        """The part of this plan whose pairs have these ids and have failed for a reason that may have passed."""
        ids = self.manifest.take_ids(self.rows)
        chosen = np.flatnonzero(pc.is_in(ids, pa.array(list(pair_ids), pa.string())).to_numpy())
        places, found = outcomes.find(ids.take(pa.array(chosen)).to_pylist())
        passing = [
            (chosen[place], outcome.attempt + 1)
            for place, outcome in zip(places, found, strict=True)
            if outcome.passing
        ]
        rows, attempts = np.array(passing, np.int64).reshape(-1, 2).T
        return replace(self, rows=self.rows[rows], attempts=attempts)

    def sample(self, count: int) -> list[Job]:
        """All jobs, or `count` of them drawn at random with a fixed seed."""
        if len(self) <= count:
            return self.jobs()
        return self.jobs(np.sort(np.random.default_rng(0).choice(len(self), count, replace=False)))


def with_previous(jobs: Sequence[Job], out: Out) -> list[Job]:
    """The jobs, with the attempts in `out` that painted the pictures which they replace."""
    again = [job.pair.id for job in jobs if job.attempt > 1]
    known = out.previous(again) if again else {}
    return [replace(job, previous=known.get(job.pair.id)) for job in jobs]


def largest_by_recipe(hardware: Hardware) -> Callable[[Recipe], int]:
    """The argument `largest` of `make_batches` for workers with this `hardware`."""

    def largest(recipe: Recipe) -> int:
        dtype = hardware.network_dtype(recipe.precision)
        return largest_batch(hardware.memory, recipe, hardware.device.type, dtype)

    return largest


def make_plan(
    manifest: Manifest,
    outcomes: Outcomes,
    weights_sha256: Mapping[tuple[str, str], str],
    *,
    redo: Redo | None = None,
    limit: int | None = None,
) -> Plan:
    """Plan the pairs of `manifest` that `outcomes`, the newest outcome of each pair, do not settle.

    A pair is settled if its outcome has the fingerprint that the manifest asks for now, and is ok, or is failed for a
    reason that will not pass; unless `redo` asks for it. At most `limit` pairs are planned.
    """
    redo, redone, otherwise = redo or NOTHING, Counter[str](), Counter[int]()
    left, attempts = np.ones(len(manifest), bool), np.ones(len(manifest), np.int64)
    done = failed = again = start = 0
    inputs = DoneInputs()
    for block in manifest.blocks() if len(outcomes) else ():
        places = outcomes.places(block["id"])
        known = np.flatnonzero(places >= 0)
        if len(known):
            pairs = block.take(pa.array(known))
            settled = outcomes.at(places[known], manifest.fingerprints(pairs, weights_sha256))
            again_now, why = redo.of(start + known, settled)
            redone.update(why)
            otherwise.update(settled.otherwise[settled.otherwise > 0].tolist())
            is_done, given_up = settled.done & ~again_now, settled.failed & ~again_now
            inputs.add(pairs.filter(pa.array(is_done)), settled.finished[is_done], manifest)
            done += int(is_done.sum())
            failed += int(given_up.sum())
            again += int(settled.passing.sum())
            left[start + known] = ~(is_done | given_up)
            attempts[start + known] = settled.attempts + 1
        start += len(block)
    chosen = np.flatnonzero(left)[:limit]
    counts = done, failed, inputs, again, redo, redone, otherwise
    return Plan(manifest, chosen, attempts[chosen], weights_sha256, *counts)


def make_batches(
    jobs: Sequence[Job], batch_size: int | None, workers: int, largest: Callable[[Recipe], int], *, mixed: bool = False
) -> list[Batch]:
    """Group jobs by recipe and size; batches that take longest come first.

    `batch_size` is the number of pairs in a batch. If it is None, a batch has at most `largest(recipe)` pixels, and
    fewer if there would be too few batches to keep all `workers` busy. A pair whose size is unknown is alone.

    Pictures in a batch have one working size, or with `mixed` a canvas that they share, so that there are few shapes.
    """
    sizes = _working_sizes(jobs)
    all_pixels = sum(math.prod(sizes[job.pair.id] or (0, 0)) for job in jobs)
    batches = [Batch((job,), None) for job in jobs if not sizes[job.pair.id]]
    groups: dict[tuple[object, ...], list[tuple[Job, Size]]] = {}
    for job in jobs:
        if size := sizes[job.pair.id]:
            groups.setdefault(_group_key(job, size, mixed), []).append((job, size))
    for members in groups.values():
        recipe = members[0][0].pair.recipe

        def most(size: Size, recipe: Recipe = recipe) -> int:
            pixels = math.prod(size)
            return batch_size or max(1, min(largest(recipe) // pixels, math.ceil(all_pixels / workers / pixels)))

        group_sizes = [size for _, size in members]
        parts = mix(group_sizes, max(group_sizes[0]), most, even=batch_size is None)
        batches += [Batch(tuple(members[i][0] for i in indices), canvas) for indices, canvas in parts]
    return sorted(batches, key=lambda batch: -batch.work)


def _group_key(job: Job, size: Size, mixed: bool) -> tuple[object, ...]:
    """The properties that pairs in one batch have in common: recipe, kind of content, number of masks, and size.

    If they are `mixed`, the scales instead of the size, except in tiles.
    """
    recipe = job.pair.recipe
    if mixed and not recipe.tile_side:
        return recipe.json_text, is_cell(job.pair.content), len(job.pair.content_masks), *scales(recipe, *size)
    return recipe.json_text, is_cell(job.pair.content), len(job.pair.content_masks), size


def _working_sizes(jobs: Sequence[Job]) -> dict[str, Size | None]:
    """Working size (width, height) by pair id, from the header of each content; None if it cannot be read.

    Contents in Parquet files are not read: theirs is a square that holds pictures of any shape, if the recipe has one.
    """
    contents = sorted({job.pair.content for job in jobs if not is_cell(job.pair.content)})
    full_sizes = dict(zip(contents, in_threads(isolated.probe, contents, PROBES), strict=True))
    isolated.release()
    sizes: dict[str, Size | None] = {}
    for job in jobs:
        recipe, size = job.pair.recipe, full_sizes.get(job.pair.content)
        square = (recipe.pixels, recipe.pixels) if is_cell(job.pair.content) and recipe.has_one_size else None
        sizes[job.pair.id] = recipe.working_size(*size) if size else square
    return sizes
