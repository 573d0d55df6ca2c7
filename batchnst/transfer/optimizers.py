"""Optimisers for a batch of pictures that have nothing to do with one another.

Every picture has a state and a step size of its own, and stays inside the box of valid pixels, 0..255: an
optimiser that leaves the box lowers a loss which the written picture does not have.

Each is asked for a `trial` picture and told its loss and gradient:

    while ...:
        loss, gradient = objective(optimizer.trial)
        accepted = optimizer.observe(loss, gradient)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fft

BOX = (0.0, 255.0)


HISTORY = 20
"""Steps that an optimiser remembers, where it remembers any and there is the memory."""

PIECE = 2**22
"""Numbers of a vector that are handled at once: what that takes beside the vectors stays small."""


class Optimizer(Protocol):
    """What the loop in stylize.py needs of an optimiser."""

    trial: Tensor
    """The pictures (B, 3, H, W) to evaluate next, inside the box; may be changed in place by the next step."""

    best: Tensor
    """The pictures (B, 3, H, W) with the lowest loss so far; changed in place by the next step."""

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


class _Descent:
    """An optimiser that keeps every trial, and so the best of them beside."""

    def __init__(self, pictures: Tensor) -> None:
        self.trial, self.best = pictures, pictures.clone()
        self.least = pictures.new_full((len(pictures),), torch.inf)
        self.scale = pictures.new_zeros(len(pictures))  # nothing that would hold elsewhere

    def _keep(self, loss: Tensor) -> Tensor:
        """Remember the trials that are the best so far; all are kept."""
        better = loss < self.least
        self.least = torch.where(better, loss, self.least)
        torch.where(better[:, None, None, None], self.trial, self.best, out=self.best)
        return torch.ones_like(better)

    def select(self, which: Tensor) -> None:
        """Go on with some of the pictures alone."""
        for name in ("trial", "best", "least", "scale"):
            setattr(self, name, getattr(self, name)[which])


class Adam(_Descent):
    """Adam (Kingma and Ba 2015), projected into the box after each step."""

    betas, epsilon = (0.9, 0.99), 1e-8

    def __init__(
        self, pictures: Tensor, learning_rate: float | None, scale: Tensor | None = None, history: int = HISTORY
    ) -> None:
        super().__init__(pictures)
        self.learning_rate = 10.0 if learning_rate is None else learning_rate
        self.mean, self.variance = torch.zeros_like(pictures), torch.zeros_like(pictures)
        self.count = 0

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Move along the gradient's running mean over its running deviation; every trial is kept."""
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
        """Go on with some of the pictures alone."""
        super().select(which)
        self.mean, self.variance = self.mean[which], self.variance[which]


