"""The sheet: for each layer, its strongest channels, its content and style alone, and its share of the style loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from batchnst.backbones import Layer, cut
from batchnst.layers.contributions import Contribution, contributions
from batchnst.layers.excitement import Channel, excitement, load, name_of
from batchnst.layers.receptive import Field, fields
from batchnst.ledger.out import Out
from batchnst.manifest.collecting import list_pictures
from batchnst.painting.single import stylize
from batchnst.progress import Progress
from batchnst.recipe import ORIGINAL, Recipe
from batchnst.redaction import stored
from batchnst.storage.files import resolve
from batchnst.transfer.stylize import Step

PAINTED = 256
"""Longest side of the pictures painted from noise, in pixels: no sheet shows them larger."""


LEGEND = (
    "Each row is a layer, from the first to the deepest. Deeper layers see more of a picture.",
    "Each block: patches that excite one of the layer's strongest channels most, cut to the receptive field.",
    "Beside the blocks: the content and the style, each painted from noise by this layer alone.",
)
"""Lines that explain a sheet."""


@dataclass(frozen=True)
class Request:
    """The settings of a sheet.

    sources: pictures, as files, folders, prefixes or globs; the first picture is the content. style: address of the
    style; None for the content. channels: channels of each layer. top: patches of each channel. out: run whose ledger
    has the style losses. pair_id: the pair to read them from; None for all pairs.
    """

    sources: Sequence[str]
    style: str | None = None
    channels: int = 6
    top: int = 9
    out: Out | None = None
    pair_id: str | None = None


@dataclass(frozen=True)
class NamedImage:
    """A picture at the size that the network sees, and its name as `name_of` shows it."""

    name: str
    image: Image.Image


@dataclass(frozen=True)
class View:
    """One layer on the sheet.

    channels: its strongest channels, the strongest first. content, texture: the content and the style, painted from
    noise by this layer alone. contribution: to the style loss; None without a ledger, or if the layer is not in it.
    """

    layer: Layer
    field: Field
    channels: list[Channel]
    content: Image.Image
    texture: Image.Image
    contribution: Contribution | None

    @property
    def facts(self) -> list[str]:
        """The text beside the layer, line by line."""
        size, stride = self.field.size, self.field.stride
        return [f"sees {size} × {size} pixels", f"stride {stride}", f"{self.layer.channels} channels"]


@dataclass(frozen=True)
class Sheet:
    """Everything that the page and the poster show.

    pictures: number of pictures used. left_out: for each other picture, the reason why it was left out.
    """

    recipe: Recipe
    content: NamedImage
    style: NamedImage
    pictures: int
    left_out: list[str]
    views: list[View]

    @property
    def title(self) -> str:
        """Title of the sheet."""
        return f"What the layers of {self.recipe.backbone} see"

    @property
    def side(self) -> int:
        """Longest side of the content as the network sees it, in pixels."""
        return max(self.content.image.size)

    @property
    def origin(self) -> str:
        """Line about the network and the pictures that the sheet was made from."""
        count = "1 picture" if self.pictures == 1 else f"{self.pictures:,} pictures"
        return f"{self.recipe.backbone}, {stored(self.recipe.weights)} weights; {count} {_size_text(self.recipe)}"


def make(request: Request, recipe: Recipe, progress: Progress) -> Sheet:
    """Make the sheet of the recipe's layers: pass the pictures through the network, and paint for every layer.

    Raises InputError if the content, the style or a picture given by name cannot be used, RequestError if a source has
    no pictures, and LedgerError if the ledger has no style losses of the backbone.
    """
    shares = contributions(request.out, request.pair_id, recipe.backbone) if request.out else {}
    listed = (address for source in request.sources for address in list_pictures(source))
    addresses = list(dict.fromkeys(resolve(address, ".") for address in listed))
    named = [resolve(source, ".") for source in request.sources]
    content = _load_named(addresses[0], recipe)
    style = _load_named(request.style, recipe) if request.style else content
    excited = excitement(addresses, named, recipe, request.channels, request.top, progress)
    painter = _Painter({"content": content.image, "style": style.image}, recipe, progress)
    layers = cut(recipe.backbone, recipe.layers)
    views = [
        View(
            layer=layer,
            field=fields(layers)[layer.name],
            channels=excited.channels[layer.name],
            content=painter.paint(layer.name, "content"),
            texture=painter.paint(layer.name, "style"),
            contribution=shares.get(layer.name),
        )
        for layer in layers
        if layer.name in recipe.layers
    ]
    return Sheet(recipe, content, style, excited.pictures, excited.left_out, views)


def _load_named(address: str, recipe: Recipe) -> NamedImage:
    return NamedImage(name_of(address), Image.fromarray(load(address, recipe)))


def _size_text(recipe: Recipe) -> str:
    """The size at which the network sees the pictures."""
    if recipe.size == ORIGINAL:
        return "in full size"
    return f"of {'' if recipe.enlarge else 'at most '}{recipe.pixels} pixels"


def single_layer_recipe(recipe: Recipe, layer: str, term: str, longest: int) -> Recipe:
    """Return the recipe that paints from noise by `layer` alone (Gatys et al. 2015, figure 1).

    `term` is the term of the loss that it uses, "content" or "style"; `longest` the longest side of the picture.
    """
    changes = {
        "content_layers": {layer: 1.0},
        "style_layers": {layer: 1.0},
        "content_weight": float(term == "content"),
        "style_weight": float(term == "style"),
        "tv_weight": 0.0,
        "init": "noise",
        "size": min(longest, PAINTED),
        "enlarge": True,
        "style_scale": 1.0,
        "preserve_color": "none",
    }
    return Recipe.from_settings(recipe.model_dump() | changes)


class _Painter:
    """Paints the content and the style by one layer at a time, and reports progress over all paintings."""

    def __init__(self, images: dict[str, Image.Image], recipe: Recipe, progress: Progress) -> None:
        self.images, self.recipe, self.progress = images, recipe, progress
        self.done, self.total = 0, len(images) * len(recipe.layers)

    def paint(self, layer: str, term: str) -> Image.Image:
        """Paint the image of `term`, "content" or "style", from noise by `layer` alone."""
        image = self.images[term]
        recipe = single_layer_recipe(self.recipe, layer, term, max(image.size))

        def on_step(step: Step) -> None:
            self.progress(f"{layer}: {term}, step {step.index + 1}", self.done + step.share, self.total)

        painting = stylize(image, image, recipe, on_step=on_step)
        self.done += 1
        return painting.picture
