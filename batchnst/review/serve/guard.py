"""Decides who may see a live page: this machine alone, or whoever has the token."""

from __future__ import annotations

import hmac
import secrets
import socket
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

COOKIE = "batchnst"

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of all answers."""


class Guard:
    """Checks every request. `token` is None on the loopback address, where none is needed."""

    def __init__(self, host: str) -> None:
        """`host` is the address that the server listens on."""
        self.token = None if is_loopback(host) else secrets.token_urlsafe(32)
        names = {"localhost"} if self.token is None else {"localhost", host, socket.gethostname(), socket.getfqdn()}
        self._names = {name.lower() for name in names}

    @web.middleware
    async def check(self, request: web.Request, handler: web.Handler) -> web.StreamResponse:  # type: ignore[name-defined]
        """Answer `request` by `handler` if it may be answered."""
        answer = self._refusal(request)
        if answer is None and self.token and "token" in request.query:
            answer = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": "/"})
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="Strict", path="/")
        answer = answer or await handler(request)
        if not answer.prepared:
            answer.headers.update({name: value for name, value in HEADERS.items() if name not in answer.headers})
        return answer

    def _refusal(self, request: web.Request) -> web.Response | None:
        """The answer to a request that is refused; None for others."""
        if not self._is_ours(request.headers.get("Host", "")):
            # A page of another site whose name leads to this address must not read what is here.
            return web.Response(status=HTTPStatus.MISDIRECTED_REQUEST, text="This name is not that of this server.\n")
        if self.token and not self._has_token(request):
            text = "Open the address that `batchnst serve` has printed, with its token.\n"
            return web.Response(status=HTTPStatus.UNAUTHORIZED, text=text)
        return None

    def _has_token(self, request: web.Request) -> bool:
        given = request.query.get("token") or request.cookies.get(COOKIE) or ""
        return hmac.compare_digest(given.encode(errors="replace"), (self.token or "").encode())

    def _is_ours(self, header: str) -> bool:
        """True if a request's Host is a name of this server, or an IP address, which no other site can have."""
        try:
            name = (urlsplit(f"//{header}").hostname or "").lower()
            if name in self._names:
                return True
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self.token is not None


def is_loopback(host: str) -> bool:
    """True if only this machine reaches `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
