"""Give every argument and option of every command values that nobody should give.

`python -m tests.tools.command_line [COMMAND…]` tries all of them and prints what went wrong. A command must end with an
exit code that the manual knows, say why on stderr if it is 2, and never with a traceback. `serve`, which does not end,
and `bench`, which takes minutes, are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from batchnst.cli.main import app
from tests.helpers import batchnst, scene

SMALL = ["--size", "40", "--steps", "1", "--backbone", "alexnet", "--weights", "random"]

COMMANDS: dict[str, list[str]] = {
    "run": ["m.csv", "--out", "out", *SMALL, "--engine", "inline"],
    "plan": ["m.csv", "--out", "out", *SMALL],
    "proof": ["m.csv", "--out", "p.html", *SMALL, "--grid", "style_weight=1,2", "--engine", "inline"],
    "stylize": ["a.png", "b.png", "--out", "s.png", *SMALL],
    "manifest": ["a.png", "b.png", "--out", "n.csv"],
    "status": ["out"],
    "audit": ["out"],
    "report": ["out"],
    "seal": ["out"],
    "replay": ["out", "one"],
    "export": ["out", "--to", "tar", "--out", "exported"],
    "layers": ["a.png", "--out", "l.png", *SMALL[:2], *SMALL[4:]],
    "weights import": ["a.png", "mine"],
    "ledger compact": ["out"],
}
"""A call of each command that it takes, in the folder that `prepare` makes."""

NUMBERS = ["-1", "0", "nan", "inf", "x", "", "1e400", "99999999999999999999", "٣"]

TEXTS = [
    *("", " ", "x", "é\u202e", "\udcff", "-", "x" * 5000),
    *("a=b", "=", "size=", "size=nan", "size=[1]", "style_weight=1,nan"),
    *("../x", "/dev/null", "/proc/self/mem", "a.png/x", "a.png", "out", "m.csv", "~nobody/x", "*", "["),
    *("s3://", "s3:///x", "http://[", "http://", "file://", "://"),
    *("zip://::", "zip://a::a.png", "parquet://x/0::m.csv"),
]

UNENDING = ("--watch", "--help", "--address")
"""Options that are not tried: what they start does not end, or is not ours."""


def prepare(folder: Path) -> None:
    """Make two pictures, a manifest of one pair, and OUT with that pair painted."""
    for number, name in enumerate("ab"):
        scene(40, 40).rotate(90 * number).save(folder / f"{name}.png")
    (folder / "m.csv").write_text("content,style,id\na.png,b.png,one\n")
    with contextlib.chdir(folder):
        assert batchnst("run", *COMMANDS["run"]).exit_code == 0


def attempts(name: str) -> Iterator[list[str]]:
    """All calls of a command in which one argument or option has an odd value."""
    command: Any = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]
    places = [parameter.name for parameter in command.params if parameter.param_type_name == "argument"]
    for parameter in command.params:
        if parameter.name in places:
            yield from (_replaced(COMMANDS[name], places.index(parameter.name), text) for text in TEXTS)
        elif parameter.opts[0] not in UNENDING:
            yield from (_with_option(COMMANDS[name], parameter.opts[0], values) for values in _values(parameter))


def _values(parameter: Any) -> list[list[str]]:
    if parameter.is_flag:
        return [[]]
    kind = str(parameter.bare_type)
    return [[text] for text in (NUMBERS if "int" in kind or "float" in kind else TEXTS)]


def _replaced(arguments: list[str], place: int, text: str) -> list[str]:
    return [*arguments[:place], text, *arguments[place + 1 :]]


def _with_option(arguments: list[str], option: str, values: list[str]) -> list[str]:
    if option in arguments and values:
        return _replaced(arguments, arguments.index(option) + 1, values[0])
    return [*arguments, option, *values]


def problem(name: str, arguments: list[str]) -> str:
    """The fault in the end of a command; empty if it has none."""
    result = batchnst(*name.split(), *arguments)
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        return "".join(traceback.format_exception(error, limit=-3))
    if result.exit_code not in (0, 1, 2):
        return f"exit code {result.exit_code}: {result.output[-300:]}"
    if result.exit_code == 2 and not result.stderr.strip():
        return "exit code 2 without a word"
    return ""


def main() -> None:
    """Try all values of the commands that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", metavar="COMMAND", nargs="*", default=list(COMMANDS), help="default: all")
    tried = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        os.chdir(folder)
        for name in parser.parse_args().commands:
            for arguments in attempts(name):
                tried += 1
                if found := problem(name, arguments):
                    wrong += 1
                    print(name, [text[:60] for text in arguments], found, sep="\n", flush=True)
    print(f"{tried} calls, {wrong} that ended otherwise than they should")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
