from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from batchnst.errors import Occupied, Superseded
from batchnst.ledger import claim as claims
from batchnst.ledger.claim import Claim, Lease, check
from batchnst.ledger.out import Out
from batchnst.ledger.process import Process
from batchnst.storage.files import Folder
from tests.helpers import row, take_over


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(claims, "SETTLE_SECONDS", 0.0)
    return Folder(str(tmp_path / "out"))


ELSEWHERE = Process("elsewhere", 1, "another boot", "another namespace", "1")


def left_by(folder: Folder, process: Process) -> None:
    """A claim and a heartbeat, as a run that was killed leaves them."""
    take_over(folder, "old", process, beat=b"1 1")


HOLD = """
import sys
from batchnst.ledger import claim
from batchnst.storage.files import Folder
claim.BEAT_SECONDS, claim.SETTLE_SECONDS = 0.2, 0.0
try:
    with claim.Claim(Folder(sys.argv[1]), sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
except claim.Occupied as error:
    print(error)
"""


def hold(folder: Folder, name: str = "first", among: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A process that holds the claim until its input ends. among: a command that starts it somewhere else."""
    command = [*among, sys.executable, "-c", HOLD, folder.address, name]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    return holder


def test_a_second_run_is_refused_as_long_as_the_first_shows_life(folder: Folder) -> None:
    holder = hold(folder)  # in another process: of its own, one would know that it is not alive
    second = Claim(folder, "second")
    assert second.rival() == f"run first on {socket.gethostname()} (process {holder.pid})"
    with pytest.raises(Occupied, match=r"run first on .* is painting into this folder; wait for it or stop it"), second:
        pass
    check(folder, Lease("first", 1))
    holder.communicate("")
    assert second.rival() is None
    with second:
        check(folder, Lease("second", 2))
    assert {info.base_name for info in folder.files(".batchnst")} == {f"{number:012d}.json" for number in range(1, 5)}


def test_a_run_that_was_killed_on_this_host_does_not_block_at_all(folder: Folder) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    process = replace(Process.here(), pid=dead.pid)
    dead.wait()
    left_by(folder, process)
    started = time.monotonic()
    with Claim(folder, "new"):
        assert time.monotonic() - started < claims.SILENCE_SECONDS
        with pytest.raises(Superseded):
            check(folder, Lease("old", 1))


@pytest.mark.parametrize(
    "process",
    [
        pytest.param(ELSEWHERE, marks=pytest.mark.slow),
        Process.here(),
        replace(Process.here(), pid=2**22, namespace="pid:[1]"),  # in a container of this machine
        # On another machine of the same name.
        pytest.param(replace(Process.here(), pid=2**22, boot="another"), marks=pytest.mark.slow),
        Process(Process.here().host, 2**22),  # where the system does not tell
    ],
)
def test_a_run_that_may_be_alive_blocks_until_it_has_been_silent(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, process: Process
) -> None:
    monkeypatch.setattr(claims, "SILENCE_SECONDS", 1.0)
    left_by(folder, process)
    started = time.monotonic()
    with Claim(folder, "new"):
        assert 1.0 <= time.monotonic() - started < 30
    assert Claim(folder, "newer").rival() is None


@pytest.fixture
def elsewhere() -> tuple[str, ...]:
    """A command that starts another in a PID namespace of its own, where it sees no process of ours."""
    command = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("PID namespaces are not allowed here")
    return command


def test_nobody_takes_a_run_in_another_pid_namespace_for_dead(folder: Folder, elsewhere: tuple[str, ...]) -> None:
    contained = hold(folder, "contained", elsewhere)
    with pytest.raises(Occupied, match=r"run contained on .* is painting into this folder"), Claim(folder, "second"):
        pass
    contained.communicate("")
    with Claim(folder, "outside"):
        refused = subprocess.run(
            [*elsewhere, sys.executable, "-c", HOLD, folder.address, "third"], capture_output=True, text=True
        )
    assert "run outside on " in refused.stdout, refused.stderr


def test_a_task_taken_for_lost_may_not_write_the_others_may(folder: Folder) -> None:
    with Claim(folder, "run") as claim:
        claim.revoke(3)
        check(folder, Lease("run", 1, 2))
        with pytest.raises(Superseded, match="painted elsewhere"):
            check(folder, Lease("run", 1, 3))
        left_by(folder, ELSEWHERE)
        with pytest.raises(Superseded, match="another run"):
            claim.revoke(4)


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_run_that_ends_clears_what_is_unfinished_unless_another_has_taken_over(
    folder: Folder, taken_over: bool
) -> None:
    with Claim(folder, "run"):
        folder.write(f"{Folder.TEMPORARY}/unfinished", b"half")
        if taken_over:
            left_by(folder, ELSEWHERE)
    assert len(folder.files(Folder.TEMPORARY)) == taken_over


def test_the_number_of_a_run_grows_even_if_somebody_deletes_the_state(tmp_path: Path) -> None:
    out = Out(str(tmp_path / "out"))
    for number in (1, 2):
        with out.claim(f"r{number}") as claim:
            out.commit(claim.lease(), {}, [row("a", run_number=claim.run_number)], [])
    shutil.rmtree(tmp_path / "out" / ".batchnst")
    with pytest.raises(Superseded, match=r"its \.batchnst is gone"):
        out.check(Lease("r2", 2))
    with out.claim("r3") as claim:
        assert claim.run_number == 3
