"""`batchnst manifest` of archives, of shards and of Parquet data sets, as of folders."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from typer.testing import Result

from batchnst.manifest.collecting import list_pictures
from batchnst.manifest.reading import read_manifest
from batchnst.storage import files
from tests.helpers import as_bytes, batchnst, scene
from tests.storage.made import cells, make_parquet, make_tar, make_zip
from tests.storage.servers import Web

PHOTOS = {
    "a.jpg": b"1",
    "deep/b.HEIC": b"2",
    "deep/er/c.png": b"3",
    "._a.jpg": b"",
    "__MACOSX/x.jpg": b"",
    "t.txt": b"",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.png").write_bytes(as_bytes(scene()))
    make_zip(tmp_path / "photos.zip", PHOTOS)
    make_tar(tmp_path / "photos.tar", PHOTOS)
    (tmp_path / "shards").mkdir()
    for number in range(2):
        sample = {f"{number}{key}.{kind}": f"{number}{key}".encode() for key in "01" for kind in ("jpg", "json", "cls")}
        make_tar(tmp_path / "shards" / f"train-{number}.tar", sample)
    (tmp_path / "set").mkdir()
    for number in range(2):
        pictures = {f"cats/{number}{key}": f"{number}{key}".encode() for key in "01"}
        make_parquet(tmp_path / "set" / f"part-{number}.parquet", {"image": cells(pictures), "label": [0, 1]})
    return tmp_path


def manifest(contents: str, *arguments: str, out: str = "m.jsonl") -> Result:
    return batchnst("manifest", contents, "s.png", "--out", out, *arguments)


def pairs(name: str = "m.jsonl") -> dict[str, str]:
    """The contents of the manifest, relative to the current folder, and their outputs without the style's name."""
    here = f"{os.getcwd()}/"
    return {p.content.replace(here, ""): p.output.replace("--s.png", "") for p in read_manifest(name, {})}


@pytest.mark.parametrize(("scheme", "out"), [("zip", "m.csv"), ("tar", "m.jsonl"), ("zip", "m.parquet")])
def test_an_archive_is_a_folder(folder: Path, scheme: str, out: str) -> None:
    result = manifest(f"photos.{scheme}", out=out)
    assert (result.exit_code, result.stderr) == (0, "batchnst: left out: 1 .txt\n")
    expected = {"a.jpg": "a", "deep/b.HEIC": "deep/b", "deep/er/c.png": "deep/er/c"}
    assert pairs(out) == {f"{scheme}://{name}::photos.{scheme}": output for name, output in expected.items()}
    assert f"{scheme}://a.jpg::photos.{scheme}" in (folder / out).read_text(errors="replace")
    (first, *_) = read_manifest(out, {})
    assert first.id.startswith("a--s--")
    assert files.read(first.content) == b"1"


def test_what_a_folder_has_beside_archives_goes_first(folder: Path) -> None:
    (folder / "photos").mkdir()
    make_zip(folder / "photos" / "old.zip", PHOTOS)
    (folder / "photos" / "new.jpg").write_bytes(b"")
    result = manifest("photos")
    assert (result.exit_code, result.stderr) == (0, "batchnst: left out: 1 .zip\n")
    assert pairs() == {"photos/new.jpg": "new"}


@pytest.mark.parametrize("contents", ["shards", "shards/*.tar", "{folder}/shards"])
def test_shards_are_folders_in_a_folder(folder: Path, contents: str) -> None:
    result = manifest(contents.format(folder=folder))
    assert result.exit_code == 0, result.output
    assert result.stderr == "batchnst: left out: 4 .cls, 4 .json\n"
    assert pairs() == {
        f"tar://{number}{key}.jpg::shards/train-{number}.tar": f"train-{number}/{number}{key}"
        for number in range(2)
        for key in "01"
    }


@pytest.mark.parametrize("contents", ["set", "set/*.parquet"])
def test_a_data_set_has_the_names_of_its_cells(folder: Path, contents: str) -> None:
    (folder / "set" / "_delta_log").mkdir()
    make_parquet(folder / "set" / "_delta_log" / "1.parquet", {"n": [1]})
    result = manifest(contents)
    assert result.exit_code == 0, result.output
    assert result.stderr == ("batchnst: left out: 1 .parquet\n" if contents == "set" else "")
    assert pairs() == {
        f"parquet://image/{key}/{number}{key}::set/part-{number}.parquet": f"part-{number}/cats/{number}{key}"
        for number in range(2)
        for key in range(2)
    }
    assert files.read(list_pictures("set")[3]) == b"11"


