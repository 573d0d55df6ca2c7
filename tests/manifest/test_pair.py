"""A pair's identity is that of its files: signatures in addresses may rotate, and credentials are refused."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from batchnst.errors import InputError, ManifestError
from batchnst.manifest import readers
from batchnst.manifest.pair import Pair, derive_id, fingerprint
from batchnst.manifest.reading import read_manifest

AZURE = "https://account.blob.core.windows.net/photos/{name}?sv=2022-11-02&st=1&se={day}&sr=b&sp=r&sig={day}%3D"
AMAZON = "https://photos.s3.amazonaws.com/{name}?versionId=7&X-Amz-Date={day}&X-Amz-Signature={day}abc"


def read(folder: Path, *rows: Mapping[str, object]) -> list[Pair]:
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_manifest(str(folder / "m.jsonl"), {}))


@pytest.mark.parametrize("address", [AZURE, AMAZON])
def test_a_new_signature_is_the_same_pair(tmp_path: Path, address: str) -> None:
    def pair(day: str, name: str = "a.png") -> Pair:
        names = {column: address.format(name=name, day=day) for column in ("content", "content_mask", "init")}
        styles = [address.format(name=f"style-{i}.png", day=day) for i in range(2)]
        (pair,) = read(tmp_path, names | {"style": styles, "style_mask": styles[:1]})
        return pair

    monday, tuesday, other = pair("monday"), pair("tuesday"), pair("monday", "b.png")
    assert "monday" in monday.content  # the worker needs it
    assert monday.id == tuesday.id != other.id
    assert fingerprint(monday, "w") == fingerprint(tuesday, "w") != fingerprint(other, "w")
    assert monday.output == tuesday.output
    assert monday.id.startswith("a--style-0--")


def test_other_parameters_and_local_names_still_count() -> None:
    def id_of(content: str) -> str:
        return derive_id({"content": content, "style": "s.png"})

    assert id_of("https://h/a.png?v=1") != id_of("https://h/a.png?v=2")
    assert id_of("a.png?sig=1") != id_of("a.png?sig=2")
    assert id_of("https://h/a.png?key=a/1.png") != id_of("https://h/a.png?key=a/2.png")


def test_two_rows_of_one_file_are_one_pair(tmp_path: Path) -> None:
    rows = [{"content": AZURE.format(name="a.png", day=day), "style": "s.png"} for day in ("monday", "tuesday")]
    with pytest.raises(ManifestError, match="the same pair as line 1") as caught:
        read(tmp_path, *rows)
    assert "monday" not in str(caught.value)


REFUSED = {
    "s3://AKIAIOSFODNN7EXAMPLE:hunter2/x@bucket/a.png": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "s3://hunter2@bucket/a.png": "AWS_ACCESS_KEY_ID",
    "s3://bucket/a.png?X-Amz-Signature=hunter2": "options after a \\? are not read",
    "gs://hunter2@bucket/a.png": "GOOGLE_APPLICATION_CREDENTIALS",
    "az://photos:hunter2@account/a.png": "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "az://photos/a.png?account_key=hunter2": "options after a \\? are not read",
    "abfs://photos:hunter2@account.dfs.core.windows.net/a.png": "AZURE_STORAGE_ACCOUNT_NAME",
    "abfss://:hunter2@account.dfs.core.windows.net/a.png": "AZURE_STORAGE_ACCOUNT_NAME",
    "http://me:hunter2@host/a.png": "~/.netrc",
    "https://hunter2@host/a.png": "~/.netrc",
    "https://me:hun%2Fhunter2@host:8080/a.png?v=1": "~/.netrc",
    "ftp://me:hunter2@host/a.png": "FSSPEC_FTP_USERNAME and FSSPEC_FTP_PASSWORD",
    "sftp://me:hunter2@host/a.png": "FSSPEC_SFTP_PASSWORD",
    "hdfs://me:hunter2@node:8020/a.png": "kinit",
    "zip://a.png::https://me:hunter2@host/photos.zip": "~/.netrc",
}


@pytest.mark.parametrize(("address", "advice"), REFUSED.items())
@pytest.mark.parametrize("column", ["content", "style", "content_mask", "style_mask", "init"])
def test_credentials_are_refused_with_where_they_belong(tmp_path: Path, column: str, address: str, advice: str) -> None:
    good = {"content": "a.png", "style": "s.png"}
    with pytest.raises(ManifestError, match=rf"m\.jsonl: line 2[,:] {column}: .*{advice}") as caught:
        read(tmp_path, good, good | {column: address, "id": "b"})
    assert "hunter2" not in str(caught.value)


def test_a_manifest_may_be_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://host/night/m.csv?X-Amz-Signature=abc/def"
    files = {address: b"content,style\na.png,s.png\n"}
    monkeypatch.setattr(readers, "open_file", lambda address: nullcontext(io.BytesIO(files[address])))
    (pair,) = read_manifest(address, {})
    assert (pair.content, pair.styles) == ("https://host/night/a.png", ("https://host/night/s.png",))


def test_a_signed_manifest_that_cannot_be_read_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: str) -> None:
        raise InputError(f"{address}: no such file")

    monkeypatch.setattr(readers, "open_file", fail)
    with pytest.raises(ManifestError, match=r"^https://host/m\.csv: no such file$"):
        read_manifest("https://host/m.csv?X-Amz-Signature=abc/def", {})
