"""Pictures from storage to tensors at working size, ahead of the device."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from batchnst.collection import decoder, images, storage
from batchnst.collection.images import Picture, Wish
from batchnst.collection.manifest import Pair
from batchnst.collection.outputs import Finish
from batchnst.engine.plan import Batch, Job
from batchnst.errors import InputError, StorageError
from batchnst.recipe import Recipe, fit, is_start_picture
from batchnst.transfer.stylize import Guide

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pictures:
    """What one picture is painted from, at working size. Masks are (H, W), 0..255, and shaped like what they mask.

    Without content masks there is one part, the whole picture, in a blend of all styles. With them, each marks a part;
    with as many styles as parts each part has its own style, otherwise all have the blend.
    """

    content: images.Pixels
    styles: tuple[images.Pixels, ...]
    style_weights: tuple[float, ...]
    content_masks: tuple[images.Pixels, ...] = ()
    style_masks: tuple[images.Pixels, ...] = ()
    start: images.Pixels | None = None


@dataclass(frozen=True)
class Loaded:
    """A job's pictures, and the SHA-256 of the files that its content and styles came from.

    finish: how to write what is painted. notes: what a person should know of how the pictures were read.
    """

    job: Job
    pictures: Pictures
    content_sha256: str
    style_sha256: list[str]
    finish: Finish
    notes: list[str]


@dataclass(frozen=True)
class Unloadable:
    """A job whose pictures cannot be had, and why."""

    job: Job
    error: Exception


@dataclass(frozen=True)
class StyleFile:
    """A style picture as a recipe wants it: its address, size, ground and limit, and the resize filter."""

    address: str
    wish: Wish
    resample: str


Style = tuple[Picture, str] | Exception
"""A style at its size and the SHA-256 of its file, or why it cannot be had."""


def style_files(pair: Pair) -> list[StyleFile]:
    """The style pictures of a pair."""
    recipe = pair.recipe
    return [StyleFile(style, wish(recipe, recipe.style_scale), recipe.resample) for style in pair.styles]


def load_style(file: StyleFile) -> Style:
    """Read, decode and fit a style; what is wrong with it is returned, for many pairs to hear of."""
    try:
        return load_picture(file.address, file.wish, file.resample)
    except Exception as error:
        return error


class Loader:
    """Loads batches; a style that several jobs share is got once, and is the same object for all of them."""

    def __init__(self, get_style: Callable[[StyleFile], Style] | None = None) -> None:
        self._get_style = get_style or lru_cache(maxsize=32)(load_style)

    def load(self, batch: Batch) -> list[Loaded | Unloadable]:
        """The pictures of a batch, in its order."""
        return [self._load_job(job) for job in batch.jobs]

    def _load_job(self, job: Job) -> Loaded | Unloadable:
        pair, recipe = job.pair, job.pair.recipe
        try:
            picture, content_sha256 = load_picture(pair.content, wish(recipe), recipe.resample)
            content = picture.pixels
            check_size(content, pair.content, recipe)
            loaded = [self._style(file, recipe) for file in style_files(pair)]
            styles = tuple(style.pixels for style, _ in loaded)
            masked = masked_styles(styles, len(pair.style_masks))
            pictures = Pictures(
                content=content,
                styles=styles,
                style_weights=pair.style_weights,
                content_masks=tuple(load_mask("content_mask", mask, content) for mask in pair.content_masks),
                style_masks=tuple(map(partial(load_mask, "style_mask"), pair.style_masks, masked)),
                start=load_start(recipe, content),
            )
        except StorageError:
            raise
        except Exception as error:
            # Whatever a decoder does with a file from outside, it is that pair's failure and nobody else's.
            return Unloadable(job, error)
        notes = [f"content: {note}" for note in picture.notes]
        notes += [f"style {i}: {note}" for i, (style, _) in enumerate(loaded, 1) for note in style.notes]
        style_sha256 = [sha256 for _, sha256 in loaded]
        return Loaded(job, pictures, content_sha256, style_sha256, finish(picture, recipe), notes)

    def _style(self, file: StyleFile, recipe: Recipe) -> tuple[Picture, str]:
        style = self._get_style(file)
        if isinstance(style, Exception):
            raise style
        check_size(style[0].pixels, file.address, recipe)
        return style


def wish(recipe: Recipe, scale: float = 1.0) -> Wish:
    """How a recipe wants its pictures, at `scale` times its size."""
    return Wish("white" if recipe.alpha == "keep" else recipe.alpha, recipe.size * scale, recipe.max_megapixels)


def finish(content: Picture, recipe: Recipe) -> Finish:
    """How the picture painted from a content is written."""
    keep = recipe.metadata == "keep"
    return Finish(
        quality=recipe.quality,
        alpha=content.alpha if recipe.alpha == "keep" else None,
        exif=content.exif if keep else b"",
        icc=content.icc if keep else b"",
    )


def load_picture(address: str, wish: Wish, resample: str) -> tuple[Picture, str]:
    """Read, decode and fit a picture; returns it and its file's SHA-256. Raises InputError."""
    data = read(address, wish)
    return decoder.load(data, address, wish, resample), hashlib.sha256(data).hexdigest()


def read(address: str, wish: Wish) -> bytes:
    """A picture's file, unless it is too large; raises InputError."""
    with storage.open_file(address) as file:
        size = file.seek(0, os.SEEK_END)
        if size > wish.most_bytes:
            raise InputError(
                f"{address}: {size / 1e6:.0f} MB, more than the {wish.most_bytes / 1e6:.0f} MB that "
                f"max_megapixels = {wish.megapixels:g} allows; raise it if this is meant"
            )
        file.seek(0)
        return file.read()


