"""A night with signed addresses and a token in the environment: no secret is in the ledger, the log or the report."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchnst import read_ledger
from batchnst.engine import worker
from batchnst.ledger.out import Out
from batchnst.painting import inputs
from batchnst.review.report import build
from tests.helpers import batchnst, row, scene

SIGNATURES = ("monday-secret", "tuesday-secret")
SAS = "?sv=2022-11-02&ss=b&srt=o&sp=r&se=2026-11-27&sig=aB3%2Fdef%2BgH1234567890xyz%3D"
SECRETS = (*SIGNATURES, "aB3%2Fdef", "aB3/def", "hunter2")


class _Store(SimpleHTTPRequestHandler):
    """A store that gives files to signed requests only."""

    def do_GET(self) -> None:
        if self.answers():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self.answers():
            super().do_HEAD()

    def answers(self) -> bool:
        if any(f"X-Amz-Signature={signature}" in self.path for signature in SIGNATURES):
            return True
        self.send_error(403)
        return False

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    for name in ("a.png", "mask.png", "init.png"):
        scene(48, 48).convert("RGB").save(tmp_path / "www" / name)
    scene(48, 48).rotate(90).save(tmp_path / "www" / "style.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Store, directory=tmp_path / "www")) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def everything(out: Path) -> str:
    """All texts of all rows, and the report."""
    tables = [read_ledger(str(out), table).to_table().to_pylist() for table in ("pairs", "runs")]
    files = [path.read_bytes().decode("latin-1") for path in out.rglob("*") if path.suffix in (".html", ".json")]
    return "\n".join([json.dumps(tables, default=str), *files])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", SAS)
    monkeypatch.setattr(build, "_packed", str)  # the report's texts as they are


def test_signed_addresses_work_and_leave_no_trace(store: str, tmp_path: Path) -> None:
    manifest, out = tmp_path / "m.jsonl", tmp_path / "out"

    def night(signature: str) -> str:
        def at(name: str) -> str:
            return f"{store}/{name}?X-Amz-Date={signature}&X-Amz-Signature={signature}&versionId=7"

        pair = {"content": at("a.png"), "style": at("style.png"), "content_mask": [at("mask.png")]}
        pair |= {"init": at("init.png"), "source": at("page.html")}
        rows = [pair, pair | {"content": at("none.png")}]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = ["--engine", "inline", "--size", "48", "--steps", "2", "--retry-failed"]
        result = batchnst("run", manifest, "--out", out, *options)
        assert result.exit_code == 1, result.output
        return result.output

    first = night(SIGNATURES[0])
    assert "1 of 2 pairs done (1 now" in first
    assert f"{store}/none.png?versionId=7: no such file" in first
    second = night(SIGNATURES[1])
    assert "1 of 2 pairs are done already" in second  # a new signature repaints nothing
    report, audit = batchnst("report", out), batchnst("audit", out, "--deep", "--json")
    assert report.exit_code == 0, report.output
    texts = "\n".join([first, second, report.output, audit.output, everything(out)])
    assert [secret for secret in SECRETS if secret in texts] == []
    (ok, *_) = [row for row in read_ledger(str(out), "pairs").to_table().to_pylist() if row["status"] == "ok"]
    assert (ok["content"], ok["styles"]) == (f"{store}/a.png?versionId=7", [f"{store}/style.png?versionId=7"])
    assert json.loads(ok["recipe"])["init"] == f"{store}/init.png?versionId=7"
    assert json.loads(ok["extra"]) == {"source": f"{store}/page.html?versionId=7"}
    assert "a--style--" in ok["pair_id"]


def test_a_token_that_comes_back_in_an_error_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As Azure's client, which names the token of the environment in its errors."""

    def fail(*_: Any) -> None:
        raise ValueError(
            f"GetProperties failed for 'https://a.blob.core.windows.net/c/a.png{SAS}' at http://me:hunter2@h/"
        )

    monkeypatch.setattr(inputs, "load_picture", fail)
    scene(48, 48).save(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("content,style,id\na.png,a.png,a\n")
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        result = batchnst("run", tmp_path / "m.csv", "--out", out, "--engine", "inline", "--size", "48")
    assert result.exit_code == 1
    assert batchnst("report", out).exit_code == 0
    shown = "failed: a: GetProperties failed for 'https://a.blob.core.windows.net/c/a.png?***' at http://***@h/"
    assert shown in result.stderr.replace("\n", " ")
    assert worker.log.name in {record.name for record in caplog.records}
    texts = "\n".join([result.output, caplog.text, everything(out)])
    assert "GetProperties" in texts
    assert [secret for secret in SECRETS if secret in texts] == []


def test_an_old_ledger_is_reported_without_its_secrets(tmp_path: Path) -> None:
    """One that batchnst 0.1.0 wrote, with addresses and errors as they were."""
    out = Out(str(tmp_path / "out"))
    address = f"https://me:hunter2@host/a.png?X-Amz-Signature={SIGNATURES[0]}"
    with out.claim("r1") as claim:
        out.commit(claim.lease(), {}, [row("a", status="failed", error_type="InputError", error_message="x")], [])
    (path,) = (tmp_path / "out" / "ledger" / "pairs").glob("*.parquet")
    table = pq.read_table(path)
    (old,) = table.to_pylist()
    old |= {"content": address, "styles": [address], "error_message": f"{address}: no such file", "recipe": "{}"}
    old |= {"recipe": json.dumps({"init": address}), "extra": json.dumps({"source": address})}
    pq.write_table(table.from_pylist([old], table.schema), path)
    assert batchnst("report", out.address).exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "https://***@host/a.png: no such file" in page
    outputs = [batchnst("audit", out.address, *options).output for options in ((), ("--json",))]
    assert [secret for secret in SECRETS if secret in "\n".join([page, *outputs])] == []