def test_a_file_of_bare_pictures(folder: Path) -> None:
    make_parquet(folder / "bare.parquet", {"photo": [b"1", None, b"3"], "n": [1, 2, 3]})
    result = manifest("bare.parquet")
    assert result.stderr == "batchnst: left out: 1 without a picture\n"
    assert pairs() == {f"parquet://photo/{row}::bare.parquet": f"photo-{row}" for row in (0, 2)}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([b"cats/\xc3\xa9.jpg", b"x.png"], ["cats/é", "x"]),
        ([7, 8], ["image-0", "image-1"]),
        ([b"\xff", b"x.png"], ["image-0", "x"]),
    ],
)
def test_paths_that_are_not_marked_as_text(folder: Path, paths: list[object], names: list[str]) -> None:
    make_parquet(
        folder / "odd.parquet", {"image": [{"bytes": b"%d" % n, "path": path} for n, path in enumerate(paths)]}
    )
    result = manifest("odd.parquet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(pairs().values()) == names
    assert [files.read(address) for address in list_pictures("odd.parquet")] == [b"0", b"1"]


def test_of_several_columns_one_is_named(folder: Path) -> None:
    make_parquet(folder / "two.parquet", {"photo": [b"1"], "mask": [b"2"], "both": [cells({"x": b"1"})]})
    result = manifest("two.parquet")
    assert result.exit_code == 2
    assert (
        "has several columns of pictures, photo, mask, both; name one: parquet://COLUMN::two.parquet" in result.stderr
    )
    assert manifest("parquet://mask::two.parquet").exit_code == 0
    assert list(pairs()) == ["parquet://mask/0::two.parquet"]
    assert "has lists of pictures; expected one in each row" in manifest("parquet://both::two.parquet").stderr
    assert "has no column none; it has: photo, mask, both" in manifest("parquet://none::two.parquet").stderr
    make_parquet(folder / "none.parquet", {"n": [1]})
    assert "has no column of pictures; it has: n" in manifest("none.parquet").stderr


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ("zip://deep::photos.zip", {"deep/b.HEIC": "b", "deep/er/c.png": "er/c"}),
        ("tar://deep/**/*.png::photos.tar", {"deep/er/c.png": "er/c"}),
        ("zip://a.jpg::photos.zip", {"a.jpg": "a"}),
        ("zip://**/._*.jpg::photos.zip", {"._a.jpg": "._a"}),
    ],
)
def test_a_part_of_an_archive_may_be_named(folder: Path, contents: str, found: dict[str, str]) -> None:
    assert manifest(contents).exit_code == 0
    assert {path.partition("://")[2].partition("::")[0]: output for path, output in pairs().items()} == found


def test_a_part_that_is_not_there_gets_a_line(folder: Path) -> None:
    for place, said in {
        "zip://none": "no pictures there",
        "zip://a**b/c": "not a glob",
        "zip://../x": "leads out",
    }.items():
        result = manifest(f"{place}::photos.zip")
        assert (result.exit_code, said in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("glob", "left"), [("deep", 1), ("deep/er/*", 2), ("*.HEIC", 2), ("zip://a.jpg::photos.zip", 2), ("a.jpg", 2)]
)
def test_filters_are_those_of_folders(folder: Path, glob: str, left: int) -> None:
    assert manifest("photos.zip", "--exclude", glob).exit_code == 0
    assert len(pairs()) == left


def test_pictures_inside_are_filtered_by_their_size(folder: Path) -> None:
    pictures = {f"{side}.jpg": as_bytes(scene(side, side), "JPEG") for side in (30, 60)} | {"x.jpg": b"none"}
    make_zip(folder / "p.zip", pictures)
    make_parquet(folder / "p.parquet", {"image": cells(pictures)})
    for place in ("p.zip", "p.parquet"):
        result = manifest(place, "--min-side", "50", "--output", "{name}.{ending}.{format}")
        assert result.stderr == "batchnst: left out: 1 by --min-side, 1 that cannot be read\n"
        assert [name.rpartition("--")[0] or name for name in pairs().values()] == ["60.jpg.png"]


