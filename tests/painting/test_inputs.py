from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from batchnst.painting.inputs import gather_pair, load_style
from batchnst.recipe import Recipe
from tests.helpers import pair


def test_a_shared_style_is_the_same_object(images: Path) -> None:
    get_style = lru_cache(load_style)
    pairs = [
        pair(name, images / name, images / "swirls.png", Recipe(size=48)) for name in ("astronaut.png", "coffee.png")
    ]
    first, second = (gather_pair(pair, get_style) for pair in pairs)
    assert first.styles[0] is second.styles[0]
