"""What keeps Ray from starting, or from being reached, is said in one line."""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from batchnst.engine.ray_address import LOCAL, LONGEST_SOCKET, choose_address
from batchnst.engine.ray_cluster import Cluster
from batchnst.errors import EngineError
from tests.helpers import batchnst


def problem(address: str | None = LOCAL) -> str:
    with pytest.raises(EngineError) as caught:
        choose_address(address)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"{tmp_path}/{'long' * 20}")
    assert problem().endswith(f"bytes, and Linux takes {LONGEST_SOCKET}; set RAY_TMPDIR to a short folder of your own")
    (tmp_path / "m.csv").write_text("content,style,weights\na.png,s.png,random\n")
    result = batchnst("run", tmp_path / "m.csv", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Ray's sockets in" in result.stderr


def test_ray_puts_its_sockets_where_it_is_expected_to() -> None:
    from ray._common.utils import get_default_ray_temp_dir

    for name, value in {"TMPDIR": "/a", "RAY_TMPDIR": "/b"}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            assert get_default_ray_temp_dir() == f"{value}/ray"


def test_a_short_folder_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/{'long' * 20}")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert choose_address(LOCAL) == LOCAL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_folder_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        os.seteuid(nobody)
        try:
            said = problem()
        finally:
            os.seteuid(0)
    advice = "set RAY_TMPDIR to a short folder of your own"
    assert said == f"Ray needs {folder}, which belongs to root, and nobody may not write there; {advice}"


def test_a_file_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    (folder / "ray").touch()
    assert problem().startswith(f"Ray needs {folder}/ray as a folder, and it is a file; ")
    (folder / "ray").unlink()
    folder.rmdir()


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "ray://10.0.0.1:10001"])
def test_another_version_on_the_cluster_names_both(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        check_version_info({"ray_version": "2.9.3", "python_version": "3.10.1"}, "this node")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(EngineError) as caught:
        Cluster(address, None, 1, None)
    mine = f"Ray {ray.__version__} on Python {sys.version.split()[0]}"
    assert str(caught.value) == (
        f"Ray at {address}: the cluster has Ray 2.9.3 on Python 3.10.1, this machine {mine}; install the same on both"
    )


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError(), PermissionError(13, "no")])
def test_whatever_ray_raises_is_a_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(EngineError, match="Ray at local: cannot be started: ") as caught:
        Cluster(LOCAL, None, 1, None)
    assert len(str(caught.value).splitlines()) == 1
