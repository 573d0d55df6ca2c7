"""Build the ledger rows of an attempt at a pair; each function fills some columns of a PairRow."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import torch

from batchnst.chains import path_of
from batchnst.engine.plan import Job
from batchnst.errors import PairError
from batchnst.ledger.claim import Lease
from batchnst.ledger.schema import LossRow, PairRow
from batchnst.painting.inputs import Inputs
from batchnst.painting.painter import Painted
from batchnst.painting.versions import versions
from batchnst.redaction import redact
from batchnst.storage.retries import is_transient
from batchnst.transfer.device import device_label, peak_memory_bytes, precision_name


def attempt_row(job: Job, lease: Lease, weights_sha256: str, started: datetime) -> PairRow:
    """The row of an attempt that ends now on this host, with the columns that every attempt has."""
    pair, finished = job.pair, datetime.now(UTC)
    return PairRow(
        run_id=lease.run_id,
        run_number=lease.run_number,
        pair_id=pair.id,
        attempt=job.attempt,
        status="ok",
        content=pair.content,
        styles=list(pair.styles),
        style_weights=list(pair.style_weights),
        content_masks=list(pair.content_masks),
        style_masks=list(pair.style_masks),
        output=pair.output,
        fingerprint=job.fingerprint,
        recipe=pair.recipe.json_text,
        loss_definition=pair.recipe.loss_definition,
        weights_sha256=weights_sha256,
        seed=pair.recipe.seed,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=started,
        finished_at=finished,
        seconds=(finished - started).total_seconds(),
        batch_seconds=(finished - started).total_seconds(),
        versions=versions(),
        extra=pair.extra,
    )


def with_device(row: PairRow, device: torch.device, dtype: torch.dtype) -> PairRow:
    """Add the device, the precision of the network, and the peak memory of this process."""
    return replace(
        row,
        device=device_label(device),
        precision=precision_name(dtype),
        peak_memory_bytes=peak_memory_bytes(device),
    )


def with_inputs(row: PairRow, inputs: Inputs) -> PairRow:
    """Add the hashes of the inputs, and remarks on how they were read."""
    return replace(
        row,
        content_sha256=inputs.content_sha256,
        style_sha256=list(inputs.style_sha256),
        mask_sha256=list(inputs.mask_sha256),
        start_sha256=inputs.start_sha256,
        notes=list(inputs.notes),
    )


def with_painting(row: PairRow, job: Job, painted: Painted, batch_size: int) -> PairRow:
    """Add how the picture was painted, with the chosen `tile` in the recipe; its time is its share of the batch's."""
    recipe = job.pair.recipe.model_copy(update={"tile": painted.fitting.recipe_tile})
    return replace(
        row,
        recipe=recipe.json_text,
        notes=[*(row.notes or []), *painted.fitting.notes(recipe)],
        batch_size=batch_size,
        seconds=row.seconds / batch_size,
        stopped=painted.stopped,
    )


def with_picture(row: PairRow, painted: Painted, data: bytes) -> PairRow:
    """Add the hash of the file `data`, the size, and the losses of the picture and of its first step."""
    height, width = painted.pixels.shape[:2]
    losses, steps = painted.losses, painted.curve.losses
    return replace(
        row,
        output_sha256=hashlib.sha256(data).hexdigest(),
        width=width,
        height=height,
        content_loss=losses.content.item(),
        style_loss=losses.style.item(),
        tv_loss=losses.tv.item(),
        total_loss=losses.total.item(),
        initial_total=steps.total[0].item(),
        steps=len(steps.total),
    )


def ingredients(row: PairRow) -> list[tuple[str, str]]:
    """The names of the content and the styles, without their folders, and the SHA-256 of their files."""
    addresses, hashes = [row.content, *row.styles], [row.content_sha256 or "", *(row.style_sha256 or [])]
    return [(os.path.basename(path_of(address)), sha256) for address, sha256 in zip(addresses, hashes, strict=True)]


def facts(row: PairRow) -> dict[str, Any]:
    """The columns that say how a picture was painted, for its content credentials; no address is among them."""
    return {
        "run_id": row.run_id,
        "pair_id": row.pair_id,
        "attempt": row.attempt,
        "fingerprint": row.fingerprint,
        "recipe": json.loads(row.recipe),
        "style_weights": row.style_weights,
        "loss_definition": row.loss_definition,
        "weights_sha256": row.weights_sha256,
        "seed": row.seed,
        "precision": row.precision,
        "versions": asdict(row.versions),
    }


def with_error(row: PairRow, error: Exception) -> PairRow:
    """Add an error and keep the status."""
    return replace(row, error_type=type(error).__name__, error_message=redact(str(error)))


def failed(row: PairRow, error: Exception) -> PairRow:
    """The row of a failed attempt: `row` with the error, its kind, and the status `failed`."""
    transient = error.transient if isinstance(error, PairError) else is_transient(error)
    return replace(with_error(row, error), status="failed", error_kind="transient" if transient else "permanent")


def loss_rows(job: Job, run_id: str, painted: Painted) -> list[LossRow]:
    """One row for each step of a picture."""
    curve = painted.curve
    terms = [term.tolist() for term in (curve.losses.total, curve.losses.content, curve.losses.style, curve.losses.tv)]
    layers = {name: losses.tolist() for name, losses in curve.losses.style_layers.items()}
    steps = zip(curve.scales, curve.seconds, *terms, strict=True)
    return [
        LossRow(
            run_id=run_id,
            pair_id=job.pair.id,
            attempt=job.attempt,
            step=step,
            scale=scale,
            total=total,
            content=content,
            style=style,
            tv=tv,
            style_layers={name: losses[step] for name, losses in layers.items()},
            seconds=seconds,
        )
        for step, (scale, seconds, total, content, style, tv) in enumerate(steps)
    ]
