"""The wheel is whole, and works where nothing is installed but what it declares."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from batchnst import read_ledger
from tests.wheel import ROOT, VERSION, build_wheel, environment_of, make_environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of an environment that has the wheel."""
    folder = make_environment(tmp_path_factory.mktemp("environment"))
    install = [str(folder / "python"), "-m", "pip", "install", "--quiet", str(wheel)]
    subprocess.run(install, check=True, env=environment_of(folder))
    return folder


def test_the_wheel_has_every_file_of_the_package_and_the_licences(wheel: Path) -> None:
    package = [path for path in (ROOT / "batchnst").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == {str(path.relative_to(ROOT)) for path in package}
    assert "batchnst/py.typed" in names
    assert {f"batchnst-{VERSION}.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= names


@pytest.mark.parametrize("command", ["batchnst", "python -m batchnst"])
def test_an_installed_wheel_says_its_version(command: str, bin_folder: Path, tmp_path: Path) -> None:
    environment = environment_of(bin_folder)
    words = [*command.split(), "--version"]
    said = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == f"batchnst {VERSION}\n"


@pytest.mark.slow
def test_an_installed_wheel_paints(bin_folder: Path, images: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text(f"content,style,size,steps\n{images}/coffee.png,{images}/swirls.png,64,3\n")
    run = [str(bin_folder / "batchnst"), "run", str(manifest), "--out", str(out)]
    subprocess.run(run, cwd=tmp_path, env=environment_of(bin_folder), check=True)
    (row,) = read_ledger(str(out), "pairs").to_table().to_pylist()
    assert (row["status"], row["versions"]["batchnst"]) == ("ok", VERSION)
    report = [str(bin_folder / "batchnst"), "report", str(out)]
    subprocess.run(report, cwd=tmp_path, env=environment_of(bin_folder), check=True)
    assert (out / "report.html").stat().st_size > 100_000
