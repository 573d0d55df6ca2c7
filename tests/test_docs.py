"""README.md and docs/: what they show runs, what they name exists, and nothing is left out."""

from __future__ import annotations

import ast
import html
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from textwrap import dedent
from typing import Any

import duckdb
import pytest
import typer.main

from batchnst.cli.main import COMMANDS, app
from batchnst.ledger.schema import LossRow, PairRow, RunRow, Versions
from batchnst.manifest.reading import read_manifest
from batchnst.recipe import Recipe, recipe_keys
from tests.helpers import batchnst

ROOT = Path(__file__).parent.parent
MANUAL = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *MANUAL, ROOT / "manifests/README.md", ROOT / "jobs/README.md"]

MOST_LINES, MOST_WORDS = 120, 900
"""Lines and words of the README."""


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages."""
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [dedent(text) for language, text in found if language in languages]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def all_blocks(*languages: str, without: Sequence[str] = ()) -> list[Any]:
    """The code blocks of all pages but some in these languages, as parameters of a test."""
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        if page.name not in without
        for number, block in enumerate(blocks(page, *languages))
    ]


@pytest.fixture(scope="module")
def demo(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures that examples name, and a run of three pairs, one of which failed twice."""
    folder = tmp_path_factory.mktemp("docs")
    for name, source in [("photo", "coffee.png"), ("painting", "swirls.png"), ("other", "woodcut.png")]:
        shutil.copy(images / source, folder / f"{name}.jpg")
    manifest = folder / "m.csv"
    rows = [f"{images}/{photo},{images}/swirls.png" for photo in ("coffee.png", "rocket.jpg", "none.png")]
    manifest.write_text("\n".join(["content,style", *rows]) + "\n")
    arguments = ["run", manifest, "--out", folder / "out/demo", "--engine", "inline", "--size", "48", "--steps", "30"]
    for command in (arguments, [*arguments, "--retry-failed"]):
        assert batchnst(*command).exit_code == 1
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manual as HTML, if it can be built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_query_runs_and_finds_what_it_should(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    queries = [query for block in blocks(ROOT / "docs/ledger.md", "sql") for query in block.split(";") if query.strip()]
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


def test_queries_are_on_the_page_about_the_ledger_alone() -> None:
    assert [page.name for page in PAGES if blocks(page, "sql")] == ["ledger.md"]


def run_example(code: str) -> None:
    """Run an example of the manual, on tiny pictures."""
    exec(re.sub(r"size=\d+", "size=48, steps=3", code), {})


def test_the_ledger_is_read_from_python(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)
    (example,) = blocks(ROOT / "docs/ledger.md", "python")
    run_example(example)
    assert "none--swirls" in capsys.readouterr().out


@pytest.mark.parametrize(
    "example", all_blocks("python", without=["credentials.md", "ledger.md", "seal.md", "pictures.md"])
)
def test_every_other_python_example_paints(example: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    for painted in demo.glob("painted.*"):
        painted.unlink()
    run_example(example)
    assert len(list(demo.glob("painted.*"))) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file open
def test_pictures_in_files_together_are_read_as_the_manual_says(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for form, name in (("parquet", "demo"), ("tar", "archives")):
        assert batchnst("export", demo / "out/demo", "--to", form, "--out", f"out/{name}").exit_code == 0
    (archive,) = Path("out/archives/pictures").iterdir()
    archive.rename(archive.with_name("shard.tar"))
    rows, samples = blocks(ROOT / "docs/pictures.md", "python")
    names: dict[str, Any] = {}
    exec(f"import datasets; datasets.config.HF_DATASETS_CACHE = {str(tmp_path / 'cache')!r}; {rows}", names)
    assert Path("first.png").exists()
    assert len(names["best"]) == 2
    exec(samples, {})
    assert capsys.readouterr().out.count("--swirls") == 2


def test_a_stranger_checks_a_picture_with_thirty_lines(demo: Path, tmp_path: Path) -> None:
    (program,) = blocks(ROOT / "docs/seal.md", "python")
    assert len([line for line in program.splitlines() if line and line[0] != "#"]) <= 30
    key, check = tmp_path / "night.key", tmp_path / "check.py"
    assert (
        batchnst("seal", "--new-key", key).exit_code == batchnst("seal", demo / "out/demo", "--key", key).exit_code == 0
    )
    assert batchnst("seal", "--new-key", tmp_path / "other").exit_code == 0
    check.write_text(program)
    picture, other = sorted((demo / "out/demo/images").iterdir())
    proof = batchnst("audit", demo / "out/demo", "--picture", picture, "--proof").stdout
    (tmp_path / "proof.json").write_text(proof)

    def checked(key: Path, proof: str, picture: Path) -> subprocess.CompletedProcess[str]:
        (tmp_path / "proof.json").write_text(proof)
        command = [sys.executable, check.name, str(key), "proof.json", str(picture)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    public = Path(f"{key}.pub")
    root = json.loads(proof)["seal"]["root"]
    right = checked(public, proof, picture)
    assert (right.returncode, right.stderr) == (0, "")
    assert right.stdout.startswith(f"pair {picture.stem} of run 2")
    assert right.stdout.endswith(f", root {root}\n")
    assert "this is another picture" in checked(public, proof, other).stderr
    assert "InvalidSignature" in checked(tmp_path / "other.pub", proof, picture).stderr
    assert "InvalidSignature" in checked(public, proof.replace(root, "0" * 64), picture).stderr
    for path in (json.loads(proof)["path"][1:], [{"left": root}]):
        assert "not in this seal" in checked(public, json.dumps(json.loads(proof) | {"path": path}), picture).stderr
    leaf = json.loads(proof)["leaf"] | {"pair_id": "another"}
    assert "not in this seal" in checked(public, json.dumps(json.loads(proof) | {"leaf": leaf}), picture).stderr


def test_content_credentials_are_made_and_checked_as_the_manual_says(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, check = blocks(ROOT / "docs/credentials.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(make, {})
    (tmp_path / "night.csv").write_text(f"content,style,id\n{demo}/photo.jpg,{demo}/painting.jpg,coffee\n")
    options = ("--credentials", "studio.pem", "--engine", "inline", "--size", "48", "--steps", "1")
    assert batchnst("run", "night.csv", "--out", "out/night", *options).exit_code == 0
    capsys.readouterr()
    exec(check, {})
    state, signer, ingredients, weight = capsys.readouterr().out.splitlines()
    assert (state, signer) == ("Valid", "Studio")
    assert "photo.jpg" in ingredients
    assert float(weight) > 0


def command_lines(block: str) -> Iterator[list[str]]:
    """The arguments of every `batchnst` in the lines of a shell script."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        if "batchnst" in words and "install" not in words:
            rest = words[words.index("batchnst") + 1 :]
            end = next((i for i, word in enumerate(rest) if word[0] in ";|&<>"), len(rest))
            yield rest[:end]


def find_command(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the rest of the words."""
    command, rest = typer.main.get_command(app), list(words)
    while rest and (commands := getattr(command, "commands", None)) and not rest[0].startswith("-"):
        assert rest[0] in commands, f"no command {rest[0]!r}"
        command = commands[rest.pop(0)]
    return command, rest


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The parameters that the command line reads from its arguments; raises what it raises for wrong ones."""
    command, rest = find_command(words)
    return command.make_context(command.name, rest).params  # type: ignore[no-any-return]


def options_of(command: Any) -> list[str]:
    """The options of a command."""
    return [name for parameter in command.params for name in parameter.opts if name.startswith("-")]


@pytest.mark.parametrize("example", all_blocks("sh", "bash"))
def test_the_command_line_understands_every_example(example: str) -> None:
    for words in command_lines(example):
        parameters = parse(words)
        given = dict(assignment.split("=", 1) for assignment in parameters.get("set_") or [])
        given |= {key: parameters[key] for key in recipe_keys() if parameters.get(key) is not None}
        Recipe.from_settings(given)


def test_every_command_is_shown_in_an_example() -> None:
    shown = {
        words[0] for page in PAGES for block in blocks(page, "sh", "bash") for words in command_lines(block) if words
    }
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_that_the_text_mentions_exist(page: Path) -> None:
    for mentioned in re.findall(r"`batchnst ([^`]+)`", prose(page)):
        command, rest = find_command(shlex.split(mentioned))
        assert {word for word in rest if word.startswith("--")} <= {*options_of(command), "--help"}, mentioned


@pytest.mark.parametrize(
    "line", ["paint m.csv", "run m.csv --out o --sise 9", "run m.csv --out o --batch-size x", "plan"]
)
def test_a_line_that_the_command_line_does_not_understand_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"No such option|no command|Missing|valid int"):
        parse(line.split())


@pytest.mark.parametrize("example", all_blocks("csv"))
def test_every_manifest_is_one(example: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(example)
    assert len(read_manifest(str(tmp_path / "m.csv"), {})) == len(example.splitlines()) - 1


def test_the_manifest_is_the_same_in_both_forms(tmp_path: Path) -> None:
    page = ROOT / "docs/manifest.md"
    for name, language in (("m.csv", "csv"), ("m.jsonl", "json")):
        (tmp_path / name).write_text(blocks(page, language)[0])
    as_csv, as_json = (list(read_manifest(str(tmp_path / name), {})) for name in ("m.csv", "m.jsonl"))
    assert [pair.recipe for pair in as_csv] == [pair.recipe for pair in as_json]
    assert [pair.styles for pair in as_csv] == [pair.styles for pair in as_json]


@pytest.mark.parametrize("example", all_blocks("toml"))
def test_every_recipe_is_one(example: str) -> None:
    Recipe.from_settings(tomllib.loads(example))


def rows_of(page: Path, heading: str = "") -> list[list[str]]:
    """The cells of all tables of a page, or of one of its sections."""
    text = page.read_text()
    if heading:
        text = text[text.index(f"\n{heading}\n") + len(heading) + 2 :].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_recipe_key_is_told_with_its_default() -> None:
    keys = {row[0].strip("`"): row[1].replace("`", "") for row in rows_of(ROOT / "docs/recipe.md", "## All keys")}
    told = {key: default for key, default in keys.items() if key in recipe_keys()}
    assert set(told) == set(recipe_keys())
    values = {key: value for key, value in Recipe().model_dump().items() if value is not None}
    for key, value in values.items():
        if isinstance(value, dict):
            assert told[key] == ", ".join(value)
        elif isinstance(value, str | bool):
            assert told[key] == str(value).lower()
        else:
            assert float(told[key]) == value


@pytest.mark.parametrize(("table", "row"), [("pairs", PairRow), ("losses", LossRow), ("runs", RunRow)])
def test_every_column_of_the_ledger_is_described(table: str, row: type) -> None:
    described = rows_of(ROOT / "docs/ledger.md", f"## Columns of `{table}`")
    names = [name for cells in described for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(names) == sorted(field.name for field in fields(row))
    if table == "pairs":
        (versions,) = (cells[2] for cells in described if cells[0] == "`versions`")
        assert re.findall(r"`(\w+)`", versions) == [field.name for field in fields(Versions)]


def test_messages_that_the_manual_explains_are_those_of_the_program() -> None:
    explained = rows_of(ROOT / "docs/resuming.md", "## At three in the morning")
    messages = [message for cells in explained for message in re.findall(r"`([^`]+)`", cells[0])]
    assert len(messages) > 5
    said = "\n".join(texts_of_program())
    patterns = {message: ".*".join(map(re.escape, re.split("…|<pair>", message))) for message in messages}
    assert [message for message, pattern in patterns.items() if not re.search(pattern, said)] == []


def texts_of_program() -> Iterator[str]:
    """Every text in the program's code, with … for what is filled in."""
    for file in (ROOT / "batchnst").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_command_and_option_is_on_the_page_of_commands(site: Path) -> None:
    sections = re.split(r"<h2 id=", (site / "commands.html").read_text())[1:]
    told = {section.split('"')[1]: html.unescape(section) for section in sections}
    commands = dict(_commands(typer.main.get_command(app), "batchnst"))
    assert set(told) == {path.replace(" ", "-") for path in commands}
    for path, command in commands.items():
        assert [name for name in options_of(command) if f">{name}" not in told[path.replace(" ", "-")]] == []


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")


def test_the_manual_builds_without_a_warning_and_asks_no_network_for_anything(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert {page.stem for page in pages} > {page.stem for page in MANUAL}
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]* (?:src|href)="([^"]+)"', page.read_text())
        assert [address for address in loaded if "://" in address] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path, site: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]
    for link in links:
        address, _, anchor = link.partition("#")
        target = (page.parent / address).resolve() if address else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target, site), link


def anchors(page: Path, site: Path) -> set[str]:
    """The anchors of a page: of the manual's pages as they are built, of the others by their headings."""
    if page.parent == ROOT / "docs":
        return set(re.findall(r' id="([^"]+)"', (site / f"{page.stem}.html").read_text()))
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_leads_to_every_page_of_the_manual() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= MOST_LINES
    assert len(readme.split()) <= MOST_WORDS
    assert [page.name for page in MANUAL if f"](docs/{page.name})" not in readme] == []
    for name in ("LICENSE", "NOTICE", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert f"]({name})" in readme
