"""The sheet: of each layer what excites it, what it holds of a content and a style, and its share of style losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from batchnst.backbones import Layer, cut
from batchnst.layers.contributions import Contribution, contributions
from batchnst.layers.excitement import Channel, excitement, load, name_of
from batchnst.layers.receptive import Field, fields
from batchnst.ledger.out import Out
from batchnst.manifest.pairing import pictures
from batchnst.painting.single import stylize
from batchnst.progress import Progress
from batchnst.recipe import Recipe
from batchnst.storage.files import resolve
from batchnst.transfer.stylize import Step

PAINTED = 256
"""Longest side of what is painted from noise, in pixels: no sheet shows it larger."""


LEGEND = (
    "From row to row a position of the network sees more of a picture.",
    "In each block: what excites one of the layer's strongest channels most, cut to what a position sees.",
    "Beside them, painted from noise: what the layer alone holds of a content, and of a style.",
)
"""How to read a sheet."""


@dataclass(frozen=True)
class Request:
    """What is to be on a sheet.

    places: of the pictures, files, folders, prefixes or globs; the first picture is the content. style: its address;
    None for the content. channels, top: of a layer, and patches of a channel. out: whose ledger to ask. pair_id: which
    pair; None for all.
    """

    places: Sequence[str]
    style: str | None = None
    channels: int = 6
    top: int = 9
    out: Out | None = None
    pair_id: str | None = None


@dataclass(frozen=True)
class Given:
    """A picture as it was given: its name, without folders and what cannot be printed, and as the network sees it."""

    name: str
    image: Image.Image


@dataclass(frozen=True)
class View:
    """A layer: its channels, the strongest first, and what it alone makes of the content and of the style."""

    layer: Layer
    field: Field
    channels: list[Channel]
    content: Image.Image
    texture: Image.Image
    contribution: Contribution | None

    @property
    def facts(self) -> list[str]:
        """What there is to say of the layer, in a few words each."""
        size, stride = self.field.size, self.field.stride
        return [f"sees {size} × {size} pixels", f"stride {stride}", f"{self.layer.channels} channels"]


@dataclass(frozen=True)
class Sheet:
    """All that page and picture show. pictures: those that were seen; left_out: why others were not, a line each."""

    recipe: Recipe
    content: Given
    style: Given
    pictures: int
    left_out: list[str]
    views: list[View]

    @property
    def title(self) -> str:
        """What the sheet is."""
        return f"What the layers of {self.recipe.backbone} see"

    @property
    def origin(self) -> str:
        """What it was made from."""
        count = "1 picture" if self.pictures == 1 else f"{self.pictures:,} pictures"
        return f"{self.recipe.backbone}, {self.recipe.weights} weights; {count} of {self.recipe.size} pixels"


def make(request: Request, recipe: Recipe, progress: Progress) -> Sheet:
    """Look at the pictures, and paint, for every layer of the recipe.

    Raises InputError for a content, a style or a picture given by name that cannot be used, RequestError for a place
    without pictures and LedgerError for a ledger that has nothing to say.
    """
    shares = contributions(request.out, request.pair_id, recipe.backbone) if request.out else {}
    found = (address for place in request.places for address in pictures(place))
    addresses = list(dict.fromkeys(resolve(address, ".") for address in found))
    named = [resolve(place, ".") for place in request.places]
    content = _given(addresses[0], recipe)
    style = _given(request.style, recipe) if request.style else content
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


def _given(address: str, recipe: Recipe) -> Given:
    return Given(name_of(address), Image.fromarray(load(address, recipe)))


def alone(recipe: Recipe, layer: str, term: str) -> Recipe:
    """How to paint from noise what a layer alone holds of a "content" or "style" (Gatys et al. 2015, figure 1)."""
    changes = {
        "content_layers": {layer: 1.0},
        "style_layers": {layer: 1.0},
        "content_weight": float(term == "content"),
        "style_weight": float(term == "style"),
        "tv_weight": 0.0,
        "init": "noise",
        "size": min(recipe.size, PAINTED),
        "style_scale": 1.0,
        "preserve_color": "none",
    }
    return Recipe.from_settings(recipe.model_dump() | changes)


class _Painter:
    """Paints the content and the style by each layer, and says how far that is."""

    def __init__(self, given: dict[str, Image.Image], recipe: Recipe, progress: Progress) -> None:
        self.given, self.recipe, self.progress = given, recipe, progress
        self.done, self.total = 0, len(given) * len(recipe.layers)

    def paint(self, layer: str, term: str) -> Image.Image:
        """What a layer alone holds of the content, or of the style."""

        def on_step(step: Step) -> None:
            self.progress(f"{layer}: {term}, step {step.index + 1}", self.done + step.share, self.total)

        painting = stylize(self.given[term], self.given[term], alone(self.recipe, layer, term), on_step=on_step)
        self.done += 1
        return painting.picture
