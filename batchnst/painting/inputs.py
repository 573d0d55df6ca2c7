"""Read everything that a picture is painted from: content, styles, masks and start picture, at working size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from PIL import Image

from batchnst.errors import InputError, PairError
from batchnst.manifest.pair import Pair
from batchnst.pictures import decode, isolated
from batchnst.pictures.decode import DecodeOptions, Picture, Pixels
from batchnst.pictures.encode import Finish, unkept
from batchnst.pictures.metadata import Metadata
from batchnst.recipe import ORIGINAL, Recipe, is_start_picture
from batchnst.sizes import fit
from batchnst.storage import files

Source = str | Image.Image
"""A picture: its path or URI, or an image in memory."""


@dataclass(frozen=True)
class Inputs:
    """Everything one picture is painted from, at its working size.

    Pictures are (H, W, 3), masks (H, W) of the same size as their picture; all are uint8, 0..255. `style_weights` sum
    to 1. `start` is the picture that `init` names, if it names one.

    Without content masks the whole picture is one part, painted in a blend of all styles. With content masks each mask
    marks a part: if there are as many styles as parts, each part has its own style, otherwise every part has the blend.

    `content_sha256`, `style_sha256`, `mask_sha256` (of the content masks, then of the style masks) and `start_sha256`
    are the hashes of the files, empty for pictures in memory. `finish` has the options for writing the painted picture.
    `notes` are remarks on how the pictures were read.
    """

    content: Pixels
    styles: tuple[Pixels, ...]
    style_weights: tuple[float, ...]
    content_masks: tuple[Pixels, ...] = ()
    style_masks: tuple[Pixels, ...] = ()
    start: Pixels | None = None
    content_sha256: str = ""
    style_sha256: tuple[str, ...] = ()
    mask_sha256: tuple[str, ...] = ()
    start_sha256: str | None = None
    finish: Finish = field(default_factory=Finish)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StyleFile:
    """The address of a style picture and the options to decode it with."""

    address: str
    options: DecodeOptions


@dataclass(frozen=True)
class _Fitted:
    """A mask or start picture, stretched to the size of its picture; the hash of its file; and remarks on it."""

    pixels: Pixels
    sha256: str
    notes: tuple[str, ...]


LoadedStyle = Picture | Exception
"""A style at its working size, or the error that loading it raised."""

STYLES_KEPT = 32
"""Styles that a StyleCache keeps."""


def gather(
    recipe: Recipe,
    content: Source,
    styles: Sequence[Source],
    *,
    style_weights: tuple[float, ...],
    content_masks: Sequence[Source] = (),
    style_masks: Sequence[Source] = (),
    get_style: Callable[[StyleFile], LoadedStyle] | None = None,
) -> Inputs:
    """Read everything that a picture is painted from. `get_style` loads a style; the default is `load_style`.

    Raises InputError for a picture that cannot be used, StorageError if a store does not answer.
    """
    content_picture = _load(content, decode_options(recipe))
    check_size(content_picture.pixels, _name(content), recipe)
    longest = max(content_picture.pixels.shape[:2])
    style_pictures = [_load_style(style, recipe, longest, get_style or load_style) for style in styles]
    style_pixels = tuple(style.pixels for style in style_pictures)
    masked_styles = style_pixels if len(style_pixels) == len(style_masks) else style_pixels[:1] * len(style_masks)
    inner = [_load_mask("content_mask", mask, content_picture.pixels, recipe) for mask in content_masks]
    outer = [
        _load_mask("style_mask", mask, style, recipe) for mask, style in zip(style_masks, masked_styles, strict=True)
    ]
    start = _load_start(recipe, content_picture.pixels)
    return Inputs(
        content=content_picture.pixels,
        styles=style_pixels,
        style_weights=style_weights,
        content_masks=tuple(mask.pixels for mask in inner),
        style_masks=tuple(mask.pixels for mask in outer),
        start=start.pixels if start else None,
        content_sha256=content_picture.sha256,
        style_sha256=tuple(style.sha256 for style in style_pictures),
        mask_sha256=tuple(mask.sha256 for mask in (*inner, *outer)),
        start_sha256=start.sha256 if start else None,
        finish=_finish(content_picture, recipe),
        notes=(
            *(f"content: {note}" for note in content_picture.notes),
            *(f"style {i}: {note}" for i, style in enumerate(style_pictures, 1) for note in style.notes),
            *(f"mask {i}: {note}" for i, mask in enumerate((*inner, *outer), 1) for note in mask.notes),
            *(f"init: {note}" for note in (start.notes if start else ())),
        ),
    )


def gather_pair(pair: Pair, get_style: Callable[[StyleFile], LoadedStyle] | None = None) -> Inputs:
    """Read everything that `pair` is painted from; see `gather`."""
    inputs = gather(
        pair.recipe,
        pair.content,
        pair.styles,
        style_weights=pair.style_weights,
        content_masks=pair.content_masks,
        style_masks=pair.style_masks,
        get_style=get_style,
    )
    return replace(inputs, notes=(*inputs.notes, *(f"content: {note}" for note in unkept(inputs.finish, pair.output))))


def style_files(pair: Pair) -> list[StyleFile]:
    """The style files of `pair`, at the size that they are needed in; none if that depends on the photo's size."""
    if not pair.recipe.has_one_size:
        return []
    return [StyleFile(style, style_options(pair.recipe, pair.recipe.pixels)) for style in pair.styles]


