"""Everything a picture is painted from, read, decoded and fitted to its working size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from batchnst.errors import InputError
from batchnst.manifest.pair import Pair
from batchnst.pictures import decode, isolated
from batchnst.pictures.decode import DecodeOptions, Picture, Pixels
from batchnst.pictures.encode import Finish
from batchnst.recipe import Recipe, fit, is_start_picture
from batchnst.storage import files

Source = str | Image.Image
"""A picture by its path or URI, or in memory."""


@dataclass(frozen=True)
class Inputs:
    """What one picture is painted from, at its working size. Masks are (H, W), 0..255, shaped like their pictures.

    Without content masks the whole picture is one part, painted in a blend of all styles. With content masks each mask
    marks a part: if there are as many styles as parts, each part has its own style, otherwise every part has the blend.

    `content_sha256` and `style_sha256` are the hashes of the files, empty for pictures in memory. `finish` says how the
    painted picture is written. `notes` say how the pictures were read, where that is not obvious.
    """

    content: Pixels
    styles: tuple[Pixels, ...]
    style_weights: tuple[float, ...]
    content_masks: tuple[Pixels, ...] = ()
    style_masks: tuple[Pixels, ...] = ()
    start: Pixels | None = None
    content_sha256: str = ""
    style_sha256: tuple[str, ...] = ()
    finish: Finish = field(default_factory=Finish)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StyleFile:
    """A style picture as a recipe needs it: its address, and how it is decoded."""

    address: str
    options: DecodeOptions


Style = Picture | Exception
"""A style at its working size, or the reason why it cannot be read."""


def gather(
    recipe: Recipe,
    content: Source,
    styles: Sequence[Source],
    *,
    style_weights: tuple[float, ...],
    content_masks: Sequence[Source] = (),
    style_masks: Sequence[Source] = (),
    get_style: Callable[[StyleFile], Style] | None = None,
) -> Inputs:
    """Read everything that a picture is painted from; `get_style` replaces `load_style`.

    Raises InputError for a picture that cannot be used, StorageError if a store does not answer.
    """
    photo = _load(content, decode_options(recipe))
    check_size(photo.pixels, _name(content), recipe)
    paintings = [_load_style(style, recipe, get_style or load_style) for style in styles]
    style_pixels = tuple(painting.pixels for painting in paintings)
    masked = style_pixels if len(style_pixels) == len(style_masks) else style_pixels[:1] * len(style_masks)
    return Inputs(
        content=photo.pixels,
        styles=style_pixels,
        style_weights=style_weights,
        content_masks=tuple(_load_mask("content_mask", mask, photo.pixels) for mask in content_masks),
        style_masks=tuple(
            _load_mask("style_mask", mask, style) for mask, style in zip(style_masks, masked, strict=True)
        ),
        start=_load_start(recipe, photo.pixels),
        content_sha256=photo.sha256,
        style_sha256=tuple(painting.sha256 for painting in paintings),
        finish=_finish(photo, recipe),
        notes=(
            *(f"content: {note}" for note in photo.notes),
            *(f"style {i}: {note}" for i, painting in enumerate(paintings, 1) for note in painting.notes),
        ),
    )


def gather_pair(pair: Pair, get_style: Callable[[StyleFile], Style] | None = None) -> Inputs:
    """Read everything that a pair is painted from; like `gather`."""
    return gather(
        pair.recipe,
        pair.content,
        pair.styles,
        style_weights=pair.style_weights,
        content_masks=pair.content_masks,
        style_masks=pair.style_masks,
        get_style=get_style,
    )


def style_files(pair: Pair) -> list[StyleFile]:
    """The style pictures of a pair."""
    return [StyleFile(style, decode_options(pair.recipe, pair.recipe.style_scale)) for style in pair.styles]


def load_style(file: StyleFile) -> Style:
    """Read and decode a style. Errors are returned, not raised: many pairs may need to hear of them."""
    try:
        return load_picture(file.address, file.options)
    except Exception as error:
        return error


def decode_options(recipe: Recipe, scale: float = 1.0) -> DecodeOptions:
    """How a recipe's pictures are decoded; `scale` multiplies its size."""
    return DecodeOptions(
        background="white" if recipe.alpha == "keep" else recipe.alpha,
        size=recipe.size * scale,
        megapixels=recipe.max_megapixels,
        resample=recipe.resample,
    )


