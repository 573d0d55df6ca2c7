"""The commands of the morning after: status, serve, audit, report, seal, replay, export."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from batchnst.cli.app import FAILED, MAX_PROBLEMS, app, handle_errors, print_error, print_json, print_result
from batchnst.cli.arguments import FormOfPictures, OutFolder, ShardSize
from batchnst.cli.options import size_in_bytes
from batchnst.errors import RequestError

if TYPE_CHECKING:  # imports pyarrow, and `--help` does not need it
    from batchnst.ledger.out import Out


def _warn_of_damage(folder: Out) -> None:
    """Print a line if the ledger of `folder` has damaged rows."""
    if folder.damage:
        print_error(folder.damage.notice(folder.address))


@app.command()
@handle_errors
def status(
    out: OutFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until the run ends.")] = False,
) -> None:
    """Show the progress of a run, from its ledger alone: done, failed, left, rate, time to go."""
    from batchnst.cli.display import show_while
    from batchnst.ledger.out import open_out
    from batchnst.review.status import Watch, describe, describe_previous

    folder = open_out(out)
    read = Watch(folder).look
    state = show_while(read, describe, lambda now: now.holder is not None) if watch else read()
    _warn_of_damage(folder)
    print_result(describe(state) + describe_previous(folder))


@app.command()
@handle_errors
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
@handle_errors
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
        print_error(
            f"run {holder.run_id} is painting into {out}: its unfinished pairs may be found as missing or unknown"
        )
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
        print_json(asdict(result))
    else:
        print_result(describe(result))
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
            print_error(f"{picture}: no seal of {out} has this picture")
            raise typer.Exit(FAILED)
        print_json(included)
        return
    provenance, finding = trace(picture, folder)
    if as_json:
        print_json({**asdict(provenance), "finding": asdict(finding) if finding else None})
    else:
        print_result("\n".join([f"{name:12} {value}" for name, value in asdict(provenance).items()]))
        if finding:
            print_result(line(finding))
    if finding:
        raise typer.Exit(FAILED)


@app.command()
@handle_errors
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
    if to:
        files.check_writable(to)
    else:
        folder.folder.check_writable()
    with Bar() as bar:
        page = build(folder, to, bar.update)
    if to:
        files.write(to, page)
    else:
        folder.folder.write("report.html", page)
    _warn_of_damage(folder)
    print_result(to or f"{out}/report.html")


@app.command()
@handle_errors
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
        print_result(f"{new_key}: the private key, to keep\n{keys.make_keys(new_key)}: the public key, to give away")
        return
    if new_key or not (out and key):
        raise RequestError("expected OUT and --key FILE, or --new-key FILE alone")
    private, folder = keys.read_private(key), open_out(out)
    folder.folder.check_writable()
    with folder.claim(f"seal-{secrets.token_hex(6)}") as claim, Bar() as bar:
        sealed = seals.seal(folder, claim, private, bar.update)
    for warning in seals.warnings(sealed):
        print_error(warning)
    print_result(seals.describe(sealed))


@app.command()
@handle_errors
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
    folder = open_out(out)
    with Bar() as bar:
        compared = list(paint_again(folder, pair_id, bar.update))
    _warn_of_damage(folder)
    print_result("\n".join(f"{item.what:8} {item.text}" for item in compared))
    wrong = [item.what for item in compared if not item.holds]
    print_result(f"does not hold: {', '.join(wrong)}" if wrong else f"holds: the same loss, to {CLOSE:.0%}")
    if wrong:
        raise typer.Exit(FAILED)


class Status(StrEnum):
    """Statuses of a pair."""

    ok = "ok"
    failed = "failed"


@app.command()
@handle_errors
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
    folder = open_out(out)
    with Bar() as bar:
        result = copy(folder, dest, request, bar.update)
    _warn_of_damage(folder)
    print_error("\n".join(result.missing[:MAX_PROBLEMS]))
    print_result(describe(result, dest))
    if result.missing:
        raise typer.Exit(FAILED)
