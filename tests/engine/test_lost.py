"""A lost worker's pairs: they are tried again, in smaller batches if need be, and given up after the last attempt."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnst.engine.lost import IN_HAND, Retries, unfinished
from batchnst.engine.plan import Batch, Chunk, Job
from tests.helpers import pair


def batch(names: str) -> Batch:
    """A batch of pairs with these ids, one letter each."""
    return Batch(tuple(Job(pair(name), "f", 1) for name in names), (48, 48))


def tried(chunks: list[Chunk]) -> list[list[str]]:
    """The pairs of every batch, a list for each chunk."""
    return [["".join(job.pair.id for job in batch.jobs) for batch in chunk.batches] for chunk in chunks]


def attempts(chunks: list[Chunk]) -> dict[str, int]:
    return {job.pair.id: job.attempt for chunk in chunks for job in chunk.jobs}


def test_finished_pairs_are_left_out_and_so_is_a_batch_without_others() -> None:
    left = unfinished(Chunk((batch("ab"), batch("cd"), batch("e"))), {"a", "c", "d"})
    assert [[job.pair.id for job in batch.jobs] for batch in left] == [["b"], ["e"]]
    assert {batch.size for batch in left} == {(48, 48)}


def test_batches_in_hand_are_tried_again_as_they_were_each_by_itself() -> None:
    chunks, given_up = Retries(3).reschedule([batch("ab"), batch("c")], short_of_memory=False)
    assert tried(chunks) == [["ab"], ["c"]]
    assert attempts(chunks) == {"a": 2, "b": 2, "c": 2}
    assert given_up == []


def test_a_batch_on_a_host_short_of_memory_is_tried_in_halves() -> None:
    chunks, given_up = Retries(3).reschedule([batch("abcde"), batch("f")], short_of_memory=True)
    assert tried(chunks) == [["ab"], ["cde"], ["f"]]
    assert given_up == []


@pytest.mark.parametrize("short_of_memory", [False, True])
def test_each_pairs_last_try_is_alone(short_of_memory: bool) -> None:
    retries = Retries(3)
    retries.reschedule([batch("ab")], short_of_memory=short_of_memory)
    chunks, given_up = retries.reschedule([batch("abcd")], short_of_memory=short_of_memory)
    assert tried(chunks) == [["a"], ["b"], *([["c"], ["d"]] if short_of_memory else [["cd"]])]
    assert given_up == []


def test_a_pair_is_given_up_after_its_last_attempt_and_its_neighbours_go_on() -> None:
    retries = Retries(2)
    retries.reschedule([batch("a")], short_of_memory=False)
    chunks, given_up = retries.reschedule([batch("ab")], short_of_memory=False)
    assert tried(chunks) == [["b"]]
    assert [job.pair.id for job in given_up] == ["a"]


def test_with_one_attempt_nothing_is_tried_again() -> None:
    chunks, given_up = Retries(1).reschedule([batch("ab")], short_of_memory=True)
    assert chunks == []
    assert [job.pair.id for job in given_up] == ["a", "b"]


def test_batches_beyond_those_in_hand_stay_together_and_lose_no_attempt() -> None:
    retries = Retries(2)
    in_hand, others = [batch(name) for name in "abc"], [batch("de"), batch("fg")]
    assert len(in_hand) == IN_HAND
    chunks, given_up = retries.reschedule([*in_hand, *others], short_of_memory=True)
    assert tried(chunks) == [["de", "fg"], ["a"], ["b"], ["c"]]
    assert attempts(chunks) == {"a": 2, "b": 2, "c": 2, **dict.fromkeys("defg", 1)}
    assert given_up == []
    chunks, given_up = retries.reschedule(others, short_of_memory=False)
    assert (tried(chunks), given_up) == ([["d"], ["e"], ["f"], ["g"]], [])


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=7),
    max_attempts=st.integers(1, 4),
    short_of_memory=st.booleans(),
)
def test_if_every_worker_is_lost_every_pair_is_given_up_once_after_all_attempts(
    sizes: list[int], max_attempts: int, short_of_memory: bool
) -> None:
    names = iter(range(sum(sizes)))
    batches = [Batch(tuple(Job(pair(str(next(names))), "f", 1) for _ in range(size)), (48, 48)) for size in sizes]
    retries, waiting = Retries(max_attempts), [Chunk(tuple(batches))]
    lost_workers, last_attempt = Counter[str](), dict[str, int]()
    while waiting:
        lost = waiting.pop()
        lost_workers.update(job.pair.id for batch in lost.batches[:IN_HAND] for job in batch.jobs)
        chunks, given_up = retries.reschedule(lost.batches, short_of_memory=short_of_memory)
        waiting += chunks
        assert not last_attempt.keys() & {job.pair.id for job in given_up}
        last_attempt |= {job.pair.id: job.attempt for job in given_up}
    everyone = {str(number): max_attempts for number in range(sum(sizes))}
    assert lost_workers == last_attempt == everyone
