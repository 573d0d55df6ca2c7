"""mkdocs hooks: the page of commands, and files outside docs/ that pages link to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.structure.files import File, Files, InclusionLevel

from batchnst.cli.main import app

OUTSIDE = ["jobs/*", "manifests/*.*"]
"""Files that the site holds beside docs/, as globs from the project's root."""

COMMANDS = "commands.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/."""
    root = Path(config.config_file_path).parent
    for path in sorted(path for pattern in OUTSIDE for path in root.glob(pattern) if path.is_file()):
        name = path.relative_to(root).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Complete the page of commands, and adapt links between docs/ and its neighbours to their places in the site."""
    uri = page.file.src_uri
    if uri == COMMANDS:
        return f"{markdown}\n{commands_page()}"
    return markdown.replace("](../docs/", "](../") if "/" in uri else markdown.replace("](../", "](")


def commands_page() -> str:
    """Describe every command in Markdown, from the text of its `--help`."""
    root = typer.main.get_command(app)
    with typer.Context(root, info_name="batchnst") as context:
        return "\n".join(_sections(root, context))


def _sections(group: Any, context: Any) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        with typer.Context(command, info_name=name, parent=context) as inner:
            path = inner.command_path
            yield f"## {path} {{ #{path.replace(' ', '-')} }}\n\n{command.help}\n"
            yield f"```text\n{path} {' '.join(command.collect_usage_pieces(inner))}\n```\n"
            yield from _tables(command, inner)
            if hasattr(command, "list_commands"):
                yield from _sections(command, inner)


def _tables(command: Any, context: Any) -> Iterator[str]:
    """One table for the arguments and for each panel of options."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.params:
        panel = "Argument" if parameter.param_type_name == "argument" else parameter.rich_help_panel or "Option"
        panels.setdefault(panel, []).append(parameter.get_help_record(context))
    for panel, records in panels.items():
        yield f"| {panel} | Meaning |\n| --- | --- |"
        for name, text in records:
            text = re.sub(r"\[default: \((.*?)\)", r"[default: \1", text)
            escaped = text.replace("|", r"\|")
            yield f"| `{name}` | {escaped} |"
        yield ""