def load_style(file: StyleFile) -> LoadedStyle:
    """Load a style. An error is returned, not raised: every pair with this style has to report it."""
    try:
        return load_picture(file.address, file.options)
    except Exception as error:
        return error


class StyleCache:
    """Loads each style once, and keeps the last STYLES_KEPT; one with a transient error is loaded anew for each pair.

    `loaded` are styles that are loaded already.
    """

    def __init__(self, loaded: Mapping[StyleFile, LoadedStyle] | None = None) -> None:
        self._loaded, self._load = loaded or {}, lru_cache(maxsize=STYLES_KEPT)(self._load_anew)

    def __call__(self, file: StyleFile) -> LoadedStyle:
        """The style `file`, or the error that loading it raises."""
        loaded = self._loaded.get(file)
        if loaded is not None and not _is_transient(loaded):
            return loaded
        try:
            return self._load(file)
        except PairError as error:
            return error

    @staticmethod
    def _load_anew(file: StyleFile) -> LoadedStyle:
        """Load a style; a transient error is raised, so that it is not kept."""
        loaded = load_style(file)
        if isinstance(loaded, Exception) and _is_transient(loaded):
            raise loaded
        return loaded


def _is_transient(loaded: LoadedStyle) -> bool:
    """True for an error after which another attempt may succeed."""
    return isinstance(loaded, PairError) and loaded.transient


def decode_options(recipe: Recipe) -> DecodeOptions:
    """The options to decode the photo that `recipe` paints."""
    return DecodeOptions(
        background="white" if recipe.alpha == "keep" else recipe.alpha,
        size=None if recipe.size == ORIGINAL else recipe.pixels,
        enlarge=recipe.enlarge,
        megapixels=recipe.max_megapixels,
        resample=recipe.resample,
        damaged=recipe.damaged,
    )


def style_options(recipe: Recipe, longest: int) -> DecodeOptions:
    """The options to decode a style for `recipe`, of which the photo's longest side becomes `longest`."""
    return replace(decode_options(recipe), size=longest * recipe.style_scale, enlarge=True)


def load_picture(address: str, options: DecodeOptions) -> Picture:
    """Read a picture and decode it in a process apart, at the size in `options`. Raises InputError or StorageError."""
    data = _read(address, options)
    return replace(isolated.load(data, address, options), sha256=hashlib.sha256(data).hexdigest())


