"""The commands, one function each. Only here errors become messages and exit codes."""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from batchnst.cli import signals
from batchnst.cli.options import RECIPE_OPTIONS, size_in_bytes, with_options, with_recipe_options
from batchnst.cli.streams import make_lasting
from batchnst.errors import BatchNSTError, InputError, ManifestError, RequestError
from batchnst.manifest.columns import OUTPUT_FIELDS, OUTPUT_TEMPLATE
from batchnst.recipe import Recipe
from batchnst.redaction import redact, redact_json, redact_logs

if TYPE_CHECKING:  # these import torch, which takes seconds, and commands that only read a ledger do not need it
    from batchnst.cli.display import RunDisplay
    from batchnst.engine.run import Options
    from batchnst.manifest.manifest import Manifest as PairsOfManifest

COMMANDS = ["run", "plan", "proof", "stylize", "manifest", "status", "serve", "audit", "report", "seal", "replay"]
COMMANDS += ["export", "layers", "weights", "bench", "ledger"]
"""The commands in the order of the help."""


class _Ordered(TyperGroup):
    """Lists commands and groups of commands in the order of COMMANDS."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    cls=_Ordered,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural style transfer for whole photo collections: batched, distributed by Ray, audited in Parquet.",
)

FAILED, WRONG = 1, 2
"""Exit codes: some pairs failed or the run stopped; the request is wrong. 0 means all done, INTERRUPTED a signal."""

STARTING_SECONDS, PAINTING_SECONDS = 20.0, 90.0
"""Time that a run has to end in good order after a signal, in seconds: before it paints, and while it paints."""

NOTIFY = "BATCHNST_NOTIFY"
"""Environment variable with the value of `run --notify`."""

MAX_PROBLEMS = 100
"""Largest number of problems of a manifest that are printed."""


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
    """Engines of `run` and `proof`."""

    ray = "ray"
    inline = "inline"


class FormOfPictures(StrEnum):
    """Forms of pictures in OUT."""

    files = "files"
    parquet = "parquet"
    tar = "tar"


_FIELDS = ", ".join(f"{{{name}}}" for name in OUTPUT_FIELDS)
"""The names that a template of outputs may have, for the help."""


class Pairing(StrEnum):
    """Ways to pair contents and styles."""

    cross = "cross"
    zip = "zip"
    random = "random"


def _print(text: str) -> None:
    """Print a result on stdout, without secrets."""
    print(redact(text))


def _print_json(value: Any) -> None:
    """Print a result on stdout as JSON, without secrets."""
    print(redact_json(json.dumps(value)))


def _error(message: str) -> None:
    """Print a message on stderr, without secrets."""
    for line in redact(message).splitlines():
        print(f"batchnst: {line}", file=sys.stderr)


def _end_if_interrupted() -> None:
    """After a signal, end as it asks: an error that follows it comes from work that was cut off."""
    if signals.interrupted():
        signals.tell()
        raise typer.Exit(signals.INTERRUPTED) from None


def _handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn expected errors of `command` into messages and exit codes; others keep their traceback."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ManifestError as error:
            lines = str(error).splitlines()
            _error("\n".join(lines[:MAX_PROBLEMS]))
            if len(lines) > MAX_PROBLEMS:
                _error(f"… and {len(lines) - MAX_PROBLEMS} more")
            raise typer.Exit(WRONG) from None
        except BatchNSTError as error:
            _end_if_interrupted()
            _error(str(error))
            raise typer.Exit(WRONG if isinstance(error, RequestError | InputError) else FAILED) from None
        except (OSError, MemoryError) as error:
            _end_if_interrupted()
            _error(f"this machine refused: {error or 'memory'}")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            signals.tell()
            raise typer.Exit(signals.INTERRUPTED) from None

    return wrapper


Manifest = Annotated[
    str, typer.Argument(help="The manifest: CSV, JSON Lines or Parquet; a path or URI.", show_default=False)
]


def _read_manifest(address: str, settings: dict[str, Any], out: str | None) -> Any:
    """Read a manifest for `run` or `plan`, and print remarks on how it was read."""
    from batchnst.manifest.reading import read_manifest

    pairs = read_manifest(address, settings, out)
    for note in pairs.notes:
        _error(f"{address}: {note}")
    return pairs


Memory = Annotated[
    float | None,
    typer.Option(min=0.1, help="Memory that each worker may use, in GB.", show_default="its device's, less a reserve"),
]


def in_bytes(gigabytes: float | None) -> float | None:
    """Gigabytes (10⁹ bytes) as bytes; None stays None."""
    return gigabytes and gigabytes * 1e9


ShardSize = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Size of the files with many pictures that small ones are merged into."),
]


Address = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster.", show_default="$RAY_ADDRESS, else a new one on this machine"),
]


Engine = Annotated[EngineName, typer.Option(help="ray: on a Ray cluster; inline: in this process.")]


OutFolder = Annotated[str, typer.Argument(metavar="OUT", help="Folder or URI of a run.", show_default=False)]


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
@_handle_errors
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
    from batchnst.engine.run import Options

    if notify:
        check_hook(notify)
        os.environ.pop(NOTIFY, None)  # workers have no need of it
    pairs = _read_manifest(manifest, settings, out)
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
        pictures=pictures.value,
        shard_size=size_in_bytes(shard_size, "--shard-size"),
    )
    display = _paint(pairs, options, notify)
    _print(display.summary())
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
        with Notifier(hook, display, _error) as notifier, display:
            for event in engine_run(pairs, options):
                display.show(event)
                notifier.see(event)
                if display.planned:
                    signals.give_time(PAINTING_SECONDS)
    except BatchNSTError as error:
        if display.planned is None or signals.interrupted():
            raise
        _error(f"{str(error).rstrip('.')}; {signals.how_to_go_on()}")
        raise typer.Exit(FAILED) from None
    return display


@app.command()
@_handle_errors
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
    from batchnst.bench.estimate import describe

    pairs, values = _read_manifest(manifest, settings, out), _redo(redo, retry_failed=retry_failed)
    _print(describe(pairs, out, redo=values, memory=in_bytes(memory)))


@app.command()
@_handle_errors
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
        chosen = named(rows, pair) if pair else choose(rows, pairs, _error, bar.update)
    strip = Strip(rows, chosen, columns, out)
    options = Options(out=folder, engine=engine.value, address=address, memory=in_bytes(memory), redo=("failed",))
    for stage in strip.stages():
        display = _paint(stage.manifest, options)
        with Bar() as bar:
            page = render(strip, settings, out, RECIPE_OPTIONS, is_half=stage.is_half, progress=bar.update)
        files.write(out, page)
        if stage.is_half:
            bar.print_line(f"{out}: written at half size; full size follows")
    _print(out)
    if display.failed:
        raise typer.Exit(FAILED)


@app.command()
@_handle_errors
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
    _print(out)


@app.command()
@_handle_errors
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

    filters = Filters(exclude or (), min_side, max_aspect)
    options = Options(pairing.value, seed, limit, output, kind.removeprefix("."), filters)
    rows, left_out = pair_rows(contents, styles, out, options)
    _error("\n".join([*left_out.lines(), left_out.line()]).strip())
    files.write(out, encode_rows(rows, out))
    _print(f"{out}: {len(rows)} {'pair' if len(rows) == 1 else 'pairs'}")


@app.command()
@_handle_errors
def status(
    out: OutFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until the run ends.")] = False,
) -> None:
    """Show the progress of a run, from its ledger alone: done, failed, left, rate, time to go."""
    from batchnst.cli.display import show_while
    from batchnst.ledger.out import open_out
    from batchnst.review.status import Watch, describe

    read = Watch(open_out(out)).look
    _print(describe(show_while(read, describe, lambda now: now.holder is not None) if watch else read()))


@app.command()
@_handle_errors
def serve(
    out: OutFolder,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own need a token, which is printed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is any that is free.")] = 8765,
) -> None:
    """Show the report as a live page while a run goes on; it only reads, and ends by Ctrl-C."""
    from batchnst.ledger.out import Out
    from batchnst.review.serve.web import serve as serve_page

    serve_page(Out(out), host, port, lambda address: print(address, flush=True))


@app.command()
@_handle_errors
def audit(
    out: Annotated[
        str | None, typer.Argument(metavar="OUT", help="Folder or URI of a run.", show_default=False)
    ] = None,
    manifest: Annotated[
        list[str] | None,
        typer.Option(
            help="Manifest that OUT must match, with the options of its newest run; of several, the last with a pair "
            "counts."
        ),
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also read all inputs, to find changed ones.")] = False,
    picture: Annotated[str | None, typer.Option(help="A painted picture; shows its pair and run.")] = None,
    proof: Annotated[
        bool, typer.Option("--proof", help="Instead prove by JSON that OUT's seals have the --picture.")
    ] = False,
    seal: Annotated[
        str | None, typer.Option(metavar="PUBLIC", help="Public key; also checks what has changed since each seal.")
    ] = None,
    root: Annotated[
        str | None, typer.Option(metavar="HEX", help="With --seal: a root kept elsewhere, which a seal must have.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove that ledger, pictures and manifest agree, or show where they do not."""
    from batchnst.cli.display import Bar
    from batchnst.ledger.out import open_out
    from batchnst.review.audit.checks import audit as check
    from batchnst.review.audit.findings import describe

    if out is None and picture is None:
        raise RequestError("expected OUT, or --picture FILE")
    if proof and not (out and picture):
        raise RequestError("--proof: expected OUT and --picture FILE with it")
    if root and not seal:
        raise RequestError(f"--root {root}: expected --seal PUBLIC with it")
    if picture:
        _audit_picture(picture, out, proof=proof, as_json=as_json)
        return
    folder = open_out(out or "")
    if (holder := folder.holder()) and holder.alive:
        _error(f"run {holder.run_id} is painting into {out}: its unfinished pairs may be found as missing or unknown")
    expected = None
    if manifest:
        from batchnst.review.expected import expected_pairs

        expected = expected_pairs(manifest, folder)
    with Bar() as bar:
        result = check(
            folder,
            expected,
            manifests=manifest or (),
            deep=deep,
            public_key=seal,
            root=root,
            progress=bar.update,
        )
    if as_json:
        _print_json(asdict(result))
    else:
        _print(describe(result))
    if result.findings:
        raise typer.Exit(FAILED)


