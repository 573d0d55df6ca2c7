"""A wheel of the working tree, and environments that have nothing but the packages that it declares."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = f"{PROJECT['version']}+wheel"
"""No other batchnst on this machine has this version."""


def build_wheel(folder: Path) -> Path:
    """Build a wheel in `folder` as `make wheel` does, with VERSION."""
    source = folder / "source"
    shutil.copytree(ROOT / "batchnst", source / "batchnst", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, source)
    text = (ROOT / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(re.sub("^version = .*", f'version = "{VERSION}"', text, flags=re.MULTILINE))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with the packages that the wheel declares, without batchnst; returns its bin/.

    The packages are links to those of this environment.
    """
    packages, venv = folder / "packages", folder / "venv"
    packages.mkdir()
    for package in _declared([*PROJECT["dependencies"], "pip"]):
        for name in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = packages / name
            if not link.exists():
                link.symlink_to(Path(str(package.locate_file(name))))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    ray = venv / "bin" / "ray"
    ray.write_text(f"#!{venv}/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)
    return venv / "bin"


def environment_of(folder: Path) -> dict[str, str]:
    """Environment variables for which commands come from `folder`, and pip asks no registry."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))}
    return kept | {"PATH": f"{folder}:/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


def _declared(requirements: Iterable[str]) -> Iterator[Distribution]:
    """The installed packages that meet the requirements, and those that they require."""
    wanted, seen = [(Requirement(text), "") for text in requirements], set()
    while wanted:
        requirement, extra = wanted.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for key in [(requirement.name.lower(), extra) for extra in ("", *requirement.extras)]:
            if key not in seen:
                seen.add(key)
                package = distribution(requirement.name)
                yield package
                wanted += [(Requirement(text), key[1]) for text in package.requires or ()]
