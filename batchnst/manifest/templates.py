"""The template by which `batchnst manifest` names the outputs of pairs."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import pyarrow as pa

from batchnst.chains import path_of
from batchnst.errors import RequestError
from batchnst.manifest.columns import OUTPUT_FIELDS
from batchnst.manifest.left_out import Picture
from batchnst.manifest.outputs import CONTROL, LONGEST_OUTPUT, Clash, clashes, output_problem
from batchnst.pictures.encode import FORMATS
from batchnst.recipe import did_you_mean

MOST_CLASHES = 20
"""Largest number of collisions that are told."""


class Template:
    """A template with names in braces, such as OUTPUT_TEMPLATE; raises RequestError if it is none."""

    def __init__(self, text: str, kind: str) -> None:
        """`kind` is the ending for `{format}`, without the dot."""
        if f".{kind}" not in FORMATS:
            known = [ending.removeprefix(".") for ending in FORMATS]
            raise RequestError(f"--format {kind}: {did_you_mean(kind, known)}expected one of {', '.join(known)}")
        self._text, self._kind = text, kind
        self._parts = _parse(text)

    def output(self, content: Picture, style: Picture, pair_id: str) -> str:
        """The output of a pair: a relative path without empty names, backslashes and control characters."""
        values = {
            **_fields(content, "folder", "name", "ending"),
            **_fields(style, "style_folder", "style", "style_ending"),
            "id": pair_id,
            "format": self._kind,
        }
        path = "".join(f"{literal}{values[name] if name else ''}" for literal, name in self._parts)
        path = CONTROL.sub("-", path.replace("\\", "-"))
        return "/".join(part for part in path.split("/") if part not in ("", "."))


def _fields(picture: Picture, folder: str, name: str, ending: str) -> Mapping[str, str]:
    parent = str(picture.inside.parent)
    values = "" if parent == "." else parent, picture.inside.stem, picture.inside.suffix.removeprefix(".")
    return dict(zip((folder, name, ending), values, strict=True))


def _parse(text: str) -> list[tuple[str, str | None]]:
    """Each literal of a template with the name that follows it; None at the end."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise RequestError(f"--output {text}: {error}; {_known()}") from None
    for _, name, options, conversion in parts:
        if name is not None and (name not in OUTPUT_FIELDS or options or conversion):
            raise RequestError(f"--output {text}: no {{{name}}}{did_you_mean(name, list(OUTPUT_FIELDS))}; {_known()}")
    return [(literal, name) for literal, name, _, _ in parts]


def _known() -> str:
    return f"expected names of {', '.join(f'{{{name}}}' for name in OUTPUT_FIELDS)}"


def check_outputs(rows: Sequence[Mapping[str, str]]) -> None:
    """Raise RequestError, with a line for each, if outputs of `rows` are not allowed, or two would be one file."""
    problems = list[str]()
    for row in rows:
        if problem := output_problem(row["output"], LONGEST_OUTPUT):
            problems.append(f"{_pair(row)}: --output: {problem}")
    ids, outputs = (pa.array((row[name] for row in rows), pa.string()) for name in ("id", "output"))
    found = list(clashes(range(len(rows)), ids, outputs))
    problems += [_clash_text(clash, rows) for clash in found]
    if problems:
        more = [f"… and {len(problems) - MOST_CLASHES} more"] if len(problems) > MOST_CLASHES else []
        advice = ["add {ending}, {style_folder} or {id} to --output"] if found else []
        raise RequestError("\n".join([*problems[:MOST_CLASHES], *more, *advice]))


def _clash_text(clash: Clash, rows: Sequence[Mapping[str, str]]) -> str:
    other = _pair(rows[clash.other])
    how = f"would be a folder of the output of {other}" if clash.is_folder else f"is that of {other} too"
    content, others = (unicodedata.normalize("NFC", rows[line]["content"]) for line in (clash.line, clash.other))
    alike = content == others and rows[clash.line]["content"] != rows[clash.other]["content"]
    unseen = "; the two names differ only in how their accents are stored" if alike else ""
    return f"{_pair(rows[clash.line])}: {clash.column} {clash.value!r} {how}{unseen}"


def _pair(row: Mapping[str, str]) -> str:
    return f"{row['content']} in {PurePosixPath(path_of(row['style'])).name}"
