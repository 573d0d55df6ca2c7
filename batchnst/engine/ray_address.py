"""Choose the address of a Ray cluster and set Ray's environment variables.

This happens before Ray is imported, because Ray reads the variables on import.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from batchnst.errors import EngineError

LOCAL = "local"
"""Address that makes Ray start a cluster on this machine, for this run alone."""

_CURRENT_CLUSTER = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
"""File in which `ray start` stores the address that Ray calls `auto`."""


def choose_address(address: str | None) -> str:
    """Return the address to connect to, and set Ray's environment variables for it.

    The default is $RAY_ADDRESS, then LOCAL. Raises EngineError if nothing listens there; Ray would try for minutes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if address == "auto" and _CURRENT_CLUSTER.exists():
        address = _CURRENT_CLUSTER.read_text().strip()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # else Ray prints log lines of raylets on stdout
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise EngineError(f"Ray at {address}: cannot be reached: {error.strerror or error}") from None
    if "RAY_AUTH_MODE" not in os.environ and address != LOCAL and _requires_token(address):
        os.environ["RAY_AUTH_MODE"] = "token"
    return address


def _requires_token(address: str) -> bool:
    """True if the cluster at `address` accepts only clients that send its token.

    The driver must use the same mode as the cluster. A cluster that requires tokens refuses a driver without one. A
    driver that requires tokens refuses the workers of an open cluster, which have none and then take it for dead.
    """
    import grpc

    with grpc.insecure_channel(address.removeprefix("ray://")) as channel:
        get_cluster_id = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            get_cluster_id(b"", timeout=10)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
