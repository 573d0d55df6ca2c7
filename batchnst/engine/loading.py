"""Pictures from storage to tensors at working size, ahead of the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from batchnst.collection import images, storage
from batchnst.engine.plan import Batch, Job
from batchnst.errors import InputError
from batchnst.recipe import Recipe
from batchnst.transfer.stylize import Blend

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Picture:
    """A picture at working size, and the SHA-256 of the file it came from."""

    pixels: images.Pixels
    sha256: str


@dataclass(frozen=True)
class Loaded:
    """A job's pictures."""

    job: Job
    content: Picture
    styles: tuple[Picture, ...]


@dataclass(frozen=True)
class Unloadable:
    """A job whose pictures cannot be had, and why."""

    job: Job
    error: Exception


class Loader:
    """Loads batches; a style that several jobs share is read once, and is the same object for all of them."""

    def __init__(self) -> None:
        self._load_style = lru_cache(maxsize=32)(load_picture)

    def load(self, batch: Batch) -> list[Loaded | Unloadable]:
        """The pictures of a batch, in its order."""
        return [self._load_job(job) for job in batch.jobs]

    def _load_job(self, job: Job) -> Loaded | Unloadable:
        recipe = job.pair.recipe
        try:
            content = load_picture(job.pair.content, recipe.size, recipe)
            styles = [self._load_style(style, recipe.size * recipe.style_scale, recipe) for style in job.pair.styles]
        except Exception as error:
            # Whatever a decoder does with a file from outside, it is that pair's failure and nobody else's.
            return Unloadable(job, error)
        return Loaded(job, content, tuple(styles))


def load_picture(address: str, size: float, recipe: Recipe) -> Picture:
    """Read, decode and fit a picture; raises InputError."""
    data = storage.read(address)
    pixels = images.at_size(images.decode(data, address), size, recipe.resample)
    check_size(pixels, address, recipe)
    return Picture(pixels, hashlib.sha256(data).hexdigest())


def check_size(pixels: images.Pixels, name: str, recipe: Recipe) -> None:
    """Raise InputError for a picture whose deepest features would be empty."""
    height, width = pixels.shape[:2]
    if min(height, width) < recipe.smallest_side:
        raise InputError(
            f"{name}: {width}×{height} pixels at this size, but {recipe.deepest_layer} needs "
            f"{recipe.smallest_side} on each side; raise size or leave that layer out"
        )


def to_tensors(contents: Sequence[images.Pixels], device: torch.device) -> Tensor:
    """Pixels (H, W, 3) of one size as (B, 3, H, W), float32, 0..255."""
    stacked = torch.stack([torch.tensor(pixels, device=device) for pixels in contents])
    return stacked.permute(0, 3, 1, 2).float().contiguous()


def to_blends(
    styles: Sequence[Sequence[images.Pixels]], weights: Sequence[tuple[float, ...]], device: torch.device
) -> list[Blend]:
    """Each pair's styles and weights as a Blend; an array that several pairs share becomes one tensor."""
    tensors = {id(pixels): to_tensors([pixels], device) for blend in styles for pixels in blend}
    blends = zip(styles, weights, strict=True)
    return [Blend(tuple(tensors[id(pixels)] for pixels in blend), own) for blend, own in blends]


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
