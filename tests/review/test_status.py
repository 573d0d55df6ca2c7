from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batchnst.ledger.claim import Lease
from batchnst.ledger.out import Out
from batchnst.ledger.schema import PairRow, RunRow
from batchnst.review.status import Status, Watch, describe
from tests.helpers import NOON, batchnst, row, take_over

RUN = RunRow(
    run_id="r2",
    started_at=NOON,
    manifest="/m.csv",
    settings="{}",
    pairs=20,
    done=3,
    given_up=1,
    to_paint=16,
    engine="ray",
    host="head",
    pid=7,
)


@pytest.fixture
def out(tmp_path: Path) -> Out:
    """An earlier run of four pairs, and one that has been going for half an hour."""
    out = Out(str(tmp_path / "out"))
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30)
    early = began - timedelta(days=1)
    out.begin(replace(RUN, run_id="r1", started_at=early, pairs=4, done=0, given_up=0, to_paint=4))
    with out.claim("r1"):
        rows = [row(name, finished_at=early) for name in "abc"]
        out.commit(
            Lease("r1", 1), {}, [*rows, row("d", status="failed", error_type="InputError", finished_at=early)], []
        )
    out.begin(replace(RUN, started_at=began))
    return out


def hold(out: Out, silent: float = 0) -> None:
    """As a run on another machine does."""
    take_over(out.folder, "r2", beat=f"{time.time_ns() - round(silent * 1e9)} 1".encode())


def paint(out: Out) -> None:
    """Append the rows of two workers; the times are in minutes since the run began."""

    def finished(name: str, minutes: float, **more: object) -> PairRow:
        return row(name, run_id="r2", finished_at=began + timedelta(minutes=minutes), **more)

    began = out.runs()[-1]["started_at"]
    out.commit(
        Lease("r2", 2, 1),
        {},
        [finished("e", 2, seconds=9.0, batch_seconds=36.0, batch_size=4), finished("f", 25, pid=2)],
        [],
    )
    failed = finished("g", 26, status="failed", error_type="OutOfMemory", host="other")
    out.commit(Lease("r2", 2, 2), {}, [failed, finished("h", 27, host="other", seconds=70.0)], [])


def look(out: Out) -> Status:
    return Watch(out).look()


def test_a_run_that_goes_on(out: Out) -> None:
    hold(out)
    paint(out)
    status = look(out)
    assert (status.pairs, status.done, status.left) == (20, 6, 12)
    assert status.failed == {"InputError": 1, "OutOfMemory": 1}
    assert status.holder and status.holder.alive and status.holder.run_id == "r2"
    assert status.rate == pytest.approx(8, rel=0.01)  # 4 in half an hour
    assert status.rate_now == pytest.approx(18, rel=0.01)  # 3 in the last ten minutes
    assert status.seconds_left == pytest.approx(12 / 18 * 3600, rel=0.01)
    assert [pair["pair_id"] for pair in status.slowest][:2] == ["h", "e"]
    assert [(host.name, host.workers, host.pairs) for host in status.hosts] == [("h", 2, 2), ("other", 1, 2)]
    text = describe(status)
    assert text.startswith("pairs    6 of 20 done, 2 failed, 12 left\n")
    assert "18 pairs an hour now, 8 overall; about 0:40:" in text
    assert "failed   1 InputError · 1 OutOfMemory" in text
    assert "slowest  h 0:01:10 on other\n         e 0:00:09, its share of 0:00:36 in a batch of 4, on h\n" in text


def test_a_run_that_has_ended(out: Out) -> None:
    with out.claim("r2"):
        paint(out)
    status = look(out)
    assert status.holder is None
    assert status.rate == pytest.approx(4 / 27 * 60)
    assert status.seconds_left is None
    text = describe(status)
    assert "nobody is painting now" in text
    assert "rate     9 pairs an hour\n" in text


def test_a_run_that_has_fallen_silent(out: Out) -> None:
    hold(out, silent=300)
    text = describe(look(out))
    assert "on far (process 5)" in text
    assert "gave no sign of life for 0:05:0" in text


def test_a_run_that_has_just_begun(out: Out) -> None:
    hold(out)
    status = look(out)
    assert (status.done, status.left, status.seconds_left, status.hosts) == (3, 16, None, [])
    assert describe(status).startswith(
        "pairs    3 of 20 done, 1 failed, 16 left\nrun      r2 on far (process 5), began "
    )


def test_a_ledger_without_runs_tells_what_it_can(tmp_path: Path) -> None:
    out = Out(str(tmp_path / "out"))
    with out.claim("r1"):
        out.commit(Lease("r1", 1), {}, [row("a")], [])
    status = look(out)
    assert (status.pairs, status.done, status.left) == (None, 1, None)
    assert describe(status).startswith("pairs    1 done, 0 failed\n")


def test_files_are_read_once_and_a_compaction_changes_nothing(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(out)
    assert watch.look().done == 3
    with out.claim("r2") as claim:
        paint(out)
        read: list[int] = []
        real = Out.rows_of

        def rows_of(self: Out, files: Sequence[Any], *rest: Any, **options: Any) -> Any:
            read.append(len(files))
            return real(self, files, *rest, **options)

        monkeypatch.setattr(Out, "rows_of", rows_of)
        assert watch.look().done == 6
        assert read[0] == 2
        out.compact(claim)
        assert watch.look().done == 6


def test_the_command_prints_it_and_watches_as_long_as_a_run_goes_on(out: Out) -> None:
    with out.claim("r2"):
        paint(out)
    result = batchnst("status", out.address, "--watch")
    assert result.exit_code == 0, result.output
    assert result.stdout == describe(look(out)) + "\n"


def test_it_says_how_much_room_the_pictures_from_before_take(out: Out) -> None:
    assert "previous" not in batchnst("status", out.address).stdout
    for name in ("a/r1-1.png", "b/r1-1.png"):
        out.folder.write(f"previous/{name}", bytes(600_000))
    last = batchnst("status", out.address).stdout.splitlines()[-1]
    expected = "1.2 MB in 2 files of pictures from before; to make room, remove the folder"
    assert last == f"previous {expected} {out.address}/previous"
    folder = Path(out.address)
    (folder / "previous").rename(folder.parent / "elsewhere")
    (folder / "previous").symlink_to(folder.parent / "elsewhere")
    status = batchnst("status", out.address)
    assert (status.exit_code, "previous: is a link" in status.stdout.splitlines()[-1]) == (0, True)
