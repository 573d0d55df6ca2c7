from __future__ import annotations

import csv
import gc
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnst.errors import ManifestError
from batchnst.manifest.outputs import Names
from batchnst.manifest.pair import Pair
from batchnst.manifest.reading import read_manifest
from tests.helpers import batchnst


def write(folder: Path, text: str | bytes, name: str = "m.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def problems(path: str, **settings: object) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, settings)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def test_csv_json_lines_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"content": "a.jpg", "style": ["s.png", "/t.png"], "style_weights": [1, 3], "size": 128, "who": "me"},
        {"content": "s3://bucket/b.jpg", "style": ["s.png"], "id": "b", "output": "deep/b.jpg"},
    ]
    csv = "content,style,style_weights,size,who,id,output\na.jpg,s.png|/t.png,1|3,128,me,,\n"
    csv += "s3://bucket/b.jpg,s.png,,,,b,deep/b.jpg\n"
    lines = "\n".join(json.dumps(row) for row in rows) + "\n"
    pq.write_table(pa.Table.from_pylist([{**rows[0], "id": None, "output": None}, rows[1]]), tmp_path / "m.parquet")
    paths = [write(tmp_path, csv), write(tmp_path, lines, "m.jsonl"), str(tmp_path / "m.parquet")]
    from_csv, from_lines, from_parquet = (read_manifest(path, {"steps": 7}) for path in paths)
    for pairs in (from_csv, from_lines, from_parquet):
        assert pairs[0].content == str(tmp_path / "a.jpg")
        assert pairs[0].styles == (str(tmp_path / "s.png"), "/t.png")
        assert pairs[0].style_weights == (0.25, 0.75)
        assert (pairs[0].recipe.size, pairs[0].recipe.steps) == (128, 7)
        assert json.loads(pairs[0].extra) == {"who": "me"}
        assert (pairs[1].id, pairs[1].output, pairs[1].recipe.size) == ("b", "deep/b.jpg", 512)
        assert pairs[1].content == "s3://bucket/b.jpg"


def test_a_derived_id_is_the_same_in_every_run_and_says_what_it_is(tmp_path: Path) -> None:
    text = "content,style,note\nmy photos/été 1.jpg,s.png,x\nb.jpg,s.png,y\n"
    first = read_manifest(write(tmp_path, text), {})
    again = read_manifest(write(tmp_path, text.replace(",y", ",z")), {"size": 64})
    assert [pair.id for pair in first] == [pair.id for pair in again]
    assert first[0].id.startswith("ete-1--s--")
    assert first[0].output == f"{first[0].id}.png"
    assert len({pair.id for pair in first}) == 2


def test_names_of_all_rows_are_forgotten_once_they_are_compared(tmp_path: Path) -> None:
    def held() -> list[Names]:
        return [each for each in gc.get_objects() if type(each) is Names]

    before = held()
    gc.disable()
    try:
        manifest = read_manifest(write(tmp_path, "content,style\na.jpg,s.png\n"), {})
        assert len(manifest) == 1
        assert not [each for each in held() if not any(each is other for other in before)]
    finally:
        gc.enable()


def test_rows_of_one_recipe_share_it(tmp_path: Path) -> None:
    pairs = read_manifest(write(tmp_path, "content,style,seed\na,s,1\nb,s,1\nc,s,2\n"), {})
    assert pairs[0].recipe is pairs[1].recipe
    assert pairs[0].recipe is not pairs[2].recipe


def test_only_the_networks_that_some_row_needs_are_asked_for(tmp_path: Path) -> None:
    everywhere = "content,style,backbone,weights,seed\na,s,alexnet,random,1\nb,s,alexnet,random,2\n"
    somewhere = everywhere + 'c,s,,,3\nd,s,vgg16,my/weights.pth,4\ne,s,,my"name,5\n'
    assert read_manifest(write(tmp_path, everywhere), {}).networks == {("alexnet", "random")}
    assert read_manifest(write(tmp_path, somewhere), {"weights": "random"}).networks == {
        ("alexnet", "random"),
        ("vgg19", "random"),
        ("vgg16", str(tmp_path / "my/weights.pth")),
        ("vgg19", 'my"name'),
    }


