"""What excites the channels of each layer most, in pictures that come as a stream and are not kept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from PIL import Image

from batchnst.backbones import cut
from batchnst.errors import InputError
from batchnst.layers.receptive import Field, fields
from batchnst.layers.strongest import Response, Strongest
from batchnst.painting.ahead import ahead
from batchnst.painting.inputs import check_size, decode_options, load_picture
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.painting.tensors import to_tensors
from batchnst.pictures.decode import Pixels
from batchnst.progress import Progress
from batchnst.recipe import Recipe
from batchnst.transfer.device import best_device


@dataclass(frozen=True)
class Patch:
    """What a channel responds to so strongly: its receptive field, RGBA, transparent where the picture has ended.

    name: of the picture that it is from.
    """

    image: Image.Image
    name: str
    response: float


@dataclass(frozen=True)
class Channel:
    """A channel by its number in the layer, and the patches that excite it most, the strongest first."""

    number: int
    patches: list[Patch]

    @property
    def across(self) -> int:
        """Patches in a row of the square that they make."""
        return math.ceil(math.sqrt(len(self.patches)))


@dataclass(frozen=True)
class Excitement:
    """Of each layer the strongest channels. pictures: those that were seen; left_out: why others were not."""

    channels: dict[str, list[Channel]]
    pictures: int
    left_out: list[str]


def excitement(
    addresses: Sequence[str], named: Collection[str], recipe: Recipe, channels: int, top: int, progress: Progress
) -> Excitement:
    """What excites the strongest `channels` of the recipe's layers in the pictures, `top` patches each, at the most.

    With `top` pictures or more each shows once in a channel, at the most. They are read one after the other; those that
    are shown, a second time. Raises InputError for one among the `named` that cannot be used; others are left out.
    """
    layers = cut(recipe.backbone, recipe.layers)
    seen_by, each = fields(layers), -(-top // len(addresses))
    strongest = {
        layer.name: Strongest(layer.channels, seen_by[layer.name], top, each)
        for layer in layers
        if layer.name in recipe.layers
    }
    used, left_out = _look(addresses, named, recipe, strongest, progress)
    chosen = {
        name: {number: layer.responses(number) for number in layer.channels(channels)}
        for name, layer in strongest.items()
    }
    patches = _patches(chosen, seen_by, used, recipe)
    found = {
        name: [Channel(number, [patches[name, response] for response in own]) for number, own in numbers.items()]
        for name, numbers in chosen.items()
    }
    return Excitement(found, len(used), left_out)


def load(address: str, recipe: Recipe) -> Pixels:
    """A picture (H, W, 3) as the recipe's network sees it; raises InputError."""
    picture = load_picture(address, decode_options(recipe))
    check_size(picture.pixels, address, recipe)
    return picture.pixels


def _look(
    addresses: Sequence[str],
    named: Collection[str],
    recipe: Recipe,
    strongest: Mapping[str, Strongest],
    progress: Progress,
) -> tuple[list[str], list[str]]:
    """Show all pictures to the network; returns the addresses of those that could be, and why others could not."""
    used, left_out = list[str](), list[str]()
    device = best_device()
    backbone = load_backbone(recipe, load_weights(*recipe.network), device)
    for i, (address, pixels) in enumerate(ahead(lambda address: _load_or_error(address, recipe), addresses)):
        progress(f"picture {i + 1}/{len(addresses)}", i, len(addresses))
        if isinstance(pixels, InputError):
            if address in named:
                raise pixels
            left_out.append(str(pixels))
            continue
        with torch.no_grad():
            features = backbone(to_tensors([pixels], device))
        for name, layer in strongest.items():
            layer.see(features[name][0], pixels.shape[1], pixels.shape[0])
        used.append(address)
    return used, left_out


def _load_or_error(address: str, recipe: Recipe) -> Pixels | InputError:
    try:
        return load(address, recipe)
    except InputError as error:
        return error


def _patches(
    chosen: Mapping[str, Mapping[int, list[Response]]],
    seen_by: Mapping[str, Field],
    used: Sequence[str],
    recipe: Recipe,
) -> dict[tuple[str, Response], Patch]:
    """The patch of each response of each layer, from pictures that are read once more, one after the other."""
    shown: defaultdict[int, list[tuple[str, Response]]] = defaultdict(list)
    for name, numbers in chosen.items():
        for response in chain.from_iterable(numbers.values()):
            shown[response.picture].append((name, response))
    patches = {}
    for number, own in shown.items():
        picture = Image.fromarray(load(used[number], recipe)).convert("RGBA")
        for name, response in own:
            image = picture.crop(seen_by[name].box(response.x, response.y))
            patches[name, response] = Patch(image, name_of(used[number]), response.value)
    return patches


def name_of(address: str) -> str:
    """A picture's name as it is shown: without its folders, and with a mark for what cannot be printed."""
    name = address.rpartition("/")[2]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