def check_size(pixels: Pixels, name: str, recipe: Recipe) -> None:
    """Raise InputError, naming the picture `name`, if it is too small for the deepest layer of `recipe`."""
    height, width = pixels.shape[:2]
    if min(height, width) < recipe.smallest_side:
        raise InputError(
            f"{name}: {width}×{height} pixels at this size, but {recipe.deepest_layer} needs "
            f"{recipe.smallest_side} on each side; {'raise size' if recipe.has_one_size else 'enlarge it'} "
            "or leave that layer out"
        )


def _load(source: Source, options: DecodeOptions) -> Picture:
    """Load a picture at the size in `options`."""
    if isinstance(source, Image.Image):
        return decode.fitted(decode.from_image(source, options), options)
    return load_picture(source, options)


def _load_style(source: Source, recipe: Recipe, longest: int, get_style: Callable[[StyleFile], LoadedStyle]) -> Picture:
    """Load a style and check its size; raises the error that loading it returned."""
    options = style_options(recipe, longest)
    style = _load(source, options) if isinstance(source, Image.Image) else get_style(StyleFile(source, options))
    if isinstance(style, Exception):
        raise style.with_traceback(None)  # else a cached error keeps the frames of every earlier raise
    check_size(style.pixels, _name(source), recipe)
    return style


def _name(source: Source) -> str:
    """The name of a picture in messages."""
    return "the given image" if isinstance(source, Image.Image) else source


def _finish(content: Picture, recipe: Recipe) -> Finish:
    """The options for writing the picture that is painted from `content`."""
    keep = recipe.metadata == "keep"
    return Finish(
        quality=recipe.quality,
        alpha=content.alpha if recipe.alpha == "keep" else None,
        metadata=content.metadata if keep else Metadata(),
        icc=content.icc if keep else b"",
    )


def _read(address: str, options: DecodeOptions) -> bytes:
    """Read a picture's file. Raises InputError if it is larger than `options` allow."""
    reason = f"max_megapixels = {options.megapixels:g} allows; raise it to accept this picture"
    return files.read_at_most(address, options.max_file_bytes, reason)


def _load_mask(key: str, source: Source, picture: Pixels, recipe: Recipe) -> _Fitted:
    """Load a mask of `picture` (H, W, 3), stretched to (H, W); transparent parts are black.

    Raises InputError if the mask has another aspect ratio, or is all black. `key` begins the message.
    """
    full, name = _load_full_size(key, source, recipe, background="black"), f"{key} {_name(source)}"
    image = Image.fromarray(full.pixels)
    height, width = picture.shape[:2]
    if fit(*image.size, max(width, height)) != (width, height):
        raise InputError(
            f"{name}: {image.width}×{image.height} pixels, but its picture is shaped like {width}×{height}; "
            "expected a mask of the same aspect ratio"
        )
    mask = decode.stretched(image.convert("L"), width, height)
    if not mask.any():
        raise InputError(f"{name}: all black; expected white where its part of the picture is")
    return _Fitted(mask, full.sha256, full.notes)


def _load_start(recipe: Recipe, content: Pixels) -> _Fitted | None:
    """Load the picture that `init` names, stretched to the size of `content`; None if `init` names no picture."""
    if not is_start_picture(recipe.init):
        return None
    full = _load_full_size("init", recipe.init, recipe)
    start = decode.stretched(Image.fromarray(full.pixels), content.shape[1], content.shape[0])
    return _Fitted(start, full.sha256, full.notes)


def _load_full_size(key: str, source: Source, recipe: Recipe, background: str = "white") -> Picture:
    """Load a picture at its full size, within the limits of `recipe`. `key` begins the message of an InputError."""
    options = DecodeOptions(background=background, megapixels=recipe.max_megapixels, damaged=recipe.damaged)
    try:
        return _load(source, options)
    except InputError as error:
        raise error.with_prefix(f"{key} ") from None
