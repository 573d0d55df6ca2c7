"""The live page: what is served and what never is, and a real browser that watches OUT as it grows."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from batchnst.errors import LedgerError
from batchnst.ledger.out import Out, sort_rows
from batchnst.ledger.pictures import stored
from batchnst.ledger.schema import PairRow, RunRow
from batchnst.pictures import isolated
from batchnst.review.audit.pairs import unusual_losses
from batchnst.review.report import cards, curves
from batchnst.review.report.curves import key_of
from batchnst.review.report.loudness import loudness
from batchnst.review.report.places import Places
from batchnst.review.serve import night as night_module
from batchnst.review.serve.gallery import Gallery, _size
from batchnst.review.serve.guard import Guard
from batchnst.review.serve.measures import Measures
from batchnst.review.serve.night import Night
from batchnst.storage.files import Folder
from tests.browser import until
from tests.helpers import NOON, as_bytes, loss, row, scene

HOSTILE = '"><img src=x onerror=window.pwned=1>'
SCRIPT = "</script><script>window.pwned=1</script>"


@dataclass
class Server:
    """A running `batchnst serve`."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        found = re.search(r":(\d+)/", self.url)
        assert found
        return int(found[1])

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer; `path` is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.headers)
        connection.close()
        return found

    def first(self, part: str, **headers: str) -> str:
        """The first line of the stream of events that has `part` in it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", "/events", headers={name.replace("_", "-"): text for name, text in headers.items()})
        with closing(connection), connection.getresponse() as answer:
            while part not in (line := answer.readline().decode()):
                assert line, "the stream has ended"
            return line.rstrip()


@contextmanager
def serving(out: Path, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "batchnst", "serve", str(out), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        try:
            yield Server(process, url)
        finally:
            process.kill()


def paint(out: Path, name: str, number: int = 0, **changes: Any) -> PairRow:
    """Commit a pair with a real picture, as a worker does."""
    output = changes.pop("output", f"{name}.png")
    data = as_bytes(scene(60, 40).rotate(7 * number))
    made = row(name, output=output, output_sha256=hashlib.sha256(data).hexdigest(), width=60, height=40, recipe="{}")
    made = replace(made, finished_at=datetime.now(UTC), total_loss=1.0 + number, **changes)
    folder = Out(str(out))
    with folder.claim("r0") as claim:
        made = replace(made, run_id=claim.run_id, run_number=claim.run_number)
        pictures = {output: data} if made.status == "ok" else {}
        folder.commit(claim.lease(), pictures, [made], [], folder.previous([name]))
    return made


def begin(out: Path, pairs: int) -> None:
    """Add the row of a run."""
    run = RunRow(
        run_id="r0",
        run_number=1,
        started_at=NOON,
        manifest=f"/{SCRIPT}.csv",
        settings="{}",
        pairs=pairs,
        done=0,
        given_up=0,
        to_paint=pairs,
        engine="inline",
        host="h",
        pid=1,
    )
    Out(str(out)).begin(run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT with a pair, and files that must not be served."""
    folder = tmp_path_factory.mktemp("served")
    out, outside = folder / "out", folder / "secret.png"
    outside.write_bytes(as_bytes(Image.new("RGB", (9, 9), "red")))
    sha256 = hashlib.sha256(outside.read_bytes()).hexdigest()
    paint(out, "a")
    (out / "images" / "stray.png").write_bytes(outside.read_bytes())
    (out / "images" / "link.png").symlink_to(outside)
    (out / "images" / "deep").symlink_to(folder)
    # A ledger that somebody has tampered with: its rows name files that are there, by their own hashes.
    state = next((out / ".batchnst" / "state").iterdir())
    claimed = [
        ("link", "link.png", sha256),
        ("deep", "deep/secret.png", sha256),
        ("up", "../../secret.png", sha256),
        ("absolute", str(outside), sha256),
        ("state", f"../.batchnst/state/{state.name}", hashlib.sha256(state.read_bytes()).hexdigest()),
        ("altered", "altered.png", "0" * 64),
    ]
    (out / "images" / "altered.png").write_bytes(outside.read_bytes())
    with Out(str(out)).claim("hostile") as claim:
        rows = [
            row(name, run_id="hostile", run_number=claim.run_number, output=output, output_sha256=sha)
            for name, output, sha in claimed
        ]
        Out(str(out)).commit(claim.lease(), {}, rows, [])
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder / "out") as server:
        server.first('"run_id"')  # it looks at OUT once somebody watches
        yield server


