"""Neural style transfer (Gatys, Ecker and Bethge 2016), a batch at a time, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.weak import WeakTensorKeyDictionary

from batchnst.recipe import Recipe
from batchnst.sizes import fit
from batchnst.transfer.backbone import Backbone
from batchnst.transfer.canvas import Canvas, Extent, Size
from batchnst.transfer.color import COLORS, ColorMethod
from batchnst.transfer.device import keeps_shapes, release_memory
from batchnst.transfer.graph import Recorded
from batchnst.transfer.losses import Losses, Region, guide
from batchnst.transfer.memory import UNBOUNDED, Fitting
from batchnst.transfer.objective import Objective
from batchnst.transfer.octaves import Halving, Octaves, halved
from batchnst.transfer.optimizers import BOX, OPTIMIZERS
from batchnst.transfer.pyramid import Scale, resize, scales
from batchnst.transfer.tiling import FORWARD, TiledObjective, features, gram_matrices

CHECK_EVERY = 10
"""Steps between two checks for pictures that have stopped: each check makes the host wait for the device."""

SAFER = {"optimizer": "lbfgs", "learning_rate": None, "precision": "fp32"}
"""Settings for the second try at a diverged picture: full precision, and the optimiser that takes bad steps back."""

EXPLODED = 10.0
"""A picture has diverged if its loss is this many times its best one."""


@dataclass(frozen=True)
class Guide:
    """The style for one picture, or for one part of it.

    styles: (1, 3, h, w) each, of any sizes, RGB, 0..255, of any dtype. weights: one for each style, summing to 1.
    share: weight of the part in the style loss. content_mask (1, 1, H, W), 0..1: the part of the picture; None for all.
    style_mask (1, 1, h, w), 0..1: the part of the styles; None for all.
    """

    styles: tuple[Tensor, ...]
    weights: tuple[float, ...]
    share: float = 1.0
    content_mask: Tensor | None = None
    style_mask: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One step of the active pictures: those of the batch that have not stopped."""

    index: int  # through all scales, from 0
    scale: int  # longest side, pixels
    pixels: int  # of each picture's place on the canvas, in all octaves
    active: list[int]  # indices in the batch, (b,)
    losses: Losses  # of the active pictures, (b,)
    share: float  # of the planned steps done so far, 0..1
    render: Callable[[], list[Tensor]]
    """Returns the best of each active picture, (1, 3, h, w), RGB, 0..255, at this scale. Call before the next step."""


@dataclass(frozen=True)
class Stylized:
    """The result of a batch.

    pictures: (1, 3, H, W) each, RGB, 0..255, float32, the best of its run. losses: those of the pictures, (B,).
    stopped: why each picture stopped.
    """

    pictures: list[Tensor]
    losses: Losses
    stopped: list[str]  # steps, plateau, diverged


def stylize(
    contents: Sequence[Tensor],
    guides: Sequence[Sequence[Guide]],
    recipe: Recipe,
    load: Callable[[Recipe], Backbone],
    starts: Sequence[Tensor] | None = None,
    fitting: Fitting = UNBOUNDED,
    canvas: Size = (0, 0),
) -> Generator[Step, None, Stylized]:
    """Paint `contents` in the styles of `guides`; yields every step and returns the pictures.

    contents: (1, 3, H, W) each, RGB, 0..255, float32, longest side that of `recipe`, all on the device of the
    backbones. Their sizes may differ, but they have the same scales, and one size if they are painted in tiles.
    guides: the parts of each picture, the same number for all. A style tensor that occurs several times is measured
    once a scale.
    load: returns the backbone for a recipe. starts: pictures to start from instead of `recipe.init`, like `contents`.
    fitting: tiles and history that fit into memory. canvas: smallest (height, width) of the canvas at full size.

    A picture whose loss explodes or is not finite is tried once more with the settings SAFER, from its best state.
    """
    recipe = recipe.for_picture(*contents[0].shape[-2:])
    indices = list(range(len(contents)))
    result = yield from _optimize(contents, guides, recipe, load(recipe), starts, indices, fitting, canvas)
    diverged = [i for i, reason in enumerate(result.stopped) if reason == "diverged"]
    if not diverged:
        return result
    safer = recipe.model_copy(update=SAFER | {"min_size": recipe.pixels})
    finite = result.losses.total.isfinite().tolist()
    starts = [result.pictures[i] if finite[i] else contents[i] for i in diverged]
    again = [contents[i] for i in diverged], [guides[i] for i in diverged]
    rescued = yield from _optimize(*again, safer, load(safer), starts, diverged, fitting, canvas)
    pictures = dict(enumerate(result.pictures)) | dict(zip(diverged, rescued.pictures, strict=True))
    which = torch.tensor(diverged, device=contents[0].device)
    return Stylized(list(pictures.values()), result.losses.put(which, rescued.losses), result.stopped)


