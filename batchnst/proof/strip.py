"""A proof: its cells, what is left to paint of them, and what the ledger says of each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc

from batchnst.engine.repaint import RETRY_FAILED
from batchnst.engine.run import plan_run
from batchnst.errors import RecipeError, RequestError
from batchnst.ledger.out import Out, newest_rows
from batchnst.ledger.schema import without_secrets
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import Pair, to_json
from batchnst.painting.named_weights import load_networks
from batchnst.proof.grid import Column
from batchnst.recipe import ORIGINAL, Recipe
from batchnst.redaction import public

MOST_CELLS = 1000
"""Largest number of pictures of a proof: more of them fit neither a page nor a night."""

SMALLEST_HALF = 64
"""Smallest working size to paint at half size first, in pixels."""

USUAL = 512
"""Longest side in pixels whose half comes first, for photos that keep their own size."""

LONGEST_ID = 160
"""Longest part of a pair's id in the id of a cell."""

MARK = "proof_of"
"""Key in a row's `extra` that has the id of the manifest's pair."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One picture of the proof: a pair of the manifest in the settings of a column.

    `full` is what is painted; `half` is the same at half the size, or None if that would be too small.
    """

    pair: Pair
    column: Column
    full: Pair
    half: Pair | None


@dataclass(frozen=True)
class Stage:
    """A run of a proof. After it the page shows cells at half size if `is_half`."""

    manifest: Manifest
    is_half: bool


class Strip:
    """All cells of a proof, row by row, and the folder that they are painted into."""

    def __init__(self, manifest: Manifest, pairs: Sequence[Pair], columns: Sequence[Column], page: str) -> None:
        """Raises RequestError if there are too many cells, or a row's settings do not go with those of a column."""
        if len(pairs) * len(columns) > MOST_CELLS:
            count = len(pairs) * len(columns)
            raise RequestError(
                f"--grid: {count:,} pictures; expected at most {MOST_CELLS:,}: leave out values or pairs"
            )
        self.manifest, self.pairs, self.columns = manifest, list(pairs), list(columns)
        self.cells = [_cell(pair, column) for pair in pairs for column in columns]
        self.folder = folder_of(page)
        self._painting = frozenset[str]()

    def stages(self) -> Iterator[Stage]:
        """The runs to do, one after the other: at half size what is left, unless there is nothing, then all."""
        full = Manifest.of(self.manifest.address, _distinct([cell.full for cell in self.cells]))
        self._painting = self._left(full)
        halves = _distinct([cell.half for cell in self.cells if cell.half and cell.full.id in self._painting])
        if halves:
            yield Stage(Manifest.of(self.manifest.address, halves), is_half=True)
        self._painting = frozenset()
        yield Stage(full, is_half=False)

    def _left(self, full: Manifest) -> frozenset[str]:
        """The ids of the cells in `full` that are not painted yet; raises RequestError if OUT is that of a run."""
        out = Out(self.folder)
        if any(MARK not in json.loads(extra) for extra in out.rows("pairs", ["extra"])["extra"].unique().to_pylist()):
            raise RequestError(f"{self.folder}: holds pictures that are no proof; choose another --out")
        plan = plan_run(full, out, load_networks(full.networks), redo=RETRY_FAILED, limit=None)
        return frozenset(job.pair.id for job in plan.jobs())

    def rows(self) -> list[Row | None]:
        """The ledger row of each cell: of its full size, or of half if it is being painted or not there; else None."""
        halves = [cell.half for cell in self.cells if cell.half]
        rows = self._newest({pair.id for pair in [*(cell.full for cell in self.cells), *halves]})
        return [self._row(cell, rows) for cell in self.cells]

    def _row(self, cell: Cell, rows: dict[str, Row]) -> Row | None:
        full = None if cell.full.id in self._painting else rows.get(cell.full.id)
        return full or (rows.get(cell.half.id) if cell.half else None)

    def _newest(self, ids: Collection[str]) -> dict[str, Row]:
        rows = Out(self.folder).rows("pairs", matching=pc.field("pair_id").isin(list(ids)))
        return {row["pair_id"]: row for row in newest_rows(without_secrets(rows)).to_pylist()}


def folder_of(page: str) -> str:
    """The folder beside the page that its pictures are painted into; raises RequestError if it is no HTML page."""
    name = re.sub(r"\.html?$", "", page, flags=re.IGNORECASE)
    if name in (page, "") or name.endswith("/"):
        raise RequestError(f"--out {page}: expected a name that ends in .html")
    return f"{name}.out"


def _cell(pair: Pair, column: Column) -> Cell:
    try:
        recipe = column.recipe(pair.recipe)
        is_original = recipe.size == ORIGINAL
        longest = USUAL if is_original else recipe.pixels
        size = max(SMALLEST_HALF, recipe.smallest_side, longest // 2)
        smaller = recipe.changed({"size": size, "enlarge": recipe.enlarge and not is_original})
        half = _painted(pair, smaller) if size < longest else None
        return Cell(pair, column, _painted(pair, recipe), half)
    except RecipeError as error:
        raise RecipeError(f"--grid {column.name}: {pair.id}: {error.problems[0]}") from None


def _painted(pair: Pair, recipe: Recipe) -> Pair:
    """`pair` in `recipe`. Its id says what it is, so that the same cell has the same id in every proof."""
    pictures = [pair.content, *pair.styles, *pair.content_masks, *pair.style_masks]
    what = [pair.id, list(map(public, pictures)), pair.style_weights, recipe.json_text]
    cell_id = f"{pair.id[:LONGEST_ID]}--{hashlib.sha256(to_json(what).encode()).hexdigest()[:16]}"
    output = f"{cell_id}.{recipe.format}"
    return replace(pair, id=cell_id, output=output, recipe=recipe, extra=to_json({MARK: pair.id}))


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs without repeats: two columns may ask for the same picture."""
    return list({pair.id: pair for pair in pairs}.values())
