"""The front door: all commands together, and how the program begins and ends."""

from __future__ import annotations

import sys
import traceback

from batchnst.cli import paint_commands, review_commands, signals, tool_commands
from batchnst.cli.app import COMMANDS, FAILED, app, is_refusal, print_refusal
from batchnst.cli.streams import finish, make_lasting
from batchnst.redaction import redact, redact_logs

__all__ = ["COMMANDS", "app", "main"]

MODULES = paint_commands, review_commands, tool_commands
"""Modules whose commands belong to `app` once they are imported."""


def main() -> None:
    """Run the `batchnst` command. The traceback of an unexpected error is shown without secrets."""
    make_lasting()
    redact_logs()
    with signals.ending():
        try:
            app()
        except Exception as error:
            if signals.interrupted():
                raise
            if is_refusal(error):
                print_refusal(error)
            else:
                print(redact(traceback.format_exc()), file=sys.stderr)
            sys.exit(FAILED)
        finally:
            if problem := finish():
                print(f"batchnst: the result cannot be written: {problem}", file=sys.stderr)
                sys.exit(FAILED)
