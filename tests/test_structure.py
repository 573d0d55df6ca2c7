"""Every room of the package has its tests, every module a name of its own, and no test module is a library."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "batchnst"
ROOMS = sorted(path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("*/__init__.py"))


def imported_names(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, and of what it imports from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nothing_is_imported_from_a_module_of_tests() -> None:
    modules = {module.stem for module in [*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py")]}
    imported = {
        path: [name for name in imported_names(path) if name.startswith("tests.")] for path in TESTS.rglob("*.py")
    }
    wrong = {
        path: [name for name in names if modules.intersection(name.split("."))] for path, names in imported.items()
    }
    assert {path: names for path, names in wrong.items() if names} == {}


def test_no_two_modules_of_the_package_have_the_same_file_name() -> None:
    names = Counter(path.name for path in PACKAGE.rglob("*.py"))
    del names["__init__.py"]
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_every_room_has_a_folder_of_tests(room: Path) -> None:
    assert list((TESTS / room).glob("test_*.py"))