def test_all_errors_are_told_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "content,style,id,output,size,optimizer,style_weights\n"
        "a.jpg,s.png,one,../../etc/passwd.png,,,\n"
        ",s.png,two,,,,\n"
        "\n"
        "a.jpg,s.png,one,,-3,adm,\n"
        "a.jpg,s.png,a b,x.gif,,,\n"
        "a.jpg,s.png,d,,,,0\n"
        "a.jpg,s.png,e,,,,,,,x\n"
        "a.jpg,s.png,f,E.png,,,\n"
        "a.jpg,s.png,g,e.png,,,\n",
    )
    assert problems(path) == [
        "line 2, output: '../../etc/passwd.png' leaves OUT; expected a path inside its images/ folder",
        "line 3, content: is missing; expected a path or URI",
        "line 5: optimizer: 'adm' is not allowed (did you mean 'adam'?); one of lbfgs, adam, sgd",
        "line 5: size: '-3' is not allowed: should be greater than or equal to 16; a number of pixels, or original",
        "line 5, id: 'one' is already the id of line 2; expected a unique one",
        "line 6, id: 'a b' is not allowed; expected up to 200 letters, digits, '.', '_' or '-'",
        "line 6, output: 'x.gif' cannot be written; "
        "expected a name that ends in .png, .jpg, .jpeg, .webp, .avif, .tif, .tiff",
        "line 7, style_weights: expected 1 numbers ≥ 0, not all 0; found ['0']",
        "line 8: has 10 cells; expected 7, one for each column of the header",
        "line 10, output: 'e.png' is already the output of line 9; expected a unique one",
    ]


def test_masks_come_one_for_each_part(tmp_path: Path) -> None:
    rows = ["a,s|t|u,m|n,", "a,s|t,m|n,k", "a,s,m|n,", "a,s|t,,k", "a,s|t,m,k|l"]
    path = write(tmp_path, "content,style,content_mask,style_mask\n" + "\n".join(rows) + "\n")
    assert problems(path) == [
        "line 2, content_mask: marks 2 parts for 3 styles; expected one style, or 2",
        "line 3, style_mask: expected 2, one for each part of the content; found 1",
        "line 6, style_mask: expected 1, one for each part of the content; found 2",
    ]


@pytest.mark.parametrize("output", ["/etc/x.png", "..\\x.png", "a/../../x.png"])
def test_no_output_leaves_out(tmp_path: Path, output: str) -> None:
    path = write(tmp_path, json.dumps({"content": "a", "style": "s", "output": output}), "m.jsonl")
    assert "leaves OUT" in problems(path)[0]


@pytest.mark.parametrize("output", ["a\0.png", "a\n.png", "\tb/a.png", "a\x7f.png"])
def test_no_output_has_a_control_character(tmp_path: Path, output: str) -> None:
    path = write(tmp_path, json.dumps({"content": "a", "style": "s", "output": output}), "m.jsonl")
    (problem,) = problems(path)
    assert problem.endswith("has a control character, such as the end of a line; expected a name without")


def test_a_row_that_is_nested_too_deep_is_told(tmp_path: Path) -> None:
    def rows(levels: int) -> str:
        return f'{{"content": "a", "style": "s", "note": {"[" * levels}{"]" * levels}}}\n'

    path = write(tmp_path, rows(99) + "".join(map(rows, (100, 900, 100_000))), "m.jsonl")
    assert [problem.partition(":")[0] for problem in problems(path)] == ["line 2", "line 3", "line 4"]
    assert problems(path)[0] == "line 2: not usable JSON: nested in more than 100 levels"


@pytest.mark.parametrize("pair_id", ["..", ".", "a/b", "", "é", "x" * 201])
def test_ids_are_plain(tmp_path: Path, pair_id: str) -> None:
    path = write(tmp_path, json.dumps({"content": "a", "style": "s", "id": pair_id}), "m.jsonl")
    if pair_id:
        assert problems(path)[0].startswith("line 1, id:")
    else:
        assert read_manifest(path, {})[0].id.startswith("a--s--")


