"""A small part of `make simulate`: some schedules of all that writes to OUT, and the first round's faults put back."""

from __future__ import annotations

import pytest

from tests.tools.simulate import BREAKS, FORMS, attempt, one_check_a_batch


def test_no_schedule_violates_an_invariant() -> None:
    outcomes = [attempt(seed, forms=FORMS) for seed in range(24)]
    assert [violated for *_, violated in outcomes if violated] == []
    faults = [vars(faults) for _, faults, _, _ in outcomes]
    assert all(sum(fault[kind] for fault in faults) for kind in ("suspended", "crashed", "late", "twice", "unreported"))


def test_a_run_that_is_ending_is_not_taken_for_silent() -> None:
    """Found by `make simulate`: two suspended runs woke up, and one took the other's last steps for its death."""
    assert attempt(103657)[3] == ""


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(number, id=fault.__name__, marks=[pytest.mark.slow] if fault is one_check_a_batch else [])
        for number, fault in BREAKS.items()
    ],
)
def test_a_fault_put_back_is_found(broken: int) -> None:
    forms = FORMS[1:] if broken == 6 else FORMS[:1]
    assert any(attempt(seed, broken, forms)[3] for seed in range(120))
