"""Measures of the look of painted pictures in a grid of settings, that no loss optimises; a table, and a contact sheet.

    python -m tests.tools.look --contents a.jpg b.jpg --styles c.jpg d.jpg --grid style_weight=5,10,20 --out FOLDER

Paints every content in every style with every combination of the grid, and prints for each combination the median of:

content     Σ(F − P)²/ΣP² at relu4_2, the distance from the photo
style       Σ(G − A)²/ΣA², mean over relu1_1 … relu5_1
sliced      sliced 2-Wasserstein distance of the features at relu1_2, relu2_2, relu3_3 and relu4_3, which no default
            optimises, from the painting's, relative to its energy, mean over the layers (Bonneel et al. 2015)
flat        mean |Laplacian| of the luminance where the photo is flattest, in grey levels: ripples
border      mean |Laplacian| of the lowest three rows, divided by that of the whole picture
halves      style, measured on the picture and the painting at half and at a quarter of the size
seconds     of painting
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

import batchnst
from batchnst.painting.inputs import load_picture
from batchnst.painting.named_weights import load_weights
from batchnst.painting.tensors import to_tensor
from batchnst.pictures.decode import DecodeOptions
from batchnst.recipe import Recipe
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.losses import gram_matrix

CONTENT, STYLE = "relu4_2", ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
UNSEEN = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
"""Layers of the measures."""

DIRECTIONS, QUANTILES, POSITIONS = 128, 256, 8192
"""Of the sliced distances: random directions, points of a distribution, and positions at most."""

FLATTEST = 0.2
"""Share of the photo that counts as flat."""

Measures = dict[str, float]


class Look:
    """The measures, for pictures (1, 3, H, W), RGB, 0..255."""

    def __init__(self) -> None:
        self.network = Backbone("vgg19", load_weights("vgg19", "bundled"), [CONTENT, *STYLE, *UNSEEN])

    def measure(self, picture: Tensor, content: Tensor, style: Tensor) -> Measures:
        """All measures of `picture`, which has the size of `content`."""
        with torch.no_grad():
            made, photo, painting = (self.network(pixels) for pixels in (picture, content, style))
            halves = [self._style(*(_smaller(pixels, ratio) for pixels in (picture, style))) for ratio in (2, 4)]
            return {
                "content": float((made[CONTENT] - photo[CONTENT]).square().sum() / photo[CONTENT].square().sum()),
                **{name: _relative(made[name], painting[name]) for name in STYLE},
                "style": statistics.mean(_relative(made[name], painting[name]) for name in STYLE),
                "sliced": statistics.mean(_sliced(made[name], painting[name]) for name in UNSEEN),
                "flat": _ripple(picture, content),
                "border": _border(picture),
                "half": halves[0],
                "quarter": halves[1],
            }

    def _style(self, picture: Tensor, style: Tensor) -> float:
        made, painting = self.network(picture), self.network(style)
        return statistics.mean(_relative(made[name], painting[name]) for name in STYLE)


def _relative(features: Tensor, target: Tensor) -> float:
    """Σ(G − A)²/ΣA² of two layers' Gram matrices."""
    made, wanted = gram_matrix(features), gram_matrix(target)
    return float((made - wanted).square().sum() / wanted.square().sum())


def _sliced(features: Tensor, target: Tensor) -> float:
    directions = torch.randn(DIRECTIONS, features.shape[1], generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=1, keepdim=True)
    points = torch.linspace(0, 1, QUANTILES)
    made, wanted = (
        torch.quantile(directions @ flat[:, :: max(1, flat.shape[1] // POSITIONS)], points, dim=1)
        for flat in (features[0].flatten(1), target[0].flatten(1))
    )
    return float((made - wanted).square().mean() / wanted.square().mean())


def _laplacian(pictures: Tensor) -> Tensor:
    """|Laplacian| of the luminance, (H − 2, W − 2)."""
    luminance = (pictures * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return F.conv2d(luminance, kernel)[0, 0].abs()


def _ripple(picture: Tensor, content: Tensor) -> float:
    edges = F.avg_pool2d(_laplacian(content)[None, None], 9, 1, 4)[0, 0]
    return float(_laplacian(picture)[edges <= torch.quantile(edges, FLATTEST)].mean())


def _border(picture: Tensor) -> float:
    edges = _laplacian(picture)
    return float(edges[-3:].mean() / edges.mean())


def _smaller(pictures: Tensor, ratio: int) -> Tensor:
    return F.interpolate(pictures, scale_factor=1 / ratio, mode="bicubic", antialias=True)


def _load(path: str, size: int) -> Tensor:
    return to_tensor(load_picture(path, DecodeOptions(size=size)).pixels, torch.device("cpu"))


def combinations(grid: list[str]) -> list[dict[str, Any]]:
    """All combinations of settings of `grid`, each entry KEY=VALUE,VALUE,…; values that hold commas are put in ()."""
    axes = []
    for entry in grid:
        key, _, values = entry.partition("=")
        axes.append([(key, value.replace(";", ",")) for value in values.split(",")])
    return [dict(chosen) for chosen in itertools.product(*axes)]


def main() -> None:
    """Paint and measure the grid that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contents", nargs="+", required=True)
    parser.add_argument("--styles", nargs="+", required=True)
    parser.add_argument("--grid", action="append", default=[], help="KEY=VALUE,VALUE; a comma in a value is written ;")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    settings, look = combinations(chosen.grid), Look()
    pairs = list(itertools.product(chosen.contents, chosen.styles))
    results: dict[int, list[Measures]] = {}
    pictures: dict[tuple[int, int], Image.Image] = {}
    for (row, (content, style)), (column, setting) in itertools.product(enumerate(pairs), enumerate(settings)):
        recipe = Recipe.from_settings({"size": chosen.size} | setting)
        name = f"{Path(content).stem}--{Path(style).stem}--{column}.png"
        started = time.perf_counter()
        painting = batchnst.stylize(content, [style], recipe)
        seconds = time.perf_counter() - started
        painting.picture.save(chosen.out / name)
        pictures[row, column] = painting.picture
        photo = _load(content, recipe.pixels)
        picture = to_tensor(painting.painted.pixels, torch.device("cpu"))
        measures = look.measure(picture, photo, _load(style, recipe.pixels)) | {"seconds": seconds}
        results.setdefault(column, []).append(measures)
        print(name, setting, " ".join(f"{key} {value:.4f}" for key, value in measures.items()), flush=True)
    print()
    for column, setting in enumerate(settings):
        medians = {key: statistics.median(row[key] for row in results[column]) for key in results[column][0]}
        print(setting, " ".join(f"{key} {value:.4f}" for key, value in medians.items()))
    _sheet(pictures, len(pairs), len(settings)).save(chosen.out / "sheet.png")


def _sheet(pictures: dict[tuple[int, int], Image.Image], rows: int, columns: int) -> Image.Image:
    side = max(max(picture.size) for picture in pictures.values())
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for (row, column), picture in pictures.items():
        sheet.paste(picture, (column * side, row * side))
        ImageDraw.Draw(sheet).text((column * side + 4, row * side + 4), str(column), fill="red")
    return sheet


if __name__ == "__main__":
    main()
