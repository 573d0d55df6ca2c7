"""Helpers that several test modules share."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Generator, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pillow_heif import register_heif_opener
from torch import Tensor
from typer.main import get_command
from typer.testing import CliRunner, Result

from batchnst.backbones import BACKBONES, layer_names
from batchnst.cli.main import app
from batchnst.ledger.process import Process
from batchnst.ledger.schema import LossRow, PairRow, Versions
from batchnst.ledger.state import change_state, read_state
from batchnst.manifest.pair import Pair
from batchnst.painting.inputs import load_picture
from batchnst.painting.painter import load_backbone
from batchnst.painting.tensors import to_tensor
from batchnst.pictures.decode import DecodeOptions, open_picture
from batchnst.recipe import Recipe
from batchnst.storage.files import Folder
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.canvas import Canvas
from batchnst.transfer.memory import UNBOUNDED, Fitting
from batchnst.transfer.stylize import Guide, Step, Stylized, stylize
from batchnst.transfer.weights import Weights, tensor_shapes

register_heif_opener()  # else only the process apart reads HEIC

CPU = torch.device("cpu")

IMAGES = Path(__file__).parent.parent / "manifests" / "images"
"""The pictures that `make test` makes; tests take them from the fixture `images`."""

State = dict[str, Tensor]


_command = cache(get_command)
"""The commands of an app, made once as in a process of its own. Typer's runner makes them for each call anew, which
takes longer than most calls.
"""


def batchnst(*arguments: object) -> Result:
    """Run the command line in this process."""
    with patch("typer.testing._get_command", _command):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


def pair(pair_id: str, content: object = "/a.jpg", style: object = "/s.png", recipe: Recipe | None = None) -> Pair:
    """A pair of one style, without masks."""
    output = f"{pair_id}.png"
    return Pair(pair_id, str(content), (str(style),), (1.0,), (), (), output, recipe or Recipe(), "{}")


# Rows of the ledger ------------------------------------------------------------------------------------------------

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def row(pair_id: str = "a", **changes: object) -> PairRow:
    """A row of `pairs` that says `ok`, with some of its columns changed."""
    row = PairRow(
        run_id="r1",
        pair_id=pair_id,
        attempt=1,
        status="ok",
        content="/a.jpg",
        styles=["/s.png"],
        style_weights=[1.0],
        content_masks=[],
        style_masks=[],
        output="a.png",
        fingerprint="f1",
        recipe="{}",
        loss_definition="neural-style/1",
        weights_sha256="w",
        seed=0,
        host="h",
        pid=1,
        started_at=NOON,
        finished_at=NOON,
        seconds=1.5,
        versions=Versions("0", "3", "2", "1", "1", None),
        extra="{}",
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def loss(step: int, pair_id: str = "a") -> LossRow:
    """A row of `losses`."""
    return LossRow(
        run_id="r1",
        pair_id=pair_id,
        attempt=1,
        step=step,
        scale=64,
        total=3.0,
        content=1.0,
        style=1.5,
        tv=0.5,
        style_layers={"relu1_1": 0.25},
        seconds=0.1,
    )


def take_over(folder: Folder, run_id: str = "r2", process: Process | None = None, beat: bytes | None = None) -> None:
    """Claim OUT as a run on another machine does, whoever holds it; `beat` is its heartbeat."""
    state = read_state(folder)
    process = process or Process("far", 5, "another boot", "another namespace", "1")
    change_state(folder, state, run_id=run_id, run_number=state.run_number + 1, holder=process, revoked=())
    if beat:
        folder.write(f".batchnst/alive-{run_id}", beat)


# Pictures ----------------------------------------------------------------------------------------------------------

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""The turn of the stored pixels that each EXIF orientation stands for."""


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth picture with four different corners."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.dstack([x, y, (1 - x) * (1 - y)])).round().astype(np.uint8))


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """A picture's file; `options` are those of Pillow's `save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """A picture's file, decoded in this process: upright, in sRGB, transparent parts over white."""
    return open_picture(data, name).image


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header says `width` × `height` and whose compressed pixels are `data`."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def photo_exif() -> Image.Exif:
    """The metadata of a photo: camera, orientation, date and place."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera Works"
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:11:20 21:04:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 31.0, 12.0)
    return exif


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file, decoded whole."""
    with Image.open(path) as image:
        image.load()
        return image.size


# Painting ----------------------------------------------------------------------------------------------------------


def each_layer(backbone: str, *quick: str) -> list[object]:
    """Parameters for a test of every layer of `backbone`: all but the layers `quick` are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in layer_names(backbone)]


def in_double(backbone: Backbone) -> Backbone:
    """The same network in float64."""
    exact = deepcopy(backbone).double()
    exact.dtype = torch.float64
    return exact


def canvas_for(backbone: Backbone, *sizes: tuple[int, int], least: tuple[int, int] = (0, 0)) -> Canvas:
    """The canvas of pictures of these sizes (height, width) on the CPU."""
    return Canvas(sizes, backbone.layers, CPU, least)


def load(path: Path, recipe: Recipe) -> Tensor:
    """A picture (1, 3, H, W), float32, 0..255, at the size of the recipe."""
    return to_tensor(load_picture(str(path), DecodeOptions(size=recipe.pixels, resample=recipe.resample)).pixels, CPU)


def paint(
    contents: Sequence[Tensor],
    guides: list[list[Guide]],
    recipe: Recipe,
    weights: Weights,
    starts: Sequence[Tensor] | None = None,
    fitting: Fitting = UNBOUNDED,
) -> tuple[Stylized, list[Step]]:
    """Stylise `contents` (1, 3, H, W) on the CPU, in fp32 unless the recipe names a precision."""
    recipe = recipe.model_copy(update={"precision": "fp32"}) if recipe.precision == "auto" else recipe
    return finish(stylize(contents, guides, recipe, lambda own: load_backbone(own, weights, CPU), starts, fitting))


def finish(painting: Generator[Step, None, Stylized]) -> tuple[Stylized, list[Step]]:
    """The result and all steps; each step is rendered before the next one begins."""
    steps = list[Step]()
    while True:
        try:
            step = next(painting)
        except StopIteration as end:
            return end.value, steps
        pictures = step.render()
        steps.append(replace(step, render=lambda pictures=pictures: pictures))  # type: ignore[misc]


def whole(*styles: Tensor) -> list[Guide]:
    """The guide of an unmasked picture in equal parts of `styles`."""
    return [Guide(styles, (1 / len(styles),) * len(styles))]


# Weights -----------------------------------------------------------------------------------------------------------


def random_state(backbone: str = "alexnet") -> State:
    """Random tensors by our names, of a size that keeps features alive as a trained network's do."""
    generator = torch.Generator().manual_seed(11)
    return {
        name: torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        if len(shape) == 4
        else torch.rand(shape, generator=generator)
        for name, shape in tensor_shapes(backbone).items()
    }


def torchvision_names(state: State, backbone: str = "alexnet") -> State:
    """The tensors by torchvision's names."""
    places = {layer.name: f"features.{i}" for i, layer in enumerate(BACKBONES[backbone].layers)}
    return {f"{places[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in state.items()}


def as_pth(state: object) -> bytes:
    """A file as `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
