"""How good are the bundled weights? `python -m tests.tools.measure_weights` quantises them further, and extrapolates.

Errors of rounding to a table of n values fall as 1/n, and those of rounding twice add up as squares do: a copy with
128 entries is √3, one with 64 √15 times as far from the 256-entry weights as these are from the originals. Whether
that holds is seen on a network whose originals are at hand: `python -m tests.tools.measure_weights vgg16 FILE`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnst.backbones import layer_names
from batchnst.painting.named_weights import load_weights
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.losses import gram_matrix
from batchnst.transfer.weights import Weights
from tests.helpers import IMAGES
from tests.oracles import fitted

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
SIZE = 256
BUNDLED = 256
FEWER = (128, 64)


def quantised(values: NDArray[np.float32], entries: int, rounds: int = 100) -> NDArray[np.float32]:
    """Each value rounded to the nearest of a table, whose entries are the means of what is rounded to them (Lloyd).

    It starts where entries lie in the best of tables: as dense as the cube root of the values (Panter and Dite 1951).
    """
    in_order = np.sort(values, axis=None).astype(np.float64)
    sums = np.concatenate([[0.0], in_order.cumsum()])
    counts, edges = np.histogram(in_order, 4 * entries)
    dense = np.cbrt(counts).cumsum()
    table = np.interp((np.arange(entries) + 0.5) / entries, dense / dense[-1], edges[1:])
    for _ in range(rounds):
        bounds = np.concatenate([[0], np.searchsorted(in_order, (table[1:] + table[:-1]) / 2), [len(in_order)]])
        counts = np.diff(bounds)
        table = np.where(counts, np.diff(sums[bounds]) / np.maximum(counts, 1), table)
    rounded: NDArray[np.float32] = table[np.searchsorted((table[1:] + table[:-1]) / 2, values)].astype(np.float32)
    return rounded


def merged(values: NDArray[np.float32], neighbours: int) -> NDArray[np.float32]:
    """The values with every `neighbours` neighbouring entries of their table replaced by their mean."""
    table, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    groups = np.arange(len(table)) // neighbours
    means = np.bincount(groups, table.astype(np.float64) * counts) / np.bincount(groups, counts)
    return means[groups[places]].astype(np.float32)


def with_tables(weights: Weights, change: Callable[[NDArray[np.float32], int], NDArray[np.float32]], n: int) -> Weights:
    """The weights with every convolution changed by `change(array, n)`."""
    tensors = {name: change(array, n) if array.ndim == 4 else array for name, array in weights.tensors.items()}
    return replace(weights, tensors=tensors)


def looks(backbone: str, weights: Weights) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Features and Gram matrix of every relu and photograph."""
    relus = [name for name in layer_names(backbone) if name.startswith("relu")]
    network = Backbone(backbone, weights, relus)
    for photo in PHOTOS:
        pixels = torch.from_numpy(fitted(IMAGES / photo, SIZE)).permute(2, 0, 1)[None]
        with torch.no_grad():
            features = network(pixels)
        for name in relus:
            yield name, features[name], gram_matrix(features[name])


def errors(backbone: str, exact: Weights, rounded: Weights) -> dict[str, tuple[float, float]]:
    """Relative errors of features and of Gram matrices by layer, in percent, root mean square over the photographs."""
    squares: dict[str, list[tuple[float, float]]] = {}
    for (name, *true), (_, *found) in zip(looks(backbone, exact), looks(backbone, rounded), strict=True):
        pair = [float((b - a).square().sum() / a.square().sum()) for a, b in zip(true, found, strict=True)]
        squares.setdefault(name, []).append((pair[0], pair[1]))
    return {name: tuple(100 * np.sqrt(np.mean(own, 0))) for name, own in squares.items()}


def report(backbone: str, exact: Weights | None, rounded: Weights) -> None:
    """What is estimated of the 256 entries, in percent, and, where the originals are at hand, what is true."""
    found = [errors(backbone, rounded, with_tables(rounded, merged, BUNDLED // entries)) for entries in FEWER]
    true = errors(backbone, exact, rounded) if exact else None
    print(f"{backbone}: error of {BUNDLED} entries in percent, features / Grams")
    for name in found[0]:
        estimates = [
            [error / ((BUNDLED / entries) ** 2 - 1) ** 0.5 for error in own[name]]
            for own, entries in zip(found, FEWER, strict=True)
        ]
        texts = [f"from {entries}: {f:.2f} / {g:.2f}" for entries, (f, g) in zip(FEWER, estimates, strict=True)]
        print(f"{name:8}", *texts, *([f"true: {true[name][0]:.2f} / {true[name][1]:.2f}"] if true else []), sep="   ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", nargs="?", default="vgg19")
    parser.add_argument("file", nargs="?", help="the original weights, if they are at hand")
    options = parser.parse_args()
    if options.file:
        exact = load_weights(options.backbone, options.file)
        report(options.backbone, exact, with_tables(exact, quantised, BUNDLED))
    else:
        report(options.backbone, None, load_weights(options.backbone, "bundled"))


if __name__ == "__main__":
    main()
