from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from batchnst.cli import app
from batchnst.recipe import recipe_keys

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def demo(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    manifest = folder / "m.csv"
    manifest.write_text(f"content,style\n{images}/coffee.png,{images}/swirls.png\n")
    arguments = ["run", manifest, "--out", folder / "out/demo", "--engine", "inline", "--size", "48", "--steps", "3"]
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0
    return folder


def test_every_query_runs(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    queries = [query for block in blocks("sql") for query in block.split(";") if query.strip()]
    assert len(queries) >= 3
    counts = [len(duckdb.sql(query).fetchall()) for query in queries]
    assert counts == [1, 0, 3]


def test_the_python_example_runs(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    (example,) = blocks("python")
    exec(example, {})


def test_links_lead_somewhere_and_every_recipe_key_is_told() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert all((ROOT / link).exists() for link in links)
    assert all(f"`{key}`" in README for key in recipe_keys())