def _audit_picture(picture: str, out: str | None, *, proof: bool, as_json: bool) -> None:
    """Print where a picture comes from, or the proof that it was sealed."""
    from batchnst.ledger.out import open_out
    from batchnst.review.audit.findings import line
    from batchnst.review.audit.hashes import trace
    from batchnst.review.audit.inclusion import prove

    folder = open_out(out) if out else None
    if proof and folder:
        if (included := prove(folder, picture)) is None:
            _error(f"{picture}: no seal of {out} has this picture")
            raise typer.Exit(FAILED)
        _print_json(included)
        return
    provenance, finding = trace(picture, folder)
    if as_json:
        _print_json({**asdict(provenance), "finding": asdict(finding) if finding else None})
    else:
        _print("\n".join([f"{name:12} {value}" for name, value in asdict(provenance).items()]))
        if finding:
            _print(line(finding))
    if finding:
        raise typer.Exit(FAILED)


@app.command()
@_handle_errors
def report(
    out: OutFolder,
    to: Annotated[str | None, typer.Option(help="Page to write.", show_default="OUT/report.html")] = None,
) -> None:
    """Write one HTML page about a run: its settings, failures, pictures and loss curves."""
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
    _print(to or f"{out}/report.html")


@app.command()
@_handle_errors
def seal(
    out: Annotated[
        str | None, typer.Argument(metavar="OUT", help="Folder or URI of a run.", show_default=False)
    ] = None,
    key: Annotated[str | None, typer.Option(help="File with the private key.", show_default=False)] = None,
    new_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Instead make a pair of keys: FILE, and FILE.pub to give away."),
    ] = None,
) -> None:
    """Sign what OUT holds, so that `audit --seal` finds every change since."""
    from batchnst.cli.display import Bar
    from batchnst.ledger import keys
    from batchnst.ledger import seal as seals
    from batchnst.ledger.out import open_out

    if new_key and not (out or key):
        _print(f"{new_key}: the private key, to keep\n{keys.make_keys(new_key)}: the public key, to give away")
        return
    if new_key or not (out and key):
        raise RequestError("expected OUT and --key FILE, or --new-key FILE alone")
    private, folder = keys.read_private(key), open_out(out)
    with folder.claim(f"seal-{secrets.token_hex(6)}") as claim, Bar() as bar:
        sealed = seals.seal(folder, claim, private, bar.update)
    for warning in seals.warnings(sealed):
        _error(warning)
    _print(seals.describe(sealed))


