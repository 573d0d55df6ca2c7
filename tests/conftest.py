"""Fixtures for all tests, and the conditions under which they run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:  # the process that only hands out the tests does not wait until torch is imported
    from playwright.sync_api import Browser

    from batchnst.transfer.backbone import Backbone
    from batchnst.transfer.weights import Weights
    from tests.browser import Heard

ALL = "BATCHNST_TEST_ALL"
"""`make test` sets this variable: then missing pictures fail the tests that need them, instead of skipping them."""

LONGEST = ("test_ray_cluster.py", "test_stylize.py", "test_tiling.py", "test_report.py", "test_main.py")
"""Files whose tests take longest. They begin first, so that in the end no process is alone with one of them."""

hypothesis.settings.register_profile("batchnst", deadline=None)  # other tests may run at the same time
hypothesis.settings.load_profile("batchnst")

# Threads that spin while they wait for one another get in the way of all other processes: on a busy machine of two CPUs
# a run with two threads takes more than four times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# Ray's workers would otherwise wait for the tests that run beside theirs.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def no_progress() -> Iterator[None]:
    """Commands print no lines of progress between others, however slow the machine is."""
    from batchnst.cli import display

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display, "PLAIN_EVERY", 1e6)
        yield


@pytest.fixture(scope="session", autouse=True)
def short_measurements() -> Iterator[None]:
    """This machine's speed is measured in an instant."""
    from batchnst.bench import speed

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SIZE": 64, "ROUNDS": 1, "ROUND_SECONDS": 0.01}.items():
            patch.setattr(speed, name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache for batchnst: no test depends on the user's weights and measured speeds, or changes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def images() -> Path:
    """The folder of real pictures."""
    from tests.helpers import IMAGES

    if not (IMAGES / "woodcut.png").exists():
        missing = f"no pictures in {IMAGES}: run `make test`, which makes them"
        if os.environ.get(ALL):
            pytest.fail(missing)
        pytest.skip(missing)
    return IMAGES


@pytest.fixture(scope="session")
def weights() -> Weights:
    """The weights of the default recipe."""
    from batchnst.painting.named_weights import load_weights

    return load_weights("vgg19", "bundled")


@pytest.fixture(scope="session")
def vgg(weights: Weights) -> Backbone:
    """The default recipe's network, fp32, on the CPU."""
    from batchnst.painting.painter import load_backbone
    from batchnst.recipe import Recipe
    from tests.helpers import CPU

    return load_backbone(Recipe(precision="fp32"), weights, CPU)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one module: while it is open, asyncio counts as running in this thread."""
    from tests.browser import open_browser

    with open_browser() as browser:
        yield browser


@pytest.fixture
def heard() -> Heard:
    """An empty record of a page."""
    from tests.browser import Heard

    return Heard()
