"""Check and measure a machine with a GPU, in at most ten minutes: correctness first, then figures (`make gpu`).

Prints a line for each check and figure, writes all of them to a JSON file, and exits with 1 if a check fails. On a
machine without a GPU everything runs on the CPU, in small, except for what only a GPU can do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnst import read_ledger
from batchnst.bench import machine, race
from batchnst.painting.inputs import Inputs
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import Group, Painter, Retry, load_backbone
from batchnst.painting.tensors import TensorCache
from batchnst.recipe import Recipe
from batchnst.transfer.device import (
    Hardware,
    best_device,
    device_label,
    free_memory,
    network_dtype,
    synchronize,
    tune_process,
)
from batchnst.transfer.memory import UNBOUNDED, Fitting
from batchnst.transfer.stylize import Guide, Stylized, stylize

CPU = torch.device("cpu")

MINUTES = 10

RUN_SECONDS = 240
"""Longest time for a run."""


@dataclass
class Report:
    """The results. checks: name → (value, limit, whether it holds). figures: name → value."""

    device: str
    torch: str
    checks: dict[str, tuple[float, float, bool]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.errors and all(holds for *_, holds in self.checks.values())

    def check(self, name: str, value: float, limit: float) -> None:
        """Note a deviation that must be at most `limit`."""
        self.checks[name] = value, limit, value <= limit
        print(f"{'ok  ' if value <= limit else 'FAIL'}  {name:58} {value:.2g} (at most {limit:.2g})", flush=True)

    def figure(self, name: str, value: Any, text: str) -> None:
        self.figures[name] = value
        print(f"      {name:58} {text}", flush=True)


@dataclass(frozen=True)
class Sizes:
    """How much is tried: sizes in pixels, pictures in a batch, and steps."""

    picture: int
    tile: int
    steps: int
    measured: tuple[int, ...]
    raced: int
    pairs: int
    engines: tuple[str, ...]


FULL = Sizes(picture=256, tile=128, steps=60, measured=(256, 512, 1024), raced=512, pairs=64, engines=("inline", "ray"))
SMALL = Sizes(picture=48, tile=32, steps=4, measured=(36,), raced=36, pairs=2, engines=("inline",))


def painted(contents: Sequence[Tensor], styles: list[Tensor], recipe: Recipe, fitting: Fitting = UNBOUNDED) -> Stylized:
    """Paint `contents`, each in its style, on their device."""
    weights, device = load_weights(*recipe.network), styles[0].device
    guides = [[Guide((style,), (1.0,))] for style in styles]
    run = stylize(contents, guides, recipe, lambda own: load_backbone(own, weights, device), None, fitting)
    while True:
        try:
            next(run)
        except StopIteration as end:
            result: Stylized = end.value
            return result


def pictures(size: int, count: int, device: torch.device) -> list[Tensor]:
    """Different smooth pictures, (1, 3, 3/4 size, size) each."""
    content, _, _ = machine.load_pair([], Recipe(size=size))
    return [content.roll(37 * i, -1).flip(-1 - i % 2).to(device) for i in range(count)]


def relative(value: Tensor, expected: Tensor) -> float:
    """The largest deviation relative to the expected norm or value."""
    value, expected = value.double().cpu(), expected.double().cpu()
    return float(((value - expected).norm() / expected.norm()).item())


def check_first_steps(report: Report, device: torch.device, sizes: Sizes) -> None:
    """One loss on the CPU in fp32 and on the device in each precision."""
    contents, style = pictures(sizes.picture, 2, CPU), pictures(sizes.picture, 3, CPU)[2]
    one = {"size": sizes.picture, "min_size": sizes.picture, "steps": 1, "tolerance": 0.0}
    expected = painted(contents, [style] * 2, Recipe(**one, precision="fp32"))
    for precision, limit in (("fp32", 1e-4), ("bf16", 2e-2)):
        on_device = [content.to(device) for content in contents]
        found = painted(on_device, [style.to(device)] * 2, Recipe(**one, precision=precision)).losses.total
        report.check(f"first loss in {precision}, against the CPU", relative(found, expected.losses.total), limit)


def check_curves(report: Report, device: torch.device, sizes: Sizes) -> None:
    """Whole runs: against the CPU, in a batch and alone, in tiles and whole, recorded and step by step."""
    recipe = Recipe(size=sizes.picture, steps=sizes.steps, min_size=sizes.picture // 2, tolerance=0.0, precision="fp32")
    contents, style = pictures(sizes.picture, 4, device), pictures(sizes.picture, 5, device)[4]
    together = painted(contents, [style] * 4, recipe).losses.total
    on_cpu = painted([contents[0].cpu()], [style.cpu()], recipe).losses.total
    report.check("final loss in fp32, against the CPU", relative(together[:1], on_cpu), 0.02)
    alone = painted(contents[3:], [style], recipe).losses.total
    report.check("final loss in a batch of 4, against alone", relative(together[3:], alone), 0.02)
    tiled = painted(contents[:1], [style], recipe, Fitting(sizes.tile)).losses.total
    report.check("final loss in tiles, against whole", relative(tiled, together[:1]), 0.05)
    in_bf16 = painted(contents[:1], [style], recipe.model_copy(update={"precision": "bf16"})).losses.total
    report.check("final loss in bf16, against fp32", relative(in_bf16, together[:1]), 0.15)
    again = painted(contents, [style] * 4, recipe).losses.total
    report.check("final loss, a second time in this process", relative(again, together), 0.02)


def check_mixed_shapes(report: Report, device: torch.device, sizes: Sizes) -> None:
    """Pictures of several sizes on one canvas, against each alone."""
    recipe = Recipe(size=sizes.picture, steps=sizes.steps, min_size=sizes.picture // 2, tolerance=0.0, precision="fp32")
    whole, style = pictures(sizes.picture, 3, device), pictures(sizes.picture, 4, device)[3]
    contents = [whole[0], whole[1][..., : -sizes.picture // 7, :], whole[2].mT.contiguous()]
    one_step = recipe.model_copy(update={"steps": 1, "min_size": sizes.picture})
    for name, own, limit in (("first", one_step, 1e-4), ("final", recipe, 0.02)):
        together = painted(contents, [style] * 3, own).losses.total
        alone = torch.cat([painted([content], [style], own).losses.total for content in contents])
        report.check(f"{name} loss in a batch of mixed shapes, against alone", relative(together, alone), limit)


def check_memory(report: Report, device: torch.device, sizes: Sizes) -> None:
    """A batch that does not fit is halved; what was freed is free again; the estimate is no less than what is used."""
    recipe = Recipe(size=sizes.picture, steps=3, min_size=sizes.picture)
    hardware = Hardware.here()
    own = Painter(recipe, load_weights(*recipe.network), hardware, TensorCache(device))
    pixels = [picture[0].permute(1, 2, 0).byte().cpu().numpy() for picture in pictures(sizes.picture, 8, CPU)]
    inputs = [Inputs(picture, (pixels[0],), (1.0,)) for picture in pixels]
    before = free_memory(device)
    if device.type == "cuda":
        used = torch.cuda.memory_allocated(device)
        torch.cuda.set_per_process_memory_fraction((used + 1.5e9) / torch.cuda.mem_get_info(device)[1], device)
    try:
        events = list(own.paint(inputs, want_16_bit=[False] * len(inputs)))
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    groups = [event for event in events if isinstance(event, Group)]
    failed = sum(len(group.indices) for group in groups if isinstance(group.result, Exception))
    report.check("pictures that fail in a batch too large for memory", failed, 0)
    report.figure(
        "halvings of that batch", sum(isinstance(event, Retry) for event in events), str(len(groups)) + " groups"
    )
    report.check("memory believed lost after it", 1 - free_memory(device) / before, 0.1)


STICKY = """
import torch
from batchnst.transfer.device import device_failure
values = torch.zeros(4, device="cuda")
try:
    values[torch.tensor([10_000_000], device="cuda")] += 1
    torch.cuda.synchronize()
