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
from batchnst.transfer.graph import Recorded
from batchnst.transfer.losses import Losses, Region, guide
from batchnst.transfer.memory import UNBOUNDED, Fitting
from batchnst.transfer.objective import Objective
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
    pixels: int  # of one picture
    active: list[int]  # indices in the batch, (b,)
    losses: Losses  # of the active pictures, (b,)
    share: float  # of the planned steps done so far, 0..1
    render: Callable[[], Tensor]
    """Returns the best of the active pictures, (b, 3, h, w), RGB, 0..255, at this scale. Call before the next step."""


@dataclass(frozen=True)
class Stylized:
    """The result of a batch.

    pictures: (B, 3, H, W), RGB, 0..255, float32, each the best of its run. losses: those of the pictures. stopped: why
    each picture stopped.
    """

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
    """Paint `contents` in the styles of `guides`; yields every step and returns the pictures.

    contents: (B, 3, H, W), RGB, 0..255, float32, longest side that of `recipe`, all on the device of the backbones.
    guides: the parts of each picture, the same number for all. A style tensor that occurs several times is measured
    once a scale.
    load: returns the backbone for a recipe. starts: (B, 3, H, W), pictures to start from instead of `recipe.init`.
    fitting: tiles and history that fit into memory.

    A picture whose loss explodes or is not finite is tried once more with the settings SAFER, from its best state.
    """
    recipe = recipe.for_picture(*contents.shape[-2:])
    indices = list(range(len(contents)))
    result = yield from _optimize(contents, guides, recipe, load(recipe), starts, indices, fitting)
    diverged = [i for i, reason in enumerate(result.stopped) if reason == "diverged"]
    if not diverged:
        return result
    safer = recipe.model_copy(update=SAFER | {"min_size": recipe.pixels})
    finite = result.losses.total[diverged].isfinite()[:, None, None, None]
    starts = torch.where(finite, result.pictures[diverged], contents[diverged])
    guides = [guides[i] for i in diverged]
    rescued = yield from _optimize(contents[diverged], guides, safer, load(safer), starts, diverged, fitting)
    which = torch.tensor(diverged, device=contents.device)
    pictures = result.pictures.index_copy(0, which, rescued.pictures)
    return Stylized(pictures, result.losses.put(which, rescued.losses), result.stopped)


def _optimize(
    contents: Tensor,
    guides: Sequence[Sequence[Guide]],
    recipe: Recipe,
    backbone: Backbone,
    starts: Tensor | None,
    indices: Sequence[int],
    fitting: Fitting,
) -> Generator[Step, None, Stylized]:
    """Optimise the pictures scale by scale; `indices` are their indices in the whole batch, for the steps."""
    color = COLORS[recipe.preserve_color]
    height, width = contents.shape[-2:]
    subjects = color.content(contents)
    guides = [_recolored(parts, contents[i : i + 1], color) for i, parts in enumerate(guides)]
    starts = _start(subjects, guides, recipe) if starts is None else color.content(starts)
    begun, painted, step_scale = starts, starts, None
    pyramid = scales(recipe, min(height, width))
    index, done, total = 0, 0, sum(scale.steps for scale in pyramid)
    for scale in pyramid:
        size = fit(width, height, scale.size)
        objective = _objective(resize(subjects, *size), guides, recipe, backbone, scale, fitting)
        start = resize(starts, *size)
        painter = _Painter(objective, _carried(painted, begun, start, recipe), recipe, step_scale, fitting.history)
        resized = resize(contents, *size)
        for count in range(1, scale.steps + 1):
            active, losses = painter.step()
            render = partial(_render, color, painter.best, resized, active)
            in_batch = [indices[i] for i in active]
            yield Step(index, scale.size, size[0] * size[1], in_batch, losses, (done + count) / total, render)
            index += 1
            if count % CHECK_EVERY == 0 and not painter.drop_stopped():
                break
        painter.close()
        done += scale.steps
        begun, painted, step_scale = start, painter.best, painter.step_scale
    return Stylized(color.finish(painted, contents), painter.losses, painter.stopped)


