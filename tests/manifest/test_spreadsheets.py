"""Manifests as spreadsheets and other programs save them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchnst import encodings
from batchnst.errors import ManifestError, RecipeError
from batchnst.manifest.pair import Pair
from batchnst.manifest.reading import read_manifest
from batchnst.recipe import read_recipe_file
from tests.helpers import batchnst


def save(folder: Path, text: str | bytes, name: str = "m.csv") -> str:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


def read(folder: Path, text: str | bytes, name: str = "m.csv") -> list[Pair]:
    return list(read_manifest(save(folder, text, name), {}))


def contents(pairs: list[Pair]) -> list[str]:
    return [Path(pair.content).name for pair in pairs]


def problems(folder: Path, text: str | bytes, name: str = "m.csv") -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read(folder, text, name)
    return [line.removeprefix(f"{folder / name}: ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "mark", ["", "\ufeff", "sep={}\r\n", "\ufeffsep={}\r\n", "SEP={}{}{}\n", '"sep={}"\n\n', "\n\n"]
)
@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "M.CSV"])
def test_any_separator_told_or_not(tmp_path: Path, separator: str, mark: str, name: str) -> None:
    table = "Content,Style,size,note\r\na.jpg,s.png|t.png,64,x\r\n,,,\r\nb.jpg,s.png,,\r\n"
    text = mark.format(separator, separator, separator) + table.replace(",", separator)
    first, second = read(tmp_path, text, name)
    assert contents([first, second]) == ["a.jpg", "b.jpg"]
    assert [Path(style).name for style in first.styles] == ["s.png", "t.png"]
    assert (first.recipe.size, first.extra) == (64, '{"note": "x"}')


def test_a_separator_may_be_in_a_quoted_value(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, 'content;style;note\n"a;b, c.jpg";s.png;1,5\n')
    assert contents([pair]) == ["a;b, c.jpg"]
    assert json.loads(pair.extra) == {"note": "1,5"}
    (pair,) = read(tmp_path, 'note;x,content,style\n1;2,"a;b.jpg",s.png\n')
    assert contents([pair]) == ["a;b.jpg"]


@pytest.mark.parametrize("line", ["content|style\na|b\n", "content:style\na:b\n", "content^style\na^b\n"])
def test_a_separator_that_is_not_read_gets_a_line(tmp_path: Path, line: str) -> None:
    assert problems(tmp_path, line)[0].endswith("are not separated by one of: a comma, a semicolon, a tab")


def test_a_misspelled_column_is_told_with_the_separator_that_there_is(tmp_path: Path) -> None:
    assert problems(tmp_path, "content;stile;size\na;b;\n") == ["has no column style; it has: content, stile, size"]


def test_empty_columns_and_rows_are_passed_over(tmp_path: Path) -> None:
    text = ",,,,\ncontent,style,,size,,\n,,,,,\na.jpg,s.png,,64,,,,,\n , ,\t,,,\nb.jpg,s.png\n,,\n,,,\n"
    pairs = read(tmp_path, text)
    assert contents(pairs) == ["a.jpg", "b.jpg"]
    assert [(pair.recipe.size, pair.extra) for pair in pairs] == [(64, "{}"), (512, "{}")]


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    text = 'sep=;\n\ncontent;style;note\na.jpg;s.png;"two\nlines"\n;;\n;s.png;\nb.jpg;s.png;;;x\n'
    assert problems(tmp_path, text) == [
        "line 7, content: is missing; expected a path or URI",
        "line 8: has 5 cells; expected 3, one for each column of the header",
    ]


def test_a_column_without_a_name_is_kept_by_its_number(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, ",content,style,,\n0,a.jpg,s.png,,\n")  # as pandas writes its index
    assert json.loads(pair.extra) == {"column 1": "0"}


@pytest.mark.parametrize("line_end", ["\r", "\n", "\r\n"])
def test_every_line_end(tmp_path: Path, line_end: str) -> None:
    assert contents(read(tmp_path, line_end.join(["content,style", "a,s", "b,s"]))) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_every_unicode(tmp_path: Path, encoding: str, name: str) -> None:
    text = "content\tstyle\r\nété/写真 🎨.jpg\ts.png\r\n"
    if name == "m.jsonl":
        text = json.dumps({"content": "été/写真 🎨.jpg", "style": "s.png"}, ensure_ascii=False)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    assert contents(read(tmp_path, (mark + text).encode(encoding), name)) == ["写真 🎨.jpg"]


@pytest.mark.parametrize("name", ["été.jpg", "Größe übel.jpg", "año “nuevo” – 5 €.jpg", "cœur Ærø.jpg"])
def test_western_windows_is_read_and_told(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, f"content;style\r\n{name};s.png\r\n".encode("cp1252"))
    manifest = read_manifest(path, {})
    assert contents(list(manifest)) == [name]
    assert manifest.notes == ("is not UTF-8, and was read as cp1252",)
    assert f"batchnst: {path}: is not UTF-8, and was read as cp1252" in batchnst("plan", path).stderr


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("cp1251", "фото.jpg"),
        ("cp1253", "φωτογραφία.jpg"),
        ("cp1250", "łódź.jpg"),
        ("shift_jis", "写真.jpg"),
        ("gb18030", "照片风景.jpg"),
        ("euc_kr", "사진첩.jpg"),
        ("koi8-r", "фото.jpg"),
        ("cp1256", "صورة.jpg"),
    ],
)
def test_every_other_encoding_gets_a_line(tmp_path: Path, encoding: str, name: str) -> None:
    (line,) = problems(tmp_path, f"content,style\nok.jpg,s.png\n{name},s.png\n".encode(encoding))
    assert line.startswith("line 3: not UTF-8 (byte 0x")
    assert line.endswith(", nor cp1252; save it as UTF-8")


def test_what_its_mark_promises_is_not_there(tmp_path: Path) -> None:
    for text in (b"\xff\xfec\0o\0n", b"\xef\xbb\xbfcontent,style\n\xff,s\n", b"\0\0\xfe\xff\0\0"):
        assert "though its first bytes say so" in problems(tmp_path, text)[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_recipe_that_a_text_editor_saved(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "r.toml").write_bytes('size = 64\r\ninit = "é.png"\r\n'.encode(encoding))
    assert read_recipe_file(tmp_path / "r.toml") == {"size": 64, "init": "é.png"}


@pytest.mark.parametrize("data", [b"\xff\xfea", b"size = '\xff'", b"a = " + b"[" * 5000, b"\0"])
def test_a_recipe_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r.toml").write_bytes(data)
    with pytest.raises(RecipeError, match=r"r\.toml: not valid TOML"):
        read_recipe_file(tmp_path / "r.toml")


@pytest.mark.parametrize("column", ["content", "style", "content_mask", "style_mask"])
@pytest.mark.parametrize("address", ["~\0", "~\0x/a.png", "a\0.png"])
def test_a_zero_in_an_address_is_told_also_behind_a_tilde(tmp_path: Path, column: str, address: str) -> None:
    row = {"content": "a", "style": "s", column: address}
    for name, joint in (("m.csv", ","), ("m.tsv", "\t")):
        data = "\n".join(map(joint.join, (row, row.values()))).encode()
        told = f"line 2, {column}: has a character with the code 0, which no name has"
        assert told in problems(tmp_path, data, name)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"content": "a", "style": "s", "\\ud800": 1}', "line 1: has half of a character"),
        (b'{"content": "a", "style": ["s", "\\udc00"]}', "line 1: has half of a character"),
        (b'{"content": "a", "style": "s", "x": {"y": ["\\ud83d "]}}', "line 1: has half of a character"),
        (b'{"content": "\xed\xa0\xbd", "style": "s"}', "line 1: not UTF-8 (byte 0xed)"),
        (b'{"content": "a", "style": "s", "x": ' + b"[" * 9999 + b"]" * 9999 + b"}", "line 1: not usable JSON"),
        (b'{"content": "a", "style": "s", "x": ' + b"1" * 5000 + b"}", "line 1: not usable JSON"),
        (b'{"content": "a\\u0000", "style": "s"}', "line 1, content: has a character with the code 0"),
        (b'{"content": "a", "style": "s", "init": "a\\u0000.png"}', "line 1: init: has a character with the code 0"),
        (
            b'{"content": "a", "style": "s", "weights": "a\\u0000.pth"}',
            "line 1: weights: has a character with the code 0",
        ),
    ],
)
def test_json_that_python_takes_and_nobody_else(tmp_path: Path, line: bytes, problem: str) -> None:
    (found,) = problems(tmp_path, line, "m.jsonl")
    assert found.startswith(problem)


def test_numbers_that_json_lacks_become_valid_json(tmp_path: Path) -> None:
    line = b'{"content": "a", "style": "s", "x": NaN, "y": [Infinity, {"z": NaN}, -1e999], "size": NaN}'
    (pair,) = read(tmp_path, line, "m.jsonl")
    assert json.loads(pair.extra, parse_constant=pytest.fail) == {"y": ["inf", {"z": None}, "-inf"]}
    assert pair.recipe.size == 512


@pytest.mark.parametrize("lines", [("é", b"\xe9"), (b"\xe9", "é")])
def test_two_encodings_in_one_file_are_not_guessed(tmp_path: Path, lines: tuple[str | bytes, str | bytes]) -> None:
    data = b"".join(b"%s.jpg,s\n" % (line if isinstance(line, bytes) else line.encode()) for line in lines)
    assert problems(tmp_path, b"content,style\n" + data)[0].startswith("line ")


@pytest.mark.parametrize("line", [2, 3, 7, 40])
def test_a_line_is_numbered_right_wherever_it_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int
) -> None:
    monkeypatch.setattr(encodings, "_PIECE", 16)
    rows = [b"photo-%d.jpg,s\n" % i for i in range(line - 2)]
    (found,) = problems(tmp_path, b"".join([b"content,style\n", *rows, b"\xff\x81.jpg,s\n", b"last.jpg,s\n"]))
    assert found.startswith(f"line {line}: not UTF-8 (byte 0xff), nor cp1252")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("m.csv", b"\x1f\x8b\x08\0", "is compressed by gzip; expand it"),
        ("m.csv", b"PK\3\4\x14\0", "is a workbook of a spreadsheet, or another zip; save it as CSV"),
        ("m.jsonl", b"PAR1\x15", "is a Parquet file; let its name end in .parquet"),
        (
            "m.csv",
            "写真,content,style\nx,a,b\n".encode("utf-16-le"),
            "has bytes of zero in its first line, as UTF-16 without a mark; save it as UTF-8",
        ),
        (
            "m.jsonl",
            b'{"content": "a.jpg", "style": "s.jpg"}\n' + bytes(500),
            "line 2: not valid JSON: bytes of zero; was the file written to its end?",
        ),
        (
            "m.jsonl",
            b'[{"content": "a.jpg", "style": "s.jpg"}]',
            "is a JSON array; expected an object in each line, as `jq -c '.[]'` writes",
        ),
        (
            "m.jsonl",
            b'{\n "content": "a.jpg",\n "style": "s.jpg"\n}\n',
            "has objects of several lines; expected one in each line, as `jq -c .` writes",
        ),
        (
            "m.jsonl",
            b'{"content": "a.jpg", "style": "s.jpg", "x": %s}' % (b"[" * 300 + b"]" * 300),
            "line 1: not usable JSON: nested in more than 100 levels",
        ),
        (
            "m.csv",
            b'content,style,x\na.jpg,s.jpg,1\na.jpg,s.jpg,"' + b"x" * 140_000,
            "line 3: not valid CSV: a cell has more than 131,072 characters; is a quotation mark in line 3 not closed?",
        ),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    assert problems(tmp_path, data, name) == [said]


def test_brackets_in_texts_are_no_nesting(tmp_path: Path) -> None:
    row = {"content": "a.jpg", "style": "s.jpg", "x": "[{" * 200, "y": [[1], [2]] * 100}
    assert len(read(tmp_path, json.dumps(row), "m.jsonl")) == 1


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_two_marks_as_of_joined_files_are_passed_over(tmp_path: Path, name: str) -> None:
    text = "content,style\na.jpg,s.jpg\n" if name == "m.csv" else '{"content": "a.jpg", "style": "s.jpg"}\n'
    assert contents(read(tmp_path, b"\xef\xbb\xbf\xef\xbb\xbf" + text.encode(), name)) == ["a.jpg"]


def test_the_same_row_twice_is_told_as_that(tmp_path: Path) -> None:
    said = "line 3, id: the same pair as line 2; leave one out, or give both an id"
    assert problems(tmp_path, "content,style\na.jpg,s.jpg\na.jpg,s.jpg\n") == [said]
