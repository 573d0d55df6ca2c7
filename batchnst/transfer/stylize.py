"""Neural style transfer (Gatys, Ecker and Bethge 2016), a batch at a time, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.weak import WeakTensorKeyDictionary

from batchnst.recipe import Recipe, fit
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.color import COLORS, ColorMethod
from batchnst.transfer.device import release_memory
from batchnst.transfer.losses import Losses, Objective, Region, guide
from batchnst.transfer.memory import UNBOUNDED, Fitting
from batchnst.transfer.optimizers import BOX, OPTIMIZERS
from batchnst.transfer.pyramid import Scale, resize, scales
from batchnst.transfer.tiling import FORWARD, TiledObjective, features, gram_matrices

CHECK_EVERY = 10
"""Steps between two looks at who has stopped: a look makes the host wait for the device."""

SAFER = {"optimizer": "lbfgs", "learning_rate": None, "precision": "fp32"}
"""How a picture that diverged is tried once more: in full precision, by the optimiser that takes bad steps back."""

EXPLODED = 10.0
"""A loss this many times the best one is not coming back."""


@dataclass(frozen=True)
class Guide:
    """What one picture is to look like, or one part of it: styles, their weights, and where.

    styles: (1, 3, h, w) each, of any sizes, RGB, 0..255, of any dtype; weights: one each, summing to 1.
    share: the part's share in the style loss. content_mask (1, 1, H, W), style_mask (1, 1, h, w): 0..1, None for all.
    """

    styles: tuple[Tensor, ...]
    weights: tuple[float, ...]
    share: float = 1.0
    content_mask: Tensor | None = None
    style_mask: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One step of the pictures that still move: `active` are their places in the batch, (b,); losses are theirs."""

    index: int  # through all scales, from 0
    scale: int  # longest side, pixels
    pixels: int  # of one picture
    active: list[int]
    losses: Losses
    share: float  # of all steps, at the most
    render: Callable[[], Tensor]
    """The best so far of the active pictures, (b, 3, h, w), RGB, 0..255, at this scale; to be called before the next
    step.
    """


@dataclass(frozen=True)
class Stylized:
    """Pictures (B, 3, H, W), RGB, 0..255, float32, the best of their runs; their losses; why each stopped."""

    pictures: Tensor
    losses: Losses
    stopped: list[str]  # steps, plateau, diverged


def stylize(
    contents: Tensor,
    guides: Sequence[Sequence[Guide]],
    recipe: Recipe,
    load: Callable[[Recipe], Backbone],
    starts: Tensor | None = None,
    fitting: Fitting = UNBOUNDED,
) -> Generator[Step, None, Stylized]:
    """Paint `contents` as their guides say; yields every step, returns the pictures.

    contents: (B, 3, H, W), RGB, 0..255, float32, longest side `recipe.size`, all on the device of the backbones.
    guides: for each picture the same number of parts; a style tensor that stands in several is measured once a scale.
    load: gives the backbone for a recipe. starts: (B, 3, H, W), what to start from in place of `recipe.init`.
    fitting: how all of this is made to fit into memory.

    A picture whose loss explodes or is no number is tried once more, in a SAFER way, from the best it had.
    """
    everyone = list(range(len(contents)))
    result = yield from _optimize(contents, guides, recipe, load(recipe), starts, everyone, fitting)
    lost = [i for i, why in enumerate(result.stopped) if why == "diverged"]
    if not lost:
        return result
    safer = recipe.model_copy(update=SAFER | {"min_size": recipe.size})
    finite = result.losses.total[lost].isfinite()[:, None, None, None]
    starts = torch.where(finite, result.pictures[lost], contents[lost])
    guides = [guides[i] for i in lost]
    rescued = yield from _optimize(contents[lost], guides, safer, load(safer), starts, lost, fitting)
    places = torch.tensor(lost, device=contents.device)
    pictures = result.pictures.index_copy(0, places, rescued.pictures)
    return Stylized(pictures, result.losses.put(places, rescued.losses), result.stopped)


