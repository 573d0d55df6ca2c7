"""Real S3 servers for tests, a proxy before them that loses, cuts and delays what passes, and a bad web server."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import pyarrow.fs as pafs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

INSTALLED = Path(__file__).parents[2] / ".venv" / "servers"
"""Where tests/tools/servers.sh puts them."""

BUCKET = "batchnst"

ENVIRONMENT = {
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "S3RVER",
    "AWS_SECRET_ACCESS_KEY": "S3RVER",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # s3rver stores the others as if they were of the file
}
"""What a user of either S3 server sets, but for AWS_ENDPOINT_URL."""

AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that azurite has, for everybody."""

AZURITE = "npm install --prefix .venv/servers azurite"
"""`make test` does not install it: it takes 366 MB."""

START_SECONDS = 60.0


class Fault(Enum):
    """What can happen to a request between client and store."""

    DROP = auto()  # the store never hears of it
    LOSE = auto()  # the store does it, the answer is lost
    CUT_REQUEST = auto()  # the store hears the first half of it
    CUT_ANSWER = auto()  # the client hears the first half of the answer
    SLOW_DOWN = auto()  # the store is too busy
    TOO_MANY = auto()  # something before it counts requests
    BAD_GATEWAY = auto()  # something before it does not reach it
    DENY = auto()  # the store says no
    DELAY = auto()  # it takes its time


SAID = {
    Fault.SLOW_DOWN: (503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"),
    Fault.TOO_MANY: (429, b"<Error><Code>TooManyRequests</Code><Message>Wait.</Message></Error>"),
    Fault.BAD_GATEWAY: (502, b"<html><body>Bad Gateway</body></html>"),
    Fault.DENY: (403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
}
"""What is answered in the store's name."""

PASSING = [fault for fault in Fault if fault is not Fault.DENY]
QUICK = [Fault.SLOW_DOWN, Fault.CUT_ANSWER, Fault.LOSE]
"""One of each kind of passing fault: an answer that says so, half an answer, and none to a request that was met."""

Faults = Callable[[str, str], Fault | None]
"""What happens to a request, by its method and its path with the query."""


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """The URL of a moto server with a bucket; it keeps everything in memory."""
    server, port = _find("bin/moto_server"), free_port()
    with _serving([server, "-H", "127.0.0.1", "-p", str(port)], port, folder):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        yield f"http://127.0.0.1:{port}"


@contextmanager
def s3rver(folder: Path) -> Iterator[str]:
    """The URL of an s3rver with a bucket; it keeps everything in `folder`."""
    server, port = _find("node_modules/.bin/s3rver"), free_port()
    options = [
        "-a",
        "127.0.0.1",
        "-p",
        str(port),
        "-d",
        str(folder),
        "--no-vhost-buckets",
        "--configure-bucket",
        BUCKET,
    ]
    with _serving([server, *options], port, folder):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """The URL of Microsoft's own emulator of Azure, with a container; it keeps everything in `folder`."""
    server, port = _find("node_modules/.bin/azurite-blob", AZURITE), free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "-l", str(folder), "--skipApiVersionCheck"]
    with _serving([server, *options, "--disableTelemetry"], port, folder):
        authority = {"blob_storage_authority": f"127.0.0.1:{port}", "blob_storage_scheme": "http"}
        pafs.AzureFileSystem(AZURE_ACCOUNT, account_key=AZURE_KEY, **authority).create_dir(BUCKET)
        yield f"http://127.0.0.1:{port}"


def _find(name: str, install: str = "tests/tools/servers.sh") -> str:
    found = shutil.which(INSTALLED / name) or shutil.which(Path(name).name)
    if found is None:
        pytest.skip(f"no {Path(name).name} here: run `{install}`")
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _serving(command: list[str], port: int, folder: Path) -> Iterator[None]:
    """A server from when it answers to the end of `with`."""
    legacy = {**os.environ, "NODE_OPTIONS": "--openssl-legacy-provider"}  # for the tokens of s3rver's listings
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=legacy) as process:
        try:
            _wait_for(process, port, folder / "log")
            yield
        finally:
            process.terminate()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} does not answer: {log.read_text()}")