def _carried(painted: Tensor, begun: Tensor, start: Tensor, recipe: Recipe) -> Tensor:
    """Return the pictures to begin a scale with.

    `painted` came out of the coarser scale, which began with `begun`; `start` is the start at this scale's size.
    """
    height, width = start.shape[-2:]
    pictures = resize(painted, width, height)
    if recipe.init == "noise":
        return pictures
    # The coarser scale has not seen the start's fine detail, so only its changes are carried over.
    return (pictures - resize(begun, width, height)).add_(start).clamp_(*BOX)


def _render(color: ColorMethod, pictures: Tensor, contents: Tensor, which: list[int]) -> Tensor:
    return color.finish(pictures[which], contents[which])


class _Painter:
    """The optimisation of a batch at one scale.

    active: indices of the pictures that have not stopped. stopped: why each picture stopped.
    """

    def __init__(
        self, objective: Objective, pictures: Tensor, recipe: Recipe, step_scale: Tensor | None, history: int
    ) -> None:
        self.objective, self.tolerance = objective, recipe.tolerance
        self.optimizer = OPTIMIZERS[recipe.optimizer](
            pictures, learning_rate=recipe.learning_rate, step_scale=step_scale, history=history
        )
        self.active = list(range(len(pictures)))
        self.stopped = ["steps"] * len(pictures)
        self._ended: dict[int, Tensor] = {}  # index → best picture
        self._indices = torch.arange(len(pictures), device=pictures.device)  # `active` on the device
        self._step_scale = torch.zeros(len(pictures), device=pictures.device)
        self._current: Losses | None = None  # of the active pictures as they are now
        self._best: Losses  # of the active pictures' best states
        self._losses: Losses  # of all pictures' best states when one of them ended last
        self._checked = torch.full_like(self._step_scale, torch.inf)  # lowest totals at the last check
        self._advance = self._record()

    @property
    def best(self) -> Tensor:
        """The best state of each picture so far, (B, C, H, W)."""
        if not self._ended:
            return self.optimizer.best
        moving = dict(zip(self.active, self.optimizer.best, strict=True))
        return torch.stack([picture for _, picture in sorted({**self._ended, **moving}.items())])

    @property
    def step_scale(self) -> Tensor:
        """The step scale of each picture for the next scale's optimiser, (B,)."""
        return self._step_scale.index_copy(0, self._indices, self.optimizer.step_scale.to(self._step_scale.dtype))

    @property
    def losses(self) -> Losses:
        """The losses of each picture's best state, (B,)."""
        return self._losses.put(self._indices, self._best)

    def step(self) -> tuple[list[int], Losses]:
        """Do one step; returns the active pictures and their losses (b,) now."""
        self._advance()
        assert self._current is not None
        return self.active, self._current.copy()

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
        diverged = self._diverged()
        for picture, is_flat, has_diverged in zip(self.active, flat.tolist(), diverged.tolist(), strict=True):
            if is_flat or has_diverged:
                self.stopped[picture] = "diverged" if has_diverged else "plateau"
        going = (~(flat | diverged)).nonzero()[:, 0].tolist()
        if len(going) < len(self.active):
            self._keep(going)
        return bool(self.active)

    def close(self) -> None:
        """Mark the active pictures that have diverged; to be called after the last step."""
        for picture, has_diverged in zip(self.active, self._diverged().tolist(), strict=True):
            if has_diverged:
                self.stopped[picture] = "diverged"

    def _diverged(self) -> Tensor:
        """Return a mask of the active pictures, (b,), whose loss is not finite or has exploded."""
        assert self._current is not None
        now = self._current.total
        return ~now.isfinite() | (now > EXPLODED * self._best.total)

    def _keep(self, positions: list[int]) -> None:
        """Keep only some of the active pictures; `positions` are their positions in `active`."""
        assert self._current is not None
        self._step_scale, self._losses = self.step_scale, self.losses
        ended = [i for i in range(len(self.active)) if i not in positions]
        self._ended |= {self.active[i]: self.optimizer.best[i].clone() for i in ended}
        self.active = [self.active[i] for i in positions]
        which = torch.tensor(positions, dtype=torch.long, device=self._indices.device)
        self._indices, self._checked = self._indices[which], self._checked[which]
        self._current, self._best = self._current.select(which), self._best.select(which)
        self.objective = self.objective.select(which)
        self.optimizer.select(which)
        self._advance = self._record()