def test_pictures_that_a_row_names_are_served_whole_and_small(server: Server, folder: Path) -> None:
    status, body, headers = server.get("/images/a.png")
    assert (status, body) == (200, (folder / "out" / "images" / "a.png").read_bytes())
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("image/png", "nosniff")
    status, body, headers = server.get("/preview/images/a.png")
    assert (status, body[8:12], headers["Content-Type"]) == (200, b"WEBP", "image/webp")


@pytest.mark.parametrize("before", ["/", "/preview/"])
@pytest.mark.parametrize(
    "path",
    [
        *("images/stray.png", "images/link.png", "images/deep/secret.png", "images/altered.png", "images/none.png"),
        *("images/../../secret.png", "images/%2e%2e/%2e%2e/secret.png", "images/..%2f..%2fsecret.png", "secret.png"),
        *("ledger/pairs", ".batchnst/state", "images/../ledger/runs", "/etc/passwd", "images//etc/passwd"),
        *("images/../.batchnst/state/000000000001.json", "images/%00", "images/" + "a" * 5000),
    ],
)
def test_nothing_else_is_served(server: Server, path: str, before: str) -> None:
    status, body, _ = server.get(before + path)
    assert status in (400, 404), body
    assert b"PNG" not in body


def test_no_file_of_the_ledger_is_among_the_addresses(server: Server, folder: Path) -> None:
    files = [path.relative_to(folder / "out") for path in (folder / "out").rglob("*") if path.is_file()]
    hidden = [str(path) for path in files if path.parts[0] != "images"]
    assert len(hidden) > 4
    assert {server.get(f"/{path}")[0] for path in hidden} == {404}
    tampered = Night(Out(str(folder / "out")))
    tampered.look()
    names = ["images/../../secret.png", f"images/{folder}/secret.png", "images/link.png", "images/deep/secret.png"]
    assert [tampered.picture(name) is not None for name in names] == [False, False, True, True]
    assert [Gallery(tampered).picture(name) for name in names] == [None] * 4
    assert [Gallery(tampered).preview(name) for name in names] == [None] * 4


def test_only_reading_is_allowed(server: Server) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert server.get("/", method)[0] == 405
    assert server.get("/", "HEAD")[0] == 200


def test_pages_of_other_names_get_nothing(server: Server) -> None:
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "", "192.168.0.1"):
        status, body, _ = server.get("/pairs", Host=host)
        assert (status, len(body) < 99) == (421, True), host
    for host in (f"localhost:{server.port}", "127.0.0.1", f"[::1]:{server.port}", "LOCALHOST:9"):
        assert server.get("/pairs", Host=host)[0] == 200, host


