"""The command `batchnst` without its commands: how they print, and how errors become messages and exit codes."""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from batchnst.cli import signals
from batchnst.errors import BatchNSTError, InputError, ManifestError, RequestError
from batchnst.redaction import redact, redact_json
from batchnst.storage.walk import check_utf8

COMMANDS = ["run", "plan", "proof", "stylize", "manifest", "status", "serve", "audit", "report", "seal", "replay"]
COMMANDS += ["export", "layers", "weights", "bench", "ledger"]
"""The commands in the order of the help."""


class _Ordered(TyperGroup):
    """Lists commands and groups of commands in the order of COMMANDS."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    cls=_Ordered,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural style transfer for whole photo collections: batched, distributed by Ray, audited in Parquet.",
)

FAILED, WRONG = 1, 2
"""Exit codes: some pairs failed or the run stopped; the request is wrong. 0 means all done, INTERRUPTED a signal."""

_REFUSALS = re.compile(
    r"failed to map segment|can(?:no|')t allocate memory|not enough memory|out of memory|std::bad_alloc"
    r"|can't start new thread|failed to launch worker thread|resource temporarily unavailable|too many open files",
    re.IGNORECASE,
)
"""Messages of a machine's refusals that are no OSError: of imports, threads and libraries in other languages."""

MAX_PROBLEMS = 100
"""Largest number of problems of a manifest that are printed."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"batchnst {version('batchnst')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


def print_result(text: str) -> None:
    """Print a result on stdout, without secrets."""
    print(redact(text))


def print_json(value: Any) -> None:
    """Print a result on stdout as JSON, without secrets."""
    print(redact_json(json.dumps(value)))


def print_error(message: str) -> None:
    """Print a message on stderr, without secrets."""
    for line in redact(message).splitlines():
        print(f"batchnst: {line}", file=sys.stderr)


def _end_if_interrupted() -> None:
    """After a signal, end as it asks: an error that follows it comes from work that was cut off."""
    if signals.interrupted():
        signals.tell()
        raise typer.Exit(signals.INTERRUPTED) from None


def _check_texts(command: Callable[..., None], values: Mapping[str, Any]) -> None:
    """Raise RequestError for a text of the command line that is not UTF-8, or empty.

    Most empty ones are variables of a script that are not set. `--seal ""` must not mean that nothing is checked.
    """
    for name, value in values.items():
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str):
                check_utf8(text)
            if text == "" and inspect.signature(command).parameters[name].default != "":
                raise RequestError(f"{_shown_name(command, name)} is empty; expected a value")


def _shown_name(command: Callable[..., None], name: str) -> str:
    """The name of a parameter of `command` as users know it, such as `--style-weight` or `OUT`."""
    annotation = inspect.signature(command, eval_str=True).parameters[name].annotation
    for info in getattr(annotation, "__metadata__", ()):
        if isinstance(info, typer.models.ArgumentInfo):
            return name.upper()
        for text in (getattr(info, "default", ""), *(getattr(info, "param_decls", None) or ())):
            if str(text).startswith("--"):
                return str(text)
    return f"--{name.replace('_', '-')}"


def print_refusal(error: Exception) -> None:
    """Print a line about what this machine has refused."""
    print_error(f"this machine refused: {' '.join(str(error).split()) or 'memory'}")


def is_refusal(error: Exception) -> bool:
    """True if this machine has refused memory, a thread or a file, whatever a library makes of that."""
    return isinstance(error, OSError | MemoryError) or bool(_REFUSALS.search(str(error)))


def handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn expected errors of `command` into messages and exit codes; others keep their traceback."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            _check_texts(command, kwargs)
            command(*args, **kwargs)
        except ManifestError as error:
            lines = str(error).splitlines()
            print_error("\n".join(lines[:MAX_PROBLEMS]))
            if len(lines) > MAX_PROBLEMS:
                print_error(f"… and {len(lines) - MAX_PROBLEMS} more")
            raise typer.Exit(WRONG) from None
        except BatchNSTError as error:
            _end_if_interrupted()
            print_error(str(error))
            raise typer.Exit(WRONG if isinstance(error, RequestError | InputError) else FAILED) from None
        except KeyboardInterrupt:
            signals.tell()
            raise typer.Exit(signals.INTERRUPTED) from None
        except Exception as error:
            if not is_refusal(error):
                raise
            _end_if_interrupted()
            print_refusal(error)
            raise typer.Exit(FAILED) from None

    return wrapper
