"""The files in jobs/ say what they mean: each is parsed, and its `batchnst` line read by the real command line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml

from batchnst import read_ledger
from batchnst.cli.main import app
from tests.wheel import ROOT, VERSION, build_wheel, environment_of, make_environment

JOBS = ROOT / "jobs"
FILES = ["submit.sh", "slurm.sbatch", "kuberay.yaml", "cluster.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_every_job_ends_in_the_same_line_that_the_command_line_understands(name: str) -> None:
    (line,) = re.findall(r'batchnst run "?\$MANIFEST.*\$OUT', (JOBS / name).read_text())
    words = line.replace('"', "").split()
    assert words == ["batchnst", "run", "$MANIFEST", "--out", "$OUT"]
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    with click.Context(run) as context:
        parsed = run.make_context("run", words[2:], parent=context).params
    assert (parsed["manifest"], parsed["out"]) == ("$MANIFEST", "$OUT")


@pytest.mark.parametrize("name", ["submit.sh", "slurm.sbatch", "try_slurm.sh"])
def test_scripts_are_valid_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(JOBS / name)], check=True)


def test_the_slurm_job_comes_back_when_its_time_is_up() -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", (JOBS / "slurm.sbatch").read_text(), re.MULTILINE))
    assert options["signal"].startswith("B:TERM@")
    assert {"requeue", "nodes", "time", "gpus-per-node"} <= set(options)


@pytest.mark.parametrize(
    ("out", "command", "is_ours"),
    [
        ("/s/night", "python /venv/bin/batchnst run m.csv --out /s/night", True),
        ("/s/night", "python /venv/bin/batchnst run m.csv --out /s/night2", False),
        ("/s/a+b (1)/x.y", "python /venv/bin/batchnst run m.csv --out /s/a+b (1)/x.y", True),
        ("/s/a.b", "python /venv/bin/batchnst run m.csv --out /s/aXb", False),
    ],
)
def test_the_slurm_job_stops_its_own_run_alone(out: str, command: str, is_ours: bool) -> None:
    (line,) = [line for line in (JOBS / "slurm.sbatch").read_text().splitlines() if line.startswith("pattern=")]
    script = f'{line}\ngrep -qE -- "$pattern" <<<"$COMMAND"'
    found = subprocess.run(["bash", "-c", script], env={**os.environ, "OUT": out, "COMMAND": command}, check=False)
    assert (found.returncode == 0) == is_ours


def test_the_slurm_step_gets_the_cpus_of_the_job() -> None:
    assert '--cpus-per-task="$SLURM_CPUS_PER_TASK"' in (JOBS / "slurm.sbatch").read_text()


def test_the_rayjob_is_one_that_scales_shares_and_ends() -> None:
    job = yaml.safe_load((JOBS / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["activeDeadlineSeconds"] > 3600
    assert spec["backoffLimit"] > 0
    assert {"MANIFEST", "OUT"} <= set(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"])
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["maxReplicas"] > workers["minReplicas"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    for pod in pods:
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_every_node_of_the_cloud_gets_the_wheel() -> None:
    config = yaml.safe_load((JOBS / "cluster.yaml").read_text())
    assert config["file_mounts"] == {"~/dist": "build/dist"}
    assert "~/dist/batchnst-*.whl" in config["setup_commands"][-1]
    assert "--outdir build/dist" in (ROOT / "Makefile").read_text()


def test_ray_itself_takes_the_cluster_file() -> None:
    # In a process of its own: Ray may be imported only where it is used.
    check = (
        "import sys, yaml; from ray.autoscaler._private.util import fillout_defaults, validate_config;"
        "config = yaml.safe_load(open(sys.argv[1])); validate_config(fillout_defaults(config));"
        "gpu = config['available_node_types']['gpu'];"
        "assert gpu['node_config']['InstanceMarketOptions'] == {'MarketType': 'spot'} and gpu['resources']['GPU'] == 1"
    )
    subprocess.run([sys.executable, "-c", check, str(JOBS / "cluster.yaml")], check=True)


def test_the_image_is_built_from_the_wheel_and_is_not_run_as_root() -> None:
    lines = (JOBS / "Containerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] == "ray"
    (base,) = [line for line in lines if line.startswith("ARG BASE=")]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert f":{pinned['ray']}-" in base
    assert yaml.safe_load((JOBS / "kuberay.yaml").read_text())["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]


BY_NAME = re.compile(
    r"""\b(?:pipx?|uvx?|conda)\b[ ](?:[^\n;&|]*[ "'])?batchnst(?:[=<>~!\[][^\s"']*)?(?=["'`\s)]|$)"""  # a command
    r"""|["']?\bpip\b["']?:[ ]*\[[^]]*\bbatchnst\b(?![ ]@|-)"""  # a runtime environment
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pip install ", ""),
        ("python -m pip install --quiet 'ray[default]' ", "==0.1.0"),
        ("`uv pip install ", "[dev]`"),
        ("uvx ", " run"),
        ('{"pip": ["', '"]}'),
    ],
)
def test_an_install_by_name_is_found(before: str, after: str) -> None:
    assert BY_NAME.search(f"{before}batchnst{after}")


def test_no_file_installs_batchnst_by_name() -> None:
    """Whoever registers the name would run code on the cluster."""
    folders = ["batchnst", "docs", "jobs", "manifests", "tests", ".ci"]
    paths = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    binary = {".pyc", ".png", ".jpg"}
    texts = {path: path.read_text(errors="replace") for path in paths if path.is_file() and path.suffix not in binary}
    assert JOBS / "submit.sh" in texts
    assert {path: found.group() for path, text in texts.items() if (found := BY_NAME.search(text))} == {}


def submit(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run submit.sh with a `ray` that only prints its arguments, a line each."""
    ray = folder / "ray"
    ray.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    ray.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "MANIFEST": "m.csv", "OUT": "out"}
    command = ["bash", str(JOBS / "submit.sh")]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)


def test_a_job_is_submitted_with_the_wheel_its_hash_and_the_constraints(tmp_path: Path) -> None:
    dist = tmp_path / "a folder"
    dist.mkdir()
    wheel = dist / "batchnst-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    there, sha256 = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}", hashlib.sha256(b"wheel").hexdigest()
    package = f"batchnst @ file://{there}/{wheel.name}#sha256={sha256}"
    words = submit(tmp_path, DIST=str(dist)).stdout.splitlines()
    assert words[:4] == ["job", "submit", "--working-dir", str(dist)]
    assert words[-6:] == ["--", "batchnst", "run", "m.csv", "--out", "out"]
    assert runtime_environment(words)["pip"] == [package]

    (dist / "constraints.txt").write_text("")
    words = submit(tmp_path, DIST=str(dist)).stdout.splitlines()
    assert runtime_environment(words)["pip"] == [package, f"--constraint {there}/constraints.txt"]


def test_a_job_for_nodes_that_have_batchnst_sends_nothing(tmp_path: Path) -> None:
    words = submit(tmp_path, DIST="").stdout.splitlines()
    assert "--working-dir" not in words
    assert runtime_environment(words) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


def runtime_environment(words: list[str]) -> Any:
    """The runtime environment among the arguments of `ray`."""
    return json.loads(words[words.index("--runtime-env-json") + 1])


def test_a_job_without_its_wheel_is_not_submitted(tmp_path: Path) -> None:
    job = submit(tmp_path, DIST=str(tmp_path))
    assert (job.returncode, job.stdout) == (2, "")
    assert "run `make wheel` first" in job.stderr


@pytest.mark.slow
def test_a_submitted_job_brings_its_wheel_to_a_cluster_without_batchnst(images: Path, tmp_path: Path) -> None:
    manifest, out, dist = tmp_path / "m.csv", tmp_path / "out", tmp_path / "dist"
    rows = [f"{images}/{photo},{images}/swirls.png,64,5" for photo in ("astronaut.png", "coffee.png", "chelsea.png")]
    manifest.write_text("\n".join(["content,style,size,steps", *rows]) + "\n")
    dist.mkdir()
    shutil.copy(build_wheel(tmp_path), dist)
    shutil.copy(ROOT / "constraints.txt", dist)
    commands = make_environment(tmp_path)
    missing = subprocess.run(
        [commands / "python", "-c", "import batchnst"], cwd=tmp_path, capture_output=True, check=False
    )
    assert b"No module named 'batchnst'" in missing.stderr

    dashboard = _free_port()
    address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    environment = environment_of(commands) | address | {"MANIFEST": str(manifest), "OUT": str(out), "DIST": str(dist)}
    with _cluster(commands, environment, dashboard):
        command = ["bash", str(JOBS / "submit.sh")]
        job = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "3 of 3 pairs done" in job.stdout
    rows = read_ledger(str(out), "pairs").to_table().to_pylist()
    assert {(row["status"], row["versions"]["batchnst"]) for row in rows} == {("ok", VERSION)}


@contextmanager
def _cluster(commands: Path, environment: dict[str, str], dashboard: int) -> Iterator[None]:
    """A Ray cluster of one node, started by the `ray` in `commands`; its processes end with it, and no others."""
    folder = tempfile.mkdtemp(dir="/tmp")  # the paths of Ray's sockets may not be long
    options = [f"--port={_free_port()}", f"--dashboard-port={dashboard}", "--num-cpus=2", f"--temp-dir={folder}"]
    ray = [str(commands / "ray"), "start", "--head", "--block", *options]
    with subprocess.Popen(ray, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as head:
        assert head.stdout
        try:
            assert any("Ray runtime started" in line for line in head.stdout)
            yield
        finally:
            head.terminate()
            head.communicate(timeout=60)
            shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