def load_mask(key: str, address: str, picture: images.Pixels) -> images.Pixels:
    """A mask for a picture (H, W, 3), as (H, W); raises InputError for one of another shape or without a white spot."""
    return fit_mask(f"{key} {address}", load_whole(key, address), picture)


def load_whole(key: str, address: str) -> Image.Image:
    """A picture at the size it has; errors say what it is for."""
    try:
        return Image.fromarray(decoder.load(read(address, Wish()), address, Wish()).pixels)
    except InputError as error:
        raise InputError(f"{key} {error}") from None


def fit_mask(name: str, image: Image.Image, picture: images.Pixels) -> images.Pixels:
    """A mask at the size of its picture, like `load_mask`."""
    height, width = picture.shape[:2]
    if fit(*image.size, max(width, height)) != (width, height):
        raise InputError(
            f"{name}: {image.width}×{image.height} pixels, but its picture is shaped like {width}×{height}; "
            "expected a mask of the picture's own shape"
        )
    mask = images.exactly(image.convert("L"), width, height)
    if not mask.any():
        raise InputError(f"{name}: all black; expected white where its part of the picture is")
    return mask


def masked_styles(styles: tuple[images.Pixels, ...], masks: int) -> tuple[images.Pixels, ...]:
    """The style that each style mask belongs to: its part's own, or the one for all parts."""
    return styles if len(styles) == masks else styles[:1] * masks


def load_start(recipe: Recipe, content: images.Pixels) -> images.Pixels | None:
    """The user's picture to start from, stretched over the content; None where the recipe names none."""
    if not is_start_picture(recipe.init):
        return None
    return images.exactly(load_whole("init", recipe.init), content.shape[1], content.shape[0])


def check_size(pixels: images.Pixels, name: str, recipe: Recipe) -> None:
    """Raise InputError for a picture whose deepest features would be empty."""
    height, width = pixels.shape[:2]
    if min(height, width) < recipe.smallest_side:
        raise InputError(
            f"{name}: {width}×{height} pixels at this size, but {recipe.deepest_layer} needs "
            f"{recipe.smallest_side} on each side; raise size or leave that layer out"
        )


def to_tensors(pictures: Sequence[images.Pixels], device: torch.device) -> Tensor:
    """Pictures (H, W, 3) of one size as (B, 3, H, W), float32, 0..255."""
    return torch.cat([_to_bytes(pixels, device) for pixels in pictures]).float()


def _to_bytes(pixels: images.Pixels, device: torch.device) -> Tensor:
    """A picture (H, W, C) as (1, C, H, W), uint8."""
    return torch.tensor(pixels, device=device).permute(2, 0, 1)[None].contiguous()


class Tensors:
    """Batches as tensors on a device; an array that comes again, now or later, is the same tensor."""

    most = 64

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: OrderedDict[int, tuple[images.Pixels, Tensor]] = OrderedDict()

    def contents(self, batch: Sequence[Pictures]) -> Tensor:
        """The contents, (B, 3, H, W)."""
        return to_tensors([pictures.content for pictures in batch], self.device)

    def starts(self, batch: Sequence[Pictures]) -> Tensor | None:
        """The users' pictures to start from, (B, 3, H, W), or None where there are none."""
        starts = [pictures.start for pictures in batch if pictures.start is not None]
        return to_tensors(starts, self.device) if starts else None

    def guides(self, batch: Sequence[Pictures]) -> list[list[Guide]]:
        """Each picture's parts."""
        return [_parts(pictures, self._tensor) for pictures in batch]

    def _tensor(self, pixels: images.Pixels) -> Tensor:
        """A picture as (1, 3, H, W), uint8, or a mask as (1, 1, H, W), 0..1."""
        if id(pixels) not in self._kept:
            picture = _to_bytes(pixels if pixels.ndim == 3 else pixels[..., None], self.device)
            # The array is kept too: as long as it lives no other has its id.
            self._kept[id(pixels)] = pixels, picture if pixels.ndim == 3 else picture.float() / 255
        self._kept.move_to_end(id(pixels))
        if len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return self._kept[id(pixels)][1]


def _parts(pictures: Pictures, tensor: Callable[[images.Pixels], Tensor]) -> list[Guide]:
    styles = tuple(tensor(style) for style in pictures.styles)
    count = max(1, len(pictures.content_masks))
    one_each = count > 1 and len(styles) == count
    return [
        Guide(
            styles=(styles[i],) if one_each else styles,
            weights=(1.0,) if one_each else pictures.style_weights,
            share=pictures.style_weights[i] if one_each else 1 / count,
            content_mask=tensor(pictures.content_masks[i]) if pictures.content_masks else None,
            style_mask=tensor(pictures.style_masks[i]) if pictures.style_masks else None,
        )
        for i in range(count)
    ]


def to_pixels(pictures: Tensor) -> list[images.Pixels]:
    """Pictures (B, 3, H, W) in 0..255 as (H, W, 3), rounded."""
    return list(pictures.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())


def to_deep_pixels(picture: Tensor) -> NDArray[np.uint16]:
    """A picture (3, H, W) in 0..255 as (H, W, 3), 0..65535."""
    return (picture * 257).round().clamp(0, 65535).permute(1, 2, 0).cpu().numpy().astype(np.uint16)


def ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item with its result; the next result is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(function, items[0])
        for i, item in enumerate(items):
            result = upcoming.result()
            if i + 1 < len(items):
                upcoming = pool.submit(function, items[i + 1])
            yield item, result
