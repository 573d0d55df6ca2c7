"""How what takes a while says how far it is."""

from collections.abc import Callable

Note = Callable[[str, int, int], None]
"""Told what is looked at, how much of it is done, and how much there is."""


def quiet(what: str, done: int, of: int) -> None:
    """Tell nobody."""
