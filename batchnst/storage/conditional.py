"""Conditional writes in the stores of Amazon, Google and Microsoft, by obstore: pyarrow sends no conditions.

S3 and Azure compare ETags (If-Match, If-None-Match), Google compares generations (x-goog-if-generation-match).
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

if TYPE_CHECKING:  # these exist for type checkers only
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, S3Config

RETRIES = 2
"""Retries of the client within each of our own."""


class ObjectStoreClient:
    """Conditional writes in a bucket; paths are `bucket/key`, as on the store's filesystem.

    `identity` is the property that changes with every write of a file.
    """

    def __init__(self, store: ObjectStore, identity: Literal["e_tag", "version"] = "e_tag") -> None:
        self._store = store
        self._identity = identity

    def create(self, path: str, data: bytes) -> None:
        """Write a file; raises FileExistsError if there is one."""
        if self.version(path) is not None:  # a store that ignores conditions would replace it
            raise FileExistsError(path)
        with _as_os_error(path):
            obstore.put(self._store, _key(path), data, mode="create", use_multipart=False)

    def version(self, path: str) -> str | None:
        """The ETag or generation of a file; None if there is no file."""
        try:
            with _as_os_error(path):
                return str(obstore.head(self._store, _key(path))[self._identity])
        except FileNotFoundError:
            return None

    def replace(self, path: str, data: bytes, version: str | None) -> None:
        """Write a file if it still has `version`, or if `version` is None and there is none; else FileExistsError."""
        if version is None:
            self.create(path, data)
            return
        with _as_os_error(path):
            mode: obstore.UpdateVersion = {self._identity: version}  # type: ignore[misc]
            obstore.put(self._store, _key(path), data, mode=mode, use_multipart=False)


def s3_client(
    bucket: str, endpoint: str | None, seconds: float, config: S3Config | None = None
) -> ObjectStoreClient | None:
    """A client for a bucket of S3; None if its credentials are in a profile that obstore cannot read.

    `seconds` without an answer are a failure. `config` has the bucket's own credentials, if there are some.
    """
    credentials = config or _s3_credentials()
    if credentials is None:
        return None
    store = S3Store(
        bucket,
        endpoint=endpoint,
        client_options=_options(endpoint, seconds),
        retry_config={"max_retries": RETRIES},
        config=credentials,
    )
    return ObjectStoreClient(store)


def gs_client(bucket: str, emulator: str | None, seconds: float) -> ObjectStoreClient | None:
    """A client for a bucket of Google's; None if its credentials are of a kind that obstore does not know.

    `emulator` is the address of a server to use in place of Google's; it takes any token. `seconds` without an answer
    are a failure.
    """
    config: GCSConfig = {"base_url": emulator, "bearer_token": "any"} if emulator else {}
    options = _options(emulator, seconds)
    try:
        store = GCSStore(bucket, config=config, client_options=options, retry_config={"max_retries": RETRIES})
    except BaseError:  # credentials of another cloud, exchanged for Google's
        return None
    return ObjectStoreClient(store, "version")


def azure_client(container: str, config: AzureConfig, seconds: float) -> ObjectStoreClient:
    """A client for a container of Azure; `seconds` without an answer are a failure.

    `config` has the account and its key or signature; without these, obstore looks for credentials where Azure's own
    clients do: in the environment, on the machine, and where `az login` has left them.
    """
    if not (config.get("account_key") or config.get("sas_key")):
        config = {**config, "use_azure_cli": (Path.home() / ".azure").exists()}
    options = _options(config.get("endpoint"), seconds)
    with _as_os_error(container):
        store = AzureStore(container, config=config, client_options=options, retry_config={"max_retries": RETRIES})
    return ObjectStoreClient(store)


def _options(endpoint: str | None, seconds: float) -> ClientConfig:
    timeout = f"{seconds:.0f}s"
    allow_http = bool(endpoint and endpoint.startswith("http://"))
    return {"allow_http": allow_http, "connect_timeout": timeout, "timeout": timeout}


def _s3_credentials() -> S3Config | None:
    """Keys from the AWS profile, if one is used; empty if obstore finds them: in the environment, or on the machine."""
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", Path.home() / ".aws" / "credentials"))
    if os.environ.get("AWS_ACCESS_KEY_ID") or not (os.environ.get("AWS_PROFILE") or file.exists()):
        return {}
    profiles = configparser.ConfigParser()
    profiles.read(file)
    profile = os.environ.get("AWS_PROFILE", "default")
    names = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
    }
    keys = {name: profiles.get(profile, key, fallback="") for key, name in names.items()}
    found: S3Config = {name: value for name, value in keys.items() if value}  # type: ignore[assignment]
    return found if {"access_key_id", "secret_access_key"} <= found.keys() else None


def _key(path: str) -> str:
    return path.partition("/")[2]


@contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Raise FileExistsError if a condition does not hold, ConnectionError if the store gives no answer to act on."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise FileExistsError(path) from None
    except BaseError as error:
        reason = str(error).partition("\n")[0]
        if "after" in reason and "retries" in reason:
            raise ConnectionError(reason) from None
        raise OSError(reason) from None
