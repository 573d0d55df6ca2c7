"""What an attempt at a pair leaves in the ledger."""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from batchnst.engine.loading import Loaded
from batchnst.engine.plan import Job, loss_definition
from batchnst.ledger.schema import LossRow, PairRow, Versions
from batchnst.transfer.losses import Losses
from batchnst.transfer.stylize import Stylized


def pair_row(job: Job, run_id: str, weights_sha256: str, started: datetime, status: str, **more: Any) -> PairRow:
    """The row of an attempt that ends now, on this host; `more` are the columns that only some attempts have."""
    finished = datetime.now(UTC)
    return PairRow(
        run_id=run_id,
        pair_id=job.pair.id,
        attempt=job.attempt,
        status=status,
        content=job.pair.content,
        styles=list(job.pair.styles),
        output=job.pair.output,
        fingerprint=job.fingerprint,
        recipe=job.pair.recipe.json_text,
        loss_definition=loss_definition(job.pair.recipe),
        weights_sha256=weights_sha256,
        seed=job.pair.recipe.seed,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=started,
        finished_at=finished,
        seconds=(finished - started).total_seconds(),
        versions=_versions(),
        extra=job.pair.extra,
        **more,
    )


def failure(error: Exception) -> dict[str, Any]:
    """The columns that say why an attempt failed."""
    return {"error_type": type(error).__name__, "error_message": str(error)}


def inputs(loaded: Loaded) -> dict[str, Any]:
    """The columns that say what was read."""
    styles = [style.sha256 for style in loaded.styles]
    return {"content_sha256": loaded.content.sha256, "style_sha256": styles}


def losses_of(best: Losses, history: Losses, i: int) -> dict[str, Any]:
    """The columns with the losses of the batch's picture i: as written, (1, B), and over the steps, (T, B)."""
    return {
        "content_loss": best.content[0, i].item(),
        "style_loss": best.style[0, i].item(),
        "tv_loss": best.tv[0, i].item(),
        "total_loss": best.total[0, i].item(),
        "initial_total": history.total[0, i].item(),
        "steps": len(history.total),
        "stopped": "steps",
    }


def loss_rows(job: Job, run_id: str, result: Stylized, history: Losses, seconds: list[float], i: int) -> list[LossRow]:
    """A row for each step of the batch's picture i; `seconds` are the steps' times since its start."""
    terms = [term[:, i].tolist() for term in (history.total, history.content, history.style, history.tv)]
    layers = {name: loss[:, i].tolist() for name, loss in history.style_layers.items()}
    return [
        LossRow(
            run_id=run_id,
            pair_id=job.pair.id,
            attempt=job.attempt,
            step=step.index,
            scale=step.scale,
            total=total,
            content=content,
            style=style,
            tv=tv,
            style_layers={name: layers[name][step.index] for name in layers},
            seconds=elapsed,
        )
        for step, total, content, style, tv, elapsed in zip(result.history, *terms, seconds, strict=True)
    ]


def device_columns(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The columns that say what the network ran on."""
    cuda = device.type == "cuda"
    return {
        "device": f"cuda ({torch.cuda.get_device_name(device)})" if cuda else "cpu",
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else _peak_resident_bytes(),
    }


def _peak_resident_bytes() -> int:
    """The most this process has held in memory, ever."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def _versions() -> Versions:
    return Versions(
        batchnst=version("batchnst"),
        python=platform.python_version(),
        torch=version("torch"),
        pillow=version("pillow"),
        pyarrow=version("pyarrow"),
        cuda=torch.version.cuda if torch.cuda.is_available() else None,
    )
