"""Arguments and options that several commands share. Those of recipes are in options.py."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class EngineName(StrEnum):
    """Engines of `run` and `proof`."""

    ray = "ray"
    inline = "inline"


class FormOfPictures(StrEnum):
    """Forms of pictures in OUT."""

    files = "files"
    parquet = "parquet"
    tar = "tar"


Manifest = Annotated[
    str, typer.Argument(help="The manifest: CSV, JSON Lines or Parquet; a path or URI.", show_default=False)
]


Memory = Annotated[
    float | None,
    typer.Option(min=0.1, help="Memory that each worker may use, in GB.", show_default="its device's, less a reserve"),
]


def in_bytes(gigabytes: float | None) -> float | None:
    """Gigabytes (10⁹ bytes) as bytes; None stays None."""
    return gigabytes and gigabytes * 1e9


ShardSize = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Size of the files with many pictures that small ones are merged into."),
]


Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster.", show_default="$RAY_ADDRESS, else a new one on this machine"),
]


Engine = Annotated[EngineName, typer.Option(help="ray: on a Ray cluster; inline: in this process.")]


OutFolder = Annotated[str, typer.Argument(metavar="OUT", help="Folder or URI of a run.", show_default=False)]
