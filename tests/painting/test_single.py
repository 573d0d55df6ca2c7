from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import batchnst
from batchnst import Recipe, stylize
from batchnst.errors import InputError
from batchnst.transfer.stylize import Step


def test_paths_and_pictures_give_the_same(images: Path) -> None:
    recipe = Recipe(size=48, steps=4, precision="fp32")
    seen = list[Step]()
    by_path = stylize(images / "coffee.png", str(images / "swirls.png"), recipe, on_step=seen.append)
    opened = Image.open(images / "coffee.png"), [Image.open(images / "swirls.png")]
    by_picture = stylize(*opened, recipe)
    assert by_path.picture.tobytes() == by_picture.picture.tobytes()
    assert by_path.picture.size == (48, 32)
    assert by_path.losses.total.shape == (4,)
    assert [step.index for step in seen] == [0, 1, 2, 3]
    assert by_path.losses.total[-1] < by_path.losses.total[0]


def test_a_picture_that_cannot_be_used(images: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        stylize(images / "none.png", images / "swirls.png")
    with pytest.raises(InputError, match="the given image: 20×15 pixels"):
        stylize(Image.new("RGB", (40, 30)), images / "swirls.png", Recipe(size=20))


def test_the_public_surface_is_a_decision() -> None:
    assert batchnst.__all__ == ["BatchNSTError", "Recipe", "read_ledger", "stylize"]
    assert batchnst.read_ledger.__module__ == "batchnst.ledger.out"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = batchnst.nothing
