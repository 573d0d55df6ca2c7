"""Choose the address of a Ray cluster and set Ray's environment variables.

This happens before Ray is imported, because Ray reads the variables on import.
"""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

from batchnst.errors import EngineError

LOCAL = "local"
"""Address that makes Ray start a cluster on this machine, for this run alone."""

LONGEST_SOCKET = 107
"""Longest path of a socket on Linux, in bytes."""

_SOCKET = "ray/session_2026-11-28_16-20-00_000000_4194304/sockets/plasma_store.99"
"""A path of the length of Ray's longest for a socket."""


def choose_address(address: str | None) -> str:
    """Return the address to connect to, and set Ray's environment variables for it.

    The default is $RAY_ADDRESS, then LOCAL. Raises EngineError if nothing listens there; Ray would try for minutes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if address == "auto":
        address = _current_cluster() or address
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
    if address == LOCAL:
        _check_folder(_temporary_folder())
    return address


def _temporary_folder() -> Path:
    """The folder that Ray puts its own folder `ray` into."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _current_cluster() -> str:
    """The address that `ray start` has stored, which Ray calls `auto`; empty if there is none."""
    file = _temporary_folder() / "ray" / "ray_current_cluster"
    try:
        return file.read_text().strip() if file.exists() else ""
    except OSError as error:
        raise EngineError(f"Ray at auto: {file} cannot be read: {error.strerror}; give its address") from None


def _check_folder(folder: Path) -> None:
    """Raise EngineError if Ray cannot keep its files and sockets in `folder`, or in one that it has to make for it."""
    advice = "set RAY_TMPDIR to a short folder of your own"
    longest = len(os.fsencode(folder / _SOCKET))
    if longest > LONGEST_SOCKET:
        raise EngineError(
            f"Ray's sockets in {folder} would have paths of {longest} bytes, and Linux takes {LONGEST_SOCKET}; {advice}"
        )
    place = next(path for path in (folder / "ray", folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise EngineError(f"Ray needs {place} as a folder, and it is a file; {advice}")
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        owner, user = _user_name(place.stat().st_uid), _user_name(os.geteuid())
        raise EngineError(f"Ray needs {place}, which belongs to {owner}, and {user} may not write there; {advice}")


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


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