class GradientDescent(_Descent):
    """Plain gradient descent, G ← G − lr·∂J/∂G, projected into the box: for teaching and for proofs."""

    def __init__(
        self, pictures: Tensor, learning_rate: float | None, scale: Tensor | None = None, history: int = HISTORY
    ) -> None:
        super().__init__(pictures)
        self.learning_rate = 3e-3 if learning_rate is None else learning_rate

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Step down the gradient; every trial is kept."""
        kept = self._keep(loss)
        self.trial = torch.add(self.trial, gradient, alpha=-self.learning_rate).clamp_(*BOX)
        return kept


class LBFGS:
    """Projected L-BFGS, batched: curvature pairs, step and safeguards of its own for each picture.

    The inverse Hessian is kept in the compact form of Byrd, Nocedal and Schnabel (1994), theorem 2.2 (Nocedal and
    Wright 2006, eq. 7.24): two passes over the history a step, whatever its length, and the same two for the whole
    batch. It starts from γP, P a low-pass filter: seen through it, the gradient is that of a picture's Fourier
    coefficients with the low frequencies magnified, so that large shapes move as fast as texture (Neuberger 1997,
    Sobolev gradients; Mordvintsev et al. 2018). Pixels that the gradient pushes out of the box are left out of the
    direction. A step that raises the loss is taken back and tried again shorter. A pair without positive curvature is
    not kept.

    Beside the history it holds three vectors of a picture's size, `trial`, `best` and `gradient`, changed in place.
    """

    cutoff = 0.02
    """The frequency, in cycles a pixel, from which on P falls as 1/f."""
    first_move = 2.0
    """Length of the very first step: root mean square over the pixels, in grey levels."""
    shrink = 0.3
    give_up = 4
    """Shortened this often in a row, the curvature is not to be trusted: the gradient alone is followed."""

    def __init__(
        self, pictures: Tensor, learning_rate: float | None, scale: Tensor | None = None, history: int = HISTORY
    ) -> None:
        count, pixels = len(pictures), pictures[0].numel()
        self.learning_rate = 1.0 if learning_rate is None else learning_rate
        self.trial, self.best = (pictures.clone(memory_format=torch.contiguous_format) for _ in range(2))
        self.gradient = torch.zeros_like(self.best)
        self.loss = pictures.new_full((count,), torch.inf)
        self.step = pictures.new_ones(count)
        self.refusals = pictures.new_zeros(count)
        self.gamma = pictures.new_zeros(count) if scale is None else scale * pixels
        height, width = pictures.shape[-2:]
        down, across = (f(n, device=pictures.device) for f, n in ((fft.fftfreq, height), (fft.rfftfreq, width)))
        self.response = (1 + (down[:, None].square() + across.square()) / self.cutoff**2).rsqrt().to(pictures.dtype)
        # Rows 2i and 2i + 1 of `pairs` are s and Py of place i. Each picture uses its places in turn, and one more than
        # it remembers: what turns out not to be worth keeping replaces nothing.
        self.places, self.observed = history + 1, 0
        self.pairs = pictures.new_empty(count, 2 * self.places, pixels)
        self.newest = torch.full((count,), history, device=pictures.device)
        self.valid = torch.zeros(count, self.places, dtype=torch.bool, device=pictures.device)
        self.sy = pictures.new_zeros(count, self.places, self.places, dtype=torch.float64)
        self.ypy = torch.zeros_like(self.sy)

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Keep the trial where its loss is lower, and step from there; elsewhere try a shorter step again."""
        accepted = (loss < self.loss) & torch.stack([own.isfinite().all(1) for (own,) in _pieces(gradient)]).all(0)
        place = self._remember(gradient, accepted & self.loss.isfinite())
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
        self._follow(products, place)
        self.observed += 1
        return accepted

    @property
    def scale(self) -> Tensor:
        """The inverse Hessian's, (B,): it grows with the number of pixels, as losses are means over them."""
        return self.gamma / math.prod(self.best.shape[1:])

    def select(self, which: Tensor) -> None:
        """Go on with some of the pictures alone."""
        vectors = ("trial", "best", "gradient", "loss", "step", "refusals", "gamma")
        for name in (*vectors, "pairs", "newest", "valid", "sy", "ypy"):
            setattr(self, name, getattr(self, name)[which])

    @property
    def _known(self) -> Tensor:
        """The rows of `pairs` that have been written, (B, 2k, N)."""
        return self.pairs[:, : 2 * min(self.observed, self.places)]

    def _smooth(self, planes: Tensor) -> Tensor:
        """P of planes (B, C, H, W)."""
        smooth: Tensor = fft.irfft2(fft.rfft2(planes).mul_(self.response), s=planes.shape[-2:])
        return smooth

    def _remember(self, gradient: Tensor, moved: Tensor) -> Tensor:
        """Write the newest pair (s, Py), and keep it where the picture moved and met positive curvature.

        Returns each picture's place for it, (B,).
        """
        place = (self.newest + 1) % self.places
        if self.observed == 0:
            return place
        if self.observed <= self.places:
            self._known[:, -2:] = 0  # never written so far, nor now by a picture that has nothing to remember
        products = self.gamma.new_zeros(3, len(moved), dtype=torch.float64)
        for trial, best, new, old in _pieces(self.trial, self.best, gradient, self.gradient):
            s, y = trial - best, new - old
            products += torch.stack([(a * b).sum(1) for a, b in ((s, y), (s, s), (y, y))])
        curvature, s_squared, y_squared = products
        learnt = moved & (curvature > 1e-4 * (s_squared * y_squared).sqrt())
        roughness = torch.zeros_like(curvature)
        # What was not learnt may be no number.
        known = learnt[:, None, None, None]
        batch = torch.arange(len(moved), device=moved.device)
        planes = self.pairs.view(*self.pairs.shape[:2], *gradient.shape[1:])
        for part in _planes(gradient):
            s, y = self.trial[part] - self.best[part], gradient[part] - self.gradient[part]
            smooth = self._smooth(y)
            roughness += (y * smooth).sum((1, 2, 3))
            planes[batch, 2 * place, part[1]] = torch.where(known, s, 0)
            planes[batch, 2 * place + 1, part[1]] = torch.where(known, smooth, 0)
        self.gamma = torch.where(learnt, curvature / roughness, self.gamma).to(self.gamma.dtype)
        self.newest = torch.where(learnt, place, self.newest)
        self.valid.scatter_(1, place[:, None], learnt[:, None])
        return place

    def _accept(self, accepted: Tensor, gradient: Tensor) -> Tensor:
        """Take over what is accepted; returns the pairs' products (B, 2k, 2) with the newest y and the gradient."""
        products = self.pairs.new_zeros(len(accepted), self._known.shape[1], 2, dtype=torch.float64)
        vectors = (self._known, self.trial, gradient, self.best, self.gradient)
        for pairs, trial, new, best, old in _pieces(*vectors):
            y = new - old
            torch.where(accepted[:, None], trial, best, out=best)
            torch.where(accepted[:, None], new, old, out=old)
            products += pairs @ torch.stack([y, old * ~outward(best, old)], 2)
        return products

    def _follow(self, products: Tensor, place: Tensor) -> None:
        """The next trial: a step along −H·gradient, without the pixels that this would push out of the box."""
        direction = self.trial  # in its place
        for part in _planes(direction):
            torch.mul(self.gradient[part], ~outward(self.best[part], self.gradient[part]), out=direction[part])
            direction[part] = self._smooth(direction[part])
        direction *= -self.gamma[:, None, None, None]
        if self.observed:
            weights = self._weights(products, place).to(direction.dtype)
            for pairs, own in _pieces(self._known, direction):
                own -= (weights[:, None] @ pairs)[:, 0]
        for own, best, gradient in _pieces(direction, self.best, self.gradient):
            own *= ~outward(best, gradient)
        direction.mul_(self.step[:, None, None, None]).add_(self.best).clamp_(*BOX)

    def _weights(self, products: Tensor, place: Tensor) -> Tensor:
        """The pairs' weights (B, 2k) in the direction; `place` is where the newest was written."""
        m, known, batch = self.places, products.shape[1] // 2, torch.arange(len(place), device=place.device)
        # By y and by the gradient, with s and with Py of each place.
        products = F.pad(products, (0, 0, 0, 2 * (m - known))).view(-1, m, 2, 2)
        (by_y, by_smooth_y), (p, q) = (products[..., i].unbind(2) for i in range(2))
        self.sy[batch, :, place] = by_y
        self.ypy[batch, :, place] = self.ypy[batch, place, :] = by_smooth_y

        order = (self.newest[:, None] + 1 + torch.arange(m, device=place.device)) % m  # oldest first
        valid = self.valid.gather(1, order)
        both = valid[:, :, None] & valid[:, None]
        sy, ypy = (torch.where(both, _reorder(matrix, order), 0) for matrix in (self.sy, self.ypy))
        p, q = (torch.where(valid, own.gather(1, order), 0) for own in (p, q))
        gamma = self.gamma.double()[:, None]
        r = sy.triu() + torch.diag_embed((~valid).double())
        u = torch.linalg.solve_triangular(r, p[..., None], upper=True)[..., 0]
        v = sy.diagonal(dim1=1, dim2=2) * u + gamma * ((ypy @ u[..., None])[..., 0] - q)
        a = torch.linalg.solve_triangular(r.mT, v[..., None], upper=False)[..., 0]
        weights = torch.zeros_like(products[..., 0])
        weights.scatter_(1, order[:, :, None].expand(-1, -1, 2), torch.stack([a, -gamma * u], 2))
        return weights[:, :known].flatten(1)


OPTIMIZERS: dict[str, Callable[[Tensor, float | None, Tensor | None, int], Optimizer]] = {
    "lbfgs": LBFGS,
    "adam": Adam,
    "sgd": GradientDescent,
}


def _pieces(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same piece of each vector (B, …, N), or picture as such, as views, one after the other."""
    flat = [vector.flatten(1) if vector.ndim == 4 else vector for vector in vectors]
    yield from zip(*(torch.split(vector, PIECE, -1) for vector in flat), strict=True)


def _planes(pictures: Tensor) -> list[tuple[slice, slice]]:
    """Indices of pictures (B, C, H, W) as a whole, or where they are large of one channel after the other."""
    channels = [slice(None)] if pictures[0].numel() <= PIECE else [slice(i, i + 1) for i in range(pictures.shape[1])]
    return [(slice(None), channel) for channel in channels]


def _reorder(matrices: Tensor, order: Tensor) -> Tensor:
    """Rows and columns of each matrix (B, m, m) in the order (B, m)."""
    rows = matrices.gather(1, order[:, :, None].expand_as(matrices))
    return rows.gather(2, order[:, None].expand_as(matrices))
