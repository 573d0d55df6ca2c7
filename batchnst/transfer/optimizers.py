"""Optimisers for a batch of pictures that have nothing to do with one another.

Every picture has a state and a step size of its own, and stays inside the box of valid pixels, 0..255: an
optimiser that leaves the box lowers a loss which the written picture does not have.

Each is asked for a `trial` picture and told its loss and gradient:

    while ...:
        loss, gradient = objective(optimizer.trial)
        accepted = optimizer.observe(loss, gradient)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, fft

BOX = (0.0, 255.0)


class Optimizer(Protocol):
    """What the loop in stylize.py needs of an optimiser."""

    trial: Tensor
    """The pictures (B, 3, H, W) to evaluate next, inside the box."""

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Take the trial's loss (B,) and gradient (B, 3, H, W); returns (B,) which pictures keep their trial."""

    @property
    def scale(self) -> Tensor:
        """What it knows that holds at other scales too, (B,): the size of a good step for each unit of gradient."""

    def select(self, which: Tensor) -> None:
        """Go on with some of the pictures alone."""


def outward(pictures: Tensor, gradient: Tensor) -> Tensor:
    """Which pixels lie on a bound of the box while the gradient pushes them out, as a mask."""
    low, high = BOX
    return ((pictures <= low) & (gradient > 0)) | ((pictures >= high) & (gradient < 0))


class Adam:
    """Adam (Kingma and Ba 2015), projected into the box after each step."""

    betas, epsilon = (0.9, 0.99), 1e-8

    def __init__(self, pictures: Tensor, learning_rate: float | None, scale: Tensor | None = None) -> None:
        self.learning_rate = 10.0 if learning_rate is None else learning_rate
        self.trial = pictures
        self.scale = pictures.new_zeros(len(pictures))  # nothing: moments belong to pixels
        self.mean, self.variance = torch.zeros_like(pictures), torch.zeros_like(pictures)
        self.count = 0

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Move along the gradient's running mean over its running deviation; every trial is kept."""
        self.count += 1
        first, second = self.betas
        self.mean.lerp_(gradient, 1 - first)
        self.variance.lerp_(gradient.square(), 1 - second)
        mean = self.mean / (1 - first**self.count)
        deviation = (self.variance / (1 - second**self.count)).sqrt() + self.epsilon
        self.trial = (self.trial - self.learning_rate * mean / deviation).clamp(*BOX)
        return torch.ones_like(loss, dtype=torch.bool)

    def select(self, which: Tensor) -> None:
        """Go on with some of the pictures alone."""
        self.trial, self.scale = self.trial[which], self.scale[which]
        self.mean, self.variance = self.mean[which], self.variance[which]