@app.command()
@_handle_errors
def replay(
    out: OutFolder,
    pair_id: Annotated[str, typer.Argument(metavar="PAIR_ID", help="The pair's id in the ledger.", show_default=False)],
) -> None:
    """Paint one pair again from its ledger row alone, and show the differences."""
    from batchnst.cli.display import Bar
    from batchnst.ledger.out import open_out
    from batchnst.review.replay import CLOSE
    from batchnst.review.replay import replay as paint_again
    from batchnst.transfer.device import tune_process

    tune_process()
    with Bar() as bar:
        compared = list(paint_again(open_out(out), pair_id, bar.update))
    _print("\n".join(f"{item.what:8} {item.text}" for item in compared))
    wrong = [item.what for item in compared if not item.holds]
    _print(f"does not hold: {', '.join(wrong)}" if wrong else f"holds: the same loss, to {CLOSE:.0%}")
    if wrong:
        raise typer.Exit(FAILED)


class Status(StrEnum):
    """Statuses of a pair."""

    ok = "ok"
    failed = "failed"


@app.command()
@_handle_errors
def export(
    out: OutFolder,
    to: Annotated[FormOfPictures, typer.Option(help="files: one a picture; parquet, tar: many in a file.")],
    dest: Annotated[
        str, typer.Option("--out", metavar="DEST", help="Folder or URI to write to; run again, it goes on.")
    ],
    status: Annotated[Status | None, typer.Option(help="Only pairs whose newest row has this status.")] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Only pairs for which this condition on the columns of pairs holds."),
    ] = None,
    shard_size: ShardSize = "256MB",
) -> None:
    """Copy the pictures of a run, and their rows, to another folder, in any form."""
    from batchnst.cli.display import Bar
    from batchnst.ledger.out import open_out
    from batchnst.review.export import Request, describe
    from batchnst.review.export import export as copy

    size = size_in_bytes(shard_size, "--shard-size")
    request = Request(form=to.value, shard_size=size, status=status.value if status else None, where=where)
    with Bar() as bar:
        result = copy(open_out(out), dest, request, bar.update)
    _error("\n".join(result.missing[:MAX_PROBLEMS]))
    _print(describe(result, dest))
    if result.missing:
        raise typer.Exit(FAILED)


