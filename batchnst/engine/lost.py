"""What is tried again after a worker was lost, and what is given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from batchnst.engine.plan import Batch, Chunk, Job

IN_HAND = 3
"""Batches that a worker has in hand: one is committed, one painted, one loaded. One of them may have killed it."""


def unfinished(chunk: Chunk, finished: Collection[str]) -> list[Batch]:
    """The batches of a chunk without the jobs whose pairs are finished."""
    return [
        replace(batch, jobs=jobs)
        for batch in chunk.batches
        if (jobs := tuple(job for job in batch.jobs if job.pair.id not in finished))
    ]


class Retries:
    """Counts how often each pair was in hand when a worker was lost."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._losses: Counter[str] = Counter()

    def again(self, batches: Sequence[Batch], *, short_of_memory: bool) -> tuple[list[Chunk], list[Job]]:
        """Chunks to try again, and jobs to give up, of the batches that a lost worker left.

        A batch in hand is tried as it was, or in halves if the host was short of memory; the last time each pair is
        tried alone, so that a pair that kills workers takes no other one with it. The other batches are tried as they
        were.
        """
        chunks, given_up = list[Chunk](), list[Job]()
        if batches[IN_HAND:]:
            chunks.append(Chunk(tuple(batches[IN_HAND:])))
        for batch in batches[:IN_HAND]:
            self._losses.update(job.pair.id for job in batch.jobs)
            given_up += [job for job in batch.jobs if self._tries_left(job) <= 0]
            parts = self._parts(batch.jobs, short_of_memory=short_of_memory)
            chunks += [Chunk((replace(batch, jobs=part),)) for part in parts if part]
        return chunks, given_up

    def _tries_left(self, job: Job) -> int:
        return self.max_attempts - self._losses[job.pair.id]

    def _parts(self, jobs: Sequence[Job], *, short_of_memory: bool) -> Iterator[tuple[Job, ...]]:
        """The jobs that have tries left, in the parts in which they are tried."""
        again = [replace(job, attempt=job.attempt + 1) for job in jobs if self._tries_left(job) > 0]
        yield from ((job,) for job in again if self._tries_left(job) == 1)
        others = tuple(job for job in again if self._tries_left(job) > 1)
        half = len(others) // 2 if short_of_memory else 0
        yield others[:half]
        yield others[half:]
