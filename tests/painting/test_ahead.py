from __future__ import annotations

from threading import Event

import pytest

from batchnst.painting.ahead import ahead


def test_every_item_comes_with_its_result() -> None:
    assert list(ahead(lambda x: x * x, [1, 2, 3])) == [(1, 1), (2, 4), (3, 9)]


def test_the_next_result_is_made_while_the_last_is_used() -> None:
    begun = {number: Event() for number in (1, 2, 3)}
    for number, _ in ahead(lambda number: begun[number].set(), [1, 2, 3]):
        assert number == 3 or begun[number + 1].wait(60)
        assert number > 1 or not begun[3].is_set(), "more than one result is made ahead"


def test_an_error_is_raised_where_the_result_is_due() -> None:
    results = ahead(lambda x: 1 // x, [1, 0])
    assert next(results) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)