def _optimize(
    contents: Tensor,
    guides: Sequence[Sequence[Guide]],
    recipe: Recipe,
    backbone: Backbone,
    starts: Tensor | None,
    places: Sequence[int],
    fitting: Fitting,
) -> Generator[Step, None, Stylized]:
    """The optimisation itself, scale by scale; `places` are the pictures' own in the whole batch, for the steps."""
    color = COLORS[recipe.preserve_color]
    height, width = contents.shape[-2:]
    subjects = color.content(contents)
    guides = [_recolored(parts, contents[i : i + 1], color) for i, parts in enumerate(guides)]
    starts = _start(subjects, guides, recipe) if starts is None else color.content(starts)
    begun, painted, good_step = starts, starts, None
    pyramid = scales(recipe, min(height, width))
    index, passed, total = 0, 0, sum(scale.steps for scale in pyramid)
    for scale in pyramid:
        size = fit(width, height, scale.size)
        objective = _objective(resize(subjects, *size), guides, recipe, backbone, scale, fitting)
        start = resize(starts, *size)
        painter = _Painter(objective, _carried(painted, begun, start, recipe), recipe, good_step, fitting.history)
        shown = resize(contents, *size)
        for count in range(1, scale.steps + 1):
            active, losses = painter.step()
            render = partial(_render, color, painter.best, shown, active)
            moved = [places[place] for place in active]
            yield Step(index, scale.size, size[0] * size[1], moved, losses, (passed + count) / total, render)
            index += 1
            if count % CHECK_EVERY == 0 and not painter.drop_stopped():
                break
        painter.close()
        passed += scale.steps
        begun, painted, good_step = start, painter.best, painter.good_step
    return Stylized(color.finish(painted, contents), painter.losses, painter.stopped)


def _carried(painted: Tensor, begun: Tensor, start: Tensor, recipe: Recipe) -> Tensor:
    """The pictures to begin a scale with, of what was painted at the coarser one and begun there, and of a start."""
    height, width = start.shape[-2:]
    pictures = resize(painted, width, height)
    if recipe.init == "noise":
        return pictures
    # The coarser scale has not seen the start's fine detail: only what it changed is carried over.
    return (pictures - resize(begun, width, height)).add_(start).clamp_(*BOX)


def _render(color: ColorMethod, pictures: Tensor, contents: Tensor, which: list[int]) -> Tensor:
    return color.finish(pictures[which], contents[which])


class _Painter:
    """The pictures of a batch at one scale: `active` are those that still move; `best` and `losses` are of all."""

    def __init__(
        self, objective: Objective, pictures: Tensor, recipe: Recipe, good_step: Tensor | None, history: int
    ) -> None:
        self.objective, self.tolerance = objective, recipe.tolerance
        self.optimizer = OPTIMIZERS[recipe.optimizer](pictures, recipe.learning_rate, good_step, history)
        self.active = list(range(len(pictures)))
        self.stopped = ["steps"] * len(pictures)
        self._ended: dict[int, Tensor] = {}
        self._places = torch.arange(len(pictures), device=pictures.device)
        self._good_step = torch.zeros(len(pictures), device=pictures.device)
        self._kept: Losses | None = None
        self._seen = torch.full_like(self._good_step, torch.inf)

    @property
    def best(self) -> Tensor:
        """The best of each picture so far, (B, C, H, W)."""
        if not self._ended:
            return self.optimizer.best
        moving = dict(zip(self.active, self.optimizer.best, strict=True))
        return torch.stack([picture for _, picture in sorted({**self._ended, **moving}.items())])

    @property
    def good_step(self) -> Tensor:
        """What the optimiser knows for the next scale, (B,)."""
        return self._good_step.index_copy(0, self._places, self.optimizer.scale.to(self._good_step.dtype))

    def step(self) -> tuple[list[int], Losses]:
        """One step; returns which pictures moved and the losses (b,) they have now."""
        with record_function("objective"):
            losses, gradient = self.objective(self.optimizer.trial)
        with record_function("optimizer"):
            accepted = self.optimizer.observe(losses.total, gradient)
        if self._kept is None:
            self._kept = self.losses = losses
            return self.active, losses
        # A step that was taken back leaves the picture, and so its losses, as they were.
        self._kept = losses.where(accepted, self._kept)
        before = self.losses.select(self._places)
        better = (losses.total < before.total) | ~before.total.isfinite()
        self.losses = self.losses.put(self._places, losses.where(better, before))
        return self.active, self._kept

    def drop_stopped(self) -> bool:
        """Go on without the pictures whose loss no longer falls, or has exploded; returns whether any is left."""
        total = self.losses.total[self._places]
        flat = (self._seen - total <= self.tolerance * total) & (self.tolerance > 0)
        self._seen = total
        lost = self._lost()
        for picture, is_flat, is_lost in zip(self.active, flat.tolist(), lost.tolist(), strict=True):
            if is_flat or is_lost:
                self.stopped[picture] = "diverged" if is_lost else "plateau"
        going = (~(flat | lost)).nonzero()[:, 0].tolist()
        if len(going) < len(self.active):
            self._go_on_with(going)
        return bool(self.active)

    def close(self) -> None:
        """Say of the pictures that moved to the end whether they are lost."""
        for picture, is_lost in zip(self.active, self._lost().tolist(), strict=True):
            if is_lost:
                self.stopped[picture] = "diverged"

    def _lost(self) -> Tensor:
        """Which active pictures, (b,), have a loss that is no number or has exploded."""
        assert self._kept is not None
        now = self._kept.total
        return ~now.isfinite() | (now > EXPLODED * self.losses.total[self._places])

    def _go_on_with(self, places: list[int]) -> None:
        """Go on with some of the active pictures alone."""
        assert self._kept is not None
        self._good_step = self.good_step
        ended = [place for place in range(len(self.active)) if place not in places]
        self._ended |= {self.active[place]: self.optimizer.best[place].clone() for place in ended}
        self.active = [self.active[place] for place in places]
        which = torch.tensor(places, dtype=torch.long, device=self._places.device)
        self._places, self._seen, self._kept = self._places[which], self._seen[which], self._kept.select(which)
        self.objective = self.objective.select(which)
        self.optimizer.select(which)


