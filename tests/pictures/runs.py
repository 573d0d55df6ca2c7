"""Runs of the command line on a folder of pictures, which leave them as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.testing import Result

from batchnst import read_ledger
from tests.helpers import batchnst

UNCHANGED = {"style_weight": 0, "tv_weight": 0, "size": 48, "steps": 1, "style_layers": ["relu1_1"]}
"""What leaves a picture as it was."""


def run(folder: Path, *rows: dict[str, Any], options: Sequence[str] = ()) -> Result:
    manifest = folder / "m.jsonl"
    lines = [{"style": "style.png", "id": f"n{i}", **UNCHANGED, **row} for i, row in enumerate(rows)]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return batchnst("run", manifest, "--out", folder / "out", "--engine", "inline", *options)


def ledger(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["pair_id"]: row for row in read_ledger(str(folder / "out"), "pairs").to_table().to_pylist()}