def _recolored(parts: Sequence[Guide], content: Tensor, color: ColorMethod) -> list[Guide]:
    """Return the guides of one picture with their styles' colours adapted to its content (1, 3, H, W)."""
    return [replace(part, styles=tuple(color.style(style, content) for style in part.styles)) for part in parts]


def _start(subjects: Tensor, guides: Sequence[Sequence[Guide]], recipe: Recipe) -> Tensor:
    """Return the pictures that `recipe.init` starts from, shaped like `subjects` (B, C, H, W)."""
    height, width = subjects.shape[-2:]
    if recipe.init == "noise":
        # White noise, the same for every pair with this seed; from the CPU, to be the same on every device.
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
    """Return the objective at `scale`, whose targets are the features of `subjects` (B, C, h, w) and the style Grams.

    `subjects` have been resized to the scale.
    """
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
    # In the dtype of the losses, so that no step converts them.
    content = {name: target.to(subjects.dtype) for name, target in content.items()}
    return Objective(backbone, recipe, content, regions)


def _region(
    parts: Sequence[Guide],
    shapes: Mapping[str, tuple[int, int, int]],
    recipe: Recipe,
    backbone: Backbone,
    scale: Scale,
    fitting: Fitting,
) -> Region:
    """Return one region of the batch from the part of each picture; `shapes` are those of the layers' features."""
    blends = [_blend(part, recipe, backbone, scale, fitting) for part in parts]
    grams = {name: torch.cat([blend[name] for blend in blends]) for name in recipe.style_layers}
    share = torch.tensor([part.share for part in parts], dtype=torch.float32, device=backbone.mean.device)
    factors: dict[str, Tensor] = {}
    if any(part.content_mask is not None for part in parts):
        masks = torch.cat([part.content_mask for part in parts if part.content_mask is not None])
        factors = {name: guide(masks, *shapes[name][1:]).to(backbone.dtype) for name in recipe.style_layers}
    return Region(grams, factors, share)


def _blend(part: Guide, recipe: Recipe, backbone: Backbone, scale: Scale, fitting: Fitting) -> dict[str, Tensor]:
    """Return the target Gram matrices (1, C, C) of a part by layer: the weighted mean of its styles' Grams."""
    measured = [_style_grams(style, part.style_mask, recipe, backbone, scale, fitting) for style in part.styles]
    return {
        name: torch.stack([weight * grams[name] for weight, grams in zip(part.weights, measured, strict=True)]).sum(0)
        for name in recipe.style_layers
    }


_measured: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Cache of `_style_grams`: style tensor → its measurements, for as long as the tensor lives."""


def _style_grams(
    style: Tensor, mask: Tensor | None, recipe: Recipe, backbone: Backbone, scale: Scale, fitting: Fitting
) -> dict[str, Tensor]:
    """Return the Gram matrices (1, C, C) by layer of `style` (1, C, h, w), or of the part of it under `mask`.

    The style is resized in proportion to `scale`. Grams are cached by style, mask, size, backbone and style layers, so
    that all pictures and batches share them.
    """
    height, width = style.shape[-2:]
    size = fit(width, height, max(height, width) * scale.size / recipe.pixels)
    if style not in _measured:
        _measured[style] = {}
    known: dict[object, dict[str, Tensor]] = _measured[style]
    key = mask, size, backbone, tuple(recipe.style_layers)
    if key not in known:
        picture = style if size == (width, height) else resize(style, *size)
        known[key] = gram_matrices(backbone, picture, list(recipe.style_layers), FORWARD * fitting.tile, mask)
    return known[key]
