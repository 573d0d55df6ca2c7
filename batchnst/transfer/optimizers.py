"""Optimisers for a batch of independent pictures.

Each picture has its own state and step size, and stays inside the box of valid pixels, 0..255: an optimiser that leaves
the box lowers a loss that the written picture does not have.

An optimiser offers a `trial` to evaluate and is then given its loss and gradient:

    while ...:
        loss, gradient = objective(optimizer.trial)
        accepted = optimizer.observe(loss, gradient)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from batchnst.transfer.canvas import Size
from batchnst.transfer.device import exact_dtype
from batchnst.transfer.lowpass import LowPass

BOX = (0.0, 255.0)
"""Lowest and highest valid value of a pixel."""

HISTORY = 20
"""Steps that L-BFGS remembers, unless memory is short."""

PIECE = 2**22
"""Values of a picture up to which its channels are handled at once: more would take too much working memory."""


class Optimizer(Protocol):
    """An optimiser, as the loop in stylize.py uses it."""

    trial: Tensor
    """The pictures (B, C, H, W) to evaluate next, inside the box; the next step may change them in place."""

    best: Tensor
    """The pictures (B, C, H, W) with the lowest loss so far; the next step changes them in place."""

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Take the trial's loss (B,) and gradient (B, C, H, W), and move on to the next trial.

        Returns True for each picture that keeps its trial, (B,).
        """

    @property
    def step_scale(self) -> Tensor:
        """Size of a good step for each unit of gradient, (B,), for the optimiser of the next scale; 0 if unknown."""

    def select(self, which: Tensor) -> None:
        """Keep only some of the pictures; `which` holds their indices."""


class OptimizerFactory(Protocol):
    """A constructor of an optimiser."""

    def __call__(
        self,
        pictures: Tensor,
        learning_rate: float | None = None,
        step_scale: Tensor | None = None,
        history: int = HISTORY,
        sizes: Sequence[Size] | None = None,
    ) -> Optimizer:
        """Start at `pictures` (B, C, H, W), inside the box.

        learning_rate: None for the optimiser's default. step_scale: (B,), from the coarser scale. history: steps to
        remember. sizes: (height, width) of each picture if some are smaller than (H, W); pixels and gradients outside
        them are 0, and the pixels stay so. Adam and gradient descent ignore `step_scale` and `history`.
        """


def outward(pictures: Tensor, gradient: Tensor) -> Tensor:
    """Return a mask of the pixels that lie on a bound of the box while a step down the gradient pushes them out."""
    low, high = BOX
    return ((pictures <= low) & (gradient > 0)) | ((pictures >= high) & (gradient < 0))


class _Descent:
    """Base of the optimisers that keep every trial; the best one is stored separately."""

    def __init__(self, pictures: Tensor) -> None:
        self.trial, self.best = pictures.clone(), pictures.clone()
        self.lowest_loss = pictures.new_full((len(pictures),), torch.inf)
        self.step_scale = pictures.new_zeros(len(pictures))  # no state is valid at another scale

    def _keep(self, loss: Tensor) -> Tensor:
        """Store the trials that are the best so far; returns True for each picture, (B,), as all trials are kept."""
        better = loss < self.lowest_loss
        torch.where(better, loss, self.lowest_loss, out=self.lowest_loss)
        torch.where(better[:, None, None, None], self.trial, self.best, out=self.best)
        return torch.ones_like(better)

    def select(self, which: Tensor) -> None:
        """Keep only some of the pictures; `which` holds their indices."""
        for name in ("trial", "best", "lowest_loss", "step_scale"):
            setattr(self, name, getattr(self, name)[which])


class Adam(_Descent):
    """Adam (Kingma and Ba 2015), projected into the box after each step."""

    betas, epsilon = (0.9, 0.99), 1e-8

    def __init__(
        self,
        pictures: Tensor,
        learning_rate: float | None = None,
        step_scale: Tensor | None = None,
        history: int = HISTORY,
        sizes: Sequence[Size] | None = None,
    ) -> None:
        super().__init__(pictures)
        self.learning_rate = 10.0 if learning_rate is None else learning_rate
        self.mean, self.variance = torch.zeros_like(pictures), torch.zeros_like(pictures)
        self.count = torch.zeros((), dtype=exact_dtype(pictures.device), device=pictures.device)

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Step along the gradient's running mean, divided by its running deviation; every trial is kept."""
        kept = self._keep(loss)
        self.count += 1
        first, second = self.betas
        self.mean.lerp_(gradient, 1 - first)
        self.variance.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (self.variance / (1 - second**self.count)).sqrt_().add_(self.epsilon)
        step = torch.div(self.mean, deviation, out=deviation)
        self.trial.sub_(step.mul_(self.learning_rate / (1 - first**self.count))).clamp_(*BOX)
        return kept

    def select(self, which: Tensor) -> None:
        """Keep only some of the pictures; `which` holds their indices."""
        super().select(which)
        self.mean, self.variance = self.mean[which], self.variance[which]