class Background(ThreadingHTTPServer):
    """A web server that answers in threads of this process while its `with` block lasts."""

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Proxy(Background):
    """A proxy before a server, in threads of this process.

    requests: those it saw, as `METHOD path`. sent: bytes of the answers.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server: str) -> None:
        super().__init__(_Handler)
        self.server = server.removeprefix("http://")
        self.faults: Faults = lambda method, path: None
        self.delay_seconds = 0.02
        self.requests: list[str] = []
        self.sent = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the test."""

    def first(self, fault: Fault, times: int = 1) -> None:
        """Do this to the first requests of every method from now on."""
        seen: Counter[str] = Counter()

        def happens(method: str, path: str) -> Fault | None:
            seen[method] += 1
            return fault if seen[method] <= times else None

        self.faults = happens

    def sometimes(self, seed: int, share: float) -> None:
        """Do any of the faults that pass to this share of the requests from now on."""
        dice = random.Random(seed)
        self.faults = lambda method, path: dice.choice(PASSING) if dice.random() < share else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_any(self) -> None:
        """Pass a request on, and the answer back, with what happens between."""
        body = self._body()
        self.server.requests.append(f"{self.command} {self.path}")
        fault = self.server.faults(self.command, self.path)
        if fault is Fault.DELAY:
            time.sleep(self.server.delay_seconds)
        if fault in SAID:
            status, text = SAID[fault]
            self._answer(status, [] if self.command == "HEAD" else [("Content-Type", "application/xml")], text)
        elif fault is Fault.CUT_REQUEST:
            self._forward(body, cut=True)
        elif fault is not Fault.DROP:
            answer = self._forward(body)
            if fault is not Fault.LOSE:
                self._answer(*answer, cut=fault is Fault.CUT_ANSWER)
        if fault not in (None, Fault.DELAY):
            self._hang_up()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body: bytes, cut: bool = False) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.server)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "content-length", "expect", "transfer-encoding"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Connection", "close")
        connection.endheaders(body[: len(body) // 2] if cut else body)
        if cut:
            connection.close()
            return 0, [], b""
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), content

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        known = {name.lower(): value for name, value in headers}
        length = known.get("content-length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent += len(body)
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class Generations(Background):
    """Objects with the conditions of Google's XML API, as its documentation describes them: no server of Google's own,
    nor an emulator that knows them, can be installed here.
    """

    def __init__(self) -> None:
        super().__init__(_GenerationsHandler)
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.lock = threading.Lock()


class _GenerationsHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Generations

    def do_HEAD(self) -> None:
        if self.path in self.server.objects:
            self._answer(200, *self.server.objects[self.path])
        else:
            self._answer(404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = self.headers.get("x-goog-if-generation-match")
        with self.server.lock:
            generation, _ = self.server.objects.get(self.path, (0, b""))
            if wanted is not None and int(wanted) != generation:
                self._answer(412)
                return
            self.server.objects[self.path] = generation + 1, body
        self._answer(200, generation + 1)

    def _answer(self, status: int, generation: int = 0, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if generation:
            self.send_header("x-goog-generation", str(generation))
            self.send_header("ETag", f'"{generation}"')
            self.send_header("Last-Modified", "Wed, 25 Nov 2026 00:00:00 GMT")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class Web(Background):
    """A web server that has the same file everywhere, in threads of this process, and misbehaves for some paths.

    faults: what happens to a path: a status, `hang` (no answer), `drip` (a byte a second), `circle` (redirects to
    itself), `elsewhere` (redirects to a file), `garble` (no HTTP), `endless` (parts of the file never end), or `busy`
    (429 with `retry_after`, until `busy_seconds` after the first request).
    requests: how often each path was asked for. refused: of these, as busy. sent: bytes of endless parts.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, data: bytes, certificate: Path | None = None) -> None:
        super().__init__(_WebHandler)
        self.data, self.faults, self.requests = data, dict[str, int | str](), Counter[str]()
        self.ended, self.sent = threading.Event(), 0
        self.busy_seconds, self.retry_after, self.refused = 1.0, "1", 0
        self.busy_until: float | None = None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        super().__exit__(*exception)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the test."""


class _WebHandler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        fault = self.server.faults.get(self.path)
        if fault == "hang":
            self.server.ended.wait()
        elif isinstance(fault, int):
            self.send_error(fault)
        elif fault == "busy" and self._is_busy():
            self.send_response(429)
            self.send_header("Retry-After", self.server.retry_after)
            self.end_headers()
        elif fault in ("circle", "elsewhere"):
            self.send_response(302)
            self.send_header("Location", self.path if fault == "circle" else "file:///etc/passwd")
            self.end_headers()
        elif fault == "garble":
            self.wfile.write(b"\x00 \n" * 3000)
        elif fault == "endless" and self.command == "GET":
            self._send_endless()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.data)))
            self.end_headers()
            if self.command != "HEAD":
                self._send(1 if fault == "drip" else len(self.server.data))

    do_HEAD = do_GET  # noqa: N815

    def _is_busy(self) -> bool:
        self.server.busy_until = self.server.busy_until or time.monotonic() + self.server.busy_seconds
        busy = time.monotonic() < self.server.busy_until
        self.server.refused += busy
        return busy

    def _send_endless(self) -> None:
        self.send_response(206)
        self.end_headers()
        self.wfile.write(self.server.data)
        while not self.server.ended.is_set():
            self.wfile.write(bytes(1 << 16))
            self.server.sent += 1 << 16

    def _send(self, part: int) -> None:
        for start in range(0, len(self.server.data), part):
            self.wfile.write(self.server.data[start : start + part])
            if part == 1 and self.server.ended.wait(1):
                return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def expired_certificate(folder: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that expired long ago; it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(2021, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "expired.pem"
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*plain) + certificate.public_bytes(serialization.Encoding.PEM))
    return path