def _optimize(
    contents: Sequence[Tensor],
    guides: Sequence[Sequence[Guide]],
    recipe: Recipe,
    backbone: Backbone,
    starts: Sequence[Tensor] | None,
    indices: Sequence[int],
    fitting: Fitting,
    least: Size,
) -> Generator[Step, None, Stylized]:
    """Optimise the pictures scale by scale; `indices` are their indices in the whole batch, for the steps."""
    color = COLORS[recipe.preserve_color]
    subjects = [color.content(content) for content in contents]
    guides = [_recolored(parts, content, color) for parts, content in zip(guides, contents, strict=True)]
    starts = _starts(subjects, guides, recipe) if starts is None else [color.content(start) for start in starts]
    begun, painted, step_scale = starts, starts, None
    pyramid = scales(recipe, recipe.pixels, min(min(content.shape[2:]) for content in contents))
    index, done, total = 0, 0, sum(scale.steps for scale in pyramid)
    for scale in pyramid:
        canvas = _canvas(contents, least, recipe, backbone, scale)
        objective = _objective(_resized(subjects, canvas), guides, recipe, backbone, canvas, scale, fitting)
        start = _resized(starts, canvas)
        pictures = [_carried(*states, recipe) for states in zip(painted, begun, start, strict=True)]
        painter = _Painter(objective, pictures, recipe, step_scale, fitting.history)
        resized = _resized(contents, canvas)
        for count in range(1, scale.steps + 1):
            active, losses = painter.step()
            render = partial(_render, color, painter, resized, active)
            in_batch = [indices[i] for i in active]
            yield Step(index, scale.size, objective.pixels, in_batch, losses, (done + count) / total, render)
            index += 1
            if count % CHECK_EVERY == 0 and not painter.drop_stopped():
                break
        painter.close()
        done += scale.steps
        begun, painted, step_scale = start, painter.best, painter.step_scale
    finished = [color.finish(picture, content) for picture, content in zip(painted, contents, strict=True)]
    return Stylized(finished, painter.losses, painter.stopped)


def _canvas(contents: Sequence[Tensor], least: Size, recipe: Recipe, backbone: Backbone, scale: Scale) -> Canvas:
    """Return the canvas for `contents` at `scale`; `least` is its smallest (height, width) at full size."""
    sizes = [fit(content.shape[3], content.shape[2], scale.size)[::-1] for content in contents]
    height, width = (round(length * (scale.size / recipe.pixels)) for length in least)
    return Canvas(sizes, backbone.layers, contents[0].device, (height, width))


def _resized(pictures: Sequence[Tensor], canvas: Canvas) -> list[Tensor]:
    """Return each of `pictures` (1, C, H, W) in its size on the canvas."""
    sizes = canvas.pixels.sizes
    return [resize(picture, width, height) for picture, (height, width) in zip(pictures, sizes, strict=True)]


def _carried(painted: Tensor, begun: Tensor, start: Tensor, recipe: Recipe) -> Tensor:
    """Return the picture to begin a scale with.

    `painted` came out of the coarser scale, which began with `begun`; `start` is the start at this scale's size.
    """
    height, width = start.shape[-2:]
    picture = resize(painted, width, height)
    if recipe.init == "noise":
        return picture
    # The coarser scale has not seen the start's fine detail, so only its changes are carried over.
    return (picture - resize(begun, width, height)).add_(start).clamp_(*BOX)