def test_templates_have_the_names_inside(folder: Path) -> None:
    template = "{style_folder}/{style}-{folder}-{name}.{ending}.{format}"
    assert batchnst("manifest", "photos.tar", "shards", "--out", "m.csv", "--output", template).exit_code == 0
    assert "train-0/00-deep/er-c.png.png" in {p.output for p in read_manifest("m.csv", {})}


def test_odd_members_are_counted(folder: Path) -> None:
    with tarfile.open("odd.tar", "w") as archive:
        for name, kind in (("a.jpg", tarfile.REGTYPE), ("l.jpg", tarfile.SYMTYPE), ("../x.jpg", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("caf\udce9.jpg"))
    result = manifest("odd.tar")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "batchnst: left out: odd.tar: caf\\xe9.jpg: its name is not UTF-8; rename it",
        "batchnst: left out: 1 with a name that leads out of its archive, 1 that is a link",
    ]
    assert list(pairs()) == ["tar://a.jpg::odd.tar"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.zip", b"none", "x.zip: cannot be read: is not a zip archive"),
        ("x.tar", b"\x1f\x8b" + bytes(600), "is a compressed tar"),
        ("x.parquet", b"none", "x.parquet: not a readable Parquet file"),
        ("x.tar.gz", b"", "no pictures there; expected .* (left out: 1 .gz; expand compressed archives to .tar"),
        ("a::b.zip", b"", "a file that holds pictures may not have :: in its name; rename it"),
    ],
)
def test_what_is_no_collection_gets_a_line(folder: Path, name: str, data: bytes, said: str) -> None:
    (folder / name).write_bytes(data)
    result = manifest(name)
    assert result.exit_code == 2
    assert all(part in result.stderr for part in said.split(" .* "))
    assert not (folder / "m.jsonl").exists()


def test_a_signed_address_of_an_archive_is_one(folder: Path) -> None:
    with Web((folder / "photos.zip").read_bytes()) as web:
        result = manifest(f"{web.url}/photos.zip?X-Amz-Signature=0123456789")
    assert result.exit_code == 2
    assert "its web server sends no parts of files" in result.stderr
    assert "0123456789" not in result.stderr


def test_a_damaged_tar_is_told_of(folder: Path) -> None:
    (folder / "cut.tar").write_bytes((folder / "photos.tar").read_bytes()[: 512 * 4])
    result = manifest("cut.tar")
    assert result.exit_code == 0
    assert "cut.tar: it ends without its end mark: a part of it may be missing" in result.stderr


def test_a_column_of_another_type_than_the_schema_says_is_told_of(folder: Path) -> None:
    make_parquet(folder / "odd.parquet", {"photo": [b"1", None, b"3"]})
    data = (folder / "odd.parquet").read_bytes()
    # Thrift, in the footer: the type of a column's chunk, from BYTE_ARRAY to FIXED_LEN_BYTE_ARRAY.
    at = data.rindex(b"\x15\x0c\x19")
    (folder / "odd.parquet").write_bytes(data[:at] + b"\x15\x0e\x19" + data[at + 3 :])
    result = manifest("odd.parquet")
    assert result.exit_code == 2
    assert "a column of BYTE_ARRAY is said to be of FIXED_LEN_BYTE_ARRAY" in result.stderr


@pytest.mark.parametrize("rows", [2, 1_000_000])
def test_a_file_that_contradicts_itself_on_its_rows_is_told_of(folder: Path, rows: int) -> None:
    make_parquet(folder / "odd.parquet", {"content": [b"1", b"2", b"3"], "style": ["s.png"] * 3})
    data = (folder / "odd.parquet").read_bytes()
    # Thrift, in the footer: 3, the number of rows of the file, before the list of row groups.
    at = data.index(b"\x16\x06\x19", data.index(b"schema"))
    number = varint(2 * rows)
    length = int.from_bytes(data[-8:-4], "little") + len(number) - 1
    odd = data[: at + 1] + number + data[at + 2 : -8] + length.to_bytes(4, "little") + data[-4:]
    (folder / "odd.parquet").write_bytes(odd)
    said = f"says that it has {rows:,} rows, and 3 in its row groups"
    assert said in manifest("odd.parquet").stderr
    assert said in batchnst("plan", "odd.parquet").stderr


def varint(number: int) -> bytes:
    """A number in LEB128, as Thrift's compact protocol has it."""
    digits = []
    while number:
        number, digit = divmod(number, 128)
        digits.append(digit | (128 if number else 0))
    return bytes(digits)
