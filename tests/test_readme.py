from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from batchnst.cli.main import app
from batchnst.recipe import recipe_keys

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def demo(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    manifest = folder / "m.csv"
    rows = [f"{images}/{photo},{images}/swirls.png" for photo in ("coffee.png", "rocket.jpg", "none.png")]
    manifest.write_text("\n".join(["content,style", *rows]) + "\n")
    arguments = ["run", manifest, "--out", folder / "out/demo", "--engine", "inline", "--size", "48", "--steps", "30"]
    again = [*arguments, "--retry-failed"]
    for command in (arguments, again):
        assert CliRunner().invoke(app, [str(argument) for argument in command]).exit_code == 1
    return folder


def test_every_query_runs_and_finds_what_it_should(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    queries = [query for block in blocks("sql") for query in block.split(";") if query.strip()]
    views, questions = queries[:2], queries[2:]
    with duckdb.connect() as connection:
        for view in views:
            connection.execute(view)
        worst, failures, styles, hours, curve, settled, again, software = (
            connection.execute(query).fetchall() for query in questions
        )
    assert [row[1] for row in worst] == sorted((row[1] for row in worst), reverse=True)
    assert len(worst) == 2
    assert failures[0][:2] == ("InputError", 1)
    assert styles[0][:2] == ("swirls.png", 2)
    assert sum(row[2] for row in hours) == 3
    assert [row[0] for row in curve] == list(range(len(curve)))
    assert all(row[3] + row[4] + row[5] == pytest.approx(row[2]) for row in curve)
    assert all(row[1] < row[2] / 2 for row in settled)
    assert again[0][1] == ["failed", "failed"]
    assert sum(row[-1] for row in software) == 3


def test_the_python_example_runs(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)
    (example,) = blocks("python")
    exec(example, {})
    assert "none--swirls" in capsys.readouterr().out


def test_links_lead_somewhere_and_every_recipe_key_is_told() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    headings = {
        re.sub(r"[^a-z0-9]+", "-", line.lstrip("# ").lower()) for line in README.splitlines() if line[:1] == "#"
    }
    assert links
    assert all((ROOT / link).exists() or link.removeprefix("#") in headings for link in links)
    assert all(f"`{key}`" in README for key in recipe_keys())