HOSTS = ("[::1", "[x]:y", "a@b:c", "127.0.0.1:99999", "\xff", "::1%eth0")
PATHS = (
    *("/details?id=%00", "/details?id=%ff%fe", "/details?id=" + "x" * 7000, "/pairs?since=%D9%A3&epoch=%ff"),
    *("/pairs?since=-1", "/preview/images/%00.png", "/preview/images/a.png%0d%0aX:y", "/images/%ff.png"),
    *("/images/" + "x/" * 2000, "/images/a.png?x=%ff", "/images/..%5c..%5cx.png", "//localhost/images/a.png"),
    *("/images//a.png", "/preview/previous/%2e%2e/state", "http://[/"),
)
HEADERS = (
    *("Range: bytes=9-1", "Range: bytes=\xff", "Cookie: batchnst=\xff\xfe; =; ;;", "If-Modified-Since: never"),
    *("Accept-Encoding: \xff", "If-None-Match: \xff", "Content-Length: -1", "Content-Length: 9"),
)
REQUESTS = [
    *(f"GET /pairs HTTP/1.1\r\nHost: {host}\r\n" for host in HOSTS),
    *(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n" for path in PATHS),
    *(f"GET /images/a.png HTTP/1.1\r\nHost: localhost\r\n{header}\r\n" for header in HEADERS),
    "GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: \xff\r\nConnection: close\r\n",
    *("GET\r\n", "\x16\x03\x01\r\n"),
]


def test_no_request_is_an_error_of_ours(folder: Path) -> None:
    with serving(folder / "out") as server:
        for request in REQUESTS:
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                connection.sendall(f"{request}\r\n".encode("latin-1"))
                answer = connection.recv(99).decode("latin-1")
            assert re.match(r"HTTP/1\.[01] [234]", answer), (request[:80], answer)
        server.process.send_signal(signal.SIGINT)
        _, said = server.process.communicate(timeout=20)
        assert len(said.splitlines()) == 1, said


def test_the_page_runs_no_foreign_script_and_may_not_be_framed(server: Server) -> None:
    _, body, headers = server.get("/")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', body.decode())
    assert policy
    assert "script-src 'sha256-" in policy[1]
    assert "connect-src 'self'" in policy[1]
    assert headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers


def test_details_are_those_of_a_pair_that_is_there(server: Server) -> None:
    status, body, _ = server.get("/details?id=a")
    assert (status, json.loads(body)["row"]["run_id"]) == (200, "r0")
    assert server.get("/details?id=none")[0] == server.get("/details")[0] == 404


def test_an_event_that_the_browser_has_is_not_sent_again(server: Server) -> None:
    name = server.first("id:")
    assert server.first("", Last_Event_ID=name[4:]) == ": still here"
    assert server.first("", Last_Event_ID="other-9") == name


def test_beyond_this_machine_a_token_is_needed(folder: Path) -> None:
    with serving(folder / "out", "--host", "0.0.0.0") as server:
        token = server.url.partition("?token=")[2]
        assert len(token) > 30
        for path in ("/", "/pairs", "/events", "/images/a.png", "/preview/images/a.png", "/details?id=a", "/none"):
            assert server.get(path)[0] == 401
            assert server.get(path, Cookie=f"batchnst={token[:-1]}x")[0] == 401
        assert server.get("/?token=%C3%A9")[0] == 401
        status, body, headers = server.get(f"/?token={token}")
        assert (status, headers["Location"], token in body.decode()) == (303, "/", False)
        assert re.fullmatch(rf"batchnst={token}; HttpOnly; Path=/; SameSite=Strict", headers["Set-Cookie"])
        assert server.get("/pairs", Cookie=f"batchnst={token}")[0] == 200
        assert server.get("/pairs", Cookie=f"batchnst={token}", Host="evil.example")[0] == 421
        assert server.get("/pairs", Cookie=f"batchnst={token}", Host="192.168.0.1")[0] == 200
        server.process.send_signal(signal.SIGINT)
        _, said = server.process.communicate(timeout=20)
        assert (server.process.returncode, len(said.splitlines())) == (130, 1), said
        assert token not in said


def test_who_is_asked_for_a_token() -> None:
    hosts = ("127.0.0.1", "::1", "localhost", "127.9.9.9", "0.0.0.0", "::", "192.168.0.7", "name.example")
    assert [Guard(host).token is None for host in hosts] == [True] * 4 + [False] * 4


def test_a_port_that_is_taken_is_told_in_a_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "batchnst", "serve", str(folder / "out"), "--port", port]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    expected = f"batchnst: --host 127.0.0.1 --port {port}: cannot be served on: another program listens there\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", expected)


# What a night reads ------------------------------------------------------------------------------------------------


def ids(answer: dict[str, Any]) -> list[str]:
    return list(answer["part"]["pairs"].get("id", []))


