"""The front door: one command a function; the one place that prints, exits and catches."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from batchnst.cli.options import takes, takes_recipe
from batchnst.errors import BatchNSTError, InputError, ManifestError, RequestError
from batchnst.recipe import Recipe

COMMANDS = ["run", "plan", "stylize", "manifest", "status", "audit", "report", "replay"]
COMMANDS += ["layers", "weights", "bench", "ledger"]
"""The order in which the help has them."""


class _Ordered(TyperGroup):
    """Commands and groups of commands in one order."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    cls=_Ordered,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural style transfer for whole photo collections: batched, distributed by Ray, audited in Parquet.",
)

FAILED, WRONG, INTERRUPTED = 1, 2, 130
"""Exit codes; 0 is all done."""

MOST_PROBLEMS = 100
"""Problems of a manifest that are printed one by one."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"batchnst {version('batchnst')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


class EngineName(StrEnum):
    """Where the work is done."""

    ray = "ray"
    inline = "inline"


class Pairing(StrEnum):
    """Which content goes with which style."""

    cross = "cross"
    zip = "zip"
    random = "random"


def _error(message: str) -> None:
    for line in message.splitlines():
        print(f"batchnst: {line}", file=sys.stderr)


def _edge(command: Callable[..., None]) -> Callable[..., None]:
    """Expected errors end in a line and an exit code; the unexpected ones in a traceback."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ManifestError as error:
            lines = str(error).splitlines()
            _error("\n".join(lines[:MOST_PROBLEMS]))
            if len(lines) > MOST_PROBLEMS:
                _error(f"… and {len(lines) - MOST_PROBLEMS} more")
            raise typer.Exit(WRONG) from None
        except BatchNSTError as error:
            _error(str(error))
            raise typer.Exit(WRONG if isinstance(error, RequestError | InputError) else FAILED) from None
        except KeyboardInterrupt:
            _error("interrupted")
            raise typer.Exit(INTERRUPTED) from None

    return wrapper


Manifest = Annotated[str, typer.Argument(help="CSV, JSON Lines or Parquet; a path or URI.", show_default=False)]


Memory = Annotated[
    float | None, typer.Option(min=0.1, help="GB that a worker may take.", show_default="what its device has")
]


def in_bytes(gigabytes: float | None) -> float | None:
    """GB as a user counts them."""
    return gigabytes and gigabytes * 1e9


OutFolder = Annotated[str, typer.Argument(metavar="OUT", help="A run's folder or URI.", show_default=False)]


@app.command()
@_edge
@takes_recipe
def run(
    settings: dict[str, Any],
    manifest: Manifest,
    out: Annotated[str, typer.Option(help="The folder or URI to paint into.", show_default=False)],
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster.", show_default="$RAY_ADDRESS, else one of its own")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pairs optimised together.", show_default="auto")
    ] = None,
    gpus_per_task: Annotated[
        float | None, typer.Option(min=0, help="GPUs of one task.", show_default="1, or 0 where there are none")
    ] = None,
    max_attempts: Annotated[int, typer.Option(min=1, help="Tries at a pair whose worker was lost.")] = 3,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed pairs again.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Paint no more pairs than this.")] = None,
    memory: Memory = None,
    engine: Annotated[EngineName, typer.Option(help="inline: in this process, without Ray.")] = EngineName.ray,
) -> None:
    """Stylise every pair of the manifest; run again, it does what is left."""
    from batchnst.cli.display import RunDisplay
    from batchnst.engine import run as engine_run
    from batchnst.manifest.reading import read_manifest

    pairs = read_manifest(manifest, settings)
    options = engine_run.Options(
        out=out,
        engine=engine.value,
        address=address,
        batch_size=batch_size,
        gpus_per_task=gpus_per_task,
        max_attempts=max_attempts,
        retry_failed=retry_failed,
        limit=limit,
        memory=in_bytes(memory),
    )
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _interrupt)
    try:
        with RunDisplay(out) as display:
            for event in engine_run.run(pairs, options):
                display.show(event)
    except KeyboardInterrupt:
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, signal.SIG_IGN)  # all is done but for leaving, which says that it was interrupted
        _error(f"interrupted: what was finished is kept. Go on with: {shlex.join(['batchnst', *sys.argv[1:]])}")
        raise typer.Exit(INTERRUPTED) from None
    print(display.summary())
    if display.failed:
        raise typer.Exit(FAILED)


