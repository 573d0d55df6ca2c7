"""One picture now: no manifest, no ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath

import torch
from PIL import Image

from batchnst.collection import images, storage
from batchnst.engine.loading import Pictures, check_size, load_start, to_guides, to_pixels, to_starts, to_tensors
from batchnst.engine.worker import load_backbone
from batchnst.errors import Diverged
from batchnst.recipe import Recipe
from batchnst.transfer import stylize as transfer
from batchnst.transfer.losses import Losses
from batchnst.transfer.weights import load_weights

Source = str | PathLike[str] | Image.Image


@dataclass(frozen=True)
class Painting:
    """A painted picture, and the losses of each step, every term (T,), weighted as in the total."""

    picture: Image.Image
    losses: Losses


def stylize(
    content: Source,
    styles: Source | Sequence[Source],
    recipe: Recipe | None = None,
    *,
    on_step: Callable[[transfer.Step], None] | None = None,
) -> Painting:
    """Paint `content` in one style or several of equal weight, on the GPU if there is one.

    Pictures are paths, URIs or PIL images. `on_step` is called with every step. Raises InputError for a picture
    that cannot be used and Diverged if no finite loss was reached.
    """
    recipe = recipe or Recipe()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = load_weights(*recipe.network)
    blend = [styles] if isinstance(styles, str | PathLike | Image.Image) else list(styles)
    pixels = _at_size(content, recipe.size, recipe)
    batch = [
        Pictures(
            content=pixels,
            styles=tuple(_at_size(style, recipe.size * recipe.style_scale, recipe) for style in blend),
            style_weights=(1 / len(blend),) * len(blend),
            start=load_start(recipe, pixels),
        )
    ]
    painting = transfer.stylize(
        to_tensors([pixels], device),
        to_guides(batch, device),
        recipe,
        lambda own: load_backbone(own, weights, device),
        to_starts(batch, device),
    )
    history = []
    while True:
        try:
            step = next(painting)
        except StopIteration as end:
            result: transfer.Stylized = end.value
            break
        history.append(step.losses)
        if on_step:
            on_step(step)
    if not result.losses.total.isfinite().all():
        raise Diverged("no finite loss was reached; lower the weights or the learning_rate")
    return Painting(Image.fromarray(to_pixels(result.pictures)[0]), Losses.cat(history))


def _at_size(source: Source, size: float, recipe: Recipe) -> images.Pixels:
    if isinstance(source, Image.Image):
        name, image = "the given image", images.to_rgb(source)
    else:
        name = fspath(source)
        image = images.decode(storage.read(name), name)
    pixels = images.at_size(image, size, recipe.resample)
    check_size(pixels, name, recipe)
    return pixels
