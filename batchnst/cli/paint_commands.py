"""The commands that paint, or prepare it: run, plan, proof, stylize, manifest."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchnst.cli import signals
from batchnst.cli.app import FAILED, app, handle_errors, print_error, print_result
from batchnst.cli.arguments import Address, Engine, EngineName, FormOfPictures, Manifest, Memory, ShardSize, in_bytes
from batchnst.cli.options import RECIPE_OPTIONS, size_in_bytes, with_recipe_options
from batchnst.errors import BatchNSTError, RequestError
from batchnst.manifest.columns import OUTPUT_FIELDS, OUTPUT_TEMPLATE
from batchnst.recipe import Recipe

if TYPE_CHECKING:  # these import torch, which takes seconds, and commands that only read a ledger do not need it
    from batchnst.cli.display import RunDisplay
    from batchnst.engine.run import Options
    from batchnst.manifest.manifest import Manifest as PairsOfManifest

STARTING_SECONDS, PAINTING_SECONDS = 20.0, 90.0
"""Time that a run has to end in good order after a signal, in seconds: before it paints, and while it paints."""

NOTIFY = "BATCHNST_NOTIFY"
"""Environment variable with the value of `run --notify`."""

_FIELDS = ", ".join(f"{{{name}}}" for name in OUTPUT_FIELDS)
"""The names that a template of outputs may have, for the help."""


class Pairing(StrEnum):
    """Ways to pair contents and styles."""

    cross = "cross"
    zip = "zip"
    random = "random"


def _read_manifest(address: str, settings: dict[str, Any], out: str | None) -> Any:
    """Read a manifest for `run` or `plan`, and print remarks on how it was read."""
    from batchnst.manifest.reading import read_manifest

    pairs = read_manifest(address, settings, out)
    for note in pairs.notes:
        print_error(f"{address}: {note}")
    return pairs


RedoOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WHAT",
        help="Paint again: failed; missing, a picture that is gone or differs from its row; changed, an input that "
        "differs; or a pair's id, or a glob of ids in quotes. Repeat it for more.",
    ),
]


def _redo(redo: list[str] | None, *, retry_failed: bool) -> tuple[str, ...]:
    """The values of --redo, without repetitions; `retry_failed` is one of them."""
    return tuple(dict.fromkeys([*(redo or []), *(["failed"] if retry_failed else [])]))


@app.command()
@handle_errors
@with_recipe_options
def run(
    settings: dict[str, Any],
    manifest: Manifest,
    out: Annotated[str, typer.Option(help="Folder or URI for pictures and ledger.", show_default=False)],
    address: Address = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Number of pairs painted together.", show_default="auto")
    ] = None,
    gpus_per_task: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs for each task; may be a fraction.", show_default="1, or 0 without GPUs"),
    ] = None,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="Attempts at a pair whose worker is lost, before it fails.")
    ] = 3,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Paint pairs that failed in an earlier run; short for --redo failed.")
    ] = False,
    redo: RedoOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of pairs to paint.")] = None,
    memory: Memory = None,
    engine: Engine = EngineName.ray,
    seal: Annotated[
        str | None, typer.Option(metavar="KEY", help="Seal OUT at the end with this private key; see `seal`.")
    ] = None,
    credentials: Annotated[
        str | None,
        typer.Option(metavar="PEM", help="Sign each picture with content credentials, by this key and certificates."),
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar=NOTIFY,
            help="Web hook of a chat service to tell how the run ends and when pairs begin to fail; kept secret.",
        ),
    ] = None,
    pictures: Annotated[
        FormOfPictures, typer.Option(help="files: one a picture; parquet, tar: many in a file, in OUT/pictures.")
    ] = FormOfPictures.files,
    shard_size: ShardSize = "256MB",
) -> None:
    """Stylise every pair of the manifest. Run again, it paints the pairs that are left."""
    from batchnst.cli.notify import check_hook

    if notify is not None:
        check_hook(notify)
        os.environ.pop(NOTIFY, None)  # workers have no need of it
    pairs = _read_manifest(manifest, settings, out)
    from batchnst.engine.run import Options  # imports torch: what is wrong with a manifest is told before

    options = Options(
        out=out,
        engine=engine.value,
        address=address,
        batch_size=batch_size,
        gpus_per_task=gpus_per_task,
        max_attempts=max_attempts,
        redo=_redo(redo, retry_failed=retry_failed),
        limit=limit,
        memory=in_bytes(memory),
        seal=seal,
        credentials=credentials,
        pictures=pictures.value,
        shard_size=size_in_bytes(shard_size, "--shard-size"),
    )
    display = _paint(pairs, options, notify)
    print_result(display.summary())
    if display.failed:
        raise typer.Exit(FAILED)


def _paint(pairs: PairsOfManifest, options: Options, hook: str | None = None) -> RunDisplay:
    """Paint all pairs, show it, and tell the `hook` about it."""
    from batchnst.cli.display import RunDisplay
    from batchnst.cli.notify import Notifier
    from batchnst.engine.run import run as engine_run

    signals.give_time(STARTING_SECONDS)
    display = RunDisplay(options.out)
    try:
        with Notifier(hook, display, print_error) as notifier, display:
            for event in engine_run(pairs, options):
                display.show(event)
                notifier.see(event)
                if display.planned:
                    signals.give_time(PAINTING_SECONDS)
    except BatchNSTError as error:
        if display.planned is None or signals.interrupted():
            raise
        print_error(f"{str(error).rstrip('.')}; {signals.how_to_go_on()}")
        raise typer.Exit(FAILED) from None
    return display


@app.command()
@handle_errors
@with_recipe_options
def plan(
    settings: dict[str, Any],
    manifest: Manifest,
    out: Annotated[
        str | None, typer.Option(help="Folder or URI of a run; pairs that are done there are not planned.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Plan pairs that failed in an earlier run; short for --redo failed.")
    ] = False,
    redo: RedoOption = None,
    memory: Memory = None,
) -> None:
    """Show everything that `run` would check and decide, without running."""
    pairs, values = _read_manifest(manifest, settings, out), _redo(redo, retry_failed=retry_failed)
    from batchnst.bench.estimate import describe  # imports torch: what is wrong with a manifest is told before

    print_result(describe(pairs, out, redo=values, memory=in_bytes(memory)))


@app.command()
@handle_errors
@with_recipe_options
def proof(
    settings: dict[str, Any],
    manifest: Manifest,
    out: Annotated[
        str, typer.Option(help="Page to write, .html; pictures go into a folder beside it.", show_default=False)
    ],
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE,VALUE,… for any recipe key, or recipe=NAME,NAME; | separates values with commas. "
            "Repeat it for more keys: every combination is painted."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Number of pairs to choose, unlike one another.")] = 6,
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A pair to paint, by its id, instead of chosen ones; repeat it."),
    ] = None,
    address: Address = None,
    memory: Memory = None,
    engine: Engine = EngineName.ray,
) -> None:
    """Paint a few unlike pairs in a grid of settings, on one page to choose from. Asked again, it paints new cells."""
    from batchnst.cli.display import Bar
    from batchnst.engine.run import Options
    from batchnst.proof import grid as grids
    from batchnst.proof.render import render
    from batchnst.proof.strip import Strip, folder_of
    from batchnst.proof.unlike import choose, named
    from batchnst.storage import files

    folder = folder_of(out)
    files.check_writable(out)
    columns = grids.read_grid(grid or [], settings)
    rows = _read_manifest(manifest, settings, None)
    with Bar() as bar:
        chosen = named(rows, pair) if pair else choose(rows, pairs, print_error, bar.update)
    strip = Strip(rows, chosen, columns, out)
    options = Options(out=folder, engine=engine.value, address=address, memory=in_bytes(memory), redo=("failed",))
    for stage in strip.stages():
        display = _paint(stage.manifest, options)
        with Bar() as bar:
            page = render(strip, settings, out, RECIPE_OPTIONS, is_half=stage.is_half, progress=bar.update)
        files.write(out, page)
        if stage.is_half:
            bar.print_line(f"{out}: written at half size; full size follows")
    print_result(out)
    if display.failed:
        raise typer.Exit(FAILED)


@app.command()
@handle_errors
@with_recipe_options
def stylize(
    settings: dict[str, Any],
    content: Annotated[str, typer.Argument(help="The content picture; a path or URI.", show_default=False)],
    styles: Annotated[
        list[str],
        typer.Argument(metavar="STYLE...", help="One or more style pictures; paths or URIs.", show_default=False),
    ],
    out: Annotated[str, typer.Option(help="Picture to write; its ending sets the format.", show_default=False)],
    style_weights: Annotated[str, typer.Option(help="Weights of the styles, such as 1,4.", show_default="equal")] = "",
    content_mask: Annotated[
        list[str] | None, typer.Option(help="Mask of a part of the content, white inside; repeat it for each part.")
    ] = None,
    style_mask: Annotated[
        list[str] | None,
        typer.Option(help="Mask of the style for a part, white inside; one for each part, in order."),
    ] = None,
    memory: Memory = None,
) -> None:
    """Paint one picture, without manifest and ledger, to try settings."""
    from batchnst.cli.display import Bar
    from batchnst.manifest.outputs import format_problem
    from batchnst.painting.single import report_steps
    from batchnst.painting.single import stylize as paint
    from batchnst.pictures import encode
    from batchnst.storage import files
    from batchnst.transfer.device import tune_process

    if PurePosixPath(out).suffix.lower() not in encode.FORMATS:
        raise RequestError(f"--out {out}: cannot be written; expected a name that ends in {', '.join(encode.FORMATS)}")
    files.check_writable(out)
    recipe = Recipe.from_settings(settings)
    if problem := format_problem(out, recipe):
        raise RequestError(f"--out {problem}")
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
    print_result(out)


@app.command()
@handle_errors
def manifest(
    contents: Annotated[
        str,
        typer.Argument(
            help="Contents: a folder, prefix, archive (.zip, .tar), Parquet data set, or a glob in quotes.",
            show_default=False,
        ),
    ],
    styles: Annotated[str, typer.Argument(help="Styles: the same.", show_default=False)],
    out: Annotated[str, typer.Option(help="Manifest to write: .csv, .tsv, .jsonl or .parquet.", show_default=False)],
    pairing: Annotated[
        Pairing,
        typer.Option(help="cross: every content in every style; zip: first with first; random: one style for each."),
    ] = Pairing.cross,
    output: Annotated[
        str, typer.Option(metavar="TEMPLATE", help=f"Name of each picture in OUT/images, made of {_FIELDS}.")
    ] = OUTPUT_TEMPLATE,
    kind: Annotated[str, typer.Option("--format", help="File format for {format} in --output.")] = "png",
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out files or folders of this name or path; may be repeated."),
    ] = None,
    min_side: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Leave out contents with a shorter side.")
    ] = None,
    max_aspect: Annotated[
        float | None,
        typer.Option(min=1, metavar="RATIO", help="Leave out contents longer than this many times their short side."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of pairs; they are drawn by --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
) -> None:
    """Write a manifest that pairs two collections of pictures."""
    from batchnst.manifest.collecting import Filters
    from batchnst.manifest.pairing import Options, encode_rows, pair_rows
    from batchnst.storage import files

    files.check_writable(out)
    filters = Filters(exclude or (), min_side, max_aspect)
    options = Options(pairing.value, seed, limit, output, kind.removeprefix("."), filters)
    rows, left_out = pair_rows(contents, styles, out, options)
    print_error("\n".join([*left_out.lines(), left_out.line()]).strip())
    files.write(out, encode_rows(rows, out))
    print_result(f"{out}: {len(rows)} {'pair' if len(rows) == 1 else 'pairs'}")
