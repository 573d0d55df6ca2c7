"""Pairs of Ed25519 keys for seals: the private one in a file for its owner alone, the public one beside it."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from batchnst.errors import RequestError


def make_keys(file: str) -> str:
    """Make a pair of keys: the private one in `file`, the public one in `file`.pub, whose name is returned.

    Raises RequestError if one of the files exists or cannot be written.
    """
    public = f"{file}.pub"
    if os.path.lexists(public):
        raise RequestError(f"{public}: exists already; nothing was written")
    key = Ed25519PrivateKey.generate()
    _create(file, 0o600, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    try:
        _create(public, 0o644, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except RequestError:
        os.unlink(file)
        raise
    return public


def read_private(file: str) -> Ed25519PrivateKey:
    """The private key in `file`; raises RequestError if there is none."""
    try:
        key = load_pem_private_key(_read(file), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise RequestError(f"{file}: not a private key; expected one of `batchnst seal --new-key FILE`")


def read_public(file: str) -> bytes:
    """The public key in `file`, 32 bytes; raises RequestError if there is none."""
    try:
        key = load_pem_public_key(_read(file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, Ed25519PublicKey):
        return key.public_bytes_raw()
    raise RequestError(f"{file}: not a public key; expected the FILE.pub of `batchnst seal --new-key FILE`")


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    """True if `signature` is that of `message` by the owner of `public_key`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _create(file: str, mode: int, data: bytes) -> None:
    """Write a file that does not exist yet; never one that does."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise RequestError(f"{file}: exists already; nothing was written") from None
    except OSError as error:
        raise RequestError(f"{file}: cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as target:
        target.write(data)


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as source:
            return source.read(1 << 16)
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {error.strerror}") from None
