"""Folders as people have them: what is a picture, what is passed over, and how outputs are named."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from batchnst.manifest.collecting import list_pictures
from batchnst.manifest.columns import OUTPUT_FIELDS, OUTPUT_TEMPLATE
from batchnst.manifest.pair import Pair
from batchnst.manifest.reading import read_manifest
from batchnst.pictures import isolated
from tests.helpers import as_bytes, batchnst, scene

PHOTOS = ["a.jpg", "deep/er/b.HEIC", "deep/a.webp", "c.avif", "d.tif", "e.jp2", "f.gif", "g.bmp", "h.mpo"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with photos in `photos` and one style in `art`."""
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "photos", *PHOTOS)
    touch(tmp_path / "art", "s.png")
    return tmp_path


def manifest(*arguments: object, contents: object = "photos", styles: object = "art", out: str = "m.jsonl") -> Result:
    return batchnst("manifest", contents, styles, "--out", out, *arguments)


def pairs(name: str = "m.jsonl") -> list[Pair]:
    return list(read_manifest(name, {}))


def photos(name: str = "m.jsonl") -> list[str]:
    """The contents of the manifest, relative to `photos`."""
    return [os.path.relpath(pair.content, "photos") for pair in pairs(name)]


def outputs(name: str = "m.jsonl") -> list[str]:
    return [pair.output for pair in pairs(name)]


# What is a picture -------------------------------------------------------------------------------------------------


def test_every_format_that_run_reads_is_taken(folder: Path) -> None:
    result = manifest()
    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(photos()) == sorted(PHOTOS)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JPEG2000", "MPO", "JXL"])
def test_what_the_command_takes_the_decoder_reads(folder: Path, kind: str) -> None:
    endings = {"HEIF": "heic", "AVIF": "avif", "JPEG2000": "jp2", "MPO": "mpo", "JXL": "jxl"}
    if kind == "JXL":
        pytest.importorskip("pillow_jxl")
    path = folder / "one" / f"x.{endings[kind]}"
    path.parent.mkdir()
    options = {"save_all": True, "append_images": [scene()]} if kind == "MPO" else {}
    path.write_bytes(as_bytes(scene(), kind, **options))
    assert manifest(contents="one").exit_code == 0
    assert isolated.probe(pairs()[0].content) == (60, 40)


def test_what_is_no_picture_is_counted_in_one_line(folder: Path) -> None:
    others = ["a.pdf", "b.mpg", "c.mp4", "d.MP4", "e.eps", "f.h5", "g.txt", "Makefile", "i.grib", "j.mp4"]
    touch(folder / "photos", *others)
    touch(folder / "art", "notes.txt")
    result = manifest()
    assert result.exit_code == 0
    assert result.stderr == (
        "batchnst: left out: 3 .mp4, 2 .txt, 1 without an ending, 1 .pdf, 1 .mpg, 1 .eps, 1 .h5, 1 .grib\n"
    )
    assert sorted(photos()) == sorted(PHOTOS)


@pytest.mark.parametrize(("ending", "extra"), [(".jxl", "pillow-jxl-plugin"), (".dng", "rawpy"), (".cr3", "rawpy")])
def test_what_an_extra_decodes_is_taken_with_it_and_counted_with_advice_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str, extra: str
) -> None:
    assert ending in isolated.endings()
    monkeypatch.setattr(isolated, "endings", lambda: frozenset({".jpg", ".png"}))
    touch(folder / "photos", f"x{ending}")
    assert f"1 {ending}" in (line := manifest().stderr)
    assert line.endswith(f"; `pip install {extra}` reads {ending}\n")


def test_links_that_lead_nowhere_and_pipes_are_counted(folder: Path) -> None:
    for name in ("gone.jpg", "deep/gone2.jpg"):
        (folder / "photos" / name).symlink_to("/unmounted/disk.jpg")
    os.mkfifo(folder / "photos" / "pipe.jpg")
    result = manifest()
    assert result.stderr == "batchnst: left out: 2 links that lead nowhere, 1 pipes, sockets or devices\n"
    assert sorted(photos()) == sorted(PHOTOS)


def test_names_that_look_the_same_are_told_apart(folder: Path) -> None:
    touch(folder / "twins", "\xe9.jpg", "e\u0301.jpg")
    said = "is that of twins/e\u0301.jpg in s.png too; the two names differ only in how their accents are stored\n"
    assert said in manifest(contents="twins").stderr