def test_broken_lines_do_not_hide_the_others(tmp_path: Path) -> None:
    good = '{"content": "a", "style": "s"}'
    path = write(tmp_path, f'{good}\n{{"content": \n[1]\n{{"content": "b"}}\n', "m.jsonl")
    found = problems(path)
    assert found[0].startswith("line 2: not valid JSON")
    assert found[1] == "line 3: expected a JSON object; found [1]"
    assert found[2] == "line 4, style: is missing; expected a path or URI"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "has no column content and no column style; it has: none"),
        ("m.csv", "content,style\n", "has no rows; expected at least one pair of content and style"),
        ("m.csv", "content,stile\na,b\n", "has no column style; it has: content, stile"),
        ("m.csv", "content,style,style\na,b,c\n", "has the column style twice"),
        ("m.csv", b"content,style\na,\xff\n", "line 2: not UTF-8 (byte 0xff)"),
        ("m.csv", 'content,style\n"a,b\n', "line 2: not valid CSV: a quotation mark in line 2 or below is not closed"),
        ("m.parquet", "text", "not a readable Parquet file"),
        ("m.xlsx", "", "expected a manifest that ends in .csv, .jsonl, .ndjson, .parquet"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    assert problems(write(tmp_path, text, name))[0].startswith(message)


def test_no_such_manifest(tmp_path: Path) -> None:
    assert problems(str(tmp_path / "none.csv")) == ["no such file"]


def test_spreadsheets_csv_is_understood(tmp_path: Path) -> None:
    text = '\ufeffContent,STYLE,Note\r\n"a, b.jpg",s.png,"two\r\nlines"\r\nc.jpg,s.png,\r\n'
    pairs = read_manifest(write(tmp_path, text), {})
    assert pairs[0].content == str(tmp_path / "a, b.jpg")
    assert json.loads(pairs[0].extra) == {"Note": "two\r\nlines"}
    broken = write(tmp_path, text + ",s.png,\r\n")
    assert problems(broken) == ["line 5, content: is missing; expected a path or URI"]


def test_pairs_are_values() -> None:
    assert Pair.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"content": ["a.png"]}, 'content: expected text, found ["a.png"]'),
        ({"content": {"path": "a.png"}}, 'content: expected text, found {"path": "a.png"}'),
        ({"content": 7}, "content: expected text, found 7"),
        ({"style": [["s.png"]]}, 'style: expected text, found [["s.png"]]'),
        ({"style": ["s.png", None]}, 'style: expected text, found ["s.png", null]'),
        ({"output": 3.5}, "output: expected text, found 3.5"),
        ({"content_mask": True}, "content_mask: expected text, found true"),
        ({"init": 0.5}, "init: 0.5 is not allowed: "),
    ],
)
@pytest.mark.parametrize("name", ["m.jsonl", "m.parquet"])
def test_values_of_a_wrong_type_are_named(tmp_path: Path, name: str, row: dict[str, Any], problem: str) -> None:
    row = {"content": "a.png", "style": "s.png", **row}
    if name == "m.jsonl":
        (tmp_path / name).write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name)
    with pytest.raises(ManifestError) as error:
        read_manifest(str(tmp_path / name), {})
    assert any(
        line.startswith(f"{tmp_path / name}: line 1") and problem in line for line in str(error.value).split("\n")
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a/X.png", "a/x.PNG"),
        ("é.png", "e\N{COMBINING ACUTE ACCENT}.png"),
        ("a.png", "./a.png"),
        ("a//b.png", "a/b.png"),
    ],
)
def test_two_rows_that_write_the_same_file_are_refused(tmp_path: Path, first: str, second: str) -> None:
    rows = [{"content": "c.png", "style": "s.png", "output": output} for output in (first, second)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ManifestError, match=r"line 2, (output|id): .* is already the (output|id) of line 1"):
        read_manifest(str(tmp_path / "m.jsonl"), {})


def test_names_of_every_kind_come_through(tmp_path: Path) -> None:
    names = [
        "with space.png",
        'quo"te.png',
        "comma,.png",
        "new\nline.png",
        "🎨.png",
        "\N{RIGHT-TO-LEFT MARK}r.png",
        "é" * 120,
    ]
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerows([["CONTENT", "Style"], *([name, "s.png"] for name in names)])
    pairs = list(read_manifest(str(tmp_path / "m.csv"), {}))
    assert [pair.content for pair in pairs] == [f"{tmp_path}/{name}" for name in names]
    assert len({pair.id for pair in pairs}) == len(names)


def lines(folder: Path, *rows: dict[str, str]) -> str:
    """A manifest of these rows, each with a content, a style and an id."""
    full = ({"content": "a", "style": "s", "id": f"id{number}", **row} for number, row in enumerate(rows))
    return write(folder, "".join(json.dumps(row) + "\n" for row in full), "m.jsonl")


