"""Odd values of arguments and options end in a line and an exit code that the manual knows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_all_calls(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    found = {str(arguments): problem(name, arguments) for arguments in attempts(name)}
    assert {call: text for call, text in found.items() if text} == {}
