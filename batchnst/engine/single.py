"""One picture now: no manifest, no ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from batchnst.collection import images
from batchnst.collection.images import Picture
from batchnst.collection.manifest import part_problems, shares
from batchnst.collection.outputs import Finish, encode, is_deep
from batchnst.engine.loading import (
    Pictures,
    Tensors,
    check_size,
    finish,
    fit_mask,
    load_mask,
    load_picture,
    load_start,
    masked_styles,
    to_deep_pixels,
    to_pixels,
    wish,
)
from batchnst.engine.weights import load_weights
from batchnst.engine.worker import load_backbone
from batchnst.errors import Diverged, RequestError
from batchnst.recipe import Recipe
from batchnst.transfer import stylize as transfer
from batchnst.transfer.device import Hardware, network_dtype
from batchnst.transfer.losses import Losses
from batchnst.transfer.memory import Fitting, fit_into, least_memory

Source = str | PathLike[str] | Image.Image


@dataclass(frozen=True)
class Painting:
    """A painted picture, the losses of each step, every term (T,), weighted as in the total, and its own (1,).

    deep: its pixels (H, W, 3), 0..65535. finish: how its recipe wants it written.
    """

    picture: Image.Image
    losses: Losses
    final: Losses
    deep: NDArray[np.uint16]
    finish: Finish

    def encode(self, name: str) -> bytes:
        """The picture's file, as the ending of `name` asks; raises InputError for one that the format cannot hold."""
        return encode(self.deep if is_deep(name) else np.asarray(self.picture), name, self.finish)


def stylize(
    content: Source,
    styles: Source | Sequence[Source],
    recipe: Recipe | None = None,
    *,
    style_weights: Sequence[float | str] = (),
    content_masks: Sequence[Source] = (),
    style_masks: Sequence[Source] = (),
    on_step: Callable[[transfer.Step], None] | None = None,
    memory: float | None = None,
) -> Painting:
    """Paint `content` in one style or several, on the GPU if there is one.

    Pictures and masks are paths, URIs or PIL images; weights and masks are as in a manifest. `on_step` is called with
    every step. memory: bytes to take at the most; by default what the device has. Raises RequestError for weights or
    masks that do not go with the styles and for what does not fit into memory, InputError for a picture that cannot be
    used and Diverged if no finite loss was reached.
    """
    recipe = recipe or Recipe()
    hardware = Hardware.here(memory)
    device = hardware.device
    weights = load_weights(*recipe.network)
    blend = [styles] if isinstance(styles, str | PathLike | Image.Image) else list(styles)
    photo = _picture(content, recipe)
    batch = [_gather(photo, blend, recipe, style_weights, content_masks, style_masks)]
    tensors = Tensors(device)
    painting = transfer.stylize(
        tensors.contents(batch),
        tensors.guides(batch),
        recipe,
        lambda own: load_backbone(own, weights, device),
        tensors.starts(batch),
        _fitting(photo, recipe, hardware),
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
    return Painting(
        picture=Image.fromarray(to_pixels(result.pictures)[0]),
        losses=Losses.cat(history),
        final=Losses.cat([result.losses]),
        deep=to_deep_pixels(result.pictures[0]),
        finish=finish(photo, recipe),
    )


def _fitting(photo: Picture, recipe: Recipe, hardware: Hardware) -> Fitting:
    height, width = photo.pixels.shape[:2]
    dtype = network_dtype(recipe.precision, hardware.device)
    fitting = fit_into(hardware.memory, recipe, (width, height), 1, dtype)
    if fitting is None:
        needed = least_memory(recipe, (width, height), dtype)
        raise RequestError(
            f"{width}×{height} pixels take {needed / 1e9:.0f} GB at the least, more than the "
            f"{hardware.memory / 1e9:.0f} GB that there are; lower size"
        )
    return replace(fitting, devices=hardware.devices)


def _gather(
    content: Picture,
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
    style_pixels = tuple(_picture(style, recipe, recipe.style_scale).pixels for style in styles)
    masked = zip(style_masks, masked_styles(style_pixels, len(style_masks)), strict=True)
    return Pictures(
        content=content.pixels,
        styles=style_pixels,
        style_weights=own_shares,
        content_masks=tuple(_mask("content_mask", mask, content.pixels) for mask in content_masks),
        style_masks=tuple(_mask("style_mask", mask, style) for mask, style in masked),
        start=load_start(recipe, content.pixels),
    )


def _picture(source: Source, recipe: Recipe, scale: float = 1.0) -> Picture:
    wanted = wish(recipe, scale)
    if isinstance(source, Image.Image):
        name, picture = "the given image", images.fitted(images.from_image(source, wanted), wanted, recipe.resample)
    else:
        name = fspath(source)
        picture, _ = load_picture(name, wanted, recipe.resample)
    check_size(picture.pixels, name, recipe)
    return picture


def _mask(key: str, source: Source, picture: images.Pixels) -> images.Pixels:
    if isinstance(source, Image.Image):
        return fit_mask(f"{key} the given image", images.to_rgb(source), picture)
    return load_mask(key, fspath(source), picture)