def test_each_file_is_read_once_and_a_compaction_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, read = Night(Out(str(tmp_path / "out"))), list[str]()
    real = Out.rows_of

    def rows_of(self: Out, files: list[Any], table: str, *rest: Any, **options: Any) -> Any:
        read.extend(info.path for info in files if table == "pairs")
        return real(self, files, table, *rest, **options)

    monkeypatch.setattr(Out, "rows_of", rows_of)

    def look() -> list[str]:
        read.clear()
        since = night.seq
        night.look()
        return ids(night.part(night.epoch, since))

    assert look() == []
    assert night.state() == {"epoch": night.epoch, "seq": 0, "remade": 0, "problem": ""}
    begin(tmp_path / "out", 3)
    paint(tmp_path / "out", "a")
    paint(tmp_path / "out", "b", 1)
    assert look() == ["a", "b"]
    assert (look(), read) == ([], [])
    with Out(str(tmp_path / "out")).claim("compaction") as claim:
        Out(str(tmp_path / "out")).compact(claim)
    assert (look(), len(read)) == ([], 1)
    paint(tmp_path / "out", "a", 2, attempt=2)
    assert (look(), len(read)) == (["a"], 1)
    part = night.part("another epoch", 99)
    assert ids(part) == ["b", "a"], "a server that was started again sends all"
    assert sorted(part["part"]["pairs"]) == sorted(cards.LISTED)
    assert part["part"]["pairs"]["before"][1]["path"] == "previous/a/r0-1.png"
    assert [night.state()[name] for name in ("pairs", "done", "alive")] == [3, 2, False]


def test_a_file_of_pictures_is_listed_once_also_after_others_came_and_were_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read, real = Out(str(tmp_path / "out")), list[str](), stored.read_index
    night = Night(out)

    def read_index(folder: Folder, file: str, **options: Any) -> Any:
        read.append(file)
        return real(folder, file, **options)

    def look() -> tuple[int, set[str]]:
        read.clear()
        night._added_at = float("inf")
        found = night.places(fresh=True).stored.entries["pair_id"].to_pylist()
        return len(read), set(found)

    def add(name: str) -> None:
        with out.claim(name, "tar") as claim:
            made = row(name, run_id=name, run_number=claim.run_number, output=f"{name}.png")
            out.commit(claim.lease(), {made.output: as_bytes(scene(8, 8))}, [made], [])

    monkeypatch.setattr(stored, "read_index", read_index)
    add("a")
    add("b")
    assert (look(), look()) == ((2, {"a", "b"}), (0, {"a", "b"}))
    add("c")
    assert look() == (1, {"a", "b", "c"})
    with out.claim("compaction") as claim:
        out.compact(claim)
    assert (look(), len(night._read_pictures)) == ((1, {"a", "b", "c"}), 1)


def test_an_out_that_was_removed_and_made_anew_has_only_its_own_pairs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    night = Night(Out(str(out)))
    measures = Measures(night, Gallery(night))
    for number, name in enumerate("abc"):
        paint(out, name, number)
    night.look()
    epoch, since = night.epoch, night.seq
    shutil.rmtree(out)
    assert measures.details("a") is None
    night.look()
    assert (night.remade, ids(night.part(epoch, since)), "done" in night.state()) == (1, [], False)
    paint(out, "z", 5)
    paint(out, "a", 6)
    night.look()
    assert (night.remade, ids(night.part(night.epoch, 0)), night.state()["done"]) == (1, ["z", "a"], 2)
    shutil.rmtree(out)
    paint(out, "y", 7)
    night.look()
    assert (night.remade, ids(night.part(night.epoch, 0)), night.state()["done"]) == (2, ["y"], 1)


def test_many_attempts_are_put_in_order_at_once_and_pictures_are_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, orders, listings = Out(str(tmp_path / "out")), list[int](), list[int]()
    attempts = [row(f"pair-{i}", run_id="r0", run_number=1, attempt=n) for n in (3, 1, 2) for i in range(40)]
    with out.claim("r0") as claim:
        for start in range(0, len(attempts), 30):
            out.commit(claim.lease(), {}, attempts[start : start + 30], [])

    def ordered(rows: Any) -> Any:
        orders.append(len(rows))
        return sort_rows(rows)

    def listed(out: Out, **known: Any) -> Places:
        listings.append(1)
        return Places(out, **known)

    monkeypatch.setattr(night_module, "sort_rows", ordered)
    monkeypatch.setattr(night_module, "Places", listed)
    monkeypatch.setattr(night_module, "MOST_PAIRS", 10)
    night, since, found = Night(out), 0, None
    night.look()
    while found != []:
        part = night.part(night.epoch, since)
        since, found = part["next"], ids(part)
    assert {row["attempt"] for row in night.newest([f"pair-{i}" for i in range(40)])} == {3}
    assert [key[2] for key in night.files_of("pair-7")] == [1, 2, 3]
    assert (orders, listings) == ([120, 120], [1])


