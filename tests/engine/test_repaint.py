"""`--redo` on real runs: painted here, tiny, into a folder and into a store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from batchnst.engine.events import Finished, Notice
from batchnst.engine.repaint import CHANGED, MISSING, choose
from batchnst.engine.run import Options, Planned, run
from batchnst.errors import RequestError
from batchnst.ledger.out import Out
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.reading import read_manifest
from batchnst.storage import files
from tests.helpers import as_bytes, batchnst, scene

SETTINGS = {"size": "40", "steps": "1", "backbone": "alexnet", "weights": "random", "style_layers": "relu1"}
IDS = ("p1", "p2", "q1")


class Night:
    """Three pairs and their OUT, painted once; all are below the address `where`."""

    def __init__(self, where: str) -> None:
        self.where, self.out = where, f"{where}/out"
        files.write(f"{where}/style.png", as_bytes(scene(32, 32)))
        for number, name in enumerate(IDS):
            self.change(name, number)
        rows = "".join(f"{name}.png,style.png,{name}\n" for name in IDS)
        files.write(f"{where}/m.csv", f"content,style,id\n{rows}".encode())
        assert self.paint() == list(IDS)

    def change(self, name: str, number: int) -> None:
        files.write(f"{self.where}/{name}.png", as_bytes(scene(40, 40).rotate(9 * number)))

    @property
    def manifest(self) -> Manifest:
        return read_manifest(f"{self.where}/m.csv", SETTINGS)

    def events(self, *redo: str, **options: Any) -> Iterator[Any]:
        return run(self.manifest, Options(out=self.out, engine="inline", batch_size=1, redo=redo, **options))

    def paint(self, *redo: str, most: int = 9, **options: Any) -> list[str]:
        """The ids of the pairs that a run paints, which is cut off after `most`."""
        events, painted = self.events(*redo, **options), list[str]()
        for event in events:
            if isinstance(event, Finished):
                assert event.error is None
                painted.append(event.pair_id)
                if len(painted) == most:
                    events.close()  # type: ignore[attr-defined]
        return sorted(painted)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Night]:
    fsspec.filesystem("memory").rm("/redo", recursive=True) if fsspec.filesystem("memory").exists("/redo") else None
    return {"disk": Night(str(tmp_path_factory.mktemp("redo"))), "store": Night("memory://redo")}


@pytest.fixture(params=["disk", pytest.param("store", marks=pytest.mark.slow)])
def night(painted: dict[str, Night], request: pytest.FixtureRequest) -> Night:
    return painted[request.param]


def attempts(night: Night) -> dict[str, int]:
    rows = Out(night.out).rows("pairs", ["pair_id", "attempt"]).to_pylist()
    return {name: max(row["attempt"] for row in rows if row["pair_id"] == name) for name in IDS}


def test_pictures_that_are_gone_or_altered_are_painted_again(night: Night) -> None:
    folder = Out(night.out).folder
    assert night.paint(MISSING) == []
    folder.remove("images/p1.png")
    folder.write("images/q1.png", as_bytes(Image.new("RGB", (40, 40), "red")))
    before = attempts(night)
    planned = next(event for event in night.events(MISSING, limit=1) if isinstance(event, Planned))
    assert (planned.plan.redone, planned.plan.left, planned.plan.done) == ({"missing": 2}, 2, 1)
    assert night.paint(MISSING) == ["p1", "q1"]
    assert night.paint(MISSING) == []
    assert attempts(night) == before | {name: before[name] + 1 for name in ("p1", "q1")}
    kept = {folder.relative(info.path).split("/")[1] for info in folder.files("previous")}
    assert not kept & {"p1", "q1"}, "what was altered is not kept as the picture of its row"


def test_pairs_are_painted_again_if_an_input_has_changed(night: Night) -> None:
    assert night.paint(CHANGED) == []
    night.change("p2", 7)
    assert night.paint(CHANGED, MISSING) == ["p2"]
    assert night.paint(CHANGED) == []
    files.write(f"{night.where}/style.png", as_bytes(scene(33, 33)))
    assert night.paint(CHANGED) == list(IDS)
    folder = Out(night.out).folder
    assert {folder.relative(info.path).split("/")[1] for info in folder.files("previous")} == set(IDS)
    assert batchnst("audit", night.out).output.splitlines()[-1] == "found nothing wrong"


def test_named_pairs_are_painted_again_and_an_interrupted_run_goes_on(night: Night) -> None:
    assert night.paint("p*", most=1) == ["p1"]
    assert night.paint("p*") == ["p2"], "p1 was painted by the run that was cut off"
    assert night.paint("p*", limit=1) == ["p1"], "a request that was finished begins anew"
    assert night.paint("p*") == ["p2"], "a limit leaves the others to the next run"
    assert night.paint("p*", most=1) == ["p1"]
    assert night.paint("q1") == ["q1"]
    assert night.paint("p*") == ["p1", "p2"], "another run came between"
    assert night.paint() == []


def test_what_matches_nothing_is_refused(night: Night) -> None:
    for nothing in ("none", "x*", "P1", ""):
        with pytest.raises(RequestError, match=rf"^--redo {re.escape(nothing)}: no pair of .*m\.csv has such an id"):
            next(night.events("p1", nothing))
    manifest, options = f"{night.where}/m.csv", ["--set", "backbone=alexnet", "--set", "weights=random"]
    for command in ("run", "plan"):
        result = batchnst(command, manifest, "--out", night.out, "--redo", "x*", *options)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output


def test_what_cannot_be_read_is_told_and_left_alone(night: Night) -> None:
    data = files.read(f"{night.where}/p2.png")
    fsspec.filesystem("memory").rm("/redo/p2.png") if "memory" in night.where else Path(night.where, "p2.png").unlink()
    manifest = night.manifest
    choosing, notices = choose([CHANGED], manifest, Out(night.out), {("alexnet", "random"): weights(night)}), []
    try:
        while True:
            notices.append(next(choosing))
    except StopIteration as end:
        assert end.value.reasons is None
    assert [type(notice) for notice in notices] == [Notice, Notice]
    assert re.search(r"^1 of the inputs cannot be read now and are left as .*p2\.png: no such file$", notices[1].text)
    files.write(f"{night.where}/p2.png", data)


def weights(night: Night) -> str:
    return str(Out(night.out).rows("pairs", ["weights_sha256"])["weights_sha256"][0].as_py())


def test_plan_and_run_say_that_pairs_go_back_to_what_they_were(tmp_path: Path) -> None:
    night, redo = Night(str(tmp_path)), f"{tmp_path}/redo.jsonl"
    first = f"{night.where}/m.csv"
    rows = [{"content": f"{name}.png", "style": "style.png", "id": name, "steps": 2} for name in ("p1", "q1")]
    files.write(redo, "\n".join(map(json.dumps, rows)).encode())
    options = [item for key, value in SETTINGS.items() if key != "steps" for item in ("--set", f"{key}={value}")]

    def said(command: str, manifest: str, *more: str) -> str:
        result = batchnst(command, manifest, "--out", night.out, *options, *more)
        assert result.exit_code == 0, result.output
        return result.output

    inline = ("--engine", "inline")
    assert "as before again" not in said("run", redo, *inline)
    text = f"painted otherwise since, as {redo} asks; `run` paints as before again. To keep what is there, first put"
    assert f"\nback     2 pairs were {text} the rows of {redo} in " in said("plan", first, "--steps", "1")
    assert f"2 pairs were {text}" in said("run", first, "--steps", "1", *inline, "--limit", "1")
    assert f"1 pair was {text}" in said("run", first, "--steps", "1", *inline)
    assert "as before again" not in said("run", first, "--steps", "3", *inline, "--limit", "1")
    run_id = Out(night.out).runs()[-1]["run_id"]
    assert f"1 pair was painted otherwise since, by run {run_id}; " in said("run", first, "--steps", "1", *inline)


def test_plan_says_what_redo_would_do(painted: dict[str, Night]) -> None:
    night = painted["disk"]
    Out(night.out).folder.remove("images/p1.png")
    options = [item for key, value in SETTINGS.items() for item in ("--set", f"{key}={value}")]
    result = batchnst("plan", f"{night.where}/m.csv", "--out", night.out, "--redo", "missing", "--redo", "q1", *options)
    assert "again    1 missing, 1 named\n" in result.stdout, result.output
    assert "3 in the manifest · 1 done · 0 failed and left alone · 2 to paint" in result.stdout
