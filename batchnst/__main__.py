"""The command `batchnst`, and `python -m batchnst`: catch signals before anything else is imported."""

from __future__ import annotations

from batchnst.cli import signals


def main() -> None:
    """Run the command line; after a signal, the last line says how to go on, and the exit code is 130."""
    with signals.ending():
        from batchnst.cli.main import main as run_command

        run_command()


if __name__ == "__main__":
    main()