def _recolored(parts: Sequence[Guide], content: Tensor, color: ColorMethod) -> list[Guide]:
    """The guides of one picture with their styles' colours made ready for its content (1, 3, H, W)."""
    return [replace(part, styles=tuple(color.style(style, content) for style in part.styles)) for part in parts]


def _start(subjects: Tensor, guides: Sequence[Sequence[Guide]], recipe: Recipe) -> Tensor:
    """The pictures to start from, shaped like `subjects` (B, C, H, W)."""
    height, width = subjects.shape[-2:]
    if recipe.init == "noise":
        # White noise, the same for every pair of that seed, made on the CPU to be the same on every device.
        noise = torch.rand(subjects.shape[1:], generator=torch.Generator().manual_seed(recipe.seed))
        return (noise * 255).to(subjects).expand_as(subjects).contiguous()
    if recipe.init == "style":
        return torch.cat([resize(parts[0].styles[0], width, height) for parts in guides])
    return subjects


def _objective(
    subjects: Tensor,
    guides: Sequence[Sequence[Guide]],
    recipe: Recipe,
    backbone: Backbone,
    scale: Scale,
    fitting: Fitting,
) -> Objective:
    """The objective of one scale, of subjects (B, C, h, w) resized to it: content features and style Grams."""
    height, width = subjects.shape[-2:]
    tiled = max(height, width) > fitting.tile
    with torch.no_grad():
        host = torch.device("cpu") if tiled else subjects.device
        content = features(backbone, subjects, recipe.content_layers, FORWARD * fitting.tile, host)
        shapes = backbone.shapes(height, width)
        regions = [_region(parts, shapes, recipe, backbone, scale, fitting) for parts in zip(*guides, strict=True)]
    if tiled:
        release_memory(subjects.device)
        return TiledObjective(backbone, recipe, content, regions, int(fitting.tile), fitting.devices)
    return Objective(backbone, recipe, content, regions)


def _region(
    parts: Sequence[Guide],
    shapes: Mapping[str, tuple[int, int, int]],
    recipe: Recipe,
    backbone: Backbone,
    scale: Scale,
    fitting: Fitting,
) -> Region:
    """One part of every picture: the blends of its styles' Grams, and its guides."""
    blends = [_blend(part, recipe, backbone, scale, fitting) for part in parts]
    grams = {name: torch.cat([blend[name] for blend in blends]) for name in recipe.style_layers}
    share = torch.tensor([part.share for part in parts], dtype=torch.float32, device=backbone.mean.device)
    factors: dict[str, Tensor] = {}
    if any(part.content_mask is not None for part in parts):
        masks = torch.cat([part.content_mask for part in parts if part.content_mask is not None])
        factors = {name: guide(masks, *shapes[name][1:]).to(backbone.dtype) for name in recipe.style_layers}
    return Region(grams, factors, share)


def _blend(part: Guide, recipe: Recipe, backbone: Backbone, scale: Scale, fitting: Fitting) -> dict[str, Tensor]:
    """The Gram matrices (1, C, C) that a part is to have: the weighted mean of its styles'."""
    own = [_style_grams(style, part.style_mask, recipe, backbone, scale, fitting) for style in part.styles]
    return {
        name: torch.stack([weight * grams[name] for weight, grams in zip(part.weights, own, strict=True)]).sum(0)
        for name in recipe.style_layers
    }


_measured: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""What `_style_grams` has measured, for as long as the style's tensor lives."""


def _style_grams(
    style: Tensor, mask: Tensor | None, recipe: Recipe, backbone: Backbone, scale: Scale, fitting: Fitting
) -> dict[str, Tensor]:
    """The Gram matrices (1, C, C) of one style (1, C, h, w), or of a part of it, in proportion to the scale.

    Measured once for a style, mask, size and backbone, however many pictures and batches ask.
    """
    height, width = style.shape[-2:]
    size = fit(width, height, max(height, width) * scale.size / recipe.size)
    if style not in _measured:
        _measured[style] = {}
    known: dict[object, dict[str, Tensor]] = _measured[style]
    key = mask, size, backbone, tuple(recipe.style_layers)
    if key not in known:
        picture = style if size == (width, height) else resize(style, *size)
        known[key] = gram_matrices(backbone, picture, list(recipe.style_layers), FORWARD * fitting.tile, mask)
    return known[key]
