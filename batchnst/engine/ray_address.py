"""What is to be known of a Ray cluster before Ray is imported, which reads its settings there and then."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from batchnst.errors import EngineError

OWN = "local"
"""The address of a cluster of this machine's own."""

_STARTED_HERE = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
"""Where `ray start` leaves the address that Ray calls `auto`."""


def choose(address: str | None) -> str:
    """The address to connect to, an own cluster's if nobody names one, with Ray set up for it.

    Raises EngineError at once where nobody listens; Ray itself tries for minutes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or OWN
    if address == "auto" and _STARTED_HERE.exists():
        address = _STARTED_HERE.read_text().strip()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # raylets' last words would be printed on stdout
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise EngineError(f"Ray at {address}: cannot be reached: {error.strerror or error}") from None
    if "RAY_AUTH_MODE" not in os.environ and address != OWN and _asks_for_token(address):
        os.environ["RAY_AUTH_MODE"] = "token"
    return address


def _asks_for_token(address: str) -> bool:
    """Whether a cluster lets in only who shows its token.

    A driver that shows none is not let in there, and one that wants to see one from the workers of an open cluster,
    who have none, is taken for dead by them. So it must be known.
    """
    import grpc

    with grpc.insecure_channel(address.removeprefix("ray://")) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=10)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
