"""A folder of pictures, for tests that run the command line on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import as_bytes, photo_exif, scene
from tests.pictures.profiles import rgb_profile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scene(64, 64).save(tmp_path / "style.png")
    see_through = scene(48, 32)
    see_through.putalpha(Image.fromarray(np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8)))
    see_through.save(tmp_path / "clear.png")
    pale = Image.blend(scene(48, 32), Image.new("RGB", (48, 32), "gray"), 0.6)  # within sRGB, whatever its profile
    photo = pale.transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "photo.jpg").write_bytes(
        as_bytes(photo, "JPEG", quality=100, subsampling=0, exif=photo_exif(), icc_profile=rgb_profile())
    )
    return tmp_path