def _render(color: ColorMethod, painter: _Painter, contents: Sequence[Tensor], which: list[int]) -> list[Tensor]:
    best = painter.best
    return [color.finish(best[i].clone(), contents[i]) for i in which]


class _Painter:
    """The optimisation of a batch at one scale.

    active: indices of the pictures that have not stopped. stopped: why each picture stopped.

    A picture that stops leaves the batch. On a device that keeps shapes, it stays in its place, and what happens there
    is ignored, until half of the places or fewer are needed: so all batches of a night have few shapes.
    """

    def __init__(
        self,
        objective: Objective | Octaves,
        pictures: Sequence[Tensor],
        recipe: Recipe,
        step_scale: Tensor | None,
        history: int,
    ) -> None:
        self.objective, self.tolerance = objective, recipe.tolerance
        self._extent = objective.canvas.pixels
        self.optimizer = OPTIMIZERS[recipe.optimizer](
            self._extent.pack(pictures),
            learning_rate=recipe.learning_rate,
            step_scale=step_scale,
            history=history,
            sizes=self._extent.sizes,
        )
        self.active = list(range(len(pictures)))
        self.stopped = ["steps"] * len(pictures)
        self._places = self.active  # the pictures in the optimiser's batch
        self._ended: dict[int, Tensor] = {}  # index → best state
        self._indices = torch.arange(len(pictures), device=pictures[0].device)  # `active` on the device
        self._moving = self._indices  # places of the active pictures
        self._step_scale = torch.zeros(len(pictures), device=pictures[0].device)
        self._current: Losses | None = None  # of all places, as their pictures are now
        self._best: Losses  # of all places, of their best states
        self._losses: Losses  # of all pictures' best states when one of them ended last
        self._checked = torch.full_like(self._step_scale, torch.inf)  # lowest totals at the last check, of all places
        self._advance = self._record()

    @property
    def best(self) -> list[Tensor]:
        """The best state of each picture so far, (1, C, h, w)."""
        states = dict(zip(self._places, self.optimizer.best[:, None], strict=True)) | self._ended
        sizes = self._extent.sizes
        return [states[i][..., :height, :width] for i, (height, width) in enumerate(sizes)]

    @property
    def step_scale(self) -> Tensor:
        """The step scale of each picture for the next scale's optimiser, (B,)."""
        moving = self.optimizer.step_scale[self._moving].to(self._step_scale.dtype)
        return self._step_scale.index_copy(0, self._indices, moving)

    @property
    def losses(self) -> Losses:
        """The losses of each picture's best state, (B,)."""
        return self._losses.put(self._indices, self._best.select(self._moving))

    def step(self) -> tuple[list[int], Losses]:
        """Do one step; returns the active pictures and their losses (b,) now."""
        self._advance()
        assert self._current is not None
        return self.active, self._current.select(self._moving)

    def _record(self) -> Callable[[], None]:
        """Return `_step`, as a CUDA graph where that is possible."""
        return Recorded(self._step) if self.objective.recordable and self._indices.is_cuda else self._step

    def _step(self) -> None:
        with record_function("objective"):
            losses, gradient = self.objective(self.optimizer.trial)
        with record_function("optimizer"):
            accepted = self.optimizer.observe(losses.total, gradient)
        if self._current is None:
            self._current, self._best, self._losses = losses, losses.copy(), losses.copy()
            return
        # A step that was taken back leaves the picture, and so its losses, as they were.
        self._current.assign(losses.where(accepted, self._current))
        better = (losses.total < self._best.total) | ~self._best.total.isfinite()
        self._best.assign(losses.where(better, self._best))

    def drop_stopped(self) -> bool:
        """Drop the active pictures whose loss has stopped falling or has exploded; returns True if any are left."""
        total = self._best.total
        flat = (self._checked - total <= self.tolerance * total) & (self.tolerance > 0)
        self._checked = total
        reasons = {"plateau": flat.tolist(), "diverged": self._diverged().tolist()}
        ended = []
        for place in self._moving_places():
            for reason in (reason for reason, holds in reasons.items() if holds[place]):
                self.stopped[self._places[place]] = reason
                ended.append(place)
        if ended:
            self._drop(ended)
        return bool(self.active)

    def close(self) -> None:
        """Mark the active pictures that have diverged; to be called after the last step."""
        diverged = self._diverged().tolist()
        for place in self._moving_places():
            if diverged[place]:
                self.stopped[self._places[place]] = "diverged"

    def _moving_places(self) -> list[int]:
        """The places of the active pictures, in ascending order."""
        return [place for place, picture in enumerate(self._places) if picture in self.active]

    def _diverged(self) -> Tensor:
        """Return a mask of the places whose picture's loss is not finite or has exploded."""
        assert self._current is not None
        now = self._current.total
        return ~now.isfinite() | (now > EXPLODED * self._best.total)

    def _drop(self, ended: list[int]) -> None:
        """End the pictures in the places `ended`, and give up places that are no longer needed."""
        self._step_scale, self._losses = self.step_scale, self.losses
        self._ended |= {self._places[place]: self.optimizer.best[place : place + 1].clone() for place in ended}
        self.active = [picture for picture in self._places if picture not in self._ended]
        needed = self._places_needed()
        if self.active and needed < len(self._places):
            moving = self._moving_places()
            idle = [place for place in range(len(self._places)) if place not in moving]
            self._keep(sorted(moving + idle[: needed - len(moving)]))
        device = self._indices.device
        self._indices = torch.tensor(self.active, dtype=torch.long, device=device)
        self._moving = torch.tensor(self._moving_places(), dtype=torch.long, device=device)

    def _places_needed(self) -> int:
        """Number of places that the active pictures need."""
        if not keeps_shapes(self._indices.device):
            return len(self.active)
        places = len(self._places)
        while places > 1 and (half := math.ceil(places / 2)) >= len(self.active):
            places = half
        return places

    def _keep(self, places: list[int]) -> None:
        """Keep only some of the places."""
        assert self._current is not None
        self._places = [self._places[place] for place in places]
        which = torch.tensor(places, dtype=torch.long, device=self._indices.device)
        self._checked = self._checked[which]
        self._current, self._best = self._current.select(which), self._best.select(which)
        self.objective = self.objective.select(which)
        self.optimizer.select(which)
        self._advance = self._record()


