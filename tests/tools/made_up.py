"""Make a made-up run in a real OUT, to look at and to measure: `python -m tests.tools.made_up FOLDER PAIRS`."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from batchnst.ledger.out import Out
from batchnst.ledger.schema import SCHEMAS, PairRow, RunRow, Versions
from batchnst.recipe import Recipe
from tests.helpers import IMAGES

PHOTOS, PAINTINGS = (
    ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"],
    ["swirls.png", "woodcut.png", "ihc.png"],
)
EVENING = datetime(2026, 11, 20, 21, 4, tzinfo=UTC)
SCALES = (128, 256, 512)
STEPS = 165
LAYERS = {"relu1_1": 4e2, "relu2_1": 9e3, "relu3_1": 1.6e4, "relu4_1": 4e5, "relu5_1": 2e3}
BATCH = 4
PAIRS_A_FILE = 200
SNAPSHOTS_EVERY = 25
"""One of this many pairs has snapshots."""

FAILURES_EVERY = 17
FAILURES = [
    ("InputError", "{content}: no such file"),
    ("WorkerLost", "its worker was lost 3 times, the last time with this pair alone"),
    ("InputError", "{content}: not a picture that Pillow can read"),
    ("InputError", "{content}: cannot be decoded: image file is truncated (12 bytes not processed)"),
    ("OutOfMemory", "does not fit the device even alone: 79.1 GiB asked for, 44.5 GiB there"),
]


@dataclass
class Worker:
    """Who paints, and until when he is busy."""

    host: str
    pid: int
    device: str
    speed: float
    free: datetime


@dataclass(frozen=True)
class Night:
    """What a made-up night is made of."""

    folder: Path
    pairs: int
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    @property
    def contents(self) -> list[Path]:
        return [self.folder / "photos" / f"photo-{i:03}.jpg" for i in range(max(4, min(400, self.pairs // 8)))]

    @property
    def styles(self) -> list[Path]:
        names = ["starry", "scream", "wave", "woodcut", "swirls", "mosaic", "ink", "hubble", "grass", "brick", "fresco"]
        return [self.folder / "paintings" / f"{name}.jpg" for name in names[: max(3, min(11, self.pairs // 4))]]


def make(folder: Path, pairs: int) -> Out:
    """Fill `folder` with photos, paintings and an OUT of that many pairs."""
    night = Night(folder, pairs)
    paint_inputs(night)
    out = Out(str(folder / "out"))
    rows = paint_outputs(night, out, list(attempts(night)))
    for run_id in sorted({row.run_id for row in rows}):
        own = [row for row in rows if row.run_id == run_id]
        write_run(night, out, own, [row for row in rows if row.run_id < run_id])
    return out


def paint_inputs(night: Night) -> None:
    """Real pictures, turned and tinted, so that each is another."""
    for paths, sources, size in ((night.contents, PHOTOS, 900), (night.styles, PAINTINGS, 640)):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for i, path in enumerate(paths):
            with Image.open(IMAGES / sources[i % len(sources)]) as source:
                vary(source.convert("RGB"), i // len(sources), size).save(path, quality=88)


def vary(picture: Image.Image, i: int, size: int) -> Image.Image:
    picture = ImageOps.mirror(picture) if i % 2 else picture
    width, height = picture.size
    picture = picture.crop((i * 7 % (width // 4), i * 5 % (height // 4), width, height - i * 3 % (height // 3)))
    picture = ImageEnhance.Color(picture).enhance(0.5 + (i * 0.37) % 1.2)
    picture.thumbnail((size, size))
    return picture


def attempts(night: Night) -> Iterator[PairRow]:
    """Rows as two runs leave them: the second tries some failures again, and goes on where the first ended."""
    workers = [Worker(f"gpu-{1 + i // 2}", 4100 + 37 * i, "cuda (NVIDIA L4)", 1 + 0.12 * i, EVENING) for i in range(6)]
    first, second = "20261120T210400-1a2b3c", "20261121T051500-4d5e6f"
    border = night.pairs * 2 // 3
    retried = []
    for row in batches(night, first, range(border), workers):
        yield row
        if row.error_type == "WorkerLost":
            retried.append(row)
    morning = max(worker.free for worker in workers) + timedelta(minutes=50)
    workers = [replace(worker, free=morning) for worker in workers[:4]]
    yield from batches(night, second, range(border, night.pairs), workers)
    for row in retried[: len(retried) // 2 + 1]:
        worker = min(workers, key=lambda worker: worker.free)
        again = painted(night, row, json.loads(row.extra)["number"])
        yield timed(replace(again, run_id=second, attempt=2, error_type=None, error_message=None), worker, 1, 31.0)


def batches(night: Night, run_id: str, numbers: range, workers: list[Worker]) -> Iterator[PairRow]:
    for start in range(numbers.start, numbers.stop, BATCH):
        own = range(start, min(start + BATCH, numbers.stop))
        worker = min(workers, key=lambda worker: worker.free)
        seconds = float(night.random.normal(44, 5)) * worker.speed
        for number in own:
            yield timed(attempt(night, run_id, number), worker, len(own), seconds)
        worker.free += timedelta(seconds=seconds + 0.4)


def timed(row: PairRow, worker: Worker, batch_size: int, seconds: float) -> PairRow:
    if row.error_type == "InputError":
        seconds = 0.2
    return replace(
        row,
        host=worker.host,
        pid=worker.pid,
        device=None if row.error_type else worker.device,
        batch_size=None if row.error_type else batch_size,
        started_at=worker.free,
        finished_at=worker.free + timedelta(seconds=seconds),
        seconds=seconds if row.error_type else seconds / batch_size,
        batch_seconds=seconds,
    )


def attempt(night: Night, run_id: str, number: int) -> PairRow:
    content = night.contents[number // len(night.styles) % len(night.contents)]
    style = night.styles[number % len(night.styles)]
    styles = [style, night.styles[(number + 1) % len(night.styles)]] if number % 29 == 11 else [style]
    pair_id = f"{content.stem}--{style.stem}--{number:06x}"
    big = number % 9 == 4
    recipe = Recipe(size=1024 if big else 512, **({"preserve_color": "luminance"} if number % 17 == 3 else {}))
    row = PairRow(
        run_id=run_id,
        pair_id=pair_id,
        attempt=1,
        status="ok",
        content=str(content),
        styles=[str(style) for style in styles],
        style_weights=[1.0] * len(styles),
        content_masks=[],
        style_masks=[],
        output=f"{pair_id}.jpg",
        fingerprint=sha(pair_id),
        recipe=recipe.json_text,
        loss_definition="neural-style/1",
        weights_sha256=sha("weights"),
        seed=0,
        host="",
        pid=0,
        started_at=EVENING,
        finished_at=EVENING,
        seconds=0.0,
        versions=Versions("0.1.0", "3.11.7", "2.15.0", "12.0.0", "22.0.0", "12.8"),
        extra=json.dumps({"number": number}),
    )
    if number % FAILURES_EVERY == 5:
        kind, message = FAILURES[number // FAILURES_EVERY % len(FAILURES)]
        return replace(row, status="failed", error_type=kind, error_message=message.format(content=row.content))
    return painted(night, row, number)


def painted(night: Night, row: PairRow, number: int) -> PairRow:
    """The row with losses: their curves follow from the pair's number alone."""
    curves = curves_of(number)
    best = int(curves["total"][-60:].argmin()) + STEPS - 60
    return replace(
        row,
        status="ok",
        width=512,
        height=384,
        precision="bf16",
        steps=STEPS,
        stopped="diverged" if number % 83 == 7 else ["steps", "plateau"][number % 3 == 0],
        initial_total=float(curves["total"][0]),
        total_loss=float(curves["total"][best]),
        content_loss=float(curves["content"][best]),
        style_loss=float(curves["style"][best]),
        tv_loss=float(curves["tv"][best]),
        peak_memory_bytes=11_811_160_064,
    )


