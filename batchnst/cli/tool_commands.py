"""The other commands: layers, weights, bench, ledger."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from batchnst.cli.app import app, handle_errors, print_error, print_json, print_result
from batchnst.cli.arguments import OutFolder, ShardSize
from batchnst.cli.options import size_in_bytes, with_options, with_recipe_options
from batchnst.errors import RequestError
from batchnst.recipe import Recipe


@app.command()
@handle_errors
@with_options("size", "steps", "optimizer", "seed", "backbone", "weights", "precision")
def layers(
    settings: dict[str, Any],
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE...", help="Pictures, folders, prefixes, or globs in quotes.", show_default=False
        ),
    ],
    out: Annotated[str, typer.Option(help="Sheet to write: .html, or a picture format.", show_default=False)],
    names: Annotated[
        str | None,
        typer.Option("--layers", help="Layers to show, such as relu1_1,relu4_2.", show_default="the recipe's"),
    ] = None,
    channels: Annotated[
        int, typer.Option(min=1, help="Number of channels to show of each layer, the strongest first.")
    ] = 6,
    top: Annotated[int, typer.Option(min=1, help="Number of patches to show of each channel.")] = 9,
    style: Annotated[
        str | None, typer.Option(help="Style picture whose texture is painted.", show_default="the first picture")
    ] = None,
    ledger: Annotated[
        str | None, typer.Option(metavar="OUT", help="Run whose style losses are shown by layer.")
    ] = None,
    pair: Annotated[str | None, typer.Option(metavar="PAIR_ID", help="Use only this pair of --ledger.")] = None,
) -> None:
    """Draw what each layer of the network sees in pictures, and keeps of a content and a style."""
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
    for reason in sheet.left_out:
        print_error(f"left out: {reason}")
    files.write(out, formats.render(sheet, out))
    print_result(out)


weights = typer.Typer(invoke_without_command=True, help="List the available weights, or import a file of weights.")
app.add_typer(weights, name="weights")


@weights.callback()
@handle_errors
def list_weights(
    context: typer.Context,
    out: Annotated[str | None, typer.Option(help="Run whose ledger rows are counted for each.")] = None,
) -> None:
    """List the available weights: name, backbone, size, SHA-256, source and licence."""
    if context.invoked_subcommand:
        return
    from batchnst.ledger.out import open_out
    from batchnst.painting.named_weights import describe, entries

    for entry in entries(open_out(out) if out else None):
        print_result(describe(entry))


class Expected(StrEnum):
    """Ways to normalise the input of a network."""

    imagenet = "imagenet"
    caffe = "caffe"


@weights.command("import")
@handle_errors
def import_weights(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A safetensors file or a state dict; a path or URI.", show_default=False),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for --weights.", show_default=False)],
    normalisation: Annotated[
        Expected | None,
        typer.Option(
            help="Input of the network. imagenet: RGB, scaled by ImageNet's mean and deviation; "
            "caffe: BGR, 0..255, minus a mean.",
            show_default="from the file's metadata, or imagenet if its layers have torchvision's names",
        ),
    ] = None,
) -> None:
    """Check a file of weights and store its convolutions on this machine under a name."""
    from batchnst.painting.named_weights import import_weights as import_file

    backbone, imported = import_file(file, name, normalisation.value if normalisation else None)
    print_result(f"{name}: {backbone}, {imported.sha256}; --backbone {backbone} --weights {name}")


class Opponent(StrEnum):
    """Programs that `bench` compares with."""

    textbook = "textbook"


CPU_BENCH_SIZE = 256
"""Default size of `bench` on a CPU: a textbook run at 512 pixels takes ten minutes there."""


@app.command()
@handle_errors
@with_recipe_options
def bench(
    settings: dict[str, Any],
    pictures: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONTENT STYLE]", help="The pair for --against.", show_default="generated"),
    ] = None,
    against: Annotated[
        Opponent | None, typer.Option(help="textbook: also race the usual loop to its final loss.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Instead count a step's work on a GPU, on any machine; prints JSON.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="With --trace: add the least time of the step on this GPU, such as h100.", show_default=False
        ),
    ] = None,
    out: Annotated[str, typer.Option(help="Folder or URI for bench.json and curves.svg.")] = "out/bench",
) -> None:
    """Measure this machine's speed: time of a step, pairs an hour, share of the peak speed.

    Without --size, a CPU is measured at 256 pixels.
    """
    from batchnst.bench import machine
    from batchnst.bench.race import describe, draw, race
    from batchnst.cli.display import Bar
    from batchnst.storage import files
    from batchnst.transfer.device import best_device

    if len(pictures or []) not in (0, 2):
        raise RequestError(f"{' '.join(pictures or [])}: expected a content and a style, or no pictures")
    if trace or device:
        _print_trace(Recipe.from_settings(settings), device, alone=trace and not (pictures or against))
        return
    if best_device().type == "cpu":
        settings = {"size": CPU_BENCH_SIZE} | settings
    recipe = Recipe.from_settings(settings)
    content, style, recipe = machine.load_pair(pictures or [], recipe)
    results = asdict(machine.measure(recipe, print))
    if against:
        with Bar() as bar:
            outcome = race(content, style, recipe, bar.update)
        print_result("\n".join(describe(outcome)))
        results["race"] = asdict(outcome)
        files.write(f"{out}/curves.svg", draw(outcome))
    files.write(f"{out}/bench.json", json.dumps(results, indent=1).encode())
    print_result(f"{out}/bench.json" + (f" {out}/curves.svg" if against else ""))


def _print_trace(recipe: Recipe, device: str | None, *, alone: bool) -> None:
    """Print the work of a step as JSON; `alone`: --trace was given, and nothing to race."""
    from batchnst.bench.machine import check_size_is_known
    from batchnst.bench.trace import trace

    if not alone:
        raise RequestError("--trace counts, and takes no pictures and no --against; --device needs --trace")
    check_size_is_known(recipe)
    print_json(trace(recipe, device))


ledger = typer.Typer(no_args_is_help=True, help="Maintain the ledger of a run.")
app.add_typer(ledger, name="ledger")


@ledger.command()
@handle_errors
def compact(out: OutFolder, shard_size: ShardSize = "256MB") -> None:
    """Merge the many small files of a ledger, and of pictures, into few; nothing is lost, even if it is interrupted."""
    from batchnst.ledger.out import open_out

    size, folder = size_in_bytes(shard_size, "--shard-size"), open_out(out)
    folder.folder.check_writable()
    with folder.claim(f"compaction-{secrets.token_hex(6)}") as claim:
        before, after = folder.compact(claim, shard_size=size)
    print_result(f"{out}: {before} files of ledger and pictures, now {after}")