class GradientDescent(_Descent):
    """Plain gradient descent, G ← G − lr·∂J/∂G, projected into the box: for teaching and for proofs.

    Each picture's learning rate is the given one, or that with which its first step is `first_move` long.
    """

    first_move = 10.0
    """Length of the first step, unless a learning rate is given: root mean square over the values, in grey levels."""

    def __init__(
        self,
        pictures: Tensor,
        learning_rate: float | None = None,
        step_scale: Tensor | None = None,
        history: int = HISTORY,
        sizes: Sequence[Size] | None = None,
    ) -> None:
        super().__init__(pictures)
        self.rate = pictures.new_full((len(pictures),), learning_rate or 0)
        self.values = _values(pictures, sizes)

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Step down the gradient; every trial is kept."""
        kept = self._keep(loss)
        mean = gradient.square().sum((1, 2, 3)) / self.values
        length = mean.sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
        torch.where(self.rate > 0, self.rate, self.first_move / length, out=self.rate)
        self.trial.addcmul_(gradient, self.rate[:, None, None, None], value=-1).clamp_(*BOX)
        return kept

    def select(self, which: Tensor) -> None:
        """Keep only some of the pictures; `which` holds their indices."""
        super().select(which)
        self.rate, self.values = self.rate[which], self.values[which]


class LBFGS:
    """Projected L-BFGS, batched: each picture has its own curvature pairs (s, y), step and safeguards.

    The inverse Hessian is kept in the compact form of Byrd, Nocedal and Schnabel (1994), theorem 2.2 (Nocedal and
    Wright 2006, eq. 7.24): two passes over the history in each step, whatever its length, and the same two for the
    whole batch. It starts from γP, where P is a low-pass filter: the filtered gradient is that of a picture's Fourier
    coefficients with the low frequencies magnified, so that large shapes move as fast as texture (Neuberger 1997,
    Sobolev gradients; Mordvintsev et al. 2018). Pixels that the gradient pushes out of the box are left out of the
    direction. A step that raises the loss is taken back and tried again shorter. A curvature pair without positive
    curvature is not kept.

    Beside the history it holds three vectors of a picture's size, `trial`, `best` and `gradient`. All state is changed
    in place, so that a CUDA graph can replay a step.
    """

    cutoff = 0.02
    """Frequency above which P falls as 1/f, in cycles a pixel."""
    first_move = 2.0
    """Length of the very first step: root mean square over the pixels, in grey levels."""
    shrink = 0.3
    """Factor for the step after a refusal."""
    give_up = 4
    """Refusals in a row after which the curvature is not trusted: it is dropped and the gradient alone followed."""

    def __init__(
        self,
        pictures: Tensor,
        learning_rate: float | None = None,
        step_scale: Tensor | None = None,
        history: int = HISTORY,
        sizes: Sequence[Size] | None = None,
    ) -> None:
        count, places = len(pictures), pictures[0].numel()
        self.learning_rate = 1.0 if learning_rate is None else learning_rate
        self.trial, self.best = (pictures.clone(memory_format=torch.contiguous_format) for _ in range(2))
        self.gradient = torch.zeros_like(self.best)
        self.free = torch.ones_like(self.best, dtype=torch.bool)  # pixels that the box does not hold
        self.loss = pictures.new_full((count,), torch.inf)
        self.step = pictures.new_ones(count)
        self.refusals = pictures.new_zeros(count)
        self.smooth = LowPass(sizes or [(pictures.shape[2], pictures.shape[3])] * count, self.cutoff, pictures)
        self.values = _values(pictures, sizes)
        self.gamma = pictures.new_zeros(count) if step_scale is None else step_scale.to(pictures.dtype) * self.values
        # Rows 2i and 2i + 1 of `curvature` are s and Py of slot i. Each picture fills its slots in turn. There is one
        # more slot than steps to remember, so that a curvature pair that is not worth keeping overwrites none.
        self.slots, self.observed = history + 1, 0
        rows = 2 * self.slots
        # On a CPU, memory that no step needs yet is not touched.
        self.curvature = (pictures.new_zeros if pictures.is_cuda else pictures.new_empty)(count, rows, places)
        self.newest = torch.full((count,), history, device=pictures.device)
        self.valid = torch.zeros(count, self.slots, dtype=torch.bool, device=pictures.device)
        self.sy = pictures.new_zeros(count, self.slots, self.slots, dtype=exact_dtype(pictures.device))
        self.ypy = torch.zeros_like(self.sy)

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Keep each trial whose loss is lower and step from there; elsewhere try a shorter step again."""
        accepted = (loss < self.loss) & gradient.flatten(1).sum(1).isfinite()
        torch.where(accepted, loss, self.loss, out=self.loss)
        slot = (self.newest + 1) % self.slots
        products = self._accept(accepted, gradient, slot)
        self.refusals.add_(1).masked_fill_(accepted, 0)
        stuck = self.refusals >= self.give_up
        self.refusals.masked_fill_(stuck, 0)
        self.valid &= ~stuck[:, None]
        if self.observed == 0:
            squares = [self.smooth(self.gradient[part]).square().sum((1, 2, 3)) for part in _planes(self.gradient)]
            length = (torch.stack(squares).sum(0) / self.values).sqrt().clamp_min(torch.finfo(loss.dtype).tiny)
            torch.where(self.gamma > 0, self.gamma, self.first_move / length, out=self.gamma)
        self.step.mul_(self.shrink).masked_fill_(accepted, self.learning_rate)
        self._follow(self._weights(products, slot))
        self.observed += 1
        return accepted

    @property
    def step_scale(self) -> Tensor:
        """The inverse Hessian's scale γ divided by the number of values in a picture, (B,).

        γ grows with this number, because losses are means over pixels.
        """
        return self.gamma / self.values

    def select(self, which: Tensor) -> None:
        """Keep only some of the pictures; `which` holds their indices."""
        self.smooth = self.smooth.select(which)
        vectors = ("trial", "best", "gradient", "free", "loss", "step", "refusals", "gamma", "values")
        for name in (*vectors, "curvature", "newest", "valid", "sy", "ypy"):
            setattr(self, name, getattr(self, name)[which])

    @property
    def _written(self) -> int:
        """Rows of `curvature` that a step reads: on a GPU all of them, so that every step is the same."""
        return 2 * (self.slots if self.curvature.is_cuda else min(self.observed, self.slots))

    def _accept(self, accepted: Tensor, gradient: Tensor, slot: Tensor) -> Tensor:
        """Make the accepted trials the best pictures, and store (s, Py) in each picture's `slot` (B,).

        Returns the products (B, 2m, 2) of the rows of `curvature` with the newest y and with the gradient, from which
        the pixels that it pushes out of the box are left out. `trial` is left holding P times that gradient.
        """
        written, batch = self._written, torch.arange(len(slot), device=slot.device)
        if not self.curvature.is_cuda and 0 < self.observed <= self.slots:
            # Newly in use and not initialised: a picture that stores nothing now would not overwrite them.
            self.curvature[:, written - 2 : written] = 0
        planes = self.curvature.view(*self.curvature.shape[:2], *gradient.shape[1:])
        products = self.sy.new_zeros(*self.curvature.shape[:2], 2)
        s_squared, y_squared = products.new_zeros(2, len(slot))
        mask = accepted[:, None, None, None]
        for part in _planes(gradient):
            trial, best, old, free = (vector[part] for vector in (self.trial, self.best, self.gradient, self.free))
            s = trial - best
            planes[batch, 2 * slot, part[1]] = s
            s_squared += torch.linalg.vector_norm(s, dim=(1, 2, 3)).square()
            del s
            torch.where(mask, trial, best, out=best)
            pair = gradient.new_empty(len(slot), 2, *best.shape[1:])
            y, downhill = pair.unbind(1)
            # A refused gradient may be NaN.
            torch.sub(gradient[part], old, out=y).masked_fill_(~mask, 0)
            y_squared += torch.linalg.vector_norm(y, dim=(1, 2, 3)).square()
            torch.where(mask, gradient[part], old, out=old)
            torch.logical_not(outward(best, old), out=free)
            torch.mul(old, free, out=downhill)
            planes[batch, 2 * slot + 1, part[1]] = self.smooth(y)
            trial.copy_(self.smooth(downhill))
            products[:, :written] += planes[:, :written, part[1]].flatten(2) @ pair.flatten(2).mT
        s_y, y_p_y = products[batch, 2 * slot, 0], products[batch, 2 * slot + 1, 0]
        positive = s_y > 1e-4 * (s_squared * y_squared).sqrt()
        self.gamma.copy_(torch.where(positive, s_y / y_p_y, self.gamma))
        torch.where(positive, slot, self.newest, out=self.newest)
        self.valid.scatter_(1, slot[:, None], positive[:, None])
        return products

    def _follow(self, weights: Tensor) -> None:
        """Set the next trial: a step along −H·gradient, without the pixels that it would push out of the box.

        `trial` holds P·gradient; `weights` (B, 2m) are those of the curvature rows in H·gradient / γ.
        """
        step, written = (-self.step * self.gamma)[:, None, None, None], self._written
        weights = weights[:, None, :written].to(self.trial.dtype)
        planes = self.curvature.view(*self.curvature.shape[:2], *self.trial.shape[1:])
        for part in _planes(self.trial):
            direction = self.trial[part]
            direction.flatten(1)[:, None].baddbmm_(weights, planes[:, :written, part[1]].flatten(2))
            direction.mul_(self.free[part])
            torch.addcmul(self.best[part], direction, step, out=direction).clamp_(*BOX)

    def _weights(self, products: Tensor, slot: Tensor) -> Tensor:
        """Return the weights (B, 2m) of the curvature rows in H·gradient / γ; `slot` (B,) was written last."""
        m, batch = self.slots, torch.arange(len(slot), device=slot.device)
        # Dimensions: picture, slot, row (s or Py), factor (y or gradient).
        products = products.view(-1, m, 2, 2)
        (s_y, py_y), (p, q) = (products[..., i].unbind(2) for i in range(2))
        self.sy[batch, :, slot] = s_y
        self.ypy[batch, :, slot] = self.ypy[batch, slot, :] = py_y

        order = (self.newest[:, None] + 1 + torch.arange(m, device=slot.device)) % m  # oldest first
        valid = self.valid.gather(1, order)
        both = valid[:, :, None] & valid[:, None]
        sy, ypy = (torch.where(both, _reorder(matrix, order), 0) for matrix in (self.sy, self.ypy))
        p, q = (torch.where(valid, product.gather(1, order), 0) for product in (p, q))
        gamma = self.gamma.to(sy.dtype)[:, None]
        r = sy.triu() + torch.diag_embed((~valid).to(sy.dtype))
        u = torch.linalg.solve_triangular(r, p[..., None], upper=True)[..., 0]
        v = sy.diagonal(dim1=1, dim2=2) * u + gamma * ((ypy @ u[..., None])[..., 0] - q)
        a = torch.linalg.solve_triangular(r.mT, v[..., None], upper=False)[..., 0]
        weights = torch.zeros_like(products[..., 0])
        weights.scatter_(1, order[:, :, None].expand(-1, -1, 2), torch.stack([a / gamma, -u], 2))
        return weights.flatten(1)


OPTIMIZERS: dict[str, OptimizerFactory] = {"lbfgs": LBFGS, "adam": Adam, "sgd": GradientDescent}
"""Optimisers by the recipe's `optimizer`."""


def _values(pictures: Tensor, sizes: Sequence[Size] | None) -> Tensor:
    """Return the number of values of each of `pictures` (B, C, H, W), which are smaller if there are `sizes`, (B,)."""
    sizes = sizes or [(pictures.shape[2], pictures.shape[3])] * len(pictures)
    return pictures.new_tensor([pictures.shape[1] * height * width for height, width in sizes])


def _planes(pictures: Tensor) -> list[tuple[slice, slice]]:
    """Return indices that cover `pictures` (B, C, H, W): all channels at once, or one by one for large pictures."""
    channels = [slice(None)] if pictures[0].numel() <= PIECE else [slice(i, i + 1) for i in range(pictures.shape[1])]
    return [(slice(None), channel) for channel in channels]


def _reorder(matrices: Tensor, order: Tensor) -> Tensor:
    """Return rows and columns of each matrix (B, m, m) in `order` (B, m)."""
    rows = matrices.gather(1, order[:, :, None].expand_as(matrices))
    return rows.gather(2, order[:, None].expand_as(matrices))
