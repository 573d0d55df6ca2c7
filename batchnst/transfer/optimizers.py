"""Optimisers for a batch of independent pictures.

Each picture has its own state and step size, and stays inside the box of valid pixels, 0..255: an optimiser that leaves
the box lowers a loss that the written picture does not have.

An optimiser offers a `trial` to evaluate and is then given its loss and gradient:

    while ...:
        loss, gradient = objective(optimizer.trial)
        accepted = optimizer.observe(loss, gradient)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fft

BOX = (0.0, 255.0)
"""Lowest and highest valid value of a pixel."""

HISTORY = 20
"""Steps that L-BFGS remembers, unless memory is short."""

PIECE = 2**22
"""Values of a vector that are handled at once, so that working memory stays small beside the vectors."""


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
    ) -> Optimizer:
        """Start at `pictures` (B, C, H, W), inside the box.

        learning_rate: None for the optimiser's default. step_scale: (B,), from the coarser scale. history: steps to
        remember. Adam and gradient descent ignore the last two.
        """


def outward(pictures: Tensor, gradient: Tensor) -> Tensor:
    """Return a mask of the pixels that lie on a bound of the box while a step down the gradient pushes them out."""
    low, high = BOX
    return ((pictures <= low) & (gradient > 0)) | ((pictures >= high) & (gradient < 0))


class _Descent:
    """Base of the optimisers that keep every trial; the best one is stored separately."""

    def __init__(self, pictures: Tensor) -> None:
        self.trial, self.best = pictures, pictures.clone()
        self.lowest_loss = pictures.new_full((len(pictures),), torch.inf)
        self.step_scale = pictures.new_zeros(len(pictures))  # no state is valid at another scale

    def _keep(self, loss: Tensor) -> Tensor:
        """Store the trials that are the best so far; returns True for each picture, (B,), as all trials are kept."""
        better = loss < self.lowest_loss
        self.lowest_loss = torch.where(better, loss, self.lowest_loss)
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
    ) -> None:
        super().__init__(pictures)
        self.learning_rate = 10.0 if learning_rate is None else learning_rate
        self.mean, self.variance = torch.zeros_like(pictures), torch.zeros_like(pictures)
        self.count = 0

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Step along the gradient's running mean, divided by its running deviation; every trial is kept."""
        kept = self._keep(loss)
        self.count += 1
        first, second = self.betas
        self.mean.lerp_(gradient, 1 - first)
        self.variance.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (self.variance / (1 - second**self.count)).sqrt_().add_(self.epsilon)
        rate = self.learning_rate / (1 - first**self.count)
        self.trial = torch.addcdiv(self.trial, self.mean, deviation, value=-rate).clamp_(*BOX)
        return kept

    def select(self, which: Tensor) -> None:
        """Keep only some of the pictures; `which` holds their indices."""
        super().select(which)
        self.mean, self.variance = self.mean[which], self.variance[which]


