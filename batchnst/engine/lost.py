"""After a worker is lost: choose the batches to try again and the pairs to give up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from batchnst.engine.plan import Batch, Chunk, Job

IN_HAND = 3
"""Batches that a worker has in hand at once: one is committed, one painted, one loaded.

Only these can have killed it.
"""


def unfinished(chunk: Chunk, finished: Collection[str]) -> list[Batch]:
    """The batches of `chunk`, without jobs whose pair ids are in `finished`."""
    return [
        replace(batch, jobs=jobs)
        for batch in chunk.batches
        if (jobs := tuple(job for job in batch.jobs if job.pair.id not in finished))
    ]


class Retries:
    """Counts how often each pair was in hand when a worker was lost, and stops after `max_attempts`."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._lost_workers: Counter[str] = Counter()  # by pair id

    def reschedule(self, batches: Sequence[Batch], *, short_of_memory: bool) -> tuple[list[Chunk], list[Job]]:
        """Return the chunks to try again and the jobs to give up, from the batches that a lost worker left unfinished.

        The first IN_HAND batches were in hand. They are tried as they were, or in halves if the host was short of
        memory. Each pair's last try is alone, so that a pair that kills workers does not fail others. Later batches are
        tried as they were, and this does not count as an attempt.
        """
        chunks, given_up = list[Chunk](), list[Job]()
        if batches[IN_HAND:]:
            chunks.append(Chunk(tuple(batches[IN_HAND:])))
        for batch in batches[:IN_HAND]:
            self._lost_workers.update(job.pair.id for job in batch.jobs)
            given_up += [job for job in batch.jobs if self._tries_left(job) <= 0]
            parts = self._parts(batch.jobs, short_of_memory=short_of_memory)
            chunks += [Chunk((replace(batch, jobs=part),)) for part in parts if part]
        return chunks, given_up

    def _tries_left(self, job: Job) -> int:
        return self.max_attempts - self._lost_workers[job.pair.id]

    def _parts(self, jobs: Sequence[Job], *, short_of_memory: bool) -> Iterator[tuple[Job, ...]]:
        """The jobs that have tries left, in groups to be tried together."""
        again = [replace(job, attempt=job.attempt + 1) for job in jobs if self._tries_left(job) > 0]
        yield from ((job,) for job in again if self._tries_left(job) == 1)
        others = tuple(job for job in again if self._tries_left(job) > 1)
        half = len(others) // 2 if short_of_memory else 0
        yield others[:half]
        yield others[half:]