def curves_of(number: int) -> dict[str, NDArray[Any]]:
    """Losses by step as they fall at three scales."""
    random = np.random.default_rng(number)
    step = np.arange(STEPS)
    scale = np.searchsorted([28, 55], step, side="right")
    inside = step - np.array([0, 28, 55])[scale]
    level = 10 ** random.normal(0, 0.25)
    layers = {
        name: size
        * level
        * (0.02 + np.exp(-inside / (3 + 2 * k)) * (60 / 4**scale) + 1 / (1 + inside))
        * random.lognormal(0, 0.04, STEPS)
        for k, (name, size) in enumerate(LAYERS.items())
    }
    style = 100 * sum(layers.values(), np.zeros(STEPS))
    content = 4e6 * level * (1 - np.exp(-(step + 0.2) / 9)) * random.lognormal(0, 0.02, STEPS)
    tv = 3e2 * (1 + scale) * random.lognormal(0, 0.05, STEPS)
    total = style + content + tv
    return {"step": step, "scale": np.array(SCALES)[scale], "total": total, "content": content, "style": style} | {
        "tv": tv,
        **layers,
    }


def write_run(night: Night, out: Out, rows: list[PairRow], before: list[PairRow]) -> None:
    first, done = rows[0], sum(row.status == "ok" for row in before)
    given_up = len({row.pair_id for row in before} - {row.pair_id for row in rows}) - done
    pairs = night.pairs + 1 + night.pairs // 50
    run = RunRow(
        run_id=first.run_id,
        started_at=min(row.started_at for row in rows) - timedelta(seconds=9),
        manifest=str(night.folder / "night.csv"),
        settings='{"steps": 110}',
        pairs=pairs,
        done=done,
        given_up=given_up,
        to_paint=pairs - done - given_up,
        engine="ray",
        host="head",
        pid=811,
    )
    with out.claim(first.run_id) as claim:
        out.begin(replace(run, run_number=claim.run_number))
        for task, start in enumerate(range(0, len(rows), PAIRS_A_FILE), 1):
            own = [replace(row, run_number=claim.run_number) for row in rows[start : start + PAIRS_A_FILE]]
            out.commit(claim.lease(task), {}, own, [])
            write_losses(out, f"{first.run_id}-{task}.parquet", [row for row in own if row.status == "ok"])


