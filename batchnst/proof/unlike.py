"""Choose pairs that are unlike one another, by the colour and texture of their photos and styles."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from batchnst.errors import BatchNSTError, InputError, RequestError
from batchnst.manifest.manifest import Manifest
from batchnst.manifest.pair import Pair
from batchnst.painting.inputs import load_picture
from batchnst.pictures import isolated
from batchnst.pictures.decode import DecodeOptions
from batchnst.progress import Progress, silent
from batchnst.recipe import did_you_mean
from batchnst.storage.threads import in_threads

CANDIDATES = 100
"""Largest number of pairs to choose from, drawn at random with a fixed seed."""

SIDE = 128
"""Longest side of the previews that are compared, in pixels."""

READERS = min(8, 2 * (os.cpu_count() or 1))
"""Pictures that are read at the same time."""

STRIDES = (1, 2, 4, 8)
"""Distances over which brightness is compared, in pixels."""

Vector = NDArray[np.float64]
Notice = Callable[[str], None]


def named(manifest: Manifest, pair_ids: Sequence[str]) -> list[Pair]:
    """The pairs with these ids, in the manifest's order; raises RequestError if there is no such pair."""
    ids = {pair_id: row for row, pair_id in enumerate(manifest.ids.to_pylist())}
    for pair_id in pair_ids:
        if pair_id not in ids:
            raise RequestError(f"--pair {pair_id}: no such id in {manifest.address}{did_you_mean(pair_id, list(ids))}")
    return list(manifest.take(np.array(sorted({ids[pair_id] for pair_id in pair_ids}), np.int64)))


def choose(manifest: Manifest, count: int, notice: Notice, progress: Progress = silent) -> list[Pair]:
    """Choose at most `count` pairs that are unlike one another, in the manifest's order; the same ones every time.

    A pair with a picture that cannot be read is passed over; `notice` gets a line for each such picture. Raises
    InputError if no pair is left.
    """
    rows = np.arange(len(manifest))
    if len(rows) > CANDIDATES:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), CANDIDATES, replace=False))
    candidates = list(manifest.take(rows))
    looks, problems = _looks(candidates, progress)
    for address, problem in problems.items():
        number = sum(address in (pair.content, *pair.styles) for pair in candidates)
        notice(f"passed over {number} {'pair' if number == 1 else 'pairs'}: {problem}")
    pairs = [pair for pair in candidates if not problems.keys() & {pair.content, *pair.styles}]
    if not pairs:
        raise InputError(f"{manifest.address}: none of {len(candidates)} pairs has pictures that can be read")
    pictures = [(pair.content, *pair.styles) for pair in pairs]
    chosen = farthest(np.stack([_pair_look(pair, looks) for pair in pairs]), pictures, count)
    return [pairs[i] for i in sorted(chosen)]


def _looks(pairs: Sequence[Pair], progress: Progress) -> tuple[dict[str, Vector], dict[str, str]]:
    """The look of each content and style, by address, and the problem of each that cannot be read."""
    addresses = list(dict.fromkeys(address for pair in pairs for address in (pair.content, *pair.styles)))
    megapixels = {address: pair.recipe.max_megapixels for pair in pairs for address in (pair.content, *pair.styles)}
    ended = Counter[str]()

    def read(address: str) -> Vector | str:
        try:
            return look(load_picture(address, DecodeOptions(size=SIDE, megapixels=megapixels[address])).pixels)
        except BatchNSTError as error:
            return str(error)
        finally:
            ended.update(["pictures"])
            progress(f"looking at {ended.total()} of {len(addresses)} pictures", ended.total(), len(addresses))

    found = dict(zip(addresses, in_threads(read, addresses, READERS), strict=True))
    isolated.release()
    problems = {address: problem for address, problem in found.items() if isinstance(problem, str)}
    return {address: value for address, value in found.items() if not isinstance(value, str)}, problems


def look(pixels: NDArray[np.uint8]) -> Vector:
    """The colour and texture of a picture (H, W, 3).

    Mean and spread of brightness and of two opponent colours; contrast over each of STRIDES, as a logarithm; and
    whether there is more of it across than down.
    """
    red, green, blue = np.moveaxis(pixels / 255.0, 2, 0)
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = np.stack([brightness, red - green, blue - (red + green) / 2])
    across = np.array([_contrast(brightness, stride) for stride in STRIDES])
    down = np.array([_contrast(brightness.T, stride) for stride in STRIDES])
    texture = np.log(across + down + 0.01)
    direction = np.log((across.mean() + 0.01) / (down.mean() + 0.01))
    return np.concatenate([planes.mean((1, 2)), planes.std((1, 2)), texture, [direction]])


def _contrast(plane: Vector, stride: int) -> float:
    """Mean difference of values `stride` columns apart; 0 if there are none."""
    differences = np.abs(plane[:, stride:] - plane[:, :-stride])
    return float(differences.mean()) if differences.size else 0.0


def _pair_look(pair: Pair, looks: Mapping[str, Vector]) -> Vector:
    """The look of the content, and the mean look of the styles."""
    styles = np.stack([looks[style] for style in pair.styles])
    return np.concatenate([looks[pair.content], styles.mean(0)])


def farthest(looks: Vector, pictures: Sequence[Sequence[str]], count: int) -> list[int]:
    """Choose at most `count` rows of `looks` (N, features), unlike one another, each feature counting the same.

    The first is the most usual one. Each next one is the farthest from those before (Gonzalez 1985), among the rows
    whose `pictures` were chosen least often: the same photo in another style shows less than another photo.
    """
    spread = looks.std(0)
    points = (looks - looks.mean(0)) / np.where(spread > 1e-9, spread, 1)
    chosen = [int(np.linalg.norm(points, axis=1).argmin())]
    nearest, used = np.full(len(points), np.inf), Counter[str]()
    while len(chosen) < min(count, len(points)):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        used.update(pictures[chosen[-1]])
        uses = {i: sum(used[picture] for picture in pictures[i]) for i in range(len(points)) if i not in chosen}
        fresh = [i for i in uses if uses[i] == min(uses.values())]
        chosen.append(max(fresh, key=lambda i: nearest[i]))
    return chosen