def load_picture(address: str, options: DecodeOptions) -> Picture:
    """Read, decode and fit a picture; raises InputError."""
    data = _read(address, options)
    return replace(isolated.load(data, address, options), sha256=hashlib.sha256(data).hexdigest())


def check_size(pixels: Pixels, name: str, recipe: Recipe) -> None:
    """Raise InputError for a picture too small for the deepest layer of the recipe."""
    height, width = pixels.shape[:2]
    if min(height, width) < recipe.smallest_side:
        raise InputError(
            f"{name}: {width}×{height} pixels at this size, but {recipe.deepest_layer} needs "
            f"{recipe.smallest_side} on each side; raise size or leave that layer out"
        )


def _load(source: Source, options: DecodeOptions) -> Picture:
    if isinstance(source, Image.Image):
        return decode.fitted(decode.from_image(source, options), options)
    return load_picture(source, options)


def _load_style(source: Source, recipe: Recipe, get_style: Callable[[StyleFile], Style]) -> Picture:
    options = decode_options(recipe, recipe.style_scale)
    style = _load(source, options) if isinstance(source, Image.Image) else get_style(StyleFile(source, options))
    if isinstance(style, Exception):
        raise style
    check_size(style.pixels, _name(source), recipe)
    return style


def _name(source: Source) -> str:
    """The picture as messages call it."""
    return "the given image" if isinstance(source, Image.Image) else source


def _finish(content: Picture, recipe: Recipe) -> Finish:
    """How the picture painted from a content is written."""
    keep = recipe.metadata == "keep"
    return Finish(
        quality=recipe.quality,
        alpha=content.alpha if recipe.alpha == "keep" else None,
        exif=content.exif if keep else b"",
        icc=content.icc if keep else b"",
    )


def _read(address: str, options: DecodeOptions) -> bytes:
    """A picture's file; raises InputError for one that is larger than `options` allow."""
    with files.open_file(address) as file:
        size = file.seek(0, os.SEEK_END)
        if size > options.max_file_bytes:
            raise InputError(
                f"{address}: {size / 1e6:.0f} MB, more than the {options.max_file_bytes / 1e6:.0f} MB that "
                f"max_megapixels = {options.megapixels:g} allows; raise it if this is meant"
            )
        file.seek(0)
        return file.read()


def _load_mask(key: str, source: Source, picture: Pixels) -> Pixels:
    """A mask (H, W) of a picture (H, W, 3); raises InputError for another shape, or a mask without a white spot."""
    image, name = _load_whole(key, source), f"{key} {_name(source)}"
    height, width = picture.shape[:2]
    if fit(*image.size, max(width, height)) != (width, height):
        raise InputError(
            f"{name}: {image.width}×{image.height} pixels, but its picture is shaped like {width}×{height}; "
            "expected a mask of the picture's own shape"
        )
    mask = decode.stretched(image.convert("L"), width, height)
    if not mask.any():
        raise InputError(f"{name}: all black; expected white where its part of the picture is")
    return mask


def _load_start(recipe: Recipe, content: Pixels) -> Pixels | None:
    """The picture that `init` names, stretched to the content's size; None if `init` names no picture."""
    if not is_start_picture(recipe.init):
        return None
    return decode.stretched(_load_whole("init", recipe.init), content.shape[1], content.shape[0])


def _load_whole(key: str, source: Source) -> Image.Image:
    """A picture at its full size; errors begin with `key`."""
    if isinstance(source, Image.Image):
        return decode.to_rgb(source)
    try:
        return Image.fromarray(load_picture(source, DecodeOptions()).pixels)
    except InputError as error:
        raise InputError(f"{key} {error}") from None
