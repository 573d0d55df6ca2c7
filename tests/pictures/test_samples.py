"""Pictures that other packages ship."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from tests.tools.samples import outcomes

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".webp", ".bmp", ".pgm", ".heic", ".avif", ".ico")


@pytest.mark.slow
def test_pictures_of_the_packages_that_are_installed_are_read() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    files = [file for file in packages.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file()]
    read, refused, wrong = outcomes(files)
    assert (refused, wrong) == ({}, {})
    assert len(read) == len(files) > 10
