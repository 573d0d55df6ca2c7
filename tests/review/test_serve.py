"""The live page: what is served and what never is, and a real browser that watches OUT as it grows."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from batchnst.errors import LedgerError
from batchnst.ledger.out import Out
from batchnst.ledger.schema import PairRow, RunRow
from batchnst.review.report import cards
from batchnst.review.serve.gallery import Gallery
from batchnst.review.serve.guard import Guard
from batchnst.review.serve.night import Night
from tests.browser import open_browser
from tests.helpers import NOON, as_bytes, row, scene

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
    night, read = Night(Out(str(tmp_path / "out"))), list[int]()
    real = Out.rows_of

    def rows_of(self: Out, files: list[Any], *rest: Any, **options: Any) -> Any:
        read.append(len(files))
        return real(self, files, *rest, **options)

    monkeypatch.setattr(Out, "rows_of", rows_of)

    def look() -> list[str]:
        read.clear()
        since = night.seq
        night.look()
        return ids(night.part(night.epoch, since))

    assert look() == []
    assert night.state() == {"epoch": night.epoch, "seq": 0, "problem": ""}
    begin(tmp_path / "out", 3)
    paint(tmp_path / "out", "a")
    paint(tmp_path / "out", "b", 1)
    assert look() == ["a", "b"]
    assert (look(), max(read)) == ([], 1), "only the table of runs"
    with Out(str(tmp_path / "out")).claim("compaction") as claim:
        Out(str(tmp_path / "out")).compact(claim)
    assert look() == []
    paint(tmp_path / "out", "a", 2, attempt=2)
    assert look() == ["a"]
    part = night.part("another epoch", 99)
    assert ids(part) == ["b", "a"], "a server that was started again sends all"
    assert sorted(part["part"]["pairs"]) == sorted(cards.LISTED)
    assert part["part"]["pairs"]["before"][1]["path"] == "previous/a/r0-1.png"
    assert [night.state()[name] for name in ("pairs", "done", "alive")] == [3, 2, False]


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
    _, *sizes = [len(Gallery(night).preview(name) or b"") for name in names]
    monkeypatch.setattr("batchnst.review.serve.gallery.CACHE_BYTES", sum(sizes))
    gallery = Gallery(night)
    assert all(map(gallery.preview, names))
    for path in (tmp_path / "out" / "images").iterdir():
        path.unlink()
    assert [bool(gallery.preview(name)) for name in names] == [False, True, True]


# The page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


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