def _recolored(parts: Sequence[Guide], content: Tensor, color: ColorMethod) -> list[Guide]:
    """Return the guides of one picture with their styles' colours adapted to its content (1, 3, H, W)."""
    return [replace(part, styles=tuple(color.style(style, content) for style in part.styles)) for part in parts]


def _starts(subjects: Sequence[Tensor], guides: Sequence[Sequence[Guide]], recipe: Recipe) -> Sequence[Tensor]:
    """Return the pictures that `recipe.init` starts from, shaped like `subjects` (1, C, H, W)."""
    if recipe.init == "noise":
        return [_noise(subject, recipe.seed) for subject in subjects]
    if recipe.init == "style":
        pairs = zip(subjects, guides, strict=True)
        return [resize(parts[0].styles[0], subject.shape[3], subject.shape[2]) for subject, parts in pairs]
    return subjects


def _noise(subject: Tensor, seed: int) -> Tensor:
    """Return white noise in the shape of `subject`, the same for every picture of this shape and on every device."""
    return (torch.rand(subject.shape, generator=torch.Generator().manual_seed(seed)) * 255).to(subject)


def _objective(
    subjects: Sequence[Tensor],
    guides: Sequence[Sequence[Guide]],
    recipe: Recipe,
    backbone: Backbone,
    canvas: Canvas,
    scale: Scale,
    fitting: Fitting,
) -> Objective | Octaves:
    """Return the objective at `scale`, whose targets are the features of `subjects` (1, C, h, w) and the style Grams.

    `subjects` have been resized to the scale.
    """
    pictures, objectives = canvas.pixels.pack(subjects), list[Objective]()
    for octave in range(scale.octaves):
        if octave:
            pictures, canvas = Halving(canvas)(pictures), canvas.halved()
        objectives.append(_at_one_size(pictures, guides, recipe, backbone, canvas, scale, octave, fitting))
    return Octaves(objectives) if len(objectives) > 1 else objectives[0]


