from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchnst.errors import Occupied, Superseded
from batchnst.ledger import claim as claims
from batchnst.ledger.claim import CLAIM, Claim, Lease, check
from batchnst.storage.files import Folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(claims, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(claims, "SETTLE_SECONDS", 0.0)
    return Folder(str(tmp_path / "out"))


def left_by(folder: Folder, host: str, pid: int) -> None:
    """A claim and a sign of life, as a run that was killed leaves them."""
    folder.write(CLAIM, json.dumps({"run_id": "old", "host": host, "pid": pid, "revoked": []}).encode())
    folder.write(".batchnst/alive-old", b"1")


def test_a_second_run_is_refused_as_long_as_the_first_shows_life(folder: Folder) -> None:
    # Held by another process: of its own, one would know that it is not alive.
    text = (
        "import sys, time; from batchnst.ledger import claim; claim.BEAT_SECONDS = 0.2\n"
        "from batchnst.storage.files import Folder\n"
        f"with claim.Claim(Folder({folder.address!r}), 'first'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin and holder.stdout and holder.stdout.readline() == "held\n"
    second = Claim(folder, "second")
    assert second.rival() == f"run first on {socket.gethostname()} (process {holder.pid})"
    with pytest.raises(Occupied, match=r"run first on .* is painting into this folder; wait for it or stop it"), second:
        pass
    check(folder, Lease("first"))
    holder.communicate("")
    assert second.rival() is None
    with second:
        check(folder, Lease("second"))
    assert [info.base_name for info in folder.files(".batchnst")] == ["claim"]


def test_a_run_that_was_killed_on_this_host_does_not_block_at_all(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "SILENCE_SECONDS", 60.0)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_by(folder, socket.gethostname(), dead.pid)
    started = time.monotonic()
    with Claim(folder, "new"):
        assert time.monotonic() - started < 30
        with pytest.raises(Superseded):
            check(folder, Lease("old"))


@pytest.mark.parametrize(("host", "pid"), [("elsewhere", 1), (socket.gethostname(), os.getppid())])
def test_a_run_that_may_be_alive_blocks_until_it_has_been_silent(folder: Folder, host: str, pid: int) -> None:
    left_by(folder, host, pid)
    started = time.monotonic()
    with Claim(folder, "new"):
        assert 1.0 <= time.monotonic() - started < 30
    assert Claim(folder, "newer").rival() is None


def test_a_task_taken_for_lost_may_not_write_the_others_may(folder: Folder) -> None:
    with Claim(folder, "run") as claim:
        claim.revoke(3)
        check(folder, Lease("run", 2))
        with pytest.raises(Superseded, match="painted elsewhere"):
            check(folder, Lease("run", 3))
        left_by(folder, "elsewhere", 1)
        with pytest.raises(Superseded, match="another run"):
            claim.revoke(4)


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_run_that_ends_clears_what_is_unfinished_unless_another_has_taken_over(
    folder: Folder, taken_over: bool
) -> None:
    with Claim(folder, "run"):
        folder.write(f"{Folder.TEMPORARY}/unfinished", b"half")
        if taken_over:
            left_by(folder, "elsewhere", 1)
    assert len(folder.files(Folder.TEMPORARY)) == taken_over
