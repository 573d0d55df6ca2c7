"""Find the store of an address, and connect to it.

pyarrow's clients serve s3, gs, az (abfs) and hdfs; fsspec serves all other schemes. Credentials and endpoints come from
the environment, in each store's usual variables, never from the address: addresses are written to the ledger.

| store | environment, in addition to the configuration files of the store's own tools |
| --- | --- |
| s3 | AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE; self-hosted: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL;
`s3://anonymous@bucket/…` or AWS_NO_SIGN_REQUEST for public ones; for one bucket alone see `s3` |
| gs | GOOGLE_APPLICATION_CREDENTIALS; `gs://anonymous@bucket/…` for public ones |
| az | AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _ACCOUNT_KEY or _SAS_TOKEN |
| hdfs | HADOOP_HOME, JAVA_HOME, CLASSPATH |
| http, https | HTTP_PROXY, HTTPS_PROXY, ~/.netrc; read-only |
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable
from functools import lru_cache

import fsspec
import pyarrow.fs as pafs

from batchnst import chains
from batchnst.errors import RequestError, StorageError
from batchnst.redaction import has_credentials, public
from batchnst.storage.azure import AzureAccount
from batchnst.storage.conditional import azure_client, gs_client, s3_client
from batchnst.storage.retries import is_transient, retry
from batchnst.storage.s3 import S3Options, canonical
from batchnst.storage.stores import FILE_URIS, Store, from_fsspec

S3_ATTEMPTS = 5
"""Attempts of pyarrow's S3 client at one request. Code that reads through pyarrow directly has no other retries."""

GS_RETRY_SECONDS = 10
"""Seconds for which Google's client retries one request."""

REQUEST_BYTES = 8 << 20
"""Largest file that pyarrow sends to an object store in one request, in bytes; larger ones are sent in parts."""

TIMEOUT_SECONDS = 30.0
"""Seconds without data after which a connection is dropped."""

WEB_CONNECT_SECONDS = 10.0
"""Seconds in which a web server must accept a connection."""

WEB_TOTAL_SECONDS = 3600.0
"""Seconds after which a request to a web server is dropped, even if data still comes."""


def store_of(address: str) -> Store:
    """The store of the URI `address`, opened once per process.

    Raises RequestError if no store can be opened by this URI, StorageError if the store does not answer.
    """
    address = canonical(address)
    if problem := address_problem(address):
        raise RequestError(problem)
    if chains.Chain.of(address):
        raise RequestError(f"{address}: is inside another file, which can only be read")
    scheme, _, rest = address.partition("://")
    return _open(scheme, rest.partition("/")[0])


def address_problem(address: str) -> str | None:
    """Why the URI `address` is refused: it carries credentials or options, or is no address inside another file.

    None if it is not refused.
    """
    if problem := chains.problem(address):
        return problem
    chain = chains.Chain.of(address)
    for part in map(canonical, [chain.outer] if chain else address.split("::")):
        scheme, _, rest = part.partition("://")
        if has_credentials(part):
            advice = _CREDENTIALS.get(scheme, _of_fsspec(scheme))
            return f"{public(part)}: no passwords or keys in addresses: they would be written to the ledger; {advice}"
        if scheme == "file" and rest.partition("/")[0] not in ("", "localhost", socket.gethostname()):
            return f"{part}: names another machine; expected file:///… with three slashes, or a path"
        if scheme in _PYARROW and scheme != "file" and re.search(r"\?[\w.%-]+=", rest):
            return (
                f"{public(part.partition('?')[0])}: options after a ? are not read; set them in the environment "
                "(for self-hosted S3: AWS_ENDPOINT_URL and AWS_REGION)"
            )
    return None


_AZURE = "set AZURE_STORAGE_ACCOUNT_NAME, with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, in the environment"
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
    **dict.fromkeys(("gs", "gcs"), "set GOOGLE_APPLICATION_CREDENTIALS in the environment"),
    **dict.fromkeys(("az", "abfs", "abfss"), _AZURE),
    **dict.fromkeys(("hdfs", "viewfs"), "get a Kerberos ticket by kinit"),
    **dict.fromkeys(("http", "https"), "write them into ~/.netrc, for this host"),
}
"""Where each store's credentials belong, as advice to the user."""


