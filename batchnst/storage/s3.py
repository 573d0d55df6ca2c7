"""The options of an S3 bucket, from its address and the environment: endpoint, region, keys, or none.

Each variable may be for one bucket alone, with the bucket's name after two underscores, in upper case and with `_` for
all other signs: `AWS_ENDPOINT_URL__MY_PHOTOS` is that of `my-photos`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it exists for type checkers only
    from obstore.store import S3Config

ANONYMOUS = "anonymous"
"""The user in an address that is read without credentials: `s3://anonymous@bucket/key`."""

_UNSIGNED = ("AWS_NO_SIGN_REQUEST", "AWS_SKIP_SIGNATURE", "FSSPEC_S3_ANON")
"""Variables by which other programs are asked for requests without a signature."""

_QUERY = re.compile(r"(s3://)([^/@?]+)(/[^?]*)?\?(?:anonymous|anon)=(?:true|1|yes)", re.IGNORECASE)


def canonical(address: str) -> str:
    """`address` with its user `anonymous` in front of the bucket, if it ends in `?anonymous=true` or `?anon=true`."""
    match = _QUERY.fullmatch(address)
    return f"{match[1]}{ANONYMOUS}@{match[2]}{match[3] or ''}" if match else address


@dataclass(frozen=True)
class S3Options:
    """Settings to reach a bucket; those that are None are left to the clients. `anonymous`: without credentials."""

    bucket: str
    anonymous: bool = False
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None

    @classmethod
    def of(cls, name: str) -> S3Options:
        """The options of the bucket in `name`, the part of an address before its first slash."""
        user, _, bucket = name.rpartition("@")
        access_key = _own(bucket, "AWS_ACCESS_KEY_ID")
        unsigned = [_own(bucket, variable) for variable in _UNSIGNED]
        if not any(unsigned) and not access_key:
            unsigned = [os.environ.get(variable) for variable in _UNSIGNED]
        return cls(
            bucket,
            user == ANONYMOUS or any(map(_is_true, unsigned)),
            _option(bucket, "AWS_ENDPOINT_URL_S3") or _option(bucket, "AWS_ENDPOINT_URL"),
            _own(bucket, "AWS_REGION"),
            access_key,
            _own(bucket, "AWS_SECRET_ACCESS_KEY"),
            _own(bucket, "AWS_SESSION_TOKEN"),
        )

    def for_pyarrow(self) -> dict[str, Any]:
        """Credentials as arguments of pyarrow's client."""
        if self.anonymous:
            return {"anonymous": True}
        keys = {"access_key": self.access_key, "secret_key": self.secret_key, "session_token": self.session_token}
        return {name: value for name, value in keys.items() if value}

    def for_obstore(self) -> S3Config | None:
        """Credentials as obstore's configuration; None if they are not this bucket's own."""
        config: S3Config = {"skip_signature": True} if self.anonymous else {}
        if self.access_key and not self.anonymous:
            config = {"access_key_id": self.access_key, "secret_access_key": self.secret_key or ""}
            if self.session_token:
                config["session_token"] = self.session_token
        if config and self.region:
            config["region"] = self.region
        return config or None


def _own(bucket: str, variable: str) -> str | None:
    """The value of the variable for this bucket alone."""
    return os.environ.get(f"{variable}__{re.sub(r'[^A-Za-z0-9]', '_', bucket).upper()}")


def _option(bucket: str, variable: str) -> str | None:
    """The value of the variable for this bucket, else for all."""
    return _own(bucket, variable) or os.environ.get(variable)


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true", "yes", "on")
