"""What an attempt at a pair leaves in the ledger."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from numpy.typing import NDArray

from batchnst.engine.loading import Loaded
from batchnst.engine.plan import Job, loss_definition
from batchnst.ledger.schema import LossRow, PairRow, Versions
from batchnst.transfer.device import device_name, peak_memory_bytes, precision_name
from batchnst.transfer.losses import Losses
from batchnst.transfer.memory import Fitting
from batchnst.transfer.stylize import Step


@dataclass(frozen=True)
class _Moment:
    """One step of a batch: when, at which scale, and the losses (b,) of which pictures."""

    seconds: float
    scale: int
    pictures: list[int]
    losses: Losses


class History:
    """The steps of a batch as they come, left on the device until the end."""

    def __init__(self, pictures: int) -> None:
        self.steps = [0] * pictures
        self._start = time.perf_counter()
        self._moments: list[_Moment] = []

    def add(self, step: Step) -> None:
        """Take note of a step."""
        # To a thousandth or so, and no bits beyond that for the ledger to keep.
        seconds = round((time.perf_counter() - self._start) * 1024) / 1024
        for picture in step.active:
            self.steps[picture] += 1
        self._moments.append(_Moment(seconds, step.scale, step.active, step.losses))

    def to_host(self) -> None:
        """Fetch the losses from the device, once all steps are done."""
        self._losses = Losses.cat([moment.losses for moment in self._moments])

    def rows(self, jobs: Sequence[Job], run_id: str) -> list[list[LossRow]]:
        """A row for each step of each picture, picture by picture; `to_host` comes first."""
        losses = self._losses
        terms = [term.tolist() for term in (losses.total, losses.content, losses.style, losses.tv)]
        layers = {name: loss.tolist() for name, loss in losses.style_layers.items()}
        rows: list[list[LossRow]] = [[] for _ in jobs]
        places = ((moment, picture) for moment in self._moments for picture in moment.pictures)
        for k, (moment, picture) in enumerate(places):
            total, content, style, tv = (term[k] for term in terms)
            row = LossRow(
                run_id=run_id,
                pair_id=jobs[picture].pair.id,
                attempt=jobs[picture].attempt,
                step=len(rows[picture]),
                scale=moment.scale,
                total=total,
                content=content,
                style=style,
                tv=tv,
                style_layers={name: layers[name][k] for name in layers},
                seconds=moment.seconds,
            )
            rows[picture].append(row)
        return rows


def pair_row(job: Job, run_id: str, weights_sha256: str, started: datetime, status: str, **more: Any) -> PairRow:
    """The row of an attempt that ends now, on this host; `more` are the columns that only some attempts have."""
    finished = datetime.now(UTC)
    columns = {"recipe": job.pair.recipe.json_text} | more
    return PairRow(
        run_id=run_id,
        pair_id=job.pair.id,
        attempt=job.attempt,
        status=status,
        content=job.pair.content,
        styles=list(job.pair.styles),
        style_weights=list(job.pair.style_weights),
        content_masks=list(job.pair.content_masks),
        style_masks=list(job.pair.style_masks),
        output=job.pair.output,
        fingerprint=job.fingerprint,
        loss_definition=loss_definition(job.pair.recipe),
        weights_sha256=weights_sha256,
        seed=job.pair.recipe.seed,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=started,
        finished_at=finished,
        seconds=(finished - started).total_seconds(),
        versions=versions(),
        extra=job.pair.extra,
        **columns,
    )


def failure(error: Exception) -> dict[str, Any]:
    """The columns that say why an attempt failed."""
    return {"error_type": type(error).__name__, "error_message": str(error)}


def inputs(loaded: Loaded) -> dict[str, Any]:
    """The columns that say what was read."""
    return {"content_sha256": loaded.content_sha256, "style_sha256": loaded.style_sha256, "notes": loaded.notes}


def fitting(loaded: Loaded, fitting: Fitting) -> dict[str, Any]:
    """The columns that say how a picture fitted into memory: its recipe's `tile`, and what else is worth knowing."""
    recipe = loaded.job.pair.recipe.model_copy(update={"tile": fitting.recipe_tile})
    notes = [*loaded.notes, *fitting.notes(recipe)]
    return {"recipe": recipe.json_text, "notes": notes}


def picture(data: bytes, pixels: NDArray[Any]) -> dict[str, Any]:
    """The columns that say what was written."""
    height, width = pixels.shape[:2]
    return {"output_sha256": hashlib.sha256(data).hexdigest(), "width": width, "height": height}


def losses(best: Losses, i: int, steps: Sequence[LossRow]) -> dict[str, Any]:
    """The columns with the losses of the batch's picture i: as written, and before the first step."""
    return {
        "content_loss": best.content[i].item(),
        "style_loss": best.style[i].item(),
        "tv_loss": best.tv[i].item(),
        "total_loss": best.total[i].item(),
        "initial_total": steps[0].total,
        "steps": len(steps),
    }


def device(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The columns that say what the network ran on."""
    return {
        "device": f"cuda ({device_name(device)})" if device.type == "cuda" else "cpu",
        "precision": precision_name(dtype),
        "peak_memory_bytes": peak_memory_bytes(device),
    }


@cache
def versions() -> Versions:
    """What paints, here and now."""
    return Versions(
        batchnst=version("batchnst"),
        python=platform.python_version(),
        torch=version("torch"),
        pillow=version("pillow"),
        pyarrow=version("pyarrow"),
        cuda=torch.version.cuda if torch.cuda.is_available() else None,
    )
