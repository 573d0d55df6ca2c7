"""Accounts of Azure's store, as Microsoft's own tools name them in the environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from obstore.store import AzureConfig  # exists for type checkers only


@dataclass(frozen=True)
class AzureAccount:
    """An account and how to prove who asks: by its key, or by a shared access signature, or by neither.

    scheme, host: of its blobs, empty if they are the usual ones. In front of a host that begins with a dot comes the
    account's name, behind any other one.
    """

    name: str
    key: str
    signature: str
    scheme: str
    host: str

    @classmethod
    def of(cls, name: str) -> Self:
        """The account `name`, or the environment's if `name` is empty; raises ValueError if there is none."""
        parts = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
        connection = dict(part.split("=", 1) for part in parts if "=" in part)
        scheme, _, rest = connection.get("BlobEndpoint", "").partition("://")
        host, in_host = rest.partition("/")[0], ""
        if with_name := re.fullmatch(r"([^.]+)(\.blob\..+)", host):
            in_host, host = with_name.groups()
        elif not host and (suffix := connection.get("EndpointSuffix")):
            scheme, host = connection.get("DefaultEndpointsProtocol", "https"), f".blob.{suffix}"
        found = name or connection.get("AccountName") or in_host
        found = found or _first("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
        if not found:
            raise ValueError("set AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING")
        key = connection.get("AccountKey") or _first("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
        signature = connection.get("SharedAccessSignature") or _first("AZURE_STORAGE_SAS_TOKEN")
        return cls(found, key, "" if key else signature, scheme, host)

    def for_pyarrow(self) -> dict[str, str]:
        """Arguments of pyarrow's AzureFileSystem."""
        options = {
            "account_name": self.name,
            "account_key": self.key,
            "sas_token": self.signature,
            "blob_storage_scheme": self.scheme,
            "blob_storage_authority": self.host,
            "dfs_storage_scheme": self.scheme,
            "dfs_storage_authority": self.host.replace(".blob.", ".dfs."),
        }
        return {option: value for option, value in options.items() if value}

    def for_obstore(self) -> AzureConfig:
        """Configuration of obstore's AzureStore."""
        config: AzureConfig = {"account_name": self.name}
        if self.key:
            config["account_key"] = self.key
        if self.signature:
            config["sas_key"] = self.signature
        if self.host:
            host = f"{self.name}{self.host}" if self.host.startswith(".") else f"{self.host}/{self.name}"
            config["endpoint"] = f"{self.scheme}://{host}"
        return config


def _first(*names: str) -> str:
    """The first of these environment variables that is set and not empty, or an empty text."""
    return next(filter(None, map(os.environ.get, names)), "")