def write_losses(out: Out, name: str, rows: list[PairRow]) -> None:
    """In columns: made from dataclasses, 10,000 pairs would take minutes."""
    curves = [curves_of(json.loads(row.extra)["number"]) for row in rows]
    columns: dict[str, Any] = {
        key: np.concatenate([curve[key] for curve in curves])
        for key in ("step", "scale", "total", "content", "style", "tv")
    }
    for key in ("run_id", "pair_id", "attempt"):
        columns[key] = np.repeat(np.array([getattr(row, key) for row in rows]), STEPS)
    count = len(rows) * STEPS
    values = np.concatenate([np.stack([curve[layer] for layer in LAYERS], axis=1).ravel() for curve in curves])
    offsets = np.arange(count + 1, dtype=np.int32) * len(LAYERS)
    columns["style_layers"] = pa.MapArray.from_arrays(offsets, pa.array(list(LAYERS) * count), values)
    columns["seconds"] = columns["step"] * 0.25
    table = pa.table({name: columns[name] for name in SCHEMAS["losses"].names}, schema=SCHEMAS["losses"])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    out.folder.write(f"ledger/losses/{name}", sink.getvalue().to_pybytes())


def paint_outputs(night: Night, out: Out, rows: list[PairRow]) -> list[PairRow]:
    """A content with its style laid over it: not art, but as hard to compress. Returns the rows with their hashes."""
    hashes = {str(path): sha(path.read_bytes()) for path in (*night.contents, *night.styles)}
    contents, styles = dict[str, Image.Image](), dict[str, Image.Image]()
    for row in (row for row in rows if row.status == "ok"):
        content = contents.get(row.content) or contents.setdefault(row.content, small(row.content))
        style = styles.get(row.styles[0]) or styles.setdefault(row.styles[0], small(row.styles[0]))
        picture = Image.blend(content, style.resize(content.size), 0.55)
        save(picture, Path(out.folder.path(f"images/{row.output}")))
        if json.loads(row.extra)["number"] % SNAPSHOTS_EVERY == 1:
            for step in range(0, STEPS, 40):
                snapshot = Image.blend(content, picture, (step + 10) / STEPS)
                save(snapshot, Path(out.folder.path(f"snapshots/{row.pair_id}/step-{step:05}.jpg")))
    return [hashed(row, out, hashes) for row in rows]


def hashed(row: PairRow, out: Out, hashes: dict[str, str]) -> PairRow:
    if row.status != "ok":
        return row
    return replace(
        row,
        content_sha256=hashes[row.content],
        style_sha256=[hashes[style] for style in row.styles],
        output_sha256=sha(Path(out.folder.path(f"images/{row.output}")).read_bytes()),
    )


def small(path: str) -> Image.Image:
    with Image.open(path) as picture:
        picture.thumbnail((512, 512))
        return picture.convert("RGB")


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=85)


def sha(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=int)
    options = parser.parse_args()
    print(make(options.folder, options.pairs).address)


if __name__ == "__main__":
    main()