def test_a_folder_without_pictures_says_what_it_has(folder: Path) -> None:
    touch(folder / "films", "a.mp4", "b.mp4", ".hidden.jpg")
    result = manifest(contents="films")
    assert result.exit_code == 2
    assert result.stderr.endswith("or a glob in quotes (left out: 2 .mp4)\n")


HIDDEN = [
    "._a.jpg",
    ".thumbnails/a.jpg",
    ".hidden/deep/a.jpg",
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    "deep/@EADIR/x.jpg",
    "$RECYCLE.BIN/a.jpg",
    "__MACOSX/._a.jpg",
    "__MACOSX/b.jpg",
    "lost+found/a.jpg",
    "#recycle/a.jpg",
    "System Volume Information/a.jpg",
    ".Trash-1000/files/a.jpg",
    "Thumbs.db",
    "desktop.ini",
]


@pytest.mark.parametrize("contents", ["photos", "photos/**", "photos/**/*"])
def test_hidden_and_system_files_are_passed_over(folder: Path, contents: str) -> None:
    touch(folder / "photos", *HIDDEN)
    result = manifest(contents=contents)
    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(photos()) == sorted(PHOTOS)


def test_a_hidden_folder_may_be_named(folder: Path) -> None:
    touch(folder / "photos", *HIDDEN)
    assert len(list_pictures("photos/.hidden")) == 1
    assert len(list_pictures("photos/.h*/*/*.jpg")) == 1
    assert len(list_pictures("photos/@eaDir/*/*")) == 1


# Links and names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "links",
    [
        {"loop": "."},
        {"deep/loop": ".."},
        {"deep/er/top": "../../..", "self": "../photos"},
        {"one": "deep", "two": "deep", "deep/one": "../deep"},
        {"deep/file.jpg": "../a.jpg", "A.jpg": "a.jpg"},
        {"0": "deep/er", "gone.jpg": "none.jpg", "gone": "none"},
        {"a1": "b1", "b1": "a1", "c.jpg": "c.jpg"},
        {"root": "/", "home": "../.."},
    ],
)
@pytest.mark.parametrize("contents", ["photos", "photos/**/*.*", "../{name}/photos"])
def test_links_lead_to_each_file_once(folder: Path, links: dict[str, str], contents: str) -> None:
    for name, target in links.items():
        if target in ("/", "../.."):
            target = ".."  # all that is above, without a walk through this machine
        (folder / "photos" / name).symlink_to(target)
    found = list_pictures(contents.format(name=folder.name))
    inside = [os.path.relpath(address, "photos") for address in found]
    assert sorted(name for name in inside if "s.png" not in name) == sorted(PHOTOS)
    assert len(set(map(os.path.realpath, found))) == len(found)


def test_links_to_elsewhere_are_followed(folder: Path) -> None:
    touch(folder / "store", "x.jpg", "more/y.jpg", "z.jpg")
    (folder / "album").mkdir()
    for name, target in {"1.jpg": "x.jpg", "again.jpg": "x.jpg", "more": "more", "more2": "more"}.items():
        (folder / "album" / name).symlink_to(folder / "store" / target)
    found = [os.path.relpath(address, "album") for address in list_pictures("album")]
    assert found == ["1.jpg", "more/y.jpg"]


def test_a_collection_may_be_a_link(folder: Path) -> None:
    (folder / "link").symlink_to("photos")
    assert manifest(contents="link").exit_code == 0
    assert sorted(os.path.relpath(pair.content, "link") for pair in pairs()) == sorted(PHOTOS)


@pytest.mark.parametrize("contents", ["photos", "photos/**/*.jpg", "photos/*"])
def test_a_name_that_is_not_utf_8_is_told(folder: Path, contents: str) -> None:
    for name in (b"caf\xe9.jpg", b"caf\xe9"):
        path = os.fsencode(folder / "photos") + b"/" + name
        if name.endswith(b"jpg"):
            open(path, "wb").close()
        else:
            os.mkdir(path)
            open(path + b"/x.jpg", "wb").close()
    result = manifest(contents=contents)
    assert result.exit_code == 0
    assert f"batchnst: left out: {folder}/photos/caf\\xe9.jpg: its name is not UTF-8; rename it\n" in result.stderr
    assert all("caf" not in name for name in photos())