except RuntimeError as error:
    print("known" if device_failure(error) else f"unknown: {error}")
"""


def check_failure(report: Report, device: torch.device, sizes: Sizes) -> None:
    """An error after which CUDA refuses everything is known as such, in a process of its own."""
    if device.type != "cuda":
        report.skipped.append("a failing GPU")
        return
    child = subprocess.run([sys.executable, "-c", STICKY], capture_output=True, text=True, timeout=120, check=False)
    report.check("failures of the GPU that are not known as such", int(child.stdout.strip() != "known"), 0)


def measure_speed(report: Report, device: torch.device, sizes: Sizes) -> None:
    """Peak speed, and a step by size and batch."""
    dtype = network_dtype("auto", device)
    ceiling = machine.measure_ceiling(device, dtype)
    report.figure("ceiling", ceiling, f"{ceiling['matrix'] / 1e12:.1f} TFLOP/s of a matrix product")
    for size in sizes.measured:
        for batch in machine.batches(device, Recipe(size=size), size):
            step = machine.measure_step(Recipe(size=size), device, size, batch)
            text = f"{1e3 * step.seconds:.2f} ms a picture, {step.flops / ceiling['matrix']:.0%} of the ceiling"
            report.figure(f"a step at {size} pixels, batch of {batch}", asdict(step), text)


def measure_race(report: Report, device: torch.device, sizes: Sizes) -> None:
    """The textbook loop at equal loss."""
    recipe = Recipe(size=sizes.raced)
    outcome = race.race(*machine.load_pair([], recipe), lambda *_: None)
    report.figure("race against the textbook loop", asdict(outcome), race.describe(outcome)[-1])


def measure_night(report: Report, device: torch.device, sizes: Sizes) -> None:
    """A run with real decoding, with Ray and without: pairs an hour and the share of time that the device paints."""
    with tempfile.TemporaryDirectory() as folder:
        content, style = machine.generate_pictures(max(256, 4 * sizes.raced))
        style.save(Path(folder, "style.jpg"))
        for i in range(sizes.pairs):
            content.rotate(i).save(Path(folder, f"{i}.jpg"), quality=92)
        rows = "".join(f"{i}.jpg,style.jpg\n" for i in range(sizes.pairs))
        Path(folder, "m.csv").write_text("content,style\n" + rows)
        for engine in sizes.engines:
            measure_run(report, device, Path(folder), engine, sizes)


def measure_run(report: Report, device: torch.device, folder: Path, engine: str, sizes: Sizes) -> None:
    """Run the manifest in `folder`."""
    out = str(folder / engine)
    command = [sys.executable, "-m", "batchnst", "run", str(folder / "m.csv"), "--out", out]
    options = ["--engine", engine, "--size", str(sizes.raced)]
    started = time.monotonic()
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    seconds = time.monotonic() - started
    report.check(f"exit code of a run with {engine}", run.returncode, 0)
    rows = read_ledger(out, "pairs").to_table(["status", "device"]).to_pylist()
    failed = sizes.pairs - sum(row["status"] == "ok" for row in rows)
    report.check(f"pairs that failed with {engine}", failed, 0)
    elsewhere = sum(not (row["device"] or "").startswith(device.type) for row in rows)
    report.check(f"pairs painted on another kind of device with {engine}", elsewhere, 0)
    busy = run.stdout.strip().rpartition(";")[2].strip()
    speed = f"{3600 * sizes.pairs / seconds:.0f} pairs an hour, start included; {busy}"
    report.figure(f"a run of {sizes.pairs} pairs with {engine}", {"seconds": seconds, "said": run.stdout}, speed)


PARTS: list[Callable[[Report, torch.device, Sizes], None]] = [
    check_first_steps,
    check_curves,
    check_mixed_shapes,
    check_memory,
    check_failure,
    measure_speed,
    measure_night,
    measure_race,
]
"""Correctness first; the race, which takes minutes, last."""


def examine(sizes: Sizes, seconds: float) -> Report:
    """Do all parts, one after the other, as long as there is time; an error ends its part alone."""
    tune_process()
    device, end = best_device(), time.monotonic() + seconds
    report = Report(device_label(device), torch.__version__)
    print(f"{report.device} · torch {report.torch}")
    for part in PARTS:
        if time.monotonic() > end:
            report.skipped.append(f"{part.__name__}: no time left")
            continue
        try:
            part(report, device, sizes)
            synchronize(device)
        except Exception as error:
            report.errors[part.__name__] = traceback.format_exc()
            print(f"FAIL  {part.__name__}: {error}", flush=True)
    for line in report.skipped:
        print(f"      not done: {line}")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu.json"))
    options = parser.parse_args()
    on_gpu = best_device().type != "cpu"
    report = examine(FULL if on_gpu else SMALL, 60 * (MINUTES - 2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(asdict(report), indent=1, default=str))
    print(f"{options.out}: {'all checks hold' if report.holds else 'some checks FAIL'}")
    sys.exit(not report.holds)


if __name__ == "__main__":
    main()
