"""The project's own files agree with one another."""

from __future__ import annotations

import re

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.wheel import PROJECT, ROOT


def test_every_direct_dependency_is_pinned_to_a_version_that_it_allows() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["dev"], *extras["docs"]]:
        requirement = Requirement(text)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_pins_are_sorted_names_and_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = [line.split("==")[0].lower() for line in lines]
    assert names == sorted(set(names))


def test_hooks_before_a_commit_run_the_checks_of_make_test() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    recipe = (ROOT / "Makefile").read_text().partition("\ntest: ")[2].partition("\n\n")[0]
    checks = re.findall(r"^\t\$\(BIN\)/(.*)$", recipe, re.MULTILINE)
    assert hooks == [check for check in checks if not check.startswith("pytest")]


def test_ci_has_a_job_for_each_python_version_that_the_package_names() -> None:
    named = [line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    jobs = re.findall(r"PYTHON=python(\S+) \.ci/run`", (ROOT / ".ci" / "README.md").read_text())
    assert jobs == named
    assert PROJECT["requires-python"] == f">={named[0]}"
