"""The low-pass filter of L-BFGS, applied to each picture of a batch in its own size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fft

from batchnst.transfer.canvas import Size


class LowPass:
    """A filter whose response falls as 1/f above `cutoff`, in cycles a pixel.

    A batch (B, C, H, W) has pictures of `sizes` (height, width), each in the upper left corner of its place, and zeros
    around. A picture is filtered as a period of an endless pattern, so pictures of one size are filtered together.
    """

    def __init__(self, sizes: Sequence[Size], cutoff: float, like: Tensor) -> None:
        self.sizes, self.cutoff, self.like = list(sizes), cutoff, like[:0]
        self._indices: dict[Size, Tensor] = {}
        self._responses: dict[Size, Tensor] = {}
        for size in dict.fromkeys(self.sizes):
            indices = [i for i, own in enumerate(self.sizes) if own == size]
            self._indices[size] = torch.tensor(indices, device=like.device)
            self._responses[size] = self._response(*size)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Filter `pictures` (B, C, H, W); returns a new tensor."""
        if len(self._responses) == 1 and self.sizes[0] == pictures.shape[-2:]:
            return self._filter(pictures, *self.sizes[0])
        result = torch.zeros_like(pictures)
        for (height, width), which in self._indices.items():
            inside = (which, slice(None), slice(height), slice(width))
            result[inside] = self._filter(pictures[inside], height, width)
        return result

    def select(self, which: Tensor) -> LowPass:
        """Return the filter of some of the pictures; `which` holds their indices."""
        return LowPass([self.sizes[i] for i in which.tolist()], self.cutoff, self.like)

    def _filter(self, pictures: Tensor, height: int, width: int) -> Tensor:
        """Filter `pictures` (b, C, height, width)."""
        spectrum = fft.rfft2(pictures).mul_(self._responses[height, width])
        smooth: Tensor = fft.irfft2(spectrum, s=(height, width), norm="forward")
        return smooth

    def _response(self, height: int, width: int) -> Tensor:
        """The factor of each frequency of pictures of `height` × `width` pixels, (height, width // 2 + 1).

        It includes the division by the number of pixels, which costs a GPU a pass in the inverse transform.
        """
        device = self.like.device
        down, across = fft.fftfreq(height, device=device), fft.rfftfreq(width, device=device)
        squares: Tensor = down[:, None].square() + across.square()
        return ((1 + squares / self.cutoff**2).rsqrt() / (height * width)).to(self.like.dtype)