def test_a_ledger_that_cannot_be_read_for_a_while_keeps_what_is_known(tmp_path: Path) -> None:
    night = Night(Out(str(tmp_path / "out")))
    paint(tmp_path / "out", "a")
    night.look()
    paint(tmp_path / "out", "b", 1)
    torn = tmp_path / "out" / "ledger" / "pairs" / "torn.parquet"
    torn.write_bytes(b"torn")
    with pytest.raises(LedgerError):
        night.look()
    assert ids(night.part(night.epoch, 0)) == ["a"]
    torn.unlink()
    night.look()
    assert ids(night.part(night.epoch, 0)) == ["a", "b"]


def test_previews_are_kept_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate("abc"):
        paint(tmp_path / "out", name, number)
    night = Night(Out(str(tmp_path / "out")))
    night.look()
    names = [f"images/{name}.png" for name in "abc"]
    made = [small for name in names if (small := Gallery(night).small(name))]
    monkeypatch.setattr("batchnst.review.serve.gallery.CACHE_BYTES", sum(map(_size, made[1:])))
    gallery = Gallery(night)
    assert all(map(gallery.preview, names))
    for path in (tmp_path / "out" / "images").iterdir():
        path.unlink()
    assert [bool(gallery.preview(name)) for name in names] == [False, True, True]


# What is measured when it is asked for ------------------------------------------------------------------------------


