from __future__ import annotations

import pytest
import torch
from torch import Tensor

from batchnst.backbones import cut
from batchnst.layers.receptive import Box, Field, fields
from batchnst.layers.strongest import Strongest
from batchnst.transfer.backbone import Backbone

FIELD = Field(size=7, stride=2, start=-3)
SIDE = 40
"""Pixels of a picture's side, of which each position sees FIELD: 20 positions, 2 and 3 of them not wholly inside."""


def random_features(pictures: int, channels: int = 5) -> Tensor:
    return torch.randn(pictures, channels, 20, 20, generator=torch.Generator().manual_seed(4))


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_one_response_of_each_picture_the_strongest_that_sees_only_the_picture() -> None:
    layer, features = Strongest(5, FIELD, top=4, per_picture=1), random_features(9)
    for one in features:
        layer.add(one, SIDE, SIDE)
    inside = features[:, :, 2:19, 2:19]
    for channel in range(5):
        found = layer.responses(channel)
        assert [response.value for response in found] == inside[:, channel].amax((1, 2)).topk(4).values.tolist()
        for response in found:
            assert features[response.picture, channel, response.y, response.x] == response.value
            left, top, right, bottom = FIELD.box(response.x, response.y)
            assert min(left, top) >= 0
            assert max(right, bottom) <= SIDE


def test_several_responses_of_a_picture_see_nothing_twice() -> None:
    layer, features = Strongest(5, FIELD, top=6, per_picture=4), random_features(2)
    for one in features:
        layer.add(one, SIDE, SIDE)
    for channel in range(5):
        found = layer.responses(channel)
        values = [response.value for response in found]
        assert len(values) == 6
        assert values == sorted(values, reverse=True)
        assert values[0] == features[:, channel, 2:19, 2:19].max()
        for i, a in enumerate(found):
            for b in found[:i]:
                assert a.picture != b.picture or not overlap(FIELD.box(a.x, a.y), FIELD.box(b.x, b.y))


def test_where_there_is_no_room_there_are_fewer() -> None:
    layer = Strongest(2, Field(size=60, stride=2, start=-29), top=6, per_picture=6)
    layer.add(random_features(1, 2)[0], SIDE, SIDE)
    assert len(layer.responses(0)) == 1  # sees more than all of the picture


def test_what_is_kept_does_not_grow_with_the_pictures() -> None:
    layer = Strongest(5, FIELD, top=4, per_picture=1)

    def kept() -> int:
        return sum(value.numel() for value in vars(layer).values() if isinstance(value, Tensor))

    before = kept()
    for one in random_features(200):
        layer.add(one, SIDE, SIDE)
    assert kept() == before == 5 * 4 + 5 * 4 * 3 + 5 * 5


def test_the_strongest_channels_do_not_show_the_same_twice() -> None:
    a, b = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(2)).abs()
    silent = torch.zeros(20, 20)
    layer = Strongest(5, FIELD, top=1, per_picture=1)
    layer.add(torch.stack([silent, 2 * a, 3 * a, b, a + b]), SIDE, SIDE)
    chosen = layer.channels(4)
    assert chosen[0] == 2
    assert len(chosen) == 2  # all others are a blend of two
    assert chosen[1] in (3, 4)


@pytest.mark.parametrize("name", ["relu1_1", "relu2_1", "relu3_1", "relu4_1"])
def test_whatever_responds_to_a_planted_pattern_is_found_there(name: str, vgg: Backbone) -> None:
    field, (left, top, side) = fields(cut("vgg19", [name]))[name], (83, 130, 12)
    pictures = torch.full((2, 3, 200, 200), 128.0)
    spot = torch.rand(3, side, side, generator=torch.Generator().manual_seed(5)) * 255
    pictures[1, :, top : top + side, left : left + side] = spot
    features = vgg(pictures)[name]
    layer = Strongest(features.shape[1], field, top=1, per_picture=1)
    for one in features:
        layer.add(one, 200, 200)
    ground = features[0, :, features.shape[2] // 2, features.shape[3] // 2]
    planted = (left, top, left + side, top + side)
    excited = 0
    for channel, usual in enumerate(ground.tolist()):
        (found,) = layer.responses(channel)
        if found.value > usual + 1e-3 * max(1.0, usual):
            excited += 1
            assert found.picture == 1
            assert overlap(field.box(found.x, found.y), planted)
    assert excited > features.shape[1] / 3