def _interrupt(signum: int, frame: Any) -> NoReturn:
    """The first Ctrl-C or SIGTERM ends the run in good order, the second one at once."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


@app.command()
@_edge
@takes_recipe
def plan(
    settings: dict[str, Any],
    manifest: Manifest,
    out: Annotated[str | None, typer.Option(help="What is done there is not planned again.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Plan failed pairs again.")] = False,
    memory: Memory = None,
) -> None:
    """Say everything `run` would check and decide, without running."""
    from batchnst.bench.estimate import describe
    from batchnst.manifest.reading import read_manifest

    print(describe(read_manifest(manifest, settings), out, retry_failed=retry_failed, memory=in_bytes(memory)))


@app.command()
@_edge
@takes_recipe
def stylize(
    settings: dict[str, Any],
    content: Annotated[str, typer.Argument(help="The picture to paint; a path or URI.", show_default=False)],
    styles: Annotated[list[str], typer.Argument(metavar="STYLE...", help="In whose style.", show_default=False)],
    out: Annotated[str, typer.Option(help="The picture to write; its ending says how.", show_default=False)],
    style_weights: Annotated[str, typer.Option(help="One number a style, as in 1,4.", show_default="equal")] = "",
    content_mask: Annotated[list[str] | None, typer.Option(help="White where a part is; one for each part.")] = None,
    style_mask: Annotated[list[str] | None, typer.Option(help="Likewise in the style of each part.")] = None,
    memory: Memory = None,
) -> None:
    """Paint one picture now, for trying settings: no manifest, no ledger."""
    from batchnst.cli.display import Bar
    from batchnst.painting.single import report_steps
    from batchnst.painting.single import stylize as paint
    from batchnst.pictures import encode
    from batchnst.storage import files
    from batchnst.transfer.device import tune_process

    if PurePosixPath(out).suffix.lower() not in encode.FORMATS:
        raise RequestError(f"--out {out}: cannot be written; expected a name that ends in {', '.join(encode.FORMATS)}")
    files.check_writable(out)
    recipe = Recipe.from_settings(settings)
    tune_process()
    with Bar() as bar:
        painting = paint(
            content,
            styles,
            recipe,
            style_weights=style_weights.split(",") if style_weights else (),
            content_masks=content_mask or (),
            style_masks=style_mask or (),
            on_step=report_steps(bar.update),
            memory=in_bytes(memory),
        )
    files.write(out, painting.encode(out))
    print(out)


@app.command()
@_edge
def manifest(
    contents: Annotated[str, typer.Argument(help="A folder, prefix, or glob in quotes.", show_default=False)],
    styles: Annotated[str, typer.Argument(help="Likewise, of paintings.", show_default=False)],
    out: Annotated[str, typer.Option(help="The manifest: .csv, .jsonl or .parquet.", show_default=False)],
    pairing: Annotated[Pairing, typer.Option(help="Which content goes with which style.")] = Pairing.cross,
    seed: Annotated[int, typer.Option(help="Of a random pairing.")] = 0,
) -> None:
    """Write a manifest of the pictures in two folders."""
    from batchnst.manifest.pairing import encode, pair
    from batchnst.storage import files

    rows = pair(contents, styles, out, pairing.value, seed)
    files.write(out, encode(rows, out))
    print(f"{out}: {len(rows)} {'pair' if len(rows) == 1 else 'pairs'}")


@app.command()
@_edge
def status(
    out: OutFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, as long as a run goes on.")] = False,
) -> None:
    """Say how far a run is, from its ledger alone: done, failed, left, rate, time to go."""
    from batchnst.cli.display import show_while
    from batchnst.ledger.out import open_out
    from batchnst.review.status import Watch, describe

    look = Watch(open_out(out)).look
    print(describe(show_while(look, describe, lambda now: now.holder is not None) if watch else look()))


@app.command()
@_edge
def audit(
    out: Annotated[str | None, typer.Argument(metavar="OUT", help="A run's folder or URI.", show_default=False)] = None,
    manifest: Annotated[str | None, typer.Option(help="What there should be, as the newest run read it.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read contents and styles too: have they changed?")] = False,
    picture: Annotated[str | None, typer.Option(help="One painted picture: where does it come from?")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Prove that ledger, pictures and manifest agree, or say where they do not."""
    from batchnst.cli.display import Bar
    from batchnst.ledger.out import open_out
    from batchnst.review.audit.checks import audit as look
    from batchnst.review.audit.findings import describe, line
    from batchnst.review.audit.hashes import trace

    if out is None and picture is None:
        raise RequestError("expected OUT, or --picture FILE")
    if picture:
        said, finding = trace(picture, open_out(out) if out else None)
        if as_json:
            print(json.dumps({**asdict(said), "finding": asdict(finding) if finding else None}))
        else:
            print("\n".join([f"{name:12} {value}" for name, value in asdict(said).items()]))
            print(line(finding) if finding else "", end="\n" if finding else "")
        raise typer.Exit(FAILED if finding else 0)
    folder = open_out(out or "")
    if (holder := folder.holder()) and holder.alive:
        _error(f"run {holder.run_id} is painting into {out}: what it has in hand may be found as missing or unknown")
    expected = None
    if manifest:
        from batchnst.review.expected import expected_pairs

        expected = expected_pairs(manifest, folder)
    with Bar() as bar:
        result = look(folder, expected, deep=deep, progress=bar.update)
    print(json.dumps(asdict(result)) if as_json else describe(result))
    if result.findings:
        raise typer.Exit(FAILED)