class GradientDescent:
    """Plain gradient descent, G ← G − lr·∂J/∂G, projected into the box: for teaching and for proofs."""

    def __init__(self, pictures: Tensor, learning_rate: float | None, scale: Tensor | None = None) -> None:
        self.learning_rate = 3e-3 if learning_rate is None else learning_rate
        self.trial = pictures
        self.scale = pictures.new_zeros(len(pictures))

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Step down the gradient; every trial is kept."""
        self.trial = (self.trial - self.learning_rate * gradient).clamp(*BOX)
        return torch.ones_like(loss, dtype=torch.bool)

    def select(self, which: Tensor) -> None:
        """Go on with some of the pictures alone."""
        self.trial, self.scale = self.trial[which], self.scale[which]


class LBFGS:
    """Projected L-BFGS, batched: curvature pairs, step and safeguards of its own for each picture.

    The inverse Hessian is kept in the compact form of Byrd, Nocedal and Schnabel (1994), theorem 2.2 (Nocedal and
    Wright 2006, eq. 7.24): two passes over the history a step, whatever its length, and the same two for the whole
    batch. It starts from γP, P a low-pass filter: seen through it, the gradient is that of a picture's Fourier
    coefficients with the low frequencies magnified, so that large shapes move as fast as texture (Neuberger 1997,
    Sobolev gradients; Mordvintsev et al. 2018). Pixels that the gradient pushes out of the box are left out of the
    direction. A step that raises the loss is taken back and tried again shorter. A pair without positive curvature is
    not kept.
    """

    history = 20
    cutoff = 0.02
    """The frequency, in cycles a pixel, from which on P falls as 1/f."""
    first_move = 2.0
    """Length of the very first step: root mean square over the pixels, in grey levels."""
    shrink = 0.3
    give_up = 4
    """Shortened this often in a row, the curvature is not to be trusted: the gradient alone is followed."""

    def __init__(self, pictures: Tensor, learning_rate: float | None, scale: Tensor | None = None) -> None:
        count, pixels, m = len(pictures), pictures[0].numel(), self.history
        self.learning_rate = 1.0 if learning_rate is None else learning_rate
        self.trial = pictures
        self.kept = pictures.flatten(1)
        self.gradient = torch.zeros_like(self.kept)
        self.direction = torch.zeros_like(self.kept)
        self.loss = pictures.new_full((count,), torch.inf)
        self.step = pictures.new_ones(count)
        self.refusals = pictures.new_zeros(count)
        self.gamma = pictures.new_zeros(count) if scale is None else scale * pixels
        height, width = pictures.shape[-2:]
        down, across = (f(n, device=pictures.device) for f, n in ((fft.fftfreq, height), (fft.rfftfreq, width)))
        self.response = (1 + (down[:, None].square() + across.square()) / self.cutoff**2).rsqrt().to(pictures.dtype)
        # Rows 0..m of `pairs` are s, rows m..2m are Py, written round and round; `newest` is each picture's last.
        self.pairs = pictures.new_zeros(count, 2 * m, pixels)
        self.newest = torch.full((count,), m - 1, device=pictures.device)
        self.valid = torch.zeros(count, m, dtype=torch.bool, device=pictures.device)
        self.sy = pictures.new_zeros(count, m, m, dtype=torch.float64)
        self.ypy = torch.zeros_like(self.sy)

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Keep the trial where its loss is lower, and step from there; elsewhere try a shorter step again."""
        trial, gradient = self.trial.flatten(1), gradient.flatten(1)
        accepted = (loss < self.loss) & gradient.isfinite().all(1)
        started = self.loss.isfinite()
        s, y = trial - self.kept, gradient - self.gradient
        self.kept = _choose(accepted, trial, self.kept)
        self.gradient = _choose(accepted, gradient, self.gradient)
        self.loss = torch.where(accepted, loss, self.loss)
        first = self.first_move / _rms(self._smooth(self.gradient))
        self.gamma = torch.where(self.gamma > 0, self.gamma, first)

        self.refusals = torch.where(accepted, 0, self.refusals + 1)
        stuck = self.refusals >= self.give_up
        self.refusals = torch.where(stuck, 0, self.refusals)
        self.valid &= ~stuck[:, None]

        free = ~outward(self.kept, self.gradient)
        learnt = accepted & started & self._remember(s, y, accepted & started)
        direction = self._newton_direction(self.gradient * free, y, learnt) * free
        self.direction = _choose(accepted | stuck, direction, self.direction)
        self.step = torch.where(accepted, self.learning_rate, self.step * self.shrink)
        self.trial = (self.kept + self.step[:, None] * self.direction).clamp(*BOX).view_as(self.trial)
        return accepted

    @property
    def scale(self) -> Tensor:
        """The inverse Hessian's, (B,): it grows with the number of pixels, as losses are means over them."""
        return self.gamma / self.kept.shape[1]

    def select(self, which: Tensor) -> None:
        """Go on with some of the pictures alone."""
        vectors = ("trial", "kept", "gradient", "direction", "loss", "step", "refusals", "gamma")
        for name in (*vectors, "pairs", "newest", "valid", "sy", "ypy"):
            setattr(self, name, getattr(self, name)[which])

    def _smooth(self, vectors: Tensor) -> Tensor:
        """P of vectors (B, N)."""
        spectrum = fft.rfft2(vectors.view_as(self.trial)) * self.response
        smooth: Tensor = fft.irfft2(spectrum, s=self.trial.shape[-2:])
        return smooth.flatten(1)

    def _remember(self, s: Tensor, y: Tensor, moved: Tensor) -> Tensor:
        """Keep the pair (s, Py), each (B, N), where the picture moved and met positive curvature; returns where."""
        smooth = self._smooth(y)
        curvature = (s * y).sum(1)
        learnt: Tensor = moved & (curvature > 1e-4 * s.norm(dim=1) * y.norm(dim=1))
        self.gamma = torch.where(learnt, curvature / (y * smooth).sum(1), self.gamma)
        self.newest = torch.where(learnt, (self.newest + 1) % self.history, self.newest)
        for row, vector in ((self.newest, s), (self.newest + self.history, smooth)):
            index = row[:, None, None].expand(-1, 1, vector.shape[1])
            old = self.pairs.gather(1, index)
            self.pairs.scatter_(1, index, _choose(learnt, vector[:, None], old))
        self.valid |= torch.nn.functional.one_hot(self.newest, self.history).bool() & learnt[:, None]
        return learnt

    def _newton_direction(self, gradient: Tensor, y: Tensor, learnt: Tensor) -> Tensor:
        """−H·gradient, (B, N); the first pass over the pairs also multiplies them by the newest y."""
        m, batch = self.history, torch.arange(len(y), device=y.device)
        products = (self.pairs @ torch.stack([y, gradient], 2)).double()
        by_y, by_gradient = products[..., 0], products[..., 1]
        old = self.sy[batch, :, self.newest], self.ypy[batch, :, self.newest]
        self.sy[batch, :, self.newest] = _choose(learnt, by_y[:, :m], old[0])
        self.ypy[batch, :, self.newest] = _choose(learnt, by_y[:, m:], old[1])
        self.ypy[batch, self.newest, :] = self.ypy[batch, :, self.newest]

        order = (self.newest[:, None] + 1 + torch.arange(m, device=y.device)) % m  # oldest first
        valid = self.valid.gather(1, order).double()
        sy, ypy = (_reorder(matrix, order) * valid[:, :, None] * valid[:, None] for matrix in (self.sy, self.ypy))
        p = by_gradient[:, :m].gather(1, order) * valid
        q = by_gradient[:, m:].gather(1, order) * valid
        gamma = self.gamma.double()[:, None]
        r = sy.triu() + torch.diag_embed(1 - valid)
        u = torch.linalg.solve_triangular(r, p[..., None], upper=True)[..., 0]
        v = sy.diagonal(dim1=1, dim2=2) * u + gamma * ((ypy @ u[..., None])[..., 0] - q)
        a = torch.linalg.solve_triangular(r.mT, v[..., None], upper=False)[..., 0]
        weights = torch.zeros_like(products[..., 0])
        weights[:, :m].scatter_(1, order, a)
        weights[:, m:].scatter_(1, order, -gamma * u)
        combined = (weights.to(gradient.dtype)[:, None] @ self.pairs)[:, 0]
        return -(self.gamma[:, None] * self._smooth(gradient) + combined)


OPTIMIZERS: dict[str, Callable[[Tensor, float | None, Tensor | None], Optimizer]] = {
    "lbfgs": LBFGS,
    "adam": Adam,
    "sgd": GradientDescent,
}


def _choose(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` for the pictures in the mask (B,), `no` for the others."""
    return torch.where(which.view(-1, *[1] * (yes.ndim - 1)), yes, no)


def _rms(vectors: Tensor) -> Tensor:
    """Root mean square of each row, (B,)."""
    return vectors.square().mean(1).sqrt().clamp_min(torch.finfo(vectors.dtype).tiny)


def _reorder(matrices: Tensor, order: Tensor) -> Tensor:
    """Rows and columns of each matrix (B, m, m) in the order (B, m)."""
    rows = matrices.gather(1, order[:, :, None].expand_as(matrices))
    return rows.gather(2, order[:, None].expand_as(matrices))
