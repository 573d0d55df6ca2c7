"""The strongest channels of a layer and their strongest responses, over pictures that are added one by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchnst.layers.receptive import Field
from batchnst.transfer.losses import gram_matrix


@dataclass(frozen=True)
class Response:
    """The value of a channel at position (x, y) of a picture; pictures are numbered from 0 in the order added."""

    value: float
    picture: int
    x: int
    y: int


class Strongest:
    """A record of one layer: the `top` strongest responses of each channel, at most `per_picture` from one picture.

    No two responses of a channel see the same pixel of a picture. Each sees only pixels inside its picture, if the
    picture is large enough for that. The memory used does not grow with the number of pictures.
    """

    def __init__(self, channels: int, field: Field, top: int, per_picture: int) -> None:
        self.field, self.top, self.per_picture = field, top, per_picture
        self._values = torch.full((channels, top), -torch.inf)
        self._places = torch.zeros(channels, top, 3, dtype=torch.int64)  # picture, x, y
        self._gram = torch.zeros(channels, channels, dtype=torch.float64)
        self._pictures = 0

    @torch.no_grad()
    def add(self, features: Tensor, width: int, height: int) -> None:
        """Add a picture of `width` × `height` pixels by its features (C, h, w)."""
        self._gram += gram_matrix(features[None])[0].double().cpu()
        columns = self.field.inside(width) or range(features.shape[2])
        rows = self.field.inside(height) or range(features.shape[1])
        values, places = self._peaks(features[:, rows.start : rows.stop, columns.start : columns.stop].float())
        places += torch.tensor([self._pictures, columns.start, rows.start])
        self._values, order = torch.cat([self._values, values], 1).topk(self.top)
        self._places = torch.cat([self._places, places], 1).gather(1, order[..., None].expand(-1, -1, 3))
        self._pictures += 1

    def _peaks(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return each channel's strongest responses (C, per_picture) whose receptive fields do not overlap.

        The second tensor, (C, per_picture, 3), has their places as (0, x, y).
        """
        channels, height, width = features.shape
        values = features.new_full((channels, self.per_picture), -torch.inf)
        places = torch.zeros(channels, self.per_picture, 3, dtype=torch.int64, device=features.device)
        for k in range(self.per_picture):
            values[:, k], position = features.flatten(1).max(1)
            places[:, k, 1], places[:, k, 2] = position % width, position // width
            if k + 1 < self.per_picture:
                features = features.masked_fill(self._overlapping(places[:, k], height, width), -torch.inf)
        return values.cpu(), places.cpu()

    def _overlapping(self, places: Tensor, height: int, width: int) -> Tensor:
        """Return a mask (C, height, width) of the positions that share a pixel with those at `places` (C, 3)."""
        apart = -(-self.field.size // self.field.stride)
        x, y = (torch.arange(length, device=places.device) for length in (width, height))
        across, down = (x - places[:, 1:2]).abs() < apart, (y - places[:, 2:]).abs() < apart
        return down[:, :, None] & across[:, None, :]

    def channels(self, count: int) -> list[int]:
        """Return the numbers of the `count` strongest channels; fewer if nothing is left.

        A channel's energy is its mean square response, its entry on the diagonal of the Gram matrix; channels with much
        energy count most in the style. The first channel has the most energy. Each next one has the most energy left
        after subtracting the part that the channels before it explain, so that no two show the same (a Cholesky
        decomposition of the Gram matrix with pivots).
        """
        left, chosen = self._gram.clone(), list[int]()
        enough = 1e-6 * left.diagonal().max()
        while len(chosen) < count and left.diagonal().max() > enough:
            chosen.append(int(left.diagonal().argmax()))
            column = left[:, chosen[-1]].clone()
            left -= column[:, None] * column / column[chosen[-1]]
        return chosen

    def responses(self, channel: int) -> list[Response]:
        """Return the strongest responses of `channel`, the strongest first; fewer than `top` if there is no room."""
        rows = zip(self._values[channel].tolist(), self._places[channel].tolist(), strict=True)
        return [Response(value, *place) for value, place in rows if value > -torch.inf]
