"""Odd values of arguments and options end in a line and an exit code that the manual knows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.helpers import batchnst
from tests.tools.command_line import COMMANDS, attempts, prepare, problem

FOUND = [
    ("run", [*COMMANDS["run"], "--redo", "\udcff"]),
    ("plan", ["m.csv", "--out", "http://["]),
    ("manifest", [*COMMANDS["manifest"], "--output", "\udcff"]),
    ("run", [*COMMANDS["run"], "--notify", ""]),
    ("report", ["out", "--to", "file://"]),
]
"""Calls that ended with a traceback once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all calls are made."""
    folder = tmp_path_factory.mktemp("odd")
    prepare(folder)
    return folder


@pytest.mark.parametrize("number", range(len(FOUND)))
def test_what_was_found_once(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.chdir(folder)
    assert problem(*FOUND[number]) == ""


def test_a_sample_of_all_calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    calls = [(name, arguments) for name in COMMANDS for arguments in attempts(name)]
    assert len(calls) > 1000
    for name, arguments in random.Random(0).sample(calls, 20):
        assert problem(name, arguments) == "", (name, arguments)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (["run", "m.csv", "--out", ""], "--out"),
        (["run", "m.csv", "--out", "out", "--seal", ""], "--seal"),
        (["run", "m.csv", "--out", "out", "--style-weight", ""], "--style-weight"),
        (["run", "m.csv", "--out", "out", "--redo", "one", "--redo", ""], "--redo"),
        (["audit", "out", "--seal", ""], "--seal"),
        (["audit", "out", "--manifest", ""], "--manifest"),
        (["audit", ""], "OUT"),
        (["export", "out", "--to", "tar", "--out", ""], "--out"),
        (["export", "out", "--to", "tar", "--out", "x", "--where", ""], "--where"),
        (["report", "out", "--to", ""], "--to"),
    ],
)
def test_an_empty_text_is_refused_and_does_not_mean_that_nothing_was_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: list[str], name: str
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    result = batchnst(*call)
    assert (result.exit_code, result.stderr) == (2, f"batchnst: {name} is empty; expected a value\n")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_all_calls(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    found = {str(arguments): problem(name, arguments) for arguments in attempts(name)}
    assert {call: text for call, text in found.items() if text} == {}
