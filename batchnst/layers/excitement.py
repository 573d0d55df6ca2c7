"""The patches that excite a layer's channels most, from pictures that are read one by one and not kept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from PIL import Image

from batchnst.backbones import cut
from batchnst.chains import path_of
from batchnst.errors import InputError
from batchnst.layers.receptive import Field, fields
from batchnst.layers.strongest import Response, Strongest
from batchnst.painting.ahead import ahead
from batchnst.painting.inputs import check_size, decode_options, load_picture
from batchnst.painting.named_weights import load_weights
from batchnst.painting.painter import load_backbone
from batchnst.painting.tensors import to_tensor
from batchnst.pictures.decode import Pixels
from batchnst.progress import Progress
from batchnst.recipe import Recipe
from batchnst.redaction import stored
from batchnst.transfer.device import best_device


@dataclass(frozen=True)
class Patch:
    """The receptive field of a strong response, cut out of its picture.

    image: RGBA, transparent beyond the picture's border. name: the picture's name. response: the channel's value.
    """

    image: Image.Image
    name: str
    response: float


@dataclass(frozen=True)
class Channel:
    """A channel by its number in the layer, with the patches that excite it most, the strongest first."""

    number: int
    patches: list[Patch]

    @property
    def across(self) -> int:
        """Patches in a row, when they are laid out as a square."""
        return math.ceil(math.sqrt(len(self.patches)))


@dataclass(frozen=True)
class Excitement:
    """The strongest channels in a set of pictures.

    channels: layer → its strongest channels. pictures: number of pictures used. left_out: for each other picture, the
    reason why it was left out.
    """

    channels: dict[str, list[Channel]]
    pictures: int
    left_out: list[str]


def excitement(
    addresses: Sequence[str], named: Collection[str], recipe: Recipe, channels: int, top: int, progress: Progress
) -> Excitement:
    """Find the `channels` strongest channels of each of the recipe's layers, and up to `top` patches for each.

    With at least `top` pictures, a channel has at most one patch of each. The pictures are read one by one, and those
    with a patch once more. Raises InputError for an unusable picture among `named`; any other is left out.
    """
    layers = cut(recipe.backbone, recipe.layers)
    layer_fields, per_picture = fields(layers), -(-top // len(addresses))
    strongest = {
        layer.name: Strongest(layer.channels, layer_fields[layer.name], top, per_picture)
        for layer in layers
        if layer.name in recipe.layers
    }
    used, left_out = _collect(addresses, named, recipe, strongest, progress)
    responses = {
        name: {number: layer.responses(number) for number in layer.channels(channels)}
        for name, layer in strongest.items()
    }
    patches = _patches(responses, layer_fields, used, recipe)
    by_layer = {
        name: [Channel(number, [patches[name, response] for response in chosen]) for number, chosen in numbers.items()]
        for name, numbers in responses.items()
    }
    return Excitement(by_layer, len(used), left_out)


def load(address: str, recipe: Recipe) -> Pixels:
    """Load a picture (H, W, 3) at the size that the recipe's network sees; raises InputError."""
    picture = load_picture(address, decode_options(recipe))
    check_size(picture.pixels, address, recipe)
    return picture.pixels


def _collect(
    addresses: Sequence[str],
    named: Collection[str],
    recipe: Recipe,
    strongest: Mapping[str, Strongest],
    progress: Progress,
) -> tuple[list[str], list[str]]:
    """Pass all pictures through the network and add their features to `strongest`.

    Returns the addresses of the pictures used, and the reasons why others were left out.
    """
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
            features = backbone(to_tensor(pixels, device))
        for name, layer in strongest.items():
            layer.add(features[name][0], pixels.shape[1], pixels.shape[0])
        used.append(address)
    return used, left_out


def _load_or_error(address: str, recipe: Recipe) -> Pixels | InputError:
    try:
        return load(address, recipe)
    except InputError as error:
        return error


def _patches(
    responses: Mapping[str, Mapping[int, list[Response]]],
    layer_fields: Mapping[str, Field],
    used: Sequence[str],
    recipe: Recipe,
) -> dict[tuple[str, Response], Patch]:
    """Cut out the patch of each layer's responses; each picture with a patch is read once more."""
    by_picture: defaultdict[int, list[tuple[str, Response]]] = defaultdict(list)
    for name, channels in responses.items():
        for response in chain.from_iterable(channels.values()):
            by_picture[response.picture].append((name, response))
    patches = {}
    for number, in_picture in by_picture.items():
        picture = Image.fromarray(load(used[number], recipe)).convert("RGBA")
        for name, response in in_picture:
            image = picture.crop(layer_fields[name].box(response.x, response.y))
            patches[name, response] = Patch(image, name_of(used[number]), response.value)
    return patches


def name_of(address: str) -> str:
    """Return a picture's name without its folders; characters that cannot be printed are replaced by a mark."""
    name = path_of(stored(address)).rpartition("/")[2]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
