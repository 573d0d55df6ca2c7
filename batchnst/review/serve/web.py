"""The server of a live page: the page, parts of its pairs, events, and pictures."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import quote

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from batchnst.errors import BatchNSTError, RequestError
from batchnst.ledger.out import Out
from batchnst.redaction import redact
from batchnst.review.report import build
from batchnst.review.serve.gallery import Gallery
from batchnst.review.serve.guard import Guard
from batchnst.review.serve.measures import Measures
from batchnst.review.serve.night import Night
from batchnst.storage.threads import start

LOOK_SECONDS = 2.0
"""Seconds between two looks at OUT, while somebody watches."""

BEAT_SECONDS = 15.0
"""Longest silence of a stream of events, in seconds."""

PREVIEWS_AT_ONCE = 4
"""Pictures that are read and decoded at the same time."""

FOREVER = "private, max-age=31536000, immutable"
"""Cache-Control of pictures whose address has their hash."""

T = TypeVar("T")


def serve(out: Out, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve the live page of `out` until this process is interrupted; `announce` gets its address.

    With port 0 the system chooses one. Raises RequestError if nothing can listen there.
    """
    asyncio.run(_serve(out, host, port, announce))


async def _serve(out: Out, host: str, port: int, announce: Callable[[str], None]) -> None:
    guard = Guard(host)
    site = Site(out)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    app = web.Application(middlewares=[guard.check])
    app.add_routes(site.routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror or error
            raise RequestError(f"--host {host} --port {port}: cannot be served on: {reason}") from None
        announce(_address(host, runner.addresses[0][1], guard.token))
        await site.watch()
    finally:
        await runner.cleanup()


def _is_ours(record: logging.LogRecord) -> bool:
    """False for the log of a request that is no HTTP: its sender is told, and nobody else needs to know."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _address(host: str, port: int, token: str | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


async def _in_thread(action: Callable[[], T]) -> T:
    """Call `action` in a thread that does not keep this process from ending."""
    return await asyncio.wrap_future(start(action))


async def _answered(action: Callable[[], T]) -> T:
    """Call `action`, which reads OUT; the page is told to ask again if OUT cannot be read."""
    try:
        return await _in_thread(action)
    except (BatchNSTError, OSError):
        raise web.HTTPServiceUnavailable from None


class Site:
    """Answers requests, from what it has read of OUT."""

    def __init__(self, out: Out) -> None:
        self._night = Night(out)
        self._gallery = Gallery(self._night)
        self._measures = Measures(self._night, self._gallery)
        self._page = build.live_page(out)
        self._slots = asyncio.Semaphore(PREVIEWS_AT_ONCE)
        self._measuring = asyncio.Semaphore(1)  # so that pictures come first
        self._news = asyncio.Condition()
        self._watched = asyncio.Event()
        self._watchers = 0

    def routes(self) -> list[web.RouteDef]:
        """All addresses that are served."""
        return [
            web.get("/", self.page),
            web.get("/pairs", self.pairs),
            web.get("/details", self.details),
            web.get("/spark", self.sparks),
            web.get("/loud", self.loud),
            web.get("/events", self.events, allow_head=False),
            web.get("/preview/{path:.+}", self.preview),
            web.get("/{path:(?:images|previous)/.+}", self.picture),
        ]

    async def watch(self) -> None:
        """Look at OUT every LOOK_SECONDS while a page is open; never returns."""
        while True:
            await self._watched.wait()
            try:
                await _in_thread(self._night.look)
                self._night.problem = ""
            except (BatchNSTError, OSError) as error:
                self._night.problem = f"What is shown may be old: {redact(str(error))}"
            async with self._news:
                self._news.notify_all()
            await asyncio.sleep(LOOK_SECONDS)

    async def page(self, request: web.Request) -> web.Response:
        """The page, without pairs."""
        return _compressed(web.Response(body=self._page, content_type="text/html", charset="utf-8"))

    async def pairs(self, request: web.Request) -> web.Response:
        """Pairs that have changed since a number of changes."""
        since = request.query.get("since", "")
        number = int(since) if since.isdecimal() and len(since) < 16 else 0
        return _json(await _in_thread(lambda: self._night.part(request.query.get("epoch", ""), number)))

    async def details(self, request: web.Request) -> web.Response:
        """All that the dialog of a pair shows."""
        pair_id = request.query.get("id", "")
        found = await _answered(lambda: self._measures.details(pair_id))
        if found is None:
            raise web.HTTPNotFound
        return _json(found)

    async def sparks(self, request: web.Request) -> web.Response:
        """The sparklines of pairs."""
        ids = request.query.getall("id", [])
        return _json(await _answered(lambda: self._measures.sparks(ids)))

    async def loud(self, request: web.Request) -> web.Response:
        """The loudness of flat areas of pairs; one request is answered at a time."""
        ids = request.query.getall("id", [])
        async with self._measuring:
            return _json(await _answered(lambda: self._measures.loud(ids)))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The state of the run, now and whenever it may have changed, as server-sent events.

        Each has the epoch and number of changes as its id; after a break, one that the browser has is not sent again.
        """
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await answer.prepare(request)
        self._watchers += 1
        self._watched.set()
        try:
            await self._send(answer, request.headers.get("Last-Event-ID", ""))
        except ConnectionError:  # the browser is gone
            pass
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._watched.clear()
        return answer

    async def _send(self, answer: web.StreamResponse, last: str) -> None:
        """Send events until the browser leaves; `last` is the id of the last one that it has."""
        sent = ""
        while True:
            state = self._night.state()
            name, text = f"{state['epoch']}-{state['seq']}", json.dumps(state)
            if text != sent and not (name == last and not sent and not self._night.problem):
                await answer.write(f"id: {name}\ndata: {text}\n\n".encode())
            else:
                await answer.write(b": still here\n\n")
            sent = text
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS), self._news:
                    await self._news.wait()

    async def preview(self, request: web.Request) -> web.Response:
        """A preview of a picture."""
        path = request.match_info["path"]
        async with self._slots:
            data = await _in_thread(lambda: self._gallery.preview(path))
        if data is None:
            raise web.HTTPNotFound
        return web.Response(body=data, content_type="image/webp", headers={"Cache-Control": FOREVER})

    async def picture(self, request: web.Request) -> web.Response:
        """A picture as it is."""
        path = request.match_info["path"]
        async with self._slots:
            found = await _in_thread(lambda: self._gallery.picture(path))
        if found is None:
            raise web.HTTPNotFound
        data, kind = found
        disposition = f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2], safe='')}"
        headers = {"Content-Security-Policy": "default-src 'none'; sandbox", "Content-Disposition": disposition}
        return web.Response(body=data, content_type=kind, headers=headers)


def _json(value: Any) -> web.Response:
    return _compressed(web.Response(text=json.dumps(value, default=str), content_type="application/json"))


def _compressed(answer: web.Response) -> web.Response:
    answer.enable_compression()
    return answer
