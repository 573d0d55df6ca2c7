"""Whatever a file holds, its reader takes it or refuses it by an error of ours: `make fuzz` tries many more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchnst.errors import InputError, ManifestError, RecipeError
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.reading import read_manifest
from batchnst.pictures.decode import DecodeOptions, open_picture
from batchnst.recipe import Recipe, read_recipe_file, recipe_keys
from tests.pictures import zoo
from tests.tools import fuzz

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

COLUMNS = ["content", "style", "id", "output", "style_weights", "content_mask", "style_mask", "mood", *recipe_keys()]

SEEDS: dict[str, Any] = {
    ".csv": b"content,style,id,size,style_layers\na.png,s.png,x,64,relu1_1=2\nb.png,s.png|t.png,y,,\n",
    ".jsonl": b'{"content": "a.png", "style": ["s.png"], "size": 64}\n{"content": "b.png", "style": "t.png"}\n',
    ".parquet": pa.BufferOutputStream(),
}
pq.write_table(pa.table({"content": ["a.png"], "style": [["s.png"]], "size": [64]}), SEEDS[".parquet"])
SEEDS[".parquet"] = SEEDS[".parquet"].getvalue().to_pybytes()

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """A file with some bytes replaced, left out or put in, or cut."""
    places = st.integers(0, len(data))
    edits = st.lists(st.tuples(places, st.integers(0, 8), st.binary(max_size=8)), max_size=6)

    def edit(changes: list[tuple[int, int, bytes]], end: int) -> bytes:
        result = bytearray(data)
        for place, count, new in changes:
            result[place : place + count] = new
        return bytes(result[: end or len(result)])

    return st.builds(edit, edits, st.just(0) | places)


def check_manifest(path: Path) -> None:
    try:
        assert isinstance(read_manifest(str(path), {}), Manifest)
    except ManifestError as error:
        assert all(line.startswith(f"{path}: ") for line in str(error).split("\n") if line.startswith("/"))


@pytest.mark.parametrize("ending", SEEDS)
@given(data=st.data())
@many
def test_damaged_manifests(ending: str, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(data.draw(mutated(SEEDS[ending]) | st.binary(max_size=200)))
    check_manifest(path)


@given(rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), values, max_size=6), min_size=1, max_size=4))
@many
def test_manifests_of_any_values(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_manifest(path)


@given(text=st.text(max_size=80) | st.builds("{} = {}".format, st.sampled_from(recipe_keys()), st.text(max_size=30)))
@many
def test_recipe_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        Recipe.from_settings(read_recipe_file(path))
    except RecipeError as error:
        assert str(error)


@given(given_settings=st.dictionaries(st.sampled_from(recipe_keys()) | st.text(max_size=9), values, max_size=4))
@many
def test_recipe_settings(given_settings: dict[str, Any]) -> None:
    try:
        recipe = Recipe.from_settings(given_settings)
    except RecipeError as error:
        assert error.problems
    else:
        assert Recipe.from_settings(recipe.model_dump()) == recipe


PICTURES = {
    animal.name: animal.data for animal in zoo.animals() if animal.looks is not None and len(animal.data) < 9000
}


@given(data=st.data())
@many
def test_damaged_pictures(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(PICTURES)))
    damaged = data.draw(mutated(PICTURES[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on what it makes of it
        try:
            decoded = open_picture(damaged, "pic", DecodeOptions(megapixels=1))
        except InputError as error:
            assert str(error).startswith("pic: ")
        else:
            assert decoded.image.mode == "RGB"
            assert len(decoded.image.tobytes()) == 3 * decoded.image.width * decoded.image.height


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_the_seeds_of_every_reader(reader: str, tmp_path: Path) -> None:
    read, seeds = fuzz.READERS[reader]
    for seed in seeds():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for data in (seed, seed[: len(seed) // 2], b""):
                read(data, tmp_path)


def test_the_tool_says_what_it_tried(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.tools.fuzz", "recipe", "--seconds", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"recipe    [1-9]\d* inputs, \d+ new edges of [1-9]\d*, 0 crashes\n", run.stdout), run.stdout
    assert run.returncode == 0