@app.command()
@_edge
def report(
    out: OutFolder,
    to: Annotated[str | None, typer.Option(help="The page to write.", show_default="OUT/report.html")] = None,
) -> None:
    """Write one page with everything about a run: what ran, what failed, every picture, every curve."""
    from batchnst.cli.display import Bar
    from batchnst.ledger.out import open_out
    from batchnst.review.report.build import build
    from batchnst.storage import files

    folder = open_out(out)
    files.check_writable(to or folder.address)
    with Bar() as bar:
        page = build(folder, to, bar.update)
    if to:
        files.write(to, page)
    else:
        folder.folder.write("report.html", page)
    print(to or f"{out}/report.html")


@app.command()
@_edge
def replay(
    out: OutFolder,
    pair_id: Annotated[str, typer.Argument(metavar="PAIR_ID", help="As in the ledger.", show_default=False)],
) -> None:
    """Paint one pair again from its ledger row alone, and say what comes out otherwise."""
    from batchnst.cli.display import Bar
    from batchnst.ledger.out import open_out
    from batchnst.review.replay import CLOSE
    from batchnst.review.replay import replay as paint_again
    from batchnst.transfer.device import tune_process

    tune_process()
    with Bar() as bar:
        compared = list(paint_again(open_out(out), pair_id, bar.update))
    print("\n".join(f"{item.what:8} {item.text}" for item in compared))
    wrong = [item.what for item in compared if not item.holds]
    print(f"does not hold: {', '.join(wrong)}" if wrong else f"holds: the same loss, to {CLOSE:.0%}")
    if wrong:
        raise typer.Exit(FAILED)


@app.command()
@_edge
@takes("size", "steps", "optimizer", "seed", "backbone", "weights", "precision")
def layers(
    settings: dict[str, Any],
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE...", help="Or folders, prefixes, globs in quotes.", show_default=False),
    ],
    out: Annotated[str, typer.Option(help="The sheet: .html, or a picture, by its ending.", show_default=False)],
    names: Annotated[
        str | None, typer.Option("--layers", help="As in relu1_1,relu4_2.", show_default="the recipe's")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Of each layer, the strongest.")] = 6,
    top: Annotated[int, typer.Option(min=1, help="Patches of each channel.")] = 9,
    style: Annotated[
        str | None, typer.Option(help="Whose texture to paint from noise.", show_default="the first picture")
    ] = None,
    ledger: Annotated[
        str | None, typer.Option(metavar="OUT", help="A run's: what each layer contributed to its style losses.")
    ] = None,
    pair: Annotated[str | None, typer.Option(metavar="PAIR_ID", help="To those of one pair alone.")] = None,
) -> None:
    """Draw what the network's layers see in these pictures, and hold of a content and a style."""
    from batchnst.cli.display import Bar
    from batchnst.layers import formats
    from batchnst.layers.sheet import Request, make
    from batchnst.ledger.out import open_out
    from batchnst.storage import files
    from batchnst.transfer.device import tune_process

    formats.check(out)
    files.check_writable(out)
    if pair and not ledger:
        raise RequestError(f"--pair {pair}: expected --ledger OUT with it")
    recipe = Recipe.from_settings(settings | ({"content_layers": names, "style_layers": names} if names else {}))
    tune_process()
    request = Request(pictures, style, channels, top, open_out(ledger) if ledger else None, pair)
    with Bar() as bar:
        sheet = make(request, recipe, bar.update)
    for why in sheet.left_out:
        _error(f"left out: {why}")
    files.write(out, formats.render(sheet, out))
    print(out)


