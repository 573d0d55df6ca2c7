"""Content credentials are read and checked by the C2PA's own reader, and a key that does not do is refused at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
)

from batchnst import read_ledger
from batchnst.errors import RequestError
from batchnst.pictures import credentials as module
from batchnst.pictures.credentials import FACTS, Credentials, read_credentials
from batchnst.pictures.decode import open_picture
from batchnst.pictures.encode import Finish, Provenance, encode_picture, read_provenance
from tests.certificates import KEYS, ROOT, certificate, private, read_credentials_in, write_pem
from tests.helpers import batchnst, scene
from tests.pictures.runs import run

FORMATS = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "avif": "image/avif", "tif": "image/tiff"}


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    return write_pem(tmp_path, KEYS["ed25519"]())


def assertions(manifest: dict[str, Any]) -> dict[str, Any]:
    return {each["label"]: each["data"] for each in manifest["assertions"]}


@pytest.mark.parametrize("ending", FORMATS)
def test_each_format_carries_them_and_stays_the_picture_it_was(pem: Path, ending: str) -> None:
    pixels = np.asarray(scene(67, 45)).astype(np.uint16 if ending == "tif" else np.uint8)
    record = Provenance("a", "r1", 2, "f1", "0.1")
    plain = encode_picture(pixels, f"x.{ending}", Finish(provenance=record))
    facts = {"recipe": {"style_weight": 10.0}, "seed": 3}
    inputs = [("coffee.jpg", "ab" * 32), ("swirls.png", "cd" * 32)]
    signed = read_credentials(str(pem)).sign(plain, f"folder/x.{ending}", inputs, facts)
    assert 0 < len(signed) - len(plain) < 6000
    before, after = (np.asarray(open_picture(data, "x").image) for data in (plain, signed))
    assert (before == after).all()
    assert read_provenance(signed, "x") == record

    state, manifest = read_credentials_in(signed, FORMATS[ending])
    assert state == "Valid"
    assert (manifest["title"], manifest["signature_info"]["common_name"]) == (f"x.{ending}", "Studio")
    said = assertions(manifest)
    assert said[FACTS] == facts
    (action,) = said["c2pa.actions.v2"]["actions"]
    assert action["action"] == "c2pa.created"
    assert len(action["parameters"]["ingredients"]) == 2
    ingredients = [(each["title"], each["description"], each["relationship"]) for each in manifest["ingredients"]]
    assert ingredients == [(name, f"SHA-256 {sha256}", "inputTo") for name, sha256 in inputs]


@pytest.mark.parametrize("algorithm", KEYS)
def test_each_kind_of_key_signs(tmp_path: Path, algorithm: str) -> None:
    credentials = read_credentials(str(write_pem(tmp_path, KEYS[algorithm]())))
    assert credentials.algorithm == algorithm
    signed = credentials.sign(encode_picture(np.asarray(scene(40, 40)), "a.png"), "a.png", [], {})
    assert read_credentials_in(signed, "image/png")[0] == "Valid"


def test_a_changed_pixel_shows(pem: Path) -> None:
    plain = encode_picture(np.asarray(scene(40, 40)), "a.jpg")
    signed = bytearray(read_credentials(str(pem)).sign(plain, "a.jpg", [], {}))
    signed[-100] ^= 1
    assert read_credentials_in(bytes(signed), "image/jpeg")[0] == "Invalid"


OURS, OTHER = KEYS["ed25519"](), KEYS["ed25519"]()
CHAIN = certificate(ROOT, name="Root", signs=True)
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "expected a private key without a password"),
    "no key": (certificate(OURS) + CHAIN, "expected a private key without a password"),
    "no certificate": (private(OURS), "expected a private key without a password"),
    "two keys": (private(OURS) + private(OTHER) + certificate(OURS), "expected a private key without a password"),
    "a password": (private(OURS, BestAvailableEncryption(b"x")) + certificate(OURS), "expected a private key without"),
    "no base64": (private(OURS).replace(b"M", b"?") + certificate(OURS), "expected a private key without a password"),
    "of another": (private(OTHER) + certificate(OURS) + CHAIN, "its private key is not that of its first certificate"),
    "expired": (private(OURS) + certificate(OURS, days=-1) + CHAIN, "its first certificate is valid from 20"),
    "no purpose": (private(OURS) + certificate(OURS, purpose=False) + CHAIN, "content credentials cannot be written: "),
    "of itself": (private(ROOT) + CHAIN, "content credentials cannot be written: "),
    "a curve": (
        private(key := ec.generate_private_key(ec.SECP256K1())) + certificate(key),
        "expected a key of Ed25519",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_does_not_do_is_refused_in_a_line_that_shows_no_key(tmp_path: Path, kind: str) -> None:
    data, said = BAD[kind]
    path = tmp_path / "bad.pem"
    path.write_bytes(data)
    with pytest.raises(RequestError) as caught:
        read_credentials(str(path))
    assert str(caught.value).startswith(f"{path}: {said}")
    assert len(str(caught.value).splitlines()) == 1
    assert not any(line.decode() in str(caught.value) for line in data.splitlines() if line)


def test_no_key_is_shown_and_no_file_or_no_library_is_said(pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = repr(read_credentials(str(pem)))
    assert shown == repr(Credentials("ed25519", "", ""))
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        read_credentials(f"{pem}.gone")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="pip install c2pa-python"):
        read_credentials(str(pem))


@pytest.mark.parametrize("form", ["files", "parquet"])
def test_a_run_signs_its_pictures_and_every_review_takes_them_as_they_are(tmp_path: Path, pem: Path, form: str) -> None:
    for name in ("photo.png", "style.png"):
        scene(50, 40).save(tmp_path / name)
    options = ["--credentials", str(pem), "--pictures", form]
    result = run(tmp_path, {"content": "photo.png", "output": "a.jpg"}, options=options)
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert batchnst("audit", out, "--deep").exit_code == 0
    assert batchnst("replay", out, "n0").exit_code == 0
    assert batchnst("export", out, "--to", "files", "--out", tmp_path / "given").exit_code == 0
    (row,) = read_ledger(str(out), "pairs").to_table().to_pylist()
    state, manifest = read_credentials_in((tmp_path / "given/images/a.jpg").read_bytes(), "image/jpeg")
    assert state == "Valid"
    facts = assertions(manifest)[FACTS]
    assert (facts["run_id"], facts["pair_id"], facts["attempt"]) == (row["run_id"], "n0", 1)
    assert facts["recipe"] == json.loads(row["recipe"])
    assert [each["title"] for each in manifest["ingredients"]] == ["photo.png", "style.png"]
    assert [each["description"][8:] for each in manifest["ingredients"]] == [
        row["content_sha256"],
        *row["style_sha256"],
    ]
    secret = private(KEYS["ed25519"]())[:40]  # the line that begins every key
    assert not any(secret in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_a_file_that_does_not_do_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    scene(50, 40).save(tmp_path / "style.png")
    result = run(tmp_path, {"content": "style.png"}, options=["--credentials", str(tmp_path / "none.pem")])
    assert result.exit_code == 2
    assert "none.pem: cannot be read" in result.stderr
    assert not (tmp_path / "out/ledger").exists()
