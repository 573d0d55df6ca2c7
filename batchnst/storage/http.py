"""Files on web servers, by fsspec: no more of an answer is read than was asked for."""

from __future__ import annotations

import re
from typing import Any

import fsspec
from aiohttp import ClientResponse, ClientTimeout

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
"""The header that asks for a part of a file, from its first byte to its last."""


class _Answer(ClientResponse):
    """An answer to a request, which ends after the bytes that its `Range` asks for, whatever the server sends."""

    async def read(self) -> bytes:
        """The body, or as much of it as was asked for: a server may send without an end, or what unpacks to much."""
        asked = _RANGE.fullmatch(self.request_info.headers.get("Range", ""))
        if asked is None:
            return await super().read()
        data, most = bytearray(), int(asked[2]) - int(asked[1]) + 1
        while piece := await self.content.read(most - len(data)):
            data += piece
        return bytes(data)


def web_filesystem(scheme: str, total: float, connect: float, silence: float) -> Any:
    """The filesystem of fsspec for `scheme`, http or https.

    A request takes `total` seconds at most, a connection `connect`, and a server may be silent for `silence` seconds.
    """
    timeout = ClientTimeout(total=total, connect=None, sock_connect=connect, sock_read=silence)
    options = {"trust_env": True, "timeout": timeout, "response_class": _Answer}
    return fsspec.get_filesystem_class(scheme)(cache_type="none", client_kwargs=options)
