"""Calls in threads of their own."""

from __future__ import annotations

import threading
from contextvars import ContextVar

import pytest

from batchnst.storage.threads import in_threads, start

NAME: ContextVar[str] = ContextVar("name", default="nobody")


def test_threads_are_used_again_and_remember_nothing() -> None:
    def call() -> tuple[str, int]:
        before = NAME.get()
        NAME.set("somebody")
        return before, threading.get_ident()

    results = [start(call).result(10) for _ in range(100)]
    assert {name for name, _ in results} == {"nobody"}
    assert len({thread for _, thread in results}) <= 3


def test_calls_at_once_have_a_thread_each_even_after_one_that_failed() -> None:
    with pytest.raises(ZeroDivisionError):
        start(lambda: 1 / 0).result(10)
    barrier = threading.Barrier(8)
    assert sorted(in_threads(lambda _: barrier.wait(10), range(8), 8)) == list(range(8))