class GradientDescent(_Descent):
    """Plain gradient descent, G ← G − lr·∂J/∂G, projected into the box: for teaching and for proofs."""

    def __init__(
        self,
        pictures: Tensor,
        learning_rate: float | None = None,
        step_scale: Tensor | None = None,
        history: int = HISTORY,
    ) -> None:
        super().__init__(pictures)
        self.learning_rate = 3e-3 if learning_rate is None else learning_rate

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Step down the gradient; every trial is kept."""
        kept = self._keep(loss)
        self.trial = torch.add(self.trial, gradient, alpha=-self.learning_rate).clamp_(*BOX)
        return kept


class LBFGS:
    """Projected L-BFGS, batched: each picture has its own curvature pairs (s, y), step and safeguards.

    The inverse Hessian is kept in the compact form of Byrd, Nocedal and Schnabel (1994), theorem 2.2 (Nocedal and
    Wright 2006, eq. 7.24): two passes over the history in each step, whatever its length, and the same two for the
    whole batch. It starts from γP, where P is a low-pass filter: the filtered gradient is that of a picture's Fourier
    coefficients with the low frequencies magnified, so that large shapes move as fast as texture (Neuberger 1997,
    Sobolev gradients; Mordvintsev et al. 2018). Pixels that the gradient pushes out of the box are left out of the
    direction. A step that raises the loss is taken back and tried again shorter. A curvature pair without positive
    curvature is not kept.

    Beside the history it holds three vectors of a picture's size, `trial`, `best` and `gradient`, changed in place.
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
    ) -> None:
        count, pixels = len(pictures), pictures[0].numel()
        self.learning_rate = 1.0 if learning_rate is None else learning_rate
        self.trial, self.best = (pictures.clone(memory_format=torch.contiguous_format) for _ in range(2))
        self.gradient = torch.zeros_like(self.best)
        self.loss = pictures.new_full((count,), torch.inf)
        self.step = pictures.new_ones(count)
        self.refusals = pictures.new_zeros(count)
        self.gamma = pictures.new_zeros(count) if step_scale is None else step_scale * pixels
        height, width = pictures.shape[-2:]
        down, across = (f(n, device=pictures.device) for f, n in ((fft.fftfreq, height), (fft.rfftfreq, width)))
        self.response = (1 + (down[:, None].square() + across.square()) / self.cutoff**2).rsqrt().to(pictures.dtype)
        # Rows 2i and 2i + 1 of `curvature` are s and Py of slot i. Each picture fills its slots in turn. There is one
        # more slot than steps to remember, so that a curvature pair that is not worth keeping overwrites none.
        self.slots, self.observed = history + 1, 0
        self.curvature = pictures.new_empty(count, 2 * self.slots, pixels)
        self.newest = torch.full((count,), history, device=pictures.device)
        self.valid = torch.zeros(count, self.slots, dtype=torch.bool, device=pictures.device)
        self.sy = pictures.new_zeros(count, self.slots, self.slots, dtype=torch.float64)
        self.ypy = torch.zeros_like(self.sy)

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Keep each trial whose loss is lower and step from there; elsewhere try a shorter step again."""
        accepted = (loss < self.loss) & torch.stack([part.isfinite().all(1) for (part,) in _pieces(gradient)]).all(0)
        slot = self._remember(gradient, accepted & self.loss.isfinite())
        self.refusals = torch.where(accepted, 0, self.refusals + 1)
        stuck = self.refusals >= self.give_up
        self.refusals = torch.where(stuck, 0, self.refusals)
        self.valid &= ~stuck[:, None]
        products = self._accept(accepted, gradient)
        self.loss = torch.where(accepted, loss, self.loss)
        if self.observed == 0:
            squares = [self._smooth(self.gradient[part]).square().mean((1, 2, 3)) for part in _planes(self.gradient)]
            length = torch.stack(squares).mean(0).sqrt().clamp_min(torch.finfo(loss.dtype).tiny)
            self.gamma = torch.where(self.gamma > 0, self.gamma, self.first_move / length)
        self.step = torch.where(accepted, self.learning_rate, self.step * self.shrink)
        self._follow(products, slot)
        self.observed += 1
        return accepted

    @property
    def step_scale(self) -> Tensor:
        """The inverse Hessian's scale γ divided by the number of values in a picture, (B,).

        γ grows with this number, because losses are means over pixels.
        """
        return self.gamma / math.prod(self.best.shape[1:])

    def select(self, which: Tensor) -> None:
        """Keep only some of the pictures; `which` holds their indices."""
        vectors = ("trial", "best", "gradient", "loss", "step", "refusals", "gamma")
        for name in (*vectors, "curvature", "newest", "valid", "sy", "ypy"):
            setattr(self, name, getattr(self, name)[which])

    @property
    def _written(self) -> Tensor:
        """The rows of `curvature` written so far, (B, 2k, N)."""
        return self.curvature[:, : 2 * min(self.observed, self.slots)]

    def _smooth(self, planes: Tensor) -> Tensor:
        """Apply P to `planes` (B, C, H, W)."""
        smooth: Tensor = fft.irfft2(fft.rfft2(planes).mul_(self.response), s=planes.shape[-2:])
        return smooth

    def _remember(self, gradient: Tensor, moved: Tensor) -> Tensor:
        """Store the newest (s, Py) of each picture that moved and met positive curvature.

        Returns each picture's slot for it, (B,).
        """
        slot = (self.newest + 1) % self.slots
        if self.observed == 0:
            return slot
        if self.observed <= self.slots:
            # Newly in use and not initialised: a picture that stores nothing now would not overwrite them.
            self._written[:, -2:] = 0
        products = self.gamma.new_zeros(3, len(moved), dtype=torch.float64)
        for trial, best, new, old in _pieces(self.trial, self.best, gradient, self.gradient):
            s, y = trial - best, new - old
            products += torch.stack([(a * b).sum(1) for a, b in ((s, y), (s, s), (y, y))])
        s_y, s_squared, y_squared = products
        positive = moved & (s_y > 1e-4 * (s_squared * y_squared).sqrt())
        y_p_y = torch.zeros_like(s_y)
        # Masked by `where`, because s and y of the other pictures may be NaN.
        mask = positive[:, None, None, None]
        batch = torch.arange(len(moved), device=moved.device)
        planes = self.curvature.view(*self.curvature.shape[:2], *gradient.shape[1:])
        for part in _planes(gradient):
            s, y = self.trial[part] - self.best[part], gradient[part] - self.gradient[part]
            smooth = self._smooth(y)
            y_p_y += (y * smooth).sum((1, 2, 3))
            planes[batch, 2 * slot, part[1]] = torch.where(mask, s, 0)
            planes[batch, 2 * slot + 1, part[1]] = torch.where(mask, smooth, 0)
        self.gamma = torch.where(positive, s_y / y_p_y, self.gamma).to(self.gamma.dtype)
        self.newest = torch.where(positive, slot, self.newest)
        self.valid.scatter_(1, slot[:, None], positive[:, None])
        return slot

    def _accept(self, accepted: Tensor, gradient: Tensor) -> Tensor:
        """Make the accepted trials the best pictures.

        Returns the products (B, 2k, 2) of the written rows of `curvature` with the newest y and with the gradient, from
        which the pixels that it pushes out of the box are left out.
        """
        products = self.curvature.new_zeros(len(accepted), self._written.shape[1], 2, dtype=torch.float64)
        vectors = (self._written, self.trial, gradient, self.best, self.gradient)
        for curvature, trial, new, best, old in _pieces(*vectors):
            y = new - old
            torch.where(accepted[:, None], trial, best, out=best)
            torch.where(accepted[:, None], new, old, out=old)
            products += curvature @ torch.stack([y, old * ~outward(best, old)], 2)
        return products

    def _follow(self, products: Tensor, slot: Tensor) -> None:
        """Set the next trial: a step along −H·gradient, without the pixels that it would push out of the box."""
        direction = self.trial  # computed in the trial's memory
        for part in _planes(direction):
            torch.mul(self.gradient[part], ~outward(self.best[part], self.gradient[part]), out=direction[part])
            direction[part] = self._smooth(direction[part])
        direction *= -self.gamma[:, None, None, None]
        if self.observed:
            weights = self._weights(products, slot).to(direction.dtype)
            for curvature, piece in _pieces(self._written, direction):
                piece -= (weights[:, None] @ curvature)[:, 0]
        for piece, best, gradient in _pieces(direction, self.best, self.gradient):
            piece *= ~outward(best, gradient)
        direction.mul_(self.step[:, None, None, None]).add_(self.best).clamp_(*BOX)

    def _weights(self, products: Tensor, slot: Tensor) -> Tensor:
        """Return the weights (B, 2k) of the curvature rows in the direction; `slot` (B,) was written last."""
        m, written, batch = self.slots, products.shape[1] // 2, torch.arange(len(slot), device=slot.device)
        # Dimensions: picture, slot, row (s or Py), factor (y or gradient).
        products = F.pad(products, (0, 0, 0, 2 * (m - written))).view(-1, m, 2, 2)
        (s_y, py_y), (p, q) = (products[..., i].unbind(2) for i in range(2))
        self.sy[batch, :, slot] = s_y
        self.ypy[batch, :, slot] = self.ypy[batch, slot, :] = py_y

        order = (self.newest[:, None] + 1 + torch.arange(m, device=slot.device)) % m  # oldest first
        valid = self.valid.gather(1, order)
        both = valid[:, :, None] & valid[:, None]
        sy, ypy = (torch.where(both, _reorder(matrix, order), 0) for matrix in (self.sy, self.ypy))
        p, q = (torch.where(valid, product.gather(1, order), 0) for product in (p, q))
        gamma = self.gamma.double()[:, None]
        r = sy.triu() + torch.diag_embed((~valid).double())
        u = torch.linalg.solve_triangular(r, p[..., None], upper=True)[..., 0]
        v = sy.diagonal(dim1=1, dim2=2) * u + gamma * ((ypy @ u[..., None])[..., 0] - q)
        a = torch.linalg.solve_triangular(r.mT, v[..., None], upper=False)[..., 0]
        weights = torch.zeros_like(products[..., 0])
        weights.scatter_(1, order[:, :, None].expand(-1, -1, 2), torch.stack([a, -gamma * u], 2))
        return weights[:, :written].flatten(1)


OPTIMIZERS: dict[str, OptimizerFactory] = {"lbfgs": LBFGS, "adam": Adam, "sgd": GradientDescent}
"""Optimisers by the recipe's `optimizer`."""


def _pieces(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same piece of each vector (B, …, N) as views, one piece after the other; pictures are flattened."""
    flat = [vector.flatten(1) if vector.ndim == 4 else vector for vector in vectors]
    yield from zip(*(torch.split(vector, PIECE, -1) for vector in flat), strict=True)


def _planes(pictures: Tensor) -> list[tuple[slice, slice]]:
    """Return indices that cover `pictures` (B, C, H, W): all channels at once, or one by one for large pictures."""
    channels = [slice(None)] if pictures[0].numel() <= PIECE else [slice(i, i + 1) for i in range(pictures.shape[1])]
    return [(slice(None), channel) for channel in channels]


def _reorder(matrices: Tensor, order: Tensor) -> Tensor:
    """Return rows and columns of each matrix (B, m, m) in `order` (B, m)."""
    rows = matrices.gather(1, order[:, :, None].expand_as(matrices))
    return rows.gather(2, order[:, None].expand_as(matrices))