PAIRS = 10
LOUD, ODD = "p3", "p7"


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT with pairs of one style: the flat areas of one are loud, and the loss of another is unusual."""
    folder = tmp_path_factory.mktemp("painted")
    photo = Image.new("RGB", (60, 40), "gray")
    photo.paste(scene(60, 12), (0, 28))
    photo.save(folder / "photo.png")
    striped = np.asarray(photo).copy()
    striped[:28:4] = 0
    for k in range(PAIRS):
        name = f"p{k}"
        data = as_bytes(Image.fromarray(striped) if name == LOUD else photo)
        sha256 = hashlib.sha256((folder / "photo.png").read_bytes()).hexdigest()
        inputs = {"content": str(folder / "photo.png"), "content_sha256": sha256}
        commit(folder / "out", name, data, 2.0**k if name == ODD else 1 + k / 50, **inputs)
    return folder


def commit(out: Path, name: str, data: bytes, total: float, **changes: Any) -> None:
    """Commit a pair whose losses fall to `total`."""
    made = row(name, output=f"{name}.png", output_sha256=hashlib.sha256(data).hexdigest(), width=60, height=40)
    folder = Out(str(out))
    with folder.claim("r0") as claim:
        identity: dict[str, Any] = {"run_id": claim.run_id, "attempt": 1 + claim.run_number}
        made = replace(made, **identity, run_number=claim.run_number, total_loss=total, **changes)
        losses = [replace(loss(step, name), **identity, total=total * (9 - step)) for step in range(9)]
        folder.commit(claim.lease(), {f"{name}.png": data}, [made], losses)


def measures(out: Path) -> Measures:
    night = Night(Out(str(out)))
    night.look()
    return Measures(night, Gallery(night))


def test_a_curve_is_read_from_the_file_that_has_it_without_a_listing(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(painted / "out", tmp_path / "out")
    folder = Out(str(out))
    keys = {key_of(made): made["pair_id"] for made in folder.rows("pairs").to_pylist()}
    expected = {keys[key]: curve for key, curve in curves.read(folder, set(keys), lambda *_: None).items()}
    assert len(expected) == PAIRS

    def sparks(measures: Measures) -> dict[str, str]:
        return {name: found["value"] for name, found in measures.sparks([*expected, "none"]).items()}

    before = measures(out)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "files", lambda self, name, *rest, **more: pytest.fail(f"{name} is listed"))
        details = before.details("p1")
        assert details and details["curve"] == json.loads(json.dumps(asdict(expected["p1"])), object_hook=dict) | {
            "scales": expected["p1"].scales
        }
        assert before.details("none") is None
        assert sparks(before) == {name: curve.spark for name, curve in expected.items()}
    with folder.claim("compaction") as claim:
        folder.compact(claim)
    for after in (before, measures(out)):  # the first has not looked since
        assert after.details("p2") == measures(out).details("p2")
        after._sparks.clear()
        assert sparks(after) == {name: curve.spark for name, curve in expected.items()}


def test_loudness_is_that_of_the_report_for_the_photograph_that_was_painted(painted: Path) -> None:
    files = painted / "photo.png", painted / "out" / "images" / f"{LOUD}.png"
    photo, painting = (isolated.preview(path.read_bytes(), path.name, 640).gray for path in files)
    found = measures(painted / "out").loud([LOUD, "p4"])
    assert found[LOUD]["value"] == round(loudness(photo, painting), 1) > 10 > found["p4"]["value"]
    (painted / "photo.png").rename(painted / "aside.png")
    scene(60, 40).save(painted / "photo.png")
    assert measures(painted / "out").loud([LOUD])[LOUD]["value"] is None, "another photograph"
    (painted / "aside.png").rename(painted / "photo.png")


def test_what_is_usual_follows_the_pairs_as_they_are_painted(tmp_path: Path) -> None:
    out, night = tmp_path / "out", Night(Out(str(tmp_path / "out")))
    for k in range(8):
        paint(out, f"p{k}", k)
    night.look()
    first = night.part(night.epoch, 0)
    assert (first["part"]["pairs"]["group"], len(first["part"]["usual"])) == ([0] * 8, 1)
    paint(out, "p0", 30, attempt=2, styles=["other"])
    night.look()
    later = night.part(night.epoch, first["next"])
    assert ids(later) == ["p0"]
    assert later["part"]["usual"] == {"0": None, "1": None}, "too few are left, and a page learns so"


# The page ----------------------------------------------------------------------------------------------------------


@contextmanager
def watching(browser: Browser, url: str) -> Iterator[Page]:
    """The live page, open; it must stay silent, ask nobody else, and run no foreign script."""
    page, said, asked = browser.new_page(viewport={"width": 1280, "height": 900}), list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    yield page
    assert page.evaluate("window.pwned") is None
    page.close()
    assert said == []
    assert [address for address in asked if not address.startswith((url.partition("?")[0], "data:"))] == []


def test_the_page_shows_pairs_as_they_are_committed(browser: Browser, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving(out) as server, watching(browser, server.url) as page:
        expect(page.locator("#headline")).to_have_text("No run yet")
        begin(out, 4)
        paint(out, "a", output=f"{HOSTILE}#%3F.png", content=f"/{HOSTILE}.jpg", host=SCRIPT, device="<b>x</b>")
        expect(page.locator("#headline")).to_have_text("1 picture painted, 3 left")
        expect(page.locator(".card")).to_have_count(1)
        assert page.locator(".card .result img").evaluate("async (image) => (await image.decode(), image.naturalWidth)")
        expect(page.locator("#worker-rows td").first).to_contain_text("</script>")
        paint(out, "b", 1, status="failed", error_type="InputError", error_message=SCRIPT)
        expect(page.locator("#headline")).to_have_text("1 picture painted, 1 failed, 2 left")
        expect(page.locator(".card .failure")).to_contain_text("</script>")
        page.locator(".card", has_text=HOSTILE).click()
        expect(page.locator("#dialog-body")).to_contain_text("SHA-256 of output")
        link = page.locator("#dialog a", has_text="full picture").get_attribute("href")
        assert page.request.get(f"{server.url}{link}").body() == (out / "images" / f"{HOSTILE}#%3F.png").read_bytes()
        paint(out, "c", 2)
        expect(page.locator("#headline")).to_contain_text("2 pictures")
        expect(page.locator(".card")).to_have_count(2)  # nothing moves while somebody reads
        page.keyboard.press("Escape")
        expect(page.locator(".card")).to_have_count(3)
        with Out(str(out)).claim("compaction") as claim:
            Out(str(out)).compact(claim)
        paint(out, "a", 3, output=f"{HOSTILE}#%3F.png", attempt=2)
        expect(page.locator(".tag", has_text="attempt 2")).to_have_count(1)
        expect(page.locator(".card")).to_have_count(3)


def test_pairs_that_are_told_of_while_the_page_asks_are_shown_without_a_further_event(
    browser: Browser, tmp_path: Path
) -> None:
    out, held = tmp_path / "out", list[Route]()
    begin(out, 1)
    with serving(out) as server, watching(browser, server.url) as page:
        page.route("**/pairs?*", lambda route: route.continue_() if held else held.append(route))
        page.reload()
        while not held:
            page.wait_for_timeout(20)
        before = held[0].fetch()
        paint(out, "a")
        expect(page.locator("#headline")).to_have_text("1 picture painted")
        held[0].fulfill(response=before)
        expect(page.locator("#shown")).to_have_text("1 pair")


def test_a_page_of_an_out_that_was_made_anew_shows_only_that(browser: Browser, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paint(out, "a")
    with serving(out) as server, watching(browser, server.url) as page:
        expect(page.locator("#shown")).to_have_text("1 pair")
        until(page, "document.images.length > 1 && [...document.images].every((image) => image.naturalWidth)")
        shutil.rmtree(out)
        paint(out, "b", 1)
        paint(out, "c", 2)
        expect(page.locator("#shown")).to_have_text("2 pairs")
        assert page.evaluate("pairs.id") == ["b", "c"]


def test_unusual_losses_and_loud_flat_areas_come_first(browser: Browser, painted: Path) -> None:
    rows = Out(str(painted / "out")).rows("pairs")
    scores = dict(zip(rows["pair_id"].to_pylist(), unusual_losses(rows)[0].tolist(), strict=True))
    order = "[...document.querySelectorAll('#list .card')].map((card) => pairs.id[card.dataset.pair])"
    with serving(painted / "out") as server, watching(browser, server.url) as page:
        expect(page.locator("#shown")).to_have_text(f"{PAIRS} pairs")
        until(page, "[...document.querySelectorAll('.spark path')].every((path) => path.getAttribute('d').length > 99)")
        expect(page.locator(".tag.unusual")).to_have_text(["unusual loss"])
        found = page.evaluate("Object.fromEntries(pairs.id.map((id, i) => [id, unusual(i)]))")
        assert found == pytest.approx(scores)
        page.select_option("select[name=sort]", "unusual")
        until(page, f"{order}[0] === '{ODD}'")
        page.select_option("select[name=sort]", "loud")
        until(page, f"{order}[0] === '{LOUD}'")
        expect(page.locator("#list .caption").first).to_contain_text("flat areas")
        page.select_option("select[name=status]", "outlier")
        until(page, f"{order}.join() === '{ODD}'")


@pytest.mark.slow
def test_a_real_run_is_watched_from_before_its_start_over_its_end_by_force_to_its_end(
    browser: Browser, tmp_path: Path
) -> None:
    names = [f"<img src=x onerror=window.pwned={number}>" for number in range(1, 5)]
    for number, name in enumerate([*names, "style"]):
        scene(48, 48).rotate(9 * number).save(tmp_path / f"{name}.png")
    (tmp_path / "m.csv").write_text("\n".join(["content,style", *(f"{name}.png,style.png" for name in names)]))
    options = [
        "--engine",
        "inline",
        "--batch-size",
        "1",
        "--size",
        "48",
        "--weights",
        "random",
        "--backbone",
        "alexnet",
    ]
    command = [sys.executable, "-m", "batchnst", "run", "m.csv", "--out", "out", *options, "--steps", "400"]
    with serving(tmp_path / "out") as server, watching(browser, server.url) as page:
        expect(page.locator("#headline")).to_have_text("No run yet")
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as run:
            expect(page.locator("#headline")).to_have_text(re.compile("^1 picture painted, 3 left"))
            expect(page.locator("#lead")).to_contain_text("It is painting now")
            run.kill()
        expect(page.locator("#lead")).to_contain_text(re.compile("Nobody is painting now|gives no sign of life"))
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120).returncode == 0
        expect(page.locator("#headline")).to_have_text("4 pictures painted")
        expect(page.locator(".card")).to_have_count(4)
        for image in page.locator(".card .result img").all():
            assert image.evaluate("async (image) => (await image.decode(), image.naturalWidth)")
        subprocess.run([sys.executable, "-m", "batchnst", "ledger", "compact", "out"], cwd=tmp_path, check=True)
        again = [*command, "--redo", "*"]
        assert subprocess.run(again, cwd=tmp_path, capture_output=True, timeout=120).returncode == 0
        expect(page.locator(".tag", has_text="attempt 2")).to_have_count(4)
