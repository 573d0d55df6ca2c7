"""Which store an address lies in.

pyarrow's own clients serve s3, gs, az (abfs) and hdfs, fsspec's everything else. Credentials and endpoints come from
the environment, as each store's users know them, never from the address: addresses stand in every row of the ledger.

| store | environment, beside what its own tools leave on the machine |
| --- | --- |
| s3 | AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE; self-hosted: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL |
| gs | GOOGLE_APPLICATION_CREDENTIALS; `gs://anonymous@bucket/…` for public ones |
| az | AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _ACCOUNT_KEY or _SAS_TOKEN |
| hdfs | HADOOP_HOME, JAVA_HOME, CLASSPATH |
| http, https | HTTP_PROXY, HTTPS_PROXY, ~/.netrc; read-only |
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import fsspec
import pyarrow.fs as pafs

from batchnst.errors import RequestError, StorageError
from batchnst.storage.retries import may_pass, persist
from batchnst.storage.stores import Disk, Store, wrapped

TRIES = 5
"""Of S3's client at each request, within seconds; those who read through pyarrow alone have no others."""

GS_SECONDS = 10
"""What Google's client takes for its tries."""

ONE_REQUEST = 8 << 20
"""Bytes that pyarrow sends to an object store at once, and not in parts."""

SILENCE_SECONDS = 30.0
"""A connection on which nothing comes for so long is dropped."""


def store_of(address: str) -> Store:
    """The store of a URI, opened once in each process; raises RequestError, or StorageError where it is away."""
    scheme, _, rest = address.partition("://")
    if scheme in _ARROW and re.search(r"\?\w+=", rest):
        raise RequestError(
            f"{address.partition('?')[0]}: options after a ? are not read; set them in the environment, "
            "as AWS_ENDPOINT_URL and AWS_REGION for self-hosted S3"
        )
    return _open(scheme, rest.partition("/")[0])


@lru_cache(maxsize=64)
def _open(scheme: str, name: str) -> Store:
    prefix = f"{scheme}://{name}"
    try:
        return persist(lambda: _ARROW.get(scheme, _by_fsspec)(prefix, name))
    except (ValueError, OSError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        if may_pass(error):
            raise StorageError(f"{prefix}: does not answer: {reason}") from None
        raise RequestError(f"{prefix}: no storage can be opened by this URI: {reason}") from None


def _s3(prefix: str, bucket: str) -> Store:
    if "@" in bucket:
        raise RequestError(f"s3://…@{bucket.rpartition('@')[2]}: no keys in addresses: they would stand in the ledger")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    filesystem = pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=None if endpoint else pafs.resolve_s3_region(bucket),
        connect_timeout=SILENCE_SECONDS,
        request_timeout=SILENCE_SECONDS,
        allow_delayed_open=True,  # one request for a small file, not three
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
    )
    return Store(filesystem, prefix, bucket, whole=ONE_REQUEST)


def _gs(prefix: str, bucket: str) -> Store:
    filesystem, root = pafs.FileSystem.from_uri(f"{prefix}?retry_limit_seconds={GS_SECONDS}")
    return Store(filesystem, prefix, root, whole=ONE_REQUEST)


def _az(prefix: str, name: str) -> Store:
    """`az://container/…` in the account of the environment, or `abfs://container@account.dfs.core.windows.net/…`."""
    container, _, host = name.partition("@")
    return Store(pafs.AzureFileSystem(**_az_account(host.partition(".")[0])), prefix, container)


def _az_account(named: str) -> dict[str, str]:
    """What AzureFileSystem is to be told of an account, the one named or the environment's."""
    parts = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
    given = dict(part.split("=", 1) for part in parts if "=" in part)
    account = named or given.get("AccountName") or _first("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
    if not account:
        raise ValueError("set AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING")
    key = given.get("AccountKey") or _first("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
    sas = given.get("SharedAccessSignature") or _first("AZURE_STORAGE_SAS_TOKEN")
    scheme, _, rest = given.get("BlobEndpoint", "").partition("://")
    authority = rest.partition("/")[0]
    options = {
        "account_name": account,
        "account_key": key,
        "sas_token": "" if key else sas,
        "blob_storage_scheme": scheme,
        "blob_storage_authority": authority,
        "dfs_storage_scheme": scheme,
        "dfs_storage_authority": authority.replace(".blob.", ".dfs."),
    }
    return {name: value for name, value in options.items() if value}


def _first(*names: str) -> str:
    return next(filter(None, map(os.environ.get, names)), "")


def _hdfs(prefix: str, name: str) -> Store:
    filesystem, root = pafs.FileSystem.from_uri(f"{prefix}/")
    return Store(filesystem, prefix, root)


def _file(prefix: str, name: str) -> Store:
    return Disk(pafs.LocalFileSystem(), prefix, "/")


_ARROW: dict[str, Callable[[str, str], Store]] = {
    "s3": _s3,
    "gs": _gs,
    "gcs": _gs,
    "az": _az,
    "abfs": _az,
    "abfss": _az,
    "hdfs": _hdfs,
    "viewfs": _hdfs,
    "file": _file,
}


def _by_fsspec(prefix: str, name: str) -> Store:
    scheme = prefix.partition(":")[0]
    if scheme in ("http", "https"):
        return Store(wrapped(_web(scheme)), prefix, prefix, writable=False)
    filesystem, root = fsspec.core.url_to_fs(prefix)
    return Store(wrapped(filesystem), prefix, root, whole=sys.maxsize if scheme == "memory" else 0)


def _web(scheme: str) -> Any:
    kind = fsspec.get_filesystem_class(scheme)  # says which package is missing
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    return kind(cache_type="none", client_kwargs={"trust_env": True, "timeout": timeout})
