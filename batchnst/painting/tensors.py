"""Convert arrays to tensors and back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnst.painting.inputs import Inputs
from batchnst.pictures.decode import Pixels
from batchnst.transfer.stylize import Guide


class TensorCache:
    """Converts inputs to tensors on `device`, and keeps those of the last styles and masks for the next batch."""

    capacity = 64
    """Number of tensors that are kept."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cache: OrderedDict[int, tuple[Pixels, Tensor]] = OrderedDict()

    def contents(self, batch: Sequence[Inputs]) -> list[Tensor]:
        """The contents, (1, 3, H, W) each, float32, 0..255."""
        return [to_tensor(inputs.content, self.device) for inputs in batch]

    def starts(self, batch: Sequence[Inputs]) -> list[Tensor] | None:
        """The start pictures, (1, 3, H, W) each, float32, 0..255; None if `init` names no picture."""
        return [to_tensor(inputs.start, self.device) for inputs in batch if inputs.start is not None] or None

    def guides(self, batch: Sequence[Inputs]) -> list[list[Guide]]:
        """The guides of each picture: one for each part that a content mask marks, or one for the whole picture."""
        return [self._guides(inputs) for inputs in batch]

    def _guides(self, inputs: Inputs) -> list[Guide]:
        styles = tuple(self._tensor(style) for style in inputs.styles)
        parts = max(1, len(inputs.content_masks))
        style_per_part = parts > 1 and len(styles) == parts
        return [
            Guide(
                styles=(styles[i],) if style_per_part else styles,
                weights=(1.0,) if style_per_part else inputs.style_weights,
                share=inputs.style_weights[i] if style_per_part else 1 / parts,
                content_mask=self._tensor(inputs.content_masks[i]) if inputs.content_masks else None,
                style_mask=self._tensor(inputs.style_masks[i]) if inputs.style_masks else None,
            )
            for i in range(parts)
        ]

    def _tensor(self, pixels: Pixels) -> Tensor:
        """Convert a picture to (1, 3, H, W), uint8, or a mask to (1, 1, H, W), float32, 0..1, or reuse the tensor."""
        if id(pixels) not in self._cache:
            picture = _to_bytes(pixels if pixels.ndim == 3 else pixels[..., None], self.device)
            # The array is kept with its tensor: while it lives, no other array can have its id.
            self._cache[id(pixels)] = pixels, picture if pixels.ndim == 3 else picture.float() / 255
        self._cache.move_to_end(id(pixels))
        if len(self._cache) > self.capacity:
            self._cache.popitem(last=False)
        return self._cache[id(pixels)][1]


def to_tensor(pixels: Pixels, device: torch.device) -> Tensor:
    """Convert a picture (H, W, 3) to (1, 3, H, W), float32, 0..255."""
    return _to_bytes(pixels, device).float()


def _to_bytes(pixels: Pixels, device: torch.device) -> Tensor:
    """Convert a picture (H, W, C) to (1, C, H, W), uint8."""
    return torch.tensor(pixels, device=device).permute(2, 0, 1)[None].contiguous()


def to_pixels(picture: Tensor) -> Pixels:
    """Round a picture (1, 3, H, W), 0..255, to 8 bits a channel, (H, W, 3)."""
    pixels: Pixels = picture[0].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def to_16_bit_pixels(picture: Tensor) -> NDArray[np.uint16]:
    """Round a picture (1, 3, H, W), 0..255, to 16 bits a channel, (H, W, 3), 0..65535."""
    return (picture[0] * 257).round().clamp(0, 65535).permute(1, 2, 0).cpu().numpy().astype(np.uint16)