def _at_one_size(
    pictures: Tensor,
    guides: Sequence[Sequence[Guide]],
    recipe: Recipe,
    backbone: Backbone,
    canvas: Canvas,
    scale: Scale,
    octave: int,
    fitting: Fitting,
) -> Objective:
    """Return the objective whose contents are `pictures` (B, C, h, w), which have been halved `octave` times."""
    tiled = max(canvas.pixels.height, canvas.pixels.width) > fitting.tile
    with torch.no_grad():
        if tiled:
            content = features(backbone, pictures, recipe.content_layers, FORWARD * fitting.tile)
        else:
            seen = backbone(pictures, canvas=canvas)
            # In the dtype of the losses, so that no step converts them.
            content = {name: seen[name].to(pictures.dtype) for name in recipe.content_layers}
        measure = partial(_style_grams, recipe=recipe, backbone=backbone, scale=scale, octave=octave, fitting=fitting)
        regions = [_region(parts, canvas, recipe, backbone, measure) for parts in zip(*guides, strict=True)]
    if tiled:
        release_memory(pictures.device)
        return TiledObjective(backbone, recipe, content, regions, canvas, int(fitting.tile), fitting.devices)
    return Objective(backbone, recipe, content, regions, canvas)


Measure = Callable[[Tensor, Tensor | None], dict[str, Tensor]]
"""Takes a style (1, C, h, w) and its mask, if it has one; returns its Gram matrices (1, C, C) by layer."""


def _region(parts: Sequence[Guide], canvas: Canvas, recipe: Recipe, backbone: Backbone, measure: Measure) -> Region:
    """Return one region of the batch from the part of each picture."""
    blends = [_blend(part, recipe, measure) for part in parts]
    grams = {name: torch.cat([blend[name] for blend in blends]) for name in recipe.style_layers}
    share = torch.tensor([part.share for part in parts], dtype=torch.float32, device=backbone.mean.device)
    masks = [part.content_mask for part in parts if part.content_mask is not None]
    guides = {name: _guides(masks, canvas[name]).to(backbone.dtype) for name in recipe.style_layers if masks}
    return Region(grams, guides, share)


def _guides(masks: Sequence[Tensor], extent: Extent) -> Tensor:
    """Return the factors (B, 1, h, w) of the pictures' masks for the features of a layer with this extent."""
    return extent.pack([guide(mask, *size) for mask, size in zip(masks, extent.sizes, strict=True)])


def _blend(part: Guide, recipe: Recipe, measure: Measure) -> dict[str, Tensor]:
    """Return the target Gram matrices (1, C, C) of a part by layer: the weighted mean of its styles' Grams."""
    measured = [measure(style, part.style_mask) for style in part.styles]
    return {
        name: torch.stack([weight * grams[name] for weight, grams in zip(part.weights, measured, strict=True)]).sum(0)
        for name in recipe.style_layers
    }


_measured: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Cache of `_style_grams`: style tensor → its measurements, for as long as the tensor lives."""


def _style_grams(
    style: Tensor,
    mask: Tensor | None,
    recipe: Recipe,
    backbone: Backbone,
    scale: Scale,
    octave: int,
    fitting: Fitting,
) -> dict[str, Tensor]:
    """Return the Gram matrices (1, C, C) by layer of `style` (1, C, h, w), or of the part of it under `mask`.

    The style is resized in proportion to `scale`, then halved `octave` times, though never below what the layers take.
    Grams are cached by style, mask, size, octave, backbone and style layers, so that all pictures and batches share
    them.
    """
    height, width = style.shape[-2:]
    least = min(1.0, recipe.smallest_side / min(height, width))  # the pictures may be less long than the style
    size = fit(width, height, max(height, width) * max(scale.size / recipe.pixels, least))
    if style not in _measured:
        _measured[style] = {}
    known: dict[object, dict[str, Tensor]] = _measured[style]
    key = mask, size, octave, backbone, tuple(recipe.style_layers)
    if key not in known:
        picture = style if size == (width, height) else resize(style, *size)
        for _ in range(octave):
            if min(picture.shape[-2:]) >= 2 * recipe.smallest_side:
                picture = halved(picture)
        known[key] = gram_matrices(backbone, picture, list(recipe.style_layers), FORWARD * fitting.tile, mask)
    return known[key]
