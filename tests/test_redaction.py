"""No password, key, token or signature is left in a text that is shown or stored."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest

from batchnst.errors import InputError, ManifestError, RecipeError, StorageError
from batchnst.redaction import get_logger, has_credentials, public, redact, redact_json, redact_logs, stored

SAS = "?sv=2022-11-02&ss=b&srt=o&sp=r&se=2026-11-27T00:00:00Z&sig=aB3%2Fdef%2BgH1234567890xyz%3D"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"

TEXTS = [
    ("http://me:hunter2@host/a.jpg: no such file", "http://***@host/a.jpg: no such file"),
    ("http://me:p/a?ss@host/a.jpg", "http://***@host/a.jpg"),
    ("http://me%3Ahunter2@host/a.jpg", "http://***@host/a.jpg"),
    ("https://ghp_0123456789@host/a.jpg", "https://***@host/a.jpg"),
    ("s3://AKIAIOSFODNN7EXAMPLE:a/b+c@bucket/x, again", "s3://***@bucket/x, again"),
    ("ftp://me:hunter2@host/x", "ftp://***@host/x"),
    ("abfs://photos:a2V5@account.dfs.core.windows.net/x", "abfs://***@account.dfs.core.windows.net/x"),
    ("zip://a.jpg::https://me:hunter2@host/p.zip", "zip://a.jpg::https://***@host/p.zip"),
    ("parquet://image/7/a.jpg::https://h/p.parquet?X-Amz-Signature=0123", "parquet://image/7/a.jpg::https://h/p.parquet"),
    ("https://h/a?v=2&X-Amz-Date=1&X-Amz-Signature=ab/c: gone", "https://h/a?v=2: gone"),
    ("(https://h/a?sv=1&sp=r&sr=b&se=2&sig=ab%2F)", "(https://h/a)"),
    ("https://h/a?GoogleAccessId=x&Expires=1&Signature=y", "https://h/a"),
    ("https://h/a?access_token=abc&api_key=def&password=g&w=5", "https://h/a?w=5"),
    ("https://h/a?key=abc", "https://h/a"),
    ("https://h/a?X%2DAmz%2DSignature=abc", "https://h/a"),
    ("https://p/?url=https%3A%2F%2Fh%2Fa%3Fsig%3Dabc%26n%3D1", "https://p/?url=https%3A%2F%2Fh%2Fa%3F%26n%3D1"),
    ("GET /a?sp=r&sig=abc HTTP/1.1", "GET /a?sp=r&sig=*** HTTP/1.1"),
    ("Authorization: Bearer abc.def", "Authorization: ***"),
    ("{'Authorization': 'Bearer abc', 'Accept': '*'}", "{'Authorization': '***', 'Accept': '*'}"),
    ('{"x-api-key": "abc", "n": 1}', '{"x-api-key": "***", "n": 1}'),
    ("the header Bearer abcdefgh was refused", "the header Bearer *** was refused"),
    ("Basic bWU6aHVudGVyMg== was refused", "Basic *** was refused"),
    ("Name=x;AccountKey=abc==;Suffix=y", "Name=x;AccountKey=***;Suffix=y"),
    ("aws_secret_access_key = abc, user=me", "aws_secret_access_key = ***, user=me"),
    ("id AKIAIOSFODNN7EXAMPLE is unknown", "id *** is unknown"),
    (f"AKIAIOSFODNN7EXAMPLE:{SECRET} is unknown", "*** is unknown"),
    ("<AWSAccessKeyId>AK</AWSAccessKeyId><SignatureProvided>ab=</SignatureProvided>",
     "<AWSAccessKeyId>***</AWSAccessKeyId><SignatureProvided>***</SignatureProvided>"),
]  # fmt: skip

HARMLESS = [
    "line 3, style: expected a path or URI; --set KEY=VALUE",
    "http://host:8080/a@b.jpg: no such file",
    "gs://anonymous@bucket/x, abfs://photos@account.dfs.core.windows.net/x, hdfs://me@node:8020/x",
    "https://h/a?key=photos/1.jpg&v=2",
    "zip://album:summer/a@b.jpg::s3://bucket/p.zip",
    "/data/a.jpg: unexpected token: x",
    "it needs it in RAY_AUTH_TOKEN; basic settings; [::1]:80",
]


@pytest.mark.parametrize(("text", "shown"), TEXTS)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def twice_in_small_letters(text: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), quote(quote(text, safe=""), safe=""))


@pytest.mark.parametrize("encode", [str, quote, lambda text: quote(text, safe=""), twice_in_small_letters])
def test_the_values_of_secret_variables_are_hidden_in_any_encoding(
    monkeypatch: pytest.MonkeyPatch, encode: Callable[[str], str]
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
    monkeypatch.setenv("SERVICE_API_KEY", "+key of/eight+")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=me;AccountKey={SECRET};Suffix=x")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxy-word@proxy:3128")
    for secret in (SAS, "aB3/def+gH1234567890xyz=", "+key of/eight+", SECRET, "proxy-word"):
        text = redact(f"refused: {encode(secret)} (403)")
        assert text.startswith("refused: ")
        assert text.endswith("*** (403)")
        assert encode(secret) not in text
        assert "aB3" not in text


def test_short_values_and_paths_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_TYPE", "rsa")
    monkeypatch.setenv("TOKEN_FOLDER", __file__)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/none/google.json")
    text = f"rsa, {__file__}, /none/google.json: no such file"
    assert redact(text) == text


def test_an_address_keeps_its_identity_when_its_signature_rotates() -> None:
    azure = "https://a.blob.core.windows.net/c/a.jpg?sv=1&st=2&se={0}&sr=b&sp=r&sig={0}"
    amazon = "https://b.s3.amazonaws.com/a.jpg?versionId=7&X-Amz-Date={0}&X-Amz-Credential=k/{0}&X-Amz-Signature={0}"
    assert public(azure.format("x")) == "https://a.blob.core.windows.net/c/a.jpg"
    assert public(amazon.format("x")) == "https://b.s3.amazonaws.com/a.jpg?versionId=7"
    assert public(f"zip://a.jpg::{azure.format('x')}") == "zip://a.jpg::https://a.blob.core.windows.net/c/a.jpg"
    assert public("tar://a?sig=1.jpg::/p.tar") == stored("tar://a?sig=1.jpg::/p.tar") == "tar://a?sig=1.jpg::/p.tar"
    for address in ("/data/a.jpg?sig=1", "s3://bucket/a b.jpg", "https://h/a.jpg?page=2&size=3#x", "file:///a?sig=1"):
        assert public(address) == stored(address) == address


@pytest.mark.parametrize(
    "text", ["http://u:p@h/x", "http://t@h/x", "s3://k@b/x", "az://c:k@a/x", "zip://a::s3://k:s@b/x"]
)
def test_credentials_in_an_address_are_found(text: str) -> None:
    assert has_credentials(text)


@pytest.mark.parametrize("text", ["http://h:80/x@y", "gs://anonymous@b/x", "abfs://c@a/x", "/u:p@x", "sftp://me@h/x"])
def test_other_addresses_have_no_credentials(text: str) -> None:
    assert not has_credentials(text)


def test_every_error_is_clean_from_the_start() -> None:
    address = "https://me:hunter2@host/a?sig=abcdef"
    for error in (StorageError(address), InputError(address), ManifestError(address, [address]), RecipeError(address)):
        assert "hunter2" not in repr(error)
        assert "abcdef" not in repr(error)
    assert str(pickle.loads(pickle.dumps(InputError(address)))) == "https://***@host/a"
    assert RecipeError(address).problems == ("https://***@host/a",)


def test_json_stays_json() -> None:
    value = {"a": ['https://h/a?sig="x"', 'say "password=a\\"'], "signature": "bottom left", "n": 1.5}
    clean = json.loads(redact_json(json.dumps(value)))
    assert clean == {"a": ['https://h/a"x"', 'say "password=***"'], "signature": "bottom left", "n": 1.5}
    assert redact_json('{"b":1,  "a":"x"}') == '{"b":1,  "a":"x"}'


def test_logs_are_clean_with_their_tracebacks() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        get_logger("batchnst.test").warning("read %s", "https://h/a?sig=abcdef")
        redact_logs()
        try:
            raise OSError("https://me:hunter2@host/x")
        except OSError as cause:
            try:
                raise ValueError("not read") from cause
            except ValueError:
                logging.getLogger("some.library").exception("of %s", "https://h/a?sig=abcdef")
    finally:
        logging.getLogger().removeHandler(handler)
    text = stream.getvalue()
    assert text.startswith("read https://h/a\nof https://h/a\nTraceback")
    assert "not read" in text
    assert "hunter2" not in text
    assert "abcdef" not in text
