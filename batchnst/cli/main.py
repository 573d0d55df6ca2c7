"""The front door: all commands together, and how the program begins and ends."""

from __future__ import annotations

import sys
import traceback

from batchnst.cli import paint_commands, review_commands, signals, tool_commands
from batchnst.cli.app import COMMANDS, FAILED, app
from batchnst.cli.streams import make_lasting
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
        except Exception:
            if not signals.interrupted():
                print(redact(traceback.format_exc()), file=sys.stderr)
                sys.exit(FAILED)
            raise