def test_many_such_names_are_told_in_few_lines(folder: Path) -> None:
    for number in range(50):
        open(os.fsencode(folder / "photos") + b"/%02d\xff.jpg" % number, "wb").close()
    lines = manifest().stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "batchnst: left out: 30 more such names"


def test_a_folder_whose_name_is_not_utf_8_gets_a_line(folder: Path) -> None:
    os.rename("photos", b"\xff")
    for contents in ("\udcff", "\udcff/*"):
        result = manifest(contents=contents)
        assert result.exit_code == 2
        assert "\\xff" in result.stderr
        assert result.stderr.endswith(": its name is not UTF-8; rename it\n")
    for command in (["status", "\udcff"], ["plan", "m.csv", "--out", "\udcff"]):
        Path("m.csv").write_text("content,style,weights\na,s,random\n")
        result = batchnst(*command)
        assert (result.exit_code, "xff: its name is not UTF-8; rename it" in result.stderr) == (2, True)


# Outputs -----------------------------------------------------------------------------------------------------------


def test_outputs_keep_the_names_and_folders_of_the_photos(folder: Path) -> None:
    assert OUTPUT_TEMPLATE == "{folder}/{name}--{style}.{format}"
    named = sorted(str(Path(photo).with_suffix("")) + "--s.png" for photo in PHOTOS)
    for contents in ("photos", "photos/**/*.*", folder / "photos", f"file://{folder}/photos"):
        assert manifest(contents=contents).exit_code == 0
        assert sorted(outputs()) == named


def test_a_template_may_have_every_name(folder: Path) -> None:
    touch(folder / "art", "old/t.jpeg")
    template = "{style_folder}/{style}.{style_ending}/{folder}/{name}.{ending}-{id}.{format}"
    result = manifest("--output", template, "--format", "webp", contents="photos/**/b.HEIC")
    assert result.exit_code == 0, result.output
    first, second = pairs()
    assert first.output == f"old/t.jpeg/deep/er/b.HEIC-{first.id}.webp"
    assert second.output == f"s.png/deep/er/b.HEIC-{second.id}.webp"
    assert all(f"{{{name}}}" in template for name in OUTPUT_FIELDS)


def test_braces_in_names_are_names(folder: Path) -> None:
    touch(folder / "odd", "{id}/{0}.jpg", "back\\slash.jpg")
    assert manifest(contents="odd").exit_code == 0
    assert outputs() == ["back-slash--s.png", "{id}/{0}--s.png"]


@pytest.mark.parametrize(
    "names",
    [("x/a.jpg", "x/a.png"), ("a.jpg", "A.heic"), ("é.jpg", "e\N{COMBINING ACUTE ACCENT}.jpg"), ("ß.jpg", "SS.jpg")],
)
def test_two_outputs_that_would_be_one_are_refused(folder: Path, names: tuple[str, str]) -> None:
    touch(folder / "twins", *names)
    result = manifest(contents="twins")
    assert result.exit_code == 2
    assert not (folder / "m.jsonl").exists()
    for name in names:
        assert f"twins/{name}" in result.stderr
    assert result.stderr.endswith("add {ending}, {style_folder} or {id} to --output\n")
    assert manifest("--output", "{id}.png", contents="twins").exit_code == 0


def test_an_output_that_would_be_a_folder_of_another_is_refused(folder: Path) -> None:
    touch(folder / "odd", "a--s.png/b.jpg", "a.jpg")
    result = manifest(contents="odd")
    assert result.exit_code == 2
    assert "'a--s.png' would be a folder of the output of odd/a--s.png/b.jpg in s.png" in result.stderr


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{nmae}.png", "no {nmae} (did you mean 'name'?); expected names of {folder}, {name}"),
        ("{name", "expected '}' before end of string"),
        ("{name!r}.png", "no {name}"),
        ("{name.__class__}.png", "no {name.__class__}"),
        ("{}.png", "no {}"),
        ("{name}.gif", "cannot be written; expected a name that ends in .png"),
        ("../{name}.png", "leaves OUT"),
        ("{name}/" * 60 + "{folder}", "cannot be written"),
        ("x" * 300 + "{name}.png", "has a name of 30"),
        ("one.png", "is that of"),
    ],
)
def test_a_template_that_cannot_be_gets_a_line(folder: Path, template: str, said: str) -> None:
    result = manifest("--output", template)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (folder / "m.jsonl").exists()


