"""The files in jobs/ say what they mean: each is parsed, and its `batchnst` line read by the real command line."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer.main
import yaml

from batchnst import read_ledger
from batchnst.cli.main import app

JOBS = Path(__file__).parent.parent / "jobs"
FILES = ["submit.sh", "slurm.sbatch", "kuberay.yaml", "cluster.yaml"]
BIN = Path(sys.executable).parent


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


def test_ray_itself_takes_the_cluster_file() -> None:
    # In a process of its own: Ray may be imported only where it is used.
    check = (
        "import sys, yaml; from ray.autoscaler._private.util import fillout_defaults, validate_config;"
        "config = yaml.safe_load(open(sys.argv[1])); validate_config(fillout_defaults(config));"
        "gpu = config['available_node_types']['gpu'];"
        "assert gpu['node_config']['InstanceMarketOptions'] == {'MarketType': 'spot'} and gpu['resources']['GPU'] == 1"
    )
    subprocess.run([sys.executable, "-c", check, str(JOBS / "cluster.yaml")], check=True)


@pytest.mark.slow
def test_a_submitted_job_paints_on_a_cluster_that_runs(images: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    rows = [f"{images}/{photo},{images}/swirls.png,64" for photo in ("astronaut.png", "coffee.png", "chelsea.png")]
    manifest.write_text("\n".join(["content,style,size", *rows]) + "\n")
    port, dashboard = _free_port(), _free_port()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    ray = [str(BIN / "ray"), "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    subprocess.run(ray, check=True, env=environment)
    try:
        address = {
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "MANIFEST": str(manifest),
            "OUT": str(out),
        }
        job = subprocess.run(
            ["bash", str(JOBS / "submit.sh")], env=environment | address, capture_output=True, text=True, check=False
        )
    finally:
        subprocess.run([str(BIN / "ray"), "stop"], check=True, env=environment)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "3 of 3 pairs done" in job.stdout
    rows = read_ledger(str(out), "pairs").to_table().to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert all(json.loads(row["recipe"])["size"] == 64 for row in rows)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