def test_an_output_longer_than_a_file_system_takes_is_told_with_its_line(tmp_path: Path) -> None:
    names = ["a" * 251 + ".png", "a" * 252 + ".png", "é" * 126 + ".png", "é" * 125 + ".png", "b" * 256 + "/c.png"]
    assert problems(lines(tmp_path, *({"output": name} for name in names))) == [
        f"line 2, output: '{'a' * 40}'… has a name of 256 bytes; expected at most 255",
        f"line 3, output: '{'é' * 40}'… has a name of 256 bytes; expected at most 255",
        f"line 5, output: '{'b' * 40}'… has a name of 256 bytes; expected at most 255",
    ]


@pytest.mark.parametrize(("out", "longest"), [("/o", 4095 - 10), ("file:///o", 4095 - 10), ("s3://b/o", 1024 - 9)])
def test_an_output_that_makes_a_path_too_long_depends_on_out(tmp_path: Path, out: str, longest: int) -> None:
    fits = "/".join(["a" * 99] * (longest // 100)) + "/" + "b" * (longest % 100 - 4) + ".png"
    assert len(fits) == longest
    assert len(read_manifest(lines(tmp_path, {"output": fits}), {}, out)) == 1
    with pytest.raises(ManifestError, match=f"is {longest + 1} bytes long; expected at most {longest}, so"):
        read_manifest(lines(tmp_path, {"output": f"b{fits}"}), {}, out)


def test_an_output_may_not_be_a_folder_of_another(tmp_path: Path) -> None:
    names = ["x/a.png/deep/b.png", "c.png", "x/A.png", "d.png", "D.PNG/e.png", "x/a.pngs.png"]
    assert problems(lines(tmp_path, *({"output": name} for name in names))) == [
        "line 3, output: 'x/A.png' is a folder of the output of line 1; expected a file of its own",
        "line 4, output: 'd.png' is a folder of the output of line 5; expected a file of its own",
    ]


def test_half_a_character_is_told_with_its_line(tmp_path: Path) -> None:
    text = '{"content": "a", "style": "s", "output": "%s.png"}\n'
    path = write(tmp_path, text % "\\ud83d\\ude00" + text % "\\ud83d", "m.jsonl")
    assert problems(path) == ["line 2: has half of a character, \\ud83d; expected both halves"]


@pytest.mark.parametrize(
    ("name", "twice"), [("style", '"style": "t"'), ("size", '"options": {"size": 64, "size": 128}')]
)
def test_a_name_that_is_twice_in_an_object_is_told_with_its_line(tmp_path: Path, name: str, twice: str) -> None:
    path = write(tmp_path, f'{{"content": "a", "style": "s"}}\n{{"content": "b", "style": "s", {twice}}}\n', "m.jsonl")
    assert problems(path) == [f"line 2: not usable JSON: has {name!r} twice"]


@pytest.mark.parametrize(("kind", "most"), [("webp", 16_383), ("jpg", 65_500), ("JPEG", 65_500), ("avif", 32_768)])
@pytest.mark.parametrize("by", ["output", "format", "options"])
def test_a_format_that_cannot_hold_the_size_is_refused(tmp_path: Path, kind: str, most: int, by: str) -> None:
    def row(size: int) -> tuple[dict[str, Any], dict[str, object]]:
        row: dict[str, Any] = {"content": "a", "style": "s"} | ({"size": size} if by != "options" else {})
        if by == "output":
            return row | {"output": f"x.{kind}"}, {}
        kind_key: dict[str, Any] = {"format": kind.lower().replace("jpeg", "jpg")}
        return (row | kind_key, {}) if by == "format" else (row, {"size": size} | kind_key)

    fits, settings = row(most)
    assert len(read_manifest(write(tmp_path, json.dumps(fits), "m.jsonl"), settings)) == 1
    too_long, settings = row(most + 1)
    (problem,) = problems(write(tmp_path, json.dumps(too_long), "m.jsonl"), **settings)
    assert problem.endswith(f"holds at most {most:,} pixels on a side, size is {most + 1:,}; expected .png or .tif")


def test_plan_run_and_stylize_refuse_it_before_they_paint(tmp_path: Path) -> None:
    path = write(tmp_path, "content,style,output\na.png,s.png,x.webp\n")
    for command in (["plan", path], ["run", path, "--out", tmp_path / "out"]):
        result = batchnst(*command, "--size", 16_384)
        assert (result.exit_code, "line 2, output: 'x.webp' holds at most 16,383" in result.stderr) == (2, True)
    result = batchnst("stylize", "a.png", "s.png", "--out", tmp_path / "x.webp", "--size", 16_384)
    assert (result.exit_code, "x.webp' holds at most 16,383 pixels" in result.stderr) == (2, True)
