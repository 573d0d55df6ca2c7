"""The whole command on a real Ray, also when parts of it are killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.exceptions import WorkerCrashedError

from batchnst import read_ledger
from batchnst.engine import ray_cluster
from batchnst.engine.events import Finished, Notice
from batchnst.engine.plan import Batch, Chunk, Job
from batchnst.errors import Superseded
from batchnst.ledger.claim import Lease
from batchnst.ledger.out import Out
from tests.certificates import KEYS, read_credentials_in, write_pem
from tests.helpers import pair, size_of
from tests.helpers import row as ledger_row
from tests.processes import descendants, is_running, task_pids
from tests.tools.chaos import KILLS, STORE, weather

BATCHNST = Path(sys.executable).with_name("batchnst")
PAIRS = 10


@pytest.fixture
def manifest(images: Path, tmp_path: Path) -> Path:
    photos = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    lines = ["content,style,id"]
    for i in range(PAIRS):
        lines.append(f"{images / photos[i % 4]},{images / ('swirls.png' if i % 3 else 'woodcut.png')},pair-{i}")
    path = tmp_path / "m.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray cluster for several runs: one node with two CPUs.

    A library crashes there: a worker dies when it reads a file called `poison.png`. A file system hangs there: the
    first worker that writes a picture called `hang.png` never comes back.
    """
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "sitecustomize.py").write_text(
        "import os, time\nreal_open, real_replace, hung = os.open, os.replace, __file__ + '.hung'\n"
        "def open(path, *args, **options):\n"
        "    if os.fspath(path).endswith('/poison.png'): os.abort()\n"
        "    return real_open(path, *args, **options)\n"
        "def replace(source, target):\n"
        "    if os.fspath(target).endswith('/hang.png') and not os.path.exists(hung):\n"
        "        os.close(real_open(hung, os.O_CREAT))\n"
        "        while True: time.sleep(60)\n"
        "    return real_replace(source, target)\n"
        "os.open, os.replace = open, replace\n"
    )
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        raylets = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield raylets.address
    finally:
        raylets.shutdown()


def command(manifest: Path, out: Path, *more: str) -> list[str]:
    quick = ("--size", "64", "--steps", "20", "--batch-size", "1")
    return [str(BATCHNST), "run", str(manifest), "--out", str(out), *quick, *more]


