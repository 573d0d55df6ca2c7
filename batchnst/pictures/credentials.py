"""Content credentials: who made a picture, from what and how, signed, inside its file.

They are those of the C2PA (https://c2pa.org, technical specification 2), written and checked by c2pa-python, which is
an extra of this package.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from PIL import Image

from batchnst.errors import OutputError, RequestError
from batchnst.pictures.encode import FORMATS

ADVICE = "content credentials are written by c2pa-python: pip install c2pa-python"
"""Advice where c2pa-python is not installed."""

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""IPTC's name for pictures that an algorithm with a trained network has made from others."""

FACTS = "batchnst.painting"
"""Label of our own assertion, with everything that the ledger's row says of how the picture was painted."""

_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False}}
"""Settings of c2pa-python: no second picture in the file, and nothing is asked of other machines."""

_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----\s*", re.DOTALL)

_KEY, _CERTIFICATE = b"PRIVATE KEY", b"CERTIFICATE"
"""Ends of the names of blocks in a PEM file."""


@dataclass(frozen=True)
class Credentials:
    """A private key and its certificates, in PEM, the signer's certificate first; `algorithm` is C2PA's name of theirs.

    They go to every worker: neither is shown in messages.
    """

    algorithm: str
    certificates: str = field(repr=False)
    private_key: str = field(repr=False)

    def sign(self, data: bytes, name: str, ingredients: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> bytes:
        """The picture file `data`, called `name`, with credentials.

        `ingredients` are the names of the pictures it was made from and the SHA-256 of their files, in hexadecimal.
        Raises OutputError if it cannot be signed.
        """
        import c2pa

        kind = f"image/{FORMATS[PurePosixPath(name).suffix.lower()].lower()}"
        signed = io.BytesIO()
        try:
            with c2pa.Builder(_manifest(name, ingredients, facts), context=_context(self)) as builder:
                builder.sign(kind, io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise OutputError(f"{name}: content credentials cannot be written: {error}") from None
        return signed.getvalue()


def is_installed() -> bool:
    """True if c2pa-python is there."""
    return find_spec("c2pa") is not None


def read_credentials(file: str) -> Credentials:
    """The private key and the certificates in the PEM file `file`.

    Raises RequestError if it has none, if they do not belong together, if they are not for content credentials, or if
    c2pa-python is not installed.
    """
    if not is_installed():
        raise RequestError(f"--credentials: {ADVICE}")
    certificates, key = _certificates_and_key(file)
    credentials = Credentials(_algorithm(file, certificates[0]), _text(certificates), key)
    now, valid = datetime.now(UTC), certificates[0]
    if not valid.not_valid_before_utc <= now <= valid.not_valid_after_utc:
        span = f"{valid.not_valid_before_utc:%Y-%m-%d} to {valid.not_valid_after_utc:%Y-%m-%d}"
        raise RequestError(f"{file}: its first certificate is valid from {span} only")
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "png")
    try:
        credentials.sign(pixel.getvalue(), "a.png", [], {})
    except OutputError as error:
        raise RequestError(f"{file}: {str(error).removeprefix('a.png: ')}") from None
    return credentials


def _certificates_and_key(file: str) -> tuple[list[x509.Certificate], str]:
    try:
        with open(file, "rb") as source:
            data = source.read(1 << 20)
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {error.strerror}") from None
    blocks = list(_BLOCK.finditer(data))
    try:
        certificates = [x509.load_pem_x509_certificate(block[0]) for block in blocks if block[1].endswith(_CERTIFICATE)]
        (block,) = [block[0] for block in blocks if block[1].endswith(_KEY)]
        key = load_pem_private_key(block, None)
        if _public(key.public_key()) != _public(certificates[0].public_key()):
            raise RequestError(f"{file}: its private key is not that of its first certificate")
    except (ValueError, TypeError, IndexError, UnsupportedAlgorithm):
        raise RequestError(
            f"{file}: expected a private key without a password, and its certificates, the signer's first, in PEM"
        ) from None
    return certificates, block.decode()


def _public(key: Any) -> bytes:
    data: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


def _text(certificates: Sequence[x509.Certificate]) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def _algorithm(file: str, certificate: x509.Certificate) -> str:
    """C2PA's name of the algorithm of the signer's key."""
    key = certificate.public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPublicKey):
        return "ps256"
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else None
    if curve in (names := {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}):
        return names[curve]
    raise RequestError(f"{file}: expected a key of Ed25519, RSA, P-256, P-384 or P-521")


@lru_cache(1)
def _context(credentials: Credentials) -> Any:
    """The settings and the signer of c2pa-python."""
    import c2pa

    certificates, key = credentials.certificates.encode(), credentials.private_key.encode()
    no_time_stamps = None
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(credentials.algorithm, certificates, key, no_time_stamps))
    return c2pa.Context(c2pa.Settings.from_dict(_SETTINGS), signer)


def _manifest(name: str, ingredients: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> str:
    """The statement to sign about the picture `name`, in the JSON of c2pa-python."""
    agent = {"name": "batchnst", "version": version("batchnst")}
    parts = [
        {"title": title, "relationship": "inputTo", "label": f"input{number}", "description": f"SHA-256 {sha256}"}
        for number, (title, sha256) in enumerate(ingredients)
    ]
    created = {
        "action": "c2pa.created",
        "softwareAgent": agent,
        "digitalSourceType": SOURCE_TYPE,
        "description": "Neural style transfer (Gatys, Ecker and Bethge, 2016)",
        "parameters": {"ingredientIds": [part["label"] for part in parts]},
    }
    return json.dumps(
        {
            "claim_generator_info": [agent],
            "title": PurePosixPath(name).name,
            "ingredients": parts,
            "assertions": [
                {"label": "c2pa.actions", "data": {"actions": [created]}},
                {"label": FACTS, "data": facts},
            ],
        }
    )