@app.command()
@_handle_errors
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
        _error(f"left out: {reason}")
    files.write(out, formats.render(sheet, out))
    _print(out)


weights = typer.Typer(invoke_without_command=True, help="List the available weights, or import a file of weights.")
app.add_typer(weights, name="weights")


@weights.callback()
@_handle_errors
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
        _print(describe(entry))


class Expected(StrEnum):
    """Ways to normalise the input of a network."""

    imagenet = "imagenet"
    caffe = "caffe"


@weights.command("import")
@_handle_errors
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
    _print(f"{name}: {backbone}, {imported.sha256}; --backbone {backbone} --weights {name}")


class Opponent(StrEnum):
    """Programs that `bench` compares with."""

    textbook = "textbook"


CPU_BENCH_SIZE = 256
"""Default size of `bench` on a CPU: a textbook run at 512 pixels takes ten minutes there."""


@app.command()
@_handle_errors
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
    content, style = machine.load_pair(pictures or [], recipe)
    results = asdict(machine.measure(recipe, print))
    if against:
        with Bar() as bar:
            outcome = race(content, style, recipe, bar.update)
        _print("\n".join(describe(outcome)))
        results["race"] = asdict(outcome)
        files.write(f"{out}/curves.svg", draw(outcome))
    files.write(f"{out}/bench.json", json.dumps(results, indent=1).encode())
    _print(f"{out}/bench.json" + (f" {out}/curves.svg" if against else ""))


def _print_trace(recipe: Recipe, device: str | None, *, alone: bool) -> None:
    """Print the work of a step as JSON; `alone`: --trace was given, and nothing to race."""
    from batchnst.bench.trace import trace

    if not alone:
        raise RequestError("--trace counts, and takes no pictures and no --against; --device needs --trace")
    _print_json(trace(recipe, device))


ledger = typer.Typer(no_args_is_help=True, help="Maintain the ledger of a run.")
app.add_typer(ledger, name="ledger")


@ledger.command()
@_handle_errors
def compact(out: OutFolder, shard_size: ShardSize = "256MB") -> None:
    """Merge the many small files of a ledger, and of pictures, into few; nothing is lost, even if it is interrupted."""
    from batchnst.ledger.out import open_out

    size, folder = size_in_bytes(shard_size, "--shard-size"), open_out(out)
    with folder.claim(f"compaction-{secrets.token_hex(6)}") as claim:
        before, after = folder.compact(claim, shard_size=size)
    _print(f"{out}: {before} files of ledger and pictures, now {after}")


def main() -> None:
    """Run the `batchnst` command. The traceback of an unexpected error is shown without secrets."""
    make_lasting()
    redact_logs()
    with signals.ending():
        try:
            app()
        except Exception:
            if not signals.interrupted():
                print(redact(traceback.format_exc()), file=sys.stderr)
                sys.exit(FAILED)
            raise
