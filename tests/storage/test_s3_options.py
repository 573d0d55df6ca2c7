"""Buckets with options of their own: public ones, and ones of another server or another user."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from batchnst.errors import InputError, RequestError
from batchnst.manifest.reading import read_manifest
from batchnst.redaction import public, redact
from batchnst.storage import addresses, files
from batchnst.storage.s3 import S3Options, canonical

MANIFEST = b"content,style\na.png,s3://anonymous@other/s.png\n"


@dataclass
class Public:
    """A server whose bucket is public: signed requests by strangers are refused, as S3 does."""

    address: str
    signed: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Public]:
    """Such a server, set as the endpoint of all buckets, while credentials are set that it does not know."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET(head=True)

        def do_GET(self, head: bool = False) -> None:
            here.signed.append(self.headers.get("Authorization"))
            if here.signed[-1]:
                self.send_error(403)
                return
            first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
            data = MANIFEST[int(first) : int(last or len(MANIFEST)) + 1]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(MANIFEST) if head else len(data)))
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{len(MANIFEST)}")
            self.end_headers()
            if not head:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Public(f"http://127.0.0.1:{web.server_port}")
    threading.Thread(target=web.serve_forever, daemon=True).start()
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_NO_SIGN_REQUEST", "AWS_SKIP_SIGNATURE", "FSSPEC_S3_ANON"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDSTRANGER",
        "AWS_SECRET_ACCESS_KEY": "stranger-secret",
        "AWS_ENDPOINT_URL": here.address,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    addresses._open.cache_clear()
    yield here
    addresses._open.cache_clear()
    web.shutdown()
    web.server_close()


def test_credentials_that_are_set_are_used_unless_asked_otherwise(server: Public) -> None:
    with pytest.raises(InputError):
        files.read("s3://photos/m.csv")
    assert any(server.signed)


@pytest.mark.parametrize(
    "address", ["s3://anonymous@photos/m.csv", "s3://photos/m.csv?anonymous=true", "s3://photos/m.csv?anon=True"]
)
def test_an_address_may_ask_for_no_credentials(server: Public, address: str) -> None:
    assert files.read(address) == MANIFEST
    assert server.signed
    assert not any(server.signed)
    (pair,) = read_manifest(address, {})
    assert pair.content == "s3://anonymous@photos/a.png"
    assert pair.styles == ("s3://anonymous@other/s.png",)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_NO_SIGN_REQUEST", "true"),
        ("AWS_SKIP_SIGNATURE", "YES"),
        ("FSSPEC_S3_ANON", "1"),
        ("AWS_NO_SIGN_REQUEST__MY_PHOTOS_2", "true"),
    ],
)
def test_the_environment_may_ask_for_no_credentials(
    server: Public, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert files.read("s3://my-photos.2/m.csv") == MANIFEST
    assert S3Options.of("other").anonymous is ("__" not in variable)


def test_a_bucket_may_have_a_server_and_keys_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://all",
        "AWS_NO_SIGN_REQUEST": "true",
        "AWS_ENDPOINT_URL__MY_PHOTOS": "http://mine",
        "AWS_REGION__MY_PHOTOS": "eu-west-1",
        "AWS_ACCESS_KEY_ID__MY_PHOTOS": "id",
        "AWS_SECRET_ACCESS_KEY__MY_PHOTOS": "secret-of-mine",
    }.items():
        monkeypatch.setenv(name, value)
    mine, other = S3Options.of("my-photos"), S3Options.of("other")
    assert (mine.endpoint, mine.region, mine.anonymous) == ("http://mine", "eu-west-1", False)
    assert mine.for_pyarrow() == {"access_key": "id", "secret_key": "secret-of-mine"}
    assert mine.for_obstore() == {"access_key_id": "id", "secret_access_key": "secret-of-mine", "region": "eu-west-1"}
    assert (other.endpoint, other.region, other.anonymous) == ("http://all", None, True)
    assert other.for_obstore() == {"skip_signature": True}
    assert "secret-of-mine" not in redact("it is secret-of-mine")


def test_no_flag_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "false")
    assert not S3Options.of("b").anonymous
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST__B", "no")
    assert not S3Options.of("b").anonymous


def test_anonymous_is_no_secret_and_anything_else_is_refused() -> None:
    assert public("s3://anonymous@b/a.png") == "s3://anonymous@b/a.png" == redact("s3://anonymous@b/a.png")
    assert canonical("s3://b/a.png?anonymous=true") == "s3://anonymous@b/a.png"
    for address in ("s3://b/a.png?anonymous=maybe", "s3://b/a.png?region=x", "s3://key@b/a.png", "s3://a:b@c/d"):
        with pytest.raises(RequestError):
            addresses.store_of(address)


def test_a_local_name_with_a_question_mark_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.png?anonymous=true").write_bytes(b"here")
    assert files.read(f"{tmp_path}/a.png?anonymous=true") == b"here"