def _of_fsspec(scheme: str) -> str:
    """Advice on the credentials of a scheme that fsspec serves: it reads its arguments from the environment too."""
    name = re.sub(r"\W", "_", scheme).upper()
    return f"set FSSPEC_{name}_USERNAME and FSSPEC_{name}_PASSWORD in the environment"


def store_name(address: str) -> str:
    """The name of the store that holds `address`: a bucket, a web host, or a disk of this machine by its mount point.

    Files of one store may become unreadable together, others do not. The name has no user and no password.
    """
    address = chains.outer_of(address)
    scheme, separator, rest = address.partition("://")
    if not separator or scheme == "file":
        return f"{_mount_point(os.path.dirname(rest if separator else address))} on {socket.gethostname()}"
    name = rest.partition("/")[0]
    user, _, host = name.rpartition("@")
    return f"{scheme}://{host if ':' in user or scheme in ('http', 'https') else name}"


@lru_cache(maxsize=4096)
def _mount_point(folder: str) -> str:
    """The mount point above `folder`, which is not touched: a disk may hang."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            points = [line.split()[1].replace("\\040", " ") for line in file]
    except OSError:  # not on Linux
        points = []
    inside = f"{os.path.abspath(folder)}/"
    return max((point for point in points if inside.startswith(f"{point.rstrip('/')}/")), key=len, default="/")


@lru_cache(maxsize=64)
def _open(scheme: str, name: str) -> Store:
    prefix = f"{scheme}://{name}"
    try:
        return retry(lambda: _PYARROW.get(scheme, _by_fsspec)(prefix, name))
    except (ValueError, OSError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        if is_transient(error):
            raise StorageError(f"{prefix}: does not answer: {reason}") from None
        raise RequestError(f"{prefix}: no storage can be opened by this URI: {reason}") from None


def _s3(prefix: str, name: str) -> Store:
    options = S3Options.of(name)
    bucket, endpoint = options.bucket, options.endpoint
    filesystem = pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=options.region or (None if endpoint else pafs.resolve_s3_region(bucket)),
        connect_timeout=TIMEOUT_SECONDS,
        request_timeout=TIMEOUT_SECONDS,
        allow_delayed_open=True,  # one request for a small file, not three
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        **options.for_pyarrow(),
    )
    return Store(
        filesystem,
        prefix,
        bucket,
        atomic_bytes=REQUEST_BYTES,
        conditional=s3_client(bucket, endpoint, TIMEOUT_SECONDS, options.for_obstore()),
    )


def _gs(prefix: str, name: str) -> Store:
    filesystem, root = pafs.FileSystem.from_uri(f"{prefix}?retry_limit_seconds={GS_RETRY_SECONDS}")
    emulator = os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT")  # the variable of Google's own clients
    read_only = name.startswith("anonymous@")
    client = None if read_only else gs_client(root, emulator, TIMEOUT_SECONDS)
    return Store(filesystem, prefix, root, atomic_bytes=REQUEST_BYTES, conditional=client)


def _az(prefix: str, name: str) -> Store:
    """A container of Azure.

    In `az://container/…` the account is the environment's; `abfs://container@account.dfs.core.windows.net/…` names it.
    """
    container, _, host = name.partition("@")
    account = AzureAccount.of(host.partition(".")[0])
    client = azure_client(container, account.for_obstore(), TIMEOUT_SECONDS)
    return Store(pafs.AzureFileSystem(**account.for_pyarrow()), prefix, container, conditional=client)


def _hdfs(prefix: str, name: str) -> Store:
    filesystem, root = pafs.FileSystem.from_uri(f"{prefix}/")
    return Store(filesystem, prefix, root)


def _file(prefix: str, name: str) -> Store:
    return FILE_URIS


_PYARROW: dict[str, Callable[[str, str], Store]] = {
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
"""Openers of the schemes that pyarrow serves."""


def _by_fsspec(prefix: str, name: str) -> Store:
    scheme = prefix.partition(":")[0]
    if scheme in ("http", "https"):
        from batchnst.storage.http import web_filesystem  # the package that it needs may be missing

        filesystem = web_filesystem(scheme, WEB_TOTAL_SECONDS, WEB_CONNECT_SECONDS, TIMEOUT_SECONDS)
        return Store(from_fsspec(filesystem), prefix, prefix, writable=False)
    filesystem, root = fsspec.core.url_to_fs(prefix)
    return Store(from_fsspec(filesystem), prefix, root, atomic_bytes=sys.maxsize if scheme == "memory" else 0)
