"""Names of files as people have them: in every script, percent-encoded, at home, and what an id makes of them."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import quote

import pytest

from batchnst.errors import ManifestError
from batchnst.manifest.pair import derive_id
from batchnst.manifest.reading import read_manifest
from batchnst.storage import files
from tests.helpers import batchnst


def id_of(content: str, style: str = "s.png") -> str:
    return derive_id({"content": content, "style": style})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("写真.jpg", "XieZhen"),
        ("фото.jpg", "foto"),
        ("Ελλάδα.jpg", "Ellada"),
        ("صورة.jpg", "swrh"),
        ("사진.jpg", "SaJin"),
        ("カメラ.jpg", "kamera"),
        ("été à Köln.jpg", "ete-a-Koln"),
        ("e\N{COMBINING ACUTE ACCENT}te.jpg", "ete"),
        ("ﬁn ½.jpg", "fin-1-2"),
        ("my%20photo.jpg", "my-20photo"),
        ("file:///a/my%20photo.jpg", "my-photo"),
        ("s3://bucket/a/my photo.jpg?x", "my-photo"),
        ("🎨.jpg", "art"),
        ("...", "picture"),
        ("a" * 99 + ".jpg", "a" * 40),
    ],
)
def test_an_id_says_the_name_in_plain_letters(name: str, part: str) -> None:
    assert re.fullmatch(rf"{re.escape(part)}--s--[0-9a-f]{{16}}", id_of(name))


def test_rows_of_one_name_have_ids_of_their_own() -> None:
    assert len({id_of(f"{number}/写真.jpg")[-16:] for number in range(20_000)}) == 20_000
    assert len(id_of("a").rpartition("--")[2]) * 4 >= 64


def read(folder: Path, **row: str) -> str:
    """The content of a manifest's only row."""
    (folder / "m.jsonl").write_text(json.dumps({"content": "c.png", "style": "s.png", **row}))
    return read_manifest(str(folder / "m.jsonl"), {})[0].content


@pytest.mark.parametrize("name", ["my photo.jpg", "100%.jpg", "a%20b.jpg", "é#1?.jpg", "写真.jpg", "a+b.jpg"])
@pytest.mark.parametrize("host", ["", "localhost", socket.gethostname()])
def test_a_uri_of_a_file_is_percent_encoded(tmp_path: Path, name: str, host: str) -> None:
    (tmp_path / name).write_bytes(b"here")
    address = read(tmp_path, content=f"file://{host}{quote(str(tmp_path))}/{quote(name)}")
    assert files.read(address) == b"here"
    assert files.sha256_of(address)


def test_a_uri_that_is_not_encoded_is_found_too(tmp_path: Path) -> None:
    for name in ("my photo.jpg", "a%20b.jpg", "100%.jpg"):
        (tmp_path / name).write_bytes(b"here")
        assert files.read(f"file://{tmp_path}/{name}") == b"here"


def test_the_encoded_name_comes_first(tmp_path: Path) -> None:
    for name in ("a b.jpg", "a%20b.jpg"):
        (tmp_path / name).write_text(name)
    assert files.read(f"file://{tmp_path}/a%20b.jpg") == b"a b.jpg"
    assert files.read(f"file://{tmp_path}/a%2520b.jpg") == b"a%20b.jpg"


def test_javas_uri(tmp_path: Path) -> None:
    (tmp_path / "my photo.jpg").write_bytes(b"here")
    assert files.read(read(tmp_path, content=f"file:{quote(str(tmp_path))}/my%20photo.jpg")) == b"here"


@pytest.mark.parametrize("column", ["content", "style", "content_mask", "init"])
def test_a_file_of_another_machine_gets_a_line(tmp_path: Path, column: str) -> None:
    with pytest.raises(ManifestError, match=r"file://photos/a\.jpg: names another machine; expected file:///"):
        read(tmp_path, **{column: "file://photos/a.jpg"})


def test_a_folder_by_its_uri_lists_uris(tmp_path: Path) -> None:
    (tmp_path / "my photos").mkdir()
    for name in ("50% off #1.jpg", "a b.jpg"):
        (tmp_path / "my photos" / name).write_text(name)
    for where in (f"file://{tmp_path}/my%20photos", f"file://{tmp_path}/my%20photos/*.jpg"):
        listed = files.list_files(where)
        assert [files.read(address).decode() for address in listed] == ["50% off #1.jpg", "a b.jpg"]


def test_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "out").mkdir(parents=True)
    for key in ("content", "style", "content_mask"):
        (tmp_path / "home" / f"{key}.jpg").write_text(key)
    rows = {key: f"~/{key}.jpg" for key in ("content", "style", "content_mask", "init")}
    assert files.read(read(tmp_path, **rows)) == b"content"
    pair = read_manifest(str(tmp_path / "m.jsonl"), {})[0]
    assert files.read(pair.styles[0]) == b"style"
    assert files.read(pair.content_masks[0]) == b"content_mask"
    assert pair.recipe.init == f"{tmp_path}/home/init.jpg"
    assert files.Folder("~/out").address == f"{tmp_path}/home/out"
    assert files.list_files("~") == [f"{tmp_path}/home/{key}.jpg" for key in ("content", "content_mask", "style")]


def test_a_tilde_that_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "~backup.jpg").write_bytes(b"here")
    assert files.read(read(tmp_path, content="~backup.jpg")) == b"here"


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_manifest_whose_name_is_not_utf_8_gets_a_line(tmp_path: Path, command: str) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    with open(folder + b"/m.csv", "wb") as file:
        file.write(b"content,style\na,s\n")
    result = batchnst(command, os.fsdecode(folder + b"/m.csv"), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert " not UTF-8; rename it" in result.stderr
    assert len(result.stderr.splitlines()) == 1
