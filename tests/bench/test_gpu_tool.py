"""`make gpu` on the CPU, in small: where there is a GPU it must not fail for a slip of its own."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from batchnst.bench import race
from tests.tools import gpu


@pytest.mark.slow
def test_every_part_of_make_gpu_runs_and_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "STEPS", 3)
    monkeypatch.setattr(race, "REPEATS", 1)
    report = gpu.examine(gpu.SMALL, 1e9)
    assert report.errors == {}
    assert report.holds, report.checks
    assert report.skipped == ["a failing GPU"]
    assert len(report.checks) >= 12
    assert "final loss in a batch of mixed shapes, against alone" in report.checks
    assert {"ceiling", "race against the textbook loop", "a run of 2 pairs with inline"} <= report.figures.keys()
    json.dumps(asdict(report))


def test_a_check_that_fails_and_a_part_that_breaks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(report: gpu.Report, *_: object) -> None:
        report.check("a loss", 0.5, 0.1)
        raise RuntimeError("broken")

    monkeypatch.setattr(gpu, "PARTS", [wrong, wrong])
    report = gpu.examine(gpu.SMALL, 1e9)
    assert not report.holds
    assert report.checks == {"a loss": (0.5, 0.1, False)}
    assert "broken" in report.errors["wrong"]
    assert gpu.examine(gpu.SMALL, -1).skipped == ["wrong: no time left"] * 2