def test_an_unknown_format_gets_a_line(folder: Path) -> None:
    result = manifest("--format", "jpge")
    assert result.exit_code == 2
    assert "--format jpge: " in result.stderr
    assert "expected one of png, jpg" in result.stderr


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl", "m.parquet"])
def test_every_manifest_holds_the_outputs(folder: Path, name: str) -> None:
    assert manifest(out=name, contents="photos/deep").exit_code == 0
    assert outputs(name) == ["a--s.png", "er/b--s.png"]


# Filters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("globs", "left"),
    [
        (["deep"], 7),
        (["deep/"], 7),
        (["deep/*"], 7),
        (["deep/**"], 7),
        (["/deep"], 7),
        (["./deep/er"], 8),
        (["er"], 8),
        (["**/er/**"], 8),
        (["*.HEIC", "[a-c].*"], 5),
        (["{folder}/photos/deep/*"], 7),
        (["none", "*/none"], 9),
    ],
)
def test_exclude_matches_names_and_paths(folder: Path, globs: list[str], left: int) -> None:
    arguments = [part for glob in globs for part in ("--exclude", glob.format(folder=folder))]
    result = manifest(*arguments)
    assert result.exit_code == 0, result.output
    assert len(pairs()) == left
    assert result.stderr == (f"batchnst: left out: {9 - left} by --exclude\n" if left < 9 else "")


def test_a_glob_that_is_none_gets_a_line(folder: Path) -> None:
    assert manifest("--exclude", "a**b/c").exit_code == 2


def test_all_excluded(folder: Path) -> None:
    result = manifest("--exclude", "*")
    assert result.exit_code == 2
    assert "no pictures there" in result.stderr
    assert "9 by --exclude" in result.stderr


@pytest.fixture
def sizes(folder: Path) -> Path:
    """Photos of several sizes, one of which is stored lying down, and one that cannot be read."""
    (folder / "sizes").mkdir()
    for width, height in ((100, 50), (50, 100), (200, 200), (400, 100), (100, 401)):
        (folder / "sizes" / f"{width}x{height}.jpg").write_bytes(as_bytes(scene(width, height), "JPEG"))
    (folder / "sizes" / "broken.jpg").write_bytes(b"none")
    return folder


@pytest.mark.parametrize(
    ("options", "kept", "said"),
    [
        (["--min-side", 51], ["100x401", "200x200", "400x100"], "2 by --min-side, 1 that cannot be read"),
        (["--min-side", 50], ["100x401", "100x50", "200x200", "400x100", "50x100"], "1 that cannot be read"),
        (["--max-aspect", 2], ["100x50", "200x200", "50x100"], "2 by --max-aspect, 1 that cannot be read"),
        (["--max-aspect", 4], ["100x50", "200x200", "400x100", "50x100"], "1 by --max-aspect, 1 that cannot be read"),
        (
            ["--max-aspect", 1.5, "--min-side", 150],
            ["200x200"],
            "4 by --min-side, 1 that cannot be read",
        ),
    ],
)
def test_photos_are_filtered_by_their_size(sizes: Path, options: list[object], kept: list[str], said: str) -> None:
    result = manifest(*options, contents="sizes")
    assert result.exit_code == 0, result.output
    assert [Path(pair.content).stem for pair in pairs()] == kept
    assert result.stderr == f"batchnst: left out: {said}\n"


def test_nothing_passes(sizes: Path) -> None:
    result = manifest("--min-side", 5000, contents="sizes")
    assert result.exit_code == 2
    assert "sizes: no pictures are left (left out: 5 by --min-side, 1 that cannot be read)" in result.stderr


def test_limit_draws_by_seed(folder: Path) -> None:
    touch(folder / "many", *(f"{number:03}.jpg" for number in range(100)))
    touch(folder / "art", "t.png")

    def drawn(seed: int, limit: int = 20) -> list[str]:
        assert manifest("--limit", limit, "--seed", seed, contents="many").exit_code == 0
        return outputs()

    first = drawn(1)
    assert len(first) == 20
    assert first == sorted(first) == drawn(1) != drawn(2)
    assert set(drawn(1, 10)) < set(first)
    touch(folder / "many", "more.jpg")
    assert len(set(drawn(1)) & set(first)) >= 19
    assert len(drawn(1, 1000)) == 202


def test_a_picture_of_each_format_is_one_for_pillow() -> None:
    buffer = io.BytesIO(as_bytes(scene(), "MPO", save_all=True, append_images=[scene()]))
    assert Image.open(buffer).format == "MPO"
