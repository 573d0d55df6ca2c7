"""The strongest channels of a layer and what excites them most, of many pictures, seen one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchnst.layers.receptive import Field
from batchnst.transfer.losses import gram_matrix


@dataclass(frozen=True)
class Response:
    """How strongly a channel responds at a position (x, y) of a picture; pictures are counted from 0, as seen."""

    value: float
    picture: int
    x: int
    y: int


class Strongest:
    """What is known of a layer: of each channel the `top` strongest responses, at most `each` of one picture.

    No two of them see the same pixel, and none sees beyond its picture where the picture is large enough for that.
    However many pictures are seen, what is kept has the same size.
    """

    def __init__(self, channels: int, field: Field, top: int, each: int) -> None:
        self.field, self.top, self.each = field, top, each
        self._values = torch.full((channels, top), -torch.inf)
        self._places = torch.zeros(channels, top, 3, dtype=torch.int64)  # picture, x, y
        self._gram = torch.zeros(channels, channels, dtype=torch.float64)
        self._seen = 0

    @torch.no_grad()
    def see(self, features: Tensor, width: int, height: int) -> None:
        """Take note of one more picture's features (C, h, w); the picture itself has width × height pixels."""
        self._gram += gram_matrix(features[None])[0].double().cpu()
        columns = self.field.inside(width) or range(features.shape[2])
        rows = self.field.inside(height) or range(features.shape[1])
        values, places = self._peaks(features[:, rows.start : rows.stop, columns.start : columns.stop].float())
        places += torch.tensor([self._seen, columns.start, rows.start])
        self._values, order = torch.cat([self._values, values], 1).topk(self.top)
        self._places = torch.cat([self._places, places], 1).gather(1, order[..., None].expand(-1, -1, 3))
        self._seen += 1

    def _peaks(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The highest responses (C, each), far enough apart, and where they are, (C, each, 3), as (0, x, y)."""
        channels, height, width = features.shape
        values = features.new_full((channels, self.each), -torch.inf)
        places = torch.zeros(channels, self.each, 3, dtype=torch.int64, device=features.device)
        for k in range(self.each):
            values[:, k], position = features.flatten(1).max(1)
            places[:, k, 1], places[:, k, 2] = position % width, position // width
            if k + 1 < self.each:
                features = features.masked_fill(self._overlapping(places[:, k], height, width), -torch.inf)
        return values.cpu(), places.cpu()

    def _overlapping(self, places: Tensor, height: int, width: int) -> Tensor:
        """The positions (C, height, width) that share a pixel with those at the places (C, 3)."""
        apart = -(-self.field.size // self.field.stride)
        x, y = (torch.arange(length, device=places.device) for length in (width, height))
        across, down = (x - places[:, 1:2]).abs() < apart, (y - places[:, 2:]).abs() < apart
        return down[:, :, None] & across[:, None, :]

    def channels(self, count: int) -> list[int]:
        """The strongest channels: at first the one with the most energy, then always the one with the most left.

        A channel's energy is its mean square response, which the Gram matrix has on its diagonal: what counts most in
        the style. What the channels chosen before explain of it is taken off, so that no two show the same (a Cholesky
        decomposition of the Gram matrix with pivots). Fewer than `count` if nothing is left.
        """
        left, chosen = self._gram.clone(), list[int]()
        enough = 1e-6 * left.diagonal().max()
        while len(chosen) < count and left.diagonal().max() > enough:
            chosen.append(int(left.diagonal().argmax()))
            column = left[:, chosen[-1]].clone()
            left -= column[:, None] * column / column[chosen[-1]]
        return chosen

    def responses(self, channel: int) -> list[Response]:
        """The strongest responses of a channel, the strongest first; fewer than `top` where there is no room."""
        found = zip(self._values[channel].tolist(), self._places[channel].tolist(), strict=True)
        return [Response(value, *place) for value, place in found if value > -torch.inf]
