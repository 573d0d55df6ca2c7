"""One picture now: no manifest, no ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath

from PIL import Image

from batchnst.collection import images, storage
from batchnst.collection.manifest import part_problems, shares
from batchnst.engine.loading import (
    Pictures,
    Tensors,
    check_size,
    fit_mask,
    load_start,
    masked_styles,
    to_pixels,
)
from batchnst.engine.worker import load_backbone
from batchnst.errors import Diverged, RequestError
from batchnst.recipe import Recipe
from batchnst.transfer import stylize as transfer
from batchnst.transfer.device import best_device
from batchnst.transfer.losses import Losses
from batchnst.transfer.weights import load_weights

Source = str | PathLike[str] | Image.Image


@dataclass(frozen=True)
class Painting:
    """A painted picture, the losses of each step, every term (T,), weighted as in the total, and its own (1,)."""

    picture: Image.Image
    losses: Losses
    final: Losses


def stylize(
    content: Source,
    styles: Source | Sequence[Source],
    recipe: Recipe | None = None,
    *,
    style_weights: Sequence[float | str] = (),
    content_masks: Sequence[Source] = (),
    style_masks: Sequence[Source] = (),
    on_step: Callable[[transfer.Step], None] | None = None,
) -> Painting:
    """Paint `content` in one style or several, on the GPU if there is one.

    Pictures and masks are paths, URIs or PIL images; weights and masks are as in a manifest. `on_step` is called with
    every step. Raises RequestError for weights or masks that do not go with the styles, InputError for a picture that
    cannot be used and Diverged if no finite loss was reached.
    """
    recipe = recipe or Recipe()
    device = best_device()
    weights = load_weights(*recipe.network)
    blend = [styles] if isinstance(styles, str | PathLike | Image.Image) else list(styles)
    batch = [_gather(content, blend, recipe, style_weights, content_masks, style_masks)]
    tensors = Tensors(device)
    painting = transfer.stylize(
        tensors.contents(batch),
        tensors.guides(batch),
        recipe,
        lambda own: load_backbone(own, weights, device),
        tensors.starts(batch),
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
    return Painting(Image.fromarray(to_pixels(result.pictures)[0]), Losses.cat(history), Losses.cat([result.losses]))


def _gather(
    content: Source,
    styles: Sequence[Source],
    recipe: Recipe,
    style_weights: Sequence[float | str],
    content_masks: Sequence[Source],
    style_masks: Sequence[Source],
) -> Pictures:
    """Everything the picture is painted from, read and fitted."""
    for key, problem in part_problems(len(styles), len(content_masks), len(style_masks)):
        raise RequestError(f"{key}: {problem}")
    try:
        own_shares = shares(style_weights, len(styles))
    except ValueError as error:
        raise RequestError(f"style_weights: {error}") from None
    pixels = _at_size(content, recipe.size, recipe)
    style_pixels = tuple(_at_size(style, recipe.size * recipe.style_scale, recipe) for style in styles)
    masked = zip(style_masks, masked_styles(style_pixels, len(style_masks)), strict=True)
    return Pictures(
        content=pixels,
        styles=style_pixels,
        style_weights=own_shares,
        content_masks=tuple(_mask("content_mask", mask, pixels) for mask in content_masks),
        style_masks=tuple(_mask("style_mask", mask, style) for mask, style in masked),
        start=load_start(recipe, pixels),
    )


def _at_size(source: Source, size: float, recipe: Recipe) -> images.Pixels:
    name, image = _open(source)
    pixels = images.at_size(image, size, recipe.resample)
    check_size(pixels, name, recipe)
    return pixels


def _mask(key: str, source: Source, picture: images.Pixels) -> images.Pixels:
    name, image = _open(source)
    return fit_mask(f"{key} {name}", image, picture)


def _open(source: Source) -> tuple[str, Image.Image]:
    """What to call a picture, and the picture."""
    if isinstance(source, Image.Image):
        return "the given image", images.to_rgb(source)
    name = fspath(source)
    return name, images.decode(storage.read(name), name)
