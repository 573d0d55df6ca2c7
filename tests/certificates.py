"""Certificates and keys for content credentials."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

KEYS: dict[str, Callable[[], Any]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
}
ROOT = KEYS["es256"]()
NOW = datetime.now(UTC)


def certificate(key: Any, *, name: str = "Studio", days: int = 9, signs: bool = False, purpose: bool = True) -> bytes:
    """A certificate by ROOT, in PEM, that begins ten days ago and ends in `days`."""
    flags = {"content_commitment", "key_encipherment", "data_encipherment", "key_agreement"}
    flags |= {"encipher_only", "decipher_only"}
    usage = dict.fromkeys(flags, False) | {"key_cert_sign": signs, "crl_sign": signs, "digital_signature": not signs}
    subject, issuer = (x509.Name.from_rfc4514_string(f"CN={each},O={each}") for each in (name, "Root"))
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=10))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(signs, None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT.public_key()), critical=False)
    )
    if purpose:
        for_mail = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(for_mail, critical=False)
    return builder.sign(ROOT, hashes.SHA256()).public_bytes(Encoding.PEM)


def private(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return data


def write_pem(folder: Path, key: Any) -> Path:
    """A file with the key and its certificates."""
    path = folder / "studio.pem"
    path.write_bytes(private(key) + certificate(key) + certificate(ROOT, name="Root", signs=True))
    return path


def read_credentials_in(data: bytes, kind: str) -> tuple[str, dict[str, Any]]:
    """The state of the credentials in a file, and what they say."""
    with c2pa.Reader(kind, io.BytesIO(data)) as reader:
        manifest = reader.get_active_manifest()
        assert manifest
        return reader.get_validation_state() or "", manifest
