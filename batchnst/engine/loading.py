"""Pictures from storage to tensors at working size, ahead of the device."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from batchnst.collection import images, storage
from batchnst.collection.manifest import Pair
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
    """A job's pictures, and the SHA-256 of the files that its content and styles came from."""

    job: Job
    pictures: Pictures
    content_sha256: str
    style_sha256: list[str]


@dataclass(frozen=True)
class Unloadable:
    """A job whose pictures cannot be had, and why."""

    job: Job
    error: Exception


@dataclass(frozen=True)
class StyleFile:
    """A style picture as a recipe wants it: its address, longest side in pixels, and the resize filter."""

    address: str
    size: float
    resample: str


Style = tuple[images.Pixels, str] | Exception
"""A style at its size and the SHA-256 of its file, or why it cannot be had."""


def style_files(pair: Pair) -> list[StyleFile]:
    """The style pictures of a pair."""
    size = pair.recipe.size * pair.recipe.style_scale
    return [StyleFile(style, size, pair.recipe.resample) for style in pair.styles]


def load_style(file: StyleFile) -> Style:
    """Read, decode and fit a style; what is wrong with it is returned, for many pairs to hear of."""
    try:
        return load_picture(file.address, file.size, file.resample)
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
            content, content_sha256 = load_picture(pair.content, recipe.size, recipe.resample)
            check_size(content, pair.content, recipe)
            loaded = [self._style(file, recipe) for file in style_files(pair)]
            styles = tuple(style for style, _ in loaded)
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
        return Loaded(job, pictures, content_sha256, [sha256 for _, sha256 in loaded])

    def _style(self, file: StyleFile, recipe: Recipe) -> tuple[images.Pixels, str]:
        style = self._get_style(file)
        if isinstance(style, Exception):
            raise style
        check_size(style[0], file.address, recipe)
        return style


def load_picture(address: str, size: float, resample: str) -> tuple[images.Pixels, str]:
    """Read, decode and fit a picture; returns it and its file's SHA-256. Raises InputError."""
    data = storage.read(address)
    pixels = images.at_size(images.decode(data, address), size, resample)
    return pixels, hashlib.sha256(data).hexdigest()


def load_mask(key: str, address: str, picture: images.Pixels) -> images.Pixels:
    """A mask for a picture (H, W, 3), as (H, W); raises InputError for one of another shape or without a white spot."""
    try:
        image = images.decode(storage.read(address), address)
    except InputError as error:
        raise InputError(f"{key} {error}") from None
    return fit_mask(f"{key} {address}", image, picture)


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
    try:
        image = images.decode(storage.read(recipe.init), recipe.init)
    except InputError as error:
        raise InputError(f"init {error}") from None
    return images.exactly(image, content.shape[1], content.shape[0])


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
    stacked = torch.stack([torch.tensor(pixels, device=device) for pixels in pictures])
    return stacked.permute(0, 3, 1, 2).float().contiguous()


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
        """A picture as (1, 3, H, W), 0..255, or a mask as (1, 1, H, W), 0..1."""
        if id(pixels) not in self._kept:
            picture = to_tensors([pixels if pixels.ndim == 3 else pixels[..., None]], self.device)
            # The array is kept too: as long as it lives no other has its id.
            self._kept[id(pixels)] = pixels, picture if pixels.ndim == 3 else picture / 255
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


def ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item with its result; the next result is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(function, items[0])
        for i, item in enumerate(items):
            result = upcoming.result()
            if i + 1 < len(items):
                upcoming = pool.submit(function, items[i + 1])
            yield item, result
