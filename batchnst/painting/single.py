"""Paint a single picture, without manifest and ledger: the public `stylize`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath

from PIL import Image

from batchnst.errors import RequestError
from batchnst.manifest.pair import mask_problems, style_shares
from batchnst.painting.inputs import Inputs, Source, gather
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import Group, Painted, Painter
from batchnst.painting.tensors import TensorCache
from batchnst.pictures.encode import Finish
from batchnst.progress import Progress
from batchnst.recipe import Recipe
from batchnst.transfer.device import Hardware
from batchnst.transfer.losses import Losses
from batchnst.transfer.memory import fit_into, memory_problem
from batchnst.transfer.stylize import Step

AnySource = Source | PathLike[str]
"""A picture: its path or URI, or a PIL image."""


@dataclass(frozen=True)
class Painting:
    """A painted picture and its losses; each term is weighted as in the total."""

    painted: Painted
    finish: Finish

    @property
    def picture(self) -> Image.Image:
        """The picture, RGB."""
        return Image.fromarray(self.painted.pixels)

    @property
    def losses(self) -> Losses:
        """The losses of every step, (T,)."""
        return self.painted.curve.losses

    @property
    def final(self) -> Losses:
        """The losses of the picture itself, (1,)."""
        return self.painted.losses

    def encode(self, name: str) -> bytes:
        """The picture as a file, in the format that the ending of `name` selects; raises InputError if that fails."""
        return self.painted.encode(name, self.finish)


def stylize(
    content: AnySource,
    styles: AnySource | Sequence[AnySource],
    recipe: Recipe | None = None,
    *,
    style_weights: Sequence[float | str] = (),
    content_masks: Sequence[AnySource] = (),
    style_masks: Sequence[AnySource] = (),
    on_step: Callable[[Step], None] = lambda step: None,
    memory: float | None = None,
) -> Painting:
    """Paint `content` in one style or several, on the GPU if there is one.

    Pictures and masks are paths, URIs or PIL images; `style_weights`, `content_masks` and `style_masks` mean the same
    as in a manifest. `recipe` defaults to `Recipe()`. `on_step` is called after every step. `memory` limits the memory
    that is used, in bytes; the default is that of the device, less a reserve.

    Raises RequestError if the numbers of weights, masks and styles do not match, or the picture does not fit into
    memory; InputError for a picture that cannot be used; Diverged if no finite loss was reached.
    """
    recipe = recipe or Recipe()
    hardware, weights = Hardware.here(memory), load_weights(*recipe.network)
    blend = [styles] if isinstance(styles, str | PathLike | Image.Image) else list(styles)
    inputs = _gather(recipe, content, blend, style_weights, content_masks, style_masks)
    painter = Painter(recipe, weights, hardware, TensorCache(hardware.device), on_step=on_step)
    _check_memory(inputs, painter)
    (group,) = (event for event in painter.paint([inputs], want_16_bit=[True]) if isinstance(event, Group))
    if isinstance(group.result, Exception):
        raise group.result
    (painted,) = group.result
    painted.check_finite()
    return Painting(painted, inputs.finish)


def report_steps(progress: Progress) -> Callable[[Step], None]:
    """A callback for `on_step` that reports each step to `progress`."""

    def report(step: Step) -> None:
        text = f"step {step.index + 1} · {step.scale} pixels · loss {step.losses.total.item():.4g}"
        progress(text, step.share, 1.0)

    return report


def _gather(
    recipe: Recipe,
    content: AnySource,
    styles: Sequence[AnySource],
    style_weights: Sequence[float | str],
    content_masks: Sequence[AnySource],
    style_masks: Sequence[AnySource],
) -> Inputs:
    """Check the numbers of weights and masks, and read all inputs."""
    for key, problem in mask_problems(len(styles), len(content_masks), len(style_masks)):
        raise RequestError(f"{key}: {problem}")
    try:
        shares = style_shares(style_weights, len(styles))
    except ValueError as error:
        raise RequestError(f"style_weights: {error}") from None
    return gather(
        recipe,
        _source(content),
        [_source(style) for style in styles],
        style_weights=shares,
        content_masks=[_source(mask) for mask in content_masks],
        style_masks=[_source(mask) for mask in style_masks],
    )


def _source(source: AnySource) -> Source:
    return source if isinstance(source, Image.Image) else fspath(source)


def _check_memory(inputs: Inputs, painter: Painter) -> None:
    """Raise RequestError if the picture does not fit into memory."""
    height, width = inputs.content.shape[:2]
    memory = painter.hardware.memory
    if fit_into(memory, painter.recipe, (width, height), 1, painter.dtype) is None:
        raise RequestError(memory_problem(memory, painter.recipe, (width, height), painter.dtype))