weights = typer.Typer(invoke_without_command=True, help="List the weights that are at hand, or import some.")
app.add_typer(weights, name="weights")


@weights.callback()
@_edge
def list_weights(
    context: typer.Context,
    out: Annotated[str | None, typer.Option(help="Count the rows of this run's ledger that they painted.")] = None,
) -> None:
    """List the weights that are at hand: name, backbone, size, where from and under which licence, SHA-256."""
    if context.invoked_subcommand:
        return
    from batchnst.ledger.out import open_out
    from batchnst.painting.named_weights import describe, entries

    for entry in entries(open_out(out) if out else None):
        print(describe(entry))


class Expected(StrEnum):
    """What a network expects of its input."""

    imagenet = "imagenet"
    caffe = "caffe"


@weights.command("import")
@_edge
def import_weights(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="safetensors, or a state dict; a path or URI.", show_default=False)
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What --weights shall call them.", show_default=False)],
    normalisation: Annotated[
        Expected | None,
        typer.Option(
            help="Of the network's input: ImageNet's mean and deviation, RGB; or 0..255 minus a mean, BGR.",
            show_default="as the file says, else torchvision's if it names layers so",
        ),
    ] = None,
) -> None:
    """Check a file of weights, and keep its convolutions on this machine under a name."""
    from batchnst.painting.named_weights import import_weights as take

    backbone, made = take(file, name, normalisation.value if normalisation else None)
    print(f"{name}: {backbone}, {made.sha256}; --backbone {backbone} --weights {name}")


class Opponent(StrEnum):
    """What `bench` compares with."""

    textbook = "textbook"


CPU_BENCH_SIZE = 256
"""Size that `bench` measures on a CPU where none is given: a textbook run at 512 takes ten minutes there."""


@app.command()
@_edge
@takes_recipe
def bench(
    settings: dict[str, Any],
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="[CONTENT STYLE]", help="A pair to race on.", show_default="made up")
    ] = None,
    against: Annotated[Opponent | None, typer.Option(help="Race the usual loop to its final loss as well.")] = None,
    out: Annotated[str, typer.Option(help="A folder for bench.json and curves.svg.")] = "out/bench",
) -> None:
    """Measure this machine's speed: a step, pairs an hour, the share of what it could do at best.

    On a CPU at 256 pixels, if --size does not say otherwise.
    """
    from batchnst.bench import machine as engine_bench
    from batchnst.bench.race import describe, draw, race
    from batchnst.cli.display import Bar
    from batchnst.storage import files
    from batchnst.transfer.device import best_device

    if len(pictures or []) not in (0, 2):
        raise RequestError(f"{' '.join(pictures or [])}: expected a content and a style, or no pictures")
    if best_device().type == "cpu":
        settings = {"size": CPU_BENCH_SIZE} | settings
    recipe = Recipe.from_settings(settings)
    content, style = engine_bench.load_pair(pictures or [], recipe)
    results = asdict(engine_bench.measure(recipe, print))
    if against:
        with Bar() as bar:
            outcome = race(content, style, recipe, bar.update)
        print("\n".join(describe(outcome)))
        results["race"] = asdict(outcome)
        files.write(f"{out}/curves.svg", draw(outcome))
    files.write(f"{out}/bench.json", json.dumps(results, indent=1).encode())
    print(f"{out}/bench.json" + (f" {out}/curves.svg" if against else ""))


ledger = typer.Typer(no_args_is_help=True, help="Look after a run's ledger.")
app.add_typer(ledger, name="ledger")


@ledger.command()
@_edge
def compact(out: OutFolder) -> None:
    """Merge the ledger's many small files into few, sorted ones; no row is lost, wherever it is cut off."""
    from batchnst.ledger.out import open_out

    folder = open_out(out)
    with folder.claim("compaction"):
        before, after = folder.compact()
    print(f"{out}: {before} ledger files, now {after}")


def main() -> None:
    """The `batchnst` command."""
    app()
