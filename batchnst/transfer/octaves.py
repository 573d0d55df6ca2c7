"""The objective of pictures at several sizes at once: at their own, at half of it, and so on.

The network sees strokes as large as they are at about 256 pixels. What a larger picture is to look like from further
away, only its smaller copies show. A copy has the means of 2 × 2 pixels, also those of the content and the style.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from batchnst.transfer.canvas import Canvas
from batchnst.transfer.losses import Losses
from batchnst.transfer.objective import Objective


class Halving:
    """Halves the pictures of a batch on their `canvas`: a linear map, with its transpose."""

    def __init__(self, canvas: Canvas) -> None:
        self._extent = canvas.pixels
        sizes = len(self._extent.sizes), 1, self._extent.height, self._extent.width
        # Of each 2 × 2 pixels those inside the picture: 4, at odd edges 2 or 1, and none outside.
        counts = _sums(self._extent.clear_(torch.ones(sizes, device=self._extent.device)))
        self._shares = torch.where(counts > 0, 1 / counts, 0)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the means of 2 × 2 pixels of `pictures` (B, C, H, W), rounded up: (B, C, ⌈H/2⌉, ⌈W/2⌉)."""
        return _sums(pictures) * self._shares

    def transpose(self, gradient: Tensor) -> Tensor:
        """Return the derivative with respect to the pictures, (B, C, H, W), from that with respect to their halves."""
        spread = F.interpolate(gradient * self._shares, scale_factor=2)
        return self._extent.clear_(spread[..., : self._extent.height, : self._extent.width])


def halved(picture: Tensor) -> Tensor:
    """Return the means of 2 × 2 pixels of `picture` (1, C, H, W), at odd edges of fewer: (1, C, ⌈H/2⌉, ⌈W/2⌉)."""
    picture = picture if picture.is_floating_point() else picture.float()
    return F.avg_pool2d(picture, 2, ceil_mode=True, count_include_pad=False)


def _sums(values: Tensor) -> Tensor:
    """Return the sums of 2 × 2 `values` (B, C, H, W)."""
    return F.avg_pool2d(values, 2, ceil_mode=True, divisor_override=1)


class Octaves:
    """The mean of the losses at several sizes, and its gradient; used like an Objective.

    `objectives` are those of the pictures at their own size, at half of it, at a quarter …
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = list(objectives)
        self._halvings = [Halving(objective.canvas) for objective in self.objectives[:-1]]

    @property
    def canvas(self) -> Canvas:
        """The canvas of the pictures at their own size."""
        return self.objectives[0].canvas

    @property
    def recordable(self) -> bool:
        """True if a CUDA graph can record a call."""
        return all(objective.recordable for objective in self.objectives)

    @property
    def pixels(self) -> int:
        """Pixels of each picture's place that a call looks at, in all sizes."""
        return sum(objective.pixels for objective in self.objectives)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Losses, Tensor]:
        """Return each picture's losses, means over the sizes, and the gradient of its own total.

        pictures: (B, 3 or 1, H, W), 0..255; the gradient has their shape.
        """
        octaves = [pictures]
        for halving in self._halvings:
            octaves.append(halving(octaves[-1]))
        results = [objective(octave) for objective, octave in zip(self.objectives, octaves, strict=True)]
        losses, gradients = zip(*results, strict=True)
        gradient = gradients[-1]
        for halving, finer in zip(reversed(self._halvings), reversed(gradients[:-1]), strict=True):
            gradient = finer + halving.transpose(gradient)
        return Losses.mean(losses), gradient / len(octaves)

    def select(self, which: Tensor) -> Octaves:
        """Return the objective of some of the pictures; `which` holds their indices."""
        return Octaves([objective.select(which) for objective in self.objectives])