started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    while started:
        with started.pop() as driver:
            driver.kill()


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    # A shell that runs the tests in the background has them, and so their children, ignore Ctrl-C.
    with log.open("wb") as file:
        started.append(
            subprocess.Popen(
                arguments,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
    return started[-1]


def finish(arguments: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False, cwd=folder)


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.05)


def finished_rows(out: Path) -> int:
    return len(list((out / "ledger" / "pairs").glob("*.parquet")))


def check_complete(out: Path) -> Counter[str]:
    """Every pair done exactly once, every file whole; returns how often each was tried."""
    rows = read_ledger(str(out), "pairs").to_table().to_pylist()
    done = [row for row in rows if row["status"] == "ok"]
    assert sorted(row["pair_id"] for row in done) == sorted(f"pair-{i}" for i in range(PAIRS))
    for row in done:
        data = (out / "images" / row["output"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["output_sha256"]
        assert size_of(out / "images" / row["output"]) == (row["width"], row["height"])
    assert {path.name for path in (out / "images").rglob("*")} == {row["output"] for row in done}
    files = [path for path in (out / "ledger").rglob("*") if path.is_file()]
    assert all(path.suffix == ".parquet" for path in files)
    steps: Counter[tuple[str, str, int]] = Counter()
    for path in (out / "ledger" / "losses").glob("*.parquet"):
        for row in pq.read_table(path, columns=["run_id", "pair_id", "attempt"]).to_pylist():
            steps[row["run_id"], row["pair_id"], row["attempt"]] += 1
    assert all(steps[row["run_id"], row["pair_id"], row["attempt"]] == row["steps"] for row in done)
    assert not list((out / ".batchnst" / "tmp").iterdir())
    return Counter(row["pair_id"] for row in rows)


def test_runs_that_are_killed_and_terminated_lose_nothing_and_repeat_nothing(
    manifest: Path, cluster: str, tmp_path: Path
) -> None:
    pem = write_pem(tmp_path, KEYS["ed25519"]())
    out = tmp_path / "out"
    run = command(manifest, out, "--address", cluster, "--credentials", str(pem))
    driver = start(run, tmp_path / "log")
    try:
        wait_for(lambda: finished_rows(out) >= 2)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    before = finished_rows(out)
    assert before < PAIRS, "the run was over before it could be killed"
    check_interrupt(run, tmp_path, signal.SIGTERM, before + 1)
    again = finish(run)
    assert again.returncode == 0, again.stderr
    assert f"of {PAIRS} pairs are done already" in again.stderr
    assert f"{PAIRS} of {PAIRS} pairs done" in again.stdout
    assert set(check_complete(out).values()) == {1}
    assert all(read_credentials_in(path.read_bytes(), "image/png")[0] == "Valid" for path in out.glob("images/*"))


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_pair_tried_again(manifest: Path, cluster: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = start(command(manifest, out, "--address", cluster, "--steps", "40"), tmp_path / "log")
    wait_for(lambda: finished_rows(out) >= 1)

    def is_lost() -> bool:
        # One that has just committed all it had leaves nothing to be tried again.
        for pid in task_pids(os.getpid())[:1]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(2)
        return "of its pairs are tried again" in (tmp_path / "log").read_text()

    wait_for(is_lost)
    assert driver.wait(240) == 0, (tmp_path / "log").read_text()
    check_complete(out)
    attempts = read_ledger(str(out), "pairs").to_table()["attempt"].to_pylist()
    assert max(attempts) >= 2


def test_the_pair_that_kills_workers_is_found_and_its_neighbours_are_painted(
    images: Path, cluster: str, tmp_path: Path
) -> None:
    Image.open(images / "coffee.png").resize((99, 99)).save(tmp_path / "poison.png")
    Image.open(images / "coffee.png").resize((98, 98)).save(tmp_path / "good.png")
    rows = [f"{name}.png,{images}/swirls.png,{name}-{i}" for i, name in enumerate(["good", "good", "poison", "good"])]
    (tmp_path / "m.csv").write_text("\n".join(["content,style,id", *rows]) + "\n")
    for module in ("batchnst", "numpy", "PIL", "pyarrow", "pydantic", "ray", "torch"):  # in the folder of the photos
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    out = tmp_path / "out"
    options = ["--address", cluster, "--batch-size", "4", "--steps", "2", "--max-attempts", "2"]
    run = finish(command(tmp_path / "m.csv", out, *options), tmp_path)
    assert not (tmp_path / "executed").exists(), run.stderr
    assert run.returncode == 1, run.stderr
    assert "4 of its pairs are tried again" in run.stderr
    assert run.stdout.count("\n") == 1
    found = {row["pair_id"]: row for row in read_ledger(str(out), "pairs").to_table().to_pylist()}
    assert {name: row["status"] for name, row in found.items()} == {
        "good-0": "ok",
        "good-1": "ok",
        "poison-2": "failed",
        "good-3": "ok",
    }
    assert found["poison-2"]["error_type"] == "WorkerLost"
    reason = "its worker was lost 2 times; the last time: its worker process has died"
    assert found["poison-2"]["error_message"] == reason
    assert {row["attempt"] for row in found.values()} == {2}


def impatient(manifest: Path, out: Path, *more: str) -> list[str]:
    """A run that waits a few seconds where others wait for minutes."""
    script = (
        "from batchnst.engine import patience, ray_cluster\n"
        "patience.SILENCE_SECONDS, patience.PAIR_SECONDS, ray_cluster.NODE_SECONDS = 10, 0, 5\n"
        "from batchnst.__main__ import main\nmain()"
    )
    return [sys.executable, "-c", script, *command(manifest, out, *more)[1:]]


@pytest.mark.slow
def test_a_task_that_hangs_is_killed_and_its_pairs_are_tried_again(images: Path, cluster: str, tmp_path: Path) -> None:
    rows = [f"{images}/coffee.png,{images}/swirls.png,{name}" for name in ("good", "hang")]
    (tmp_path / "m.csv").write_text("\n".join(["content,style,id", *rows]) + "\n")
    out = tmp_path / "out"
    run = finish(impatient(tmp_path / "m.csv", out, "--address", cluster, "--steps", "4"))
    assert run.returncode == 0, run.stderr
    assert "a worker was lost; 1 of its pairs are tried again: nothing came from it for 0:00:1" in run.stderr
    found = {row["pair_id"]: row for row in read_ledger(str(out), "pairs").to_table().to_pylist()}
    assert {name: (row["status"], row["attempt"]) for name, row in found.items()} == {
        "good": ("ok", 1),
        "hang": ("ok", 2),
    }
    assert not task_pids(os.getpid()), "the process that hung is still there"


@pytest.mark.slow
def test_a_run_without_nodes_says_so_and_ends(manifest: Path, tmp_path: Path) -> None:
    raylets = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        node = raylets.add_node(num_cpus=1, object_store_memory=STORE)
        out, log = tmp_path / "out", tmp_path / "log"
        driver = start(impatient(manifest, out, "--address", raylets.address), log)
        wait_for(lambda: finished_rows(out) >= 1)
        raylets.remove_node(node, allow_graceful=False)
        assert driver.wait(120) == 1
    finally:
        raylets.shutdown()
    lines = log.read_text().splitlines()
    assert any(line.startswith("no node can run a task; waiting for the cluster to start a node") for line in lines)
    assert lines[-1].startswith(
        "batchnst: no node could run a task for 0:00:05; start nodes; what was finished is kept."
    )
    assert 1 <= finished_rows(out) < PAIRS


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_is_refused(manifest: Path, cluster: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # Its pictures take hours: it is there as long as the second one looks.
    endless = ("--steps", "1000000", "--set", "tolerance=0")
    driver = start(command(manifest, out, "--address", cluster, *endless), tmp_path / "log")
    wait_for((out / ".batchnst" / "state").exists)
    second = finish(command(manifest, out, "--address", cluster))
    assert second.returncode == 2
    assert "looking for a sign of life" in second.stderr
    assert "is painting into this folder; wait for it or stop it" in second.stderr
    assert driver.poll() is None
    driver.terminate()
    assert driver.wait(60) == 130


@pytest.mark.slow
def test_a_small_storm_on_real_raylets_loses_nothing(images: Path, tmp_path: Path) -> None:
    outcome = weather(images, tmp_path, pairs=24, kinds=list(KILLS), seed=0)
    assert set(outcome.events) == set(KILLS)
    assert outcome.clean, str(outcome)


@pytest.mark.slow
def test_a_cluster_without_nodes_is_waited_for_if_it_promises_some(manifest: Path, tmp_path: Path) -> None:
    raylets = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        # What an autoscaler tells Ray of the nodes that it could start.
        promise = NodeGroupConfig(name="worker", resources={"CPU": 1}, max_count=2)
        config = ClusterConfig(node_group_configs=[promise]).SerializeToString()
        GcsClient(address=raylets.address).report_cluster_config(config)
        driver = start(command(manifest, tmp_path / "out", "--address", raylets.address), tmp_path / "log")
        wait_for(lambda: "waiting for the cluster to start a node" in (tmp_path / "log").read_text())
        for _ in range(2):
            raylets.add_node(num_cpus=1)
        assert driver.wait(240) == 0, (tmp_path / "log").read_text()
    finally:
        raylets.shutdown()
    check_complete(tmp_path / "out")
    rows = read_ledger(str(tmp_path / "out"), "pairs").to_table().to_pylist()
    assert len({row["pid"] for row in rows}) == 2


def check_ended(processes: list[int]) -> None:
    """Assert that the processes of a run end soon after it."""
    assert processes
    wait_for(lambda: not any(map(is_running, processes)))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_also_ends_its_own_ray(manifest: Path, tmp_path: Path, how: signal.Signals) -> None:
    check_ended(check_interrupt(command(manifest, tmp_path / "out", "--steps", "80"), tmp_path, how))


def check_interrupt(run: list[str], tmp_path: Path, how: signal.Signals, pairs: int = 1) -> list[int]:
    """Interrupt a run once `pairs` are done, and check what is left; returns the processes that it had started."""
    out = tmp_path / "out"
    driver = start(run, tmp_path / "log")
    wait_for(lambda: finished_rows(out) >= pairs)
    processes = descendants(driver.pid)
    send = os.killpg if how == signal.SIGHUP else os.kill  # a closed terminal tells the processes of Ray too
    send(driver.pid, how)
    assert driver.wait(60) == 130
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert "what was finished is kept. Go on with: batchnst run" in last
    assert str(out) in last
    assert pairs <= finished_rows(out) < PAIRS
    return processes


@pytest.mark.slow
def test_the_second_interrupt_stops_at_once(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = start(command(manifest, out, "--steps", "200"), tmp_path / "log")
    wait_for(lambda: finished_rows(out) >= 1)
    wait_for(lambda: task_pids(driver.pid))
    tasks = task_pids(driver.pid)
    for pid in tasks:  # so that they do not hear of the first interrupt
        os.kill(pid, signal.SIGSTOP)
    os.kill(driver.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(driver.pid, signal.SIGTERM)
    assert driver.wait(ray_cluster.CANCEL_SECONDS / 2) == 130
    for pid in filter(is_running, tasks):
        os.kill(pid, signal.SIGCONT)
    check_ended(tasks)  # Ray's own agents take a minute


@pytest.mark.slow
def test_asking_for_more_than_the_cluster_has_is_told_before_anything_is_run(
    manifest: Path, cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    no_gpu = finish([*command(manifest, out, "--address", cluster), "--gpus-per-task", "1000"])
    assert no_gpu.returncode == 2
    assert "no node has 1000 GPU for a task" in no_gpu.stderr
    no_room = finish(command(manifest, out, "--address", cluster, "--size", "60000"))
    assert no_room.returncode == 2
    line = no_room.stderr.splitlines()[-1]
    assert line.startswith("batchnst: pair-")
    assert "60000×60000 pixels take 577 GB at the least, more than the " in line
    assert line.endswith(" GB available; lower size")
    nobody = finish([*command(manifest, out), "--address", "127.0.0.1:9"])
    assert nobody.returncode == 2
    assert nobody.stderr.splitlines()[-1] == "batchnst: Ray at 127.0.0.1:9: cannot be reached: Connection refused"
    assert not (out / "ledger").exists()


def test_pairs_that_a_lost_task_committed_without_a_report_are_told_with_their_reasons(tmp_path: Path) -> None:
    chunk = Chunk((Batch(tuple(Job(pair(name), "f", 1) for name in "abcd"), (48, 48)),))
    no_cluster = cast(ray_cluster.Cluster, SimpleNamespace(max_attempts=3))
    out = Out(str(tmp_path / "out"))
    with out.claim("r1") as claim:
        lease = Lease("r1", 1, 7)
        out.commit(lease, {}, [ledger_row("a")], [])
        failed = ledger_row("b", status="failed", error_type="InputError", error_message="b.jpg: no such file")
        out.commit(lease, {}, [failed, ledger_row("c")], [])
        window = ray_cluster._Window(no_cluster, iter(()), {}, claim, tasks=1)
        events = list(
            window._try_again(
                ray_cluster._Task(chunk, 7, cast(ray_cluster._Member, None), finished={"a"}), WorkerCrashedError()
            )
        )
        with pytest.raises(Superseded):
            out.check(lease)
    told = [event for event in events if isinstance(event, Finished)]
    assert sorted(told, key=lambda event: event.pair_id) == [Finished("b", "b.jpg: no such file"), Finished("c", None)]
    (notice,) = [event.text for event in events if isinstance(event, Notice)]
    assert notice.startswith("a worker was lost; 1 of its pairs are tried again: ")
    assert [(job.pair.id, job.attempt) for chunk in window.to_retry for job in chunk.jobs] == [("d", 2)]
