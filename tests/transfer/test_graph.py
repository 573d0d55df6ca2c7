from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from batchnst.painting.painter import load_backbone
from batchnst.recipe import Recipe
from batchnst.transfer import stylize
from batchnst.transfer.graph import EAGER_CALLS, Recorded
from batchnst.transfer.optimizers import HISTORY, OPTIMIZERS
from batchnst.transfer.weights import Weights
from tests.helpers import CPU, finish, in_double, whole

aten = torch.ops.aten

WAITS = {aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.masked_select, aten.equal}
"""Operations that make the host wait for the device."""

COPIES = {aten.lift_fresh, aten.lift}
"""Operations that copy a constant from the host: a graph would read memory that is gone."""

Call = tuple[Any, Any, Any, Any]


class Recording(TorchDispatchMode):
    """Records operations on the CPU as a CUDA graph does: with the memory that they read and write, not the values."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in WAITS | COPIES, func
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Do everything again: the results go where they went."""
        for func, args, kwargs, results in self.calls:
            again = func(*args, **kwargs)
            for new, old in zip(_tensors(again), _tensors(results), strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def _tensors(results: Any) -> list[Tensor]:
    results = results if isinstance(results, tuple | list) else (results,)
    return [result for result in results if isinstance(result, Tensor)]


class Replayed:
    """Takes the place of Recorded, on the CPU."""

    recordings = 0

    def __init__(self, function: Callable[[], None]) -> None:
        self.function, self.calls = function, 0
        self.recording: Recording | None = None

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= HISTORY + 3:  # a CPU's first steps differ: they do not touch memory that is not needed yet
            self.function()
        elif self.recording is None:
            self.recording, Replayed.recordings = Recording(), Replayed.recordings + 1
            with self.recording:
                self.function()
        else:
            self.recording.replay()


def curve(recipe: Recipe, weights: Weights, device: torch.device = CPU) -> tuple[Tensor, list[Tensor]]:
    """The final totals of three pictures in float64, and the totals of the active ones after each step."""
    random = torch.Generator().manual_seed(0)
    contents, style = (255 * torch.rand(n, 3, 24, 32, dtype=torch.float64, generator=random) for n in (3, 1))
    contents[1] = contents[1] / 50 + 100  # stops early
    network = in_double(load_backbone(recipe, weights, device))
    guides = [whole(style.to(device))] * 3
    result, steps = finish(stylize.stylize(list(contents.to(device)[:, None]), guides, recipe, lambda _: network))
    return result.losses.total, [step.losses.total for step in steps]


def recipe_with(optimizer: str) -> Recipe:
    layers = {"style_layers": "relu1_1,relu2_1", "content_layers": "relu2_2"}
    settings = {"size": 32, "min_size": 32, "steps": 75, "tolerance": 0.02, "optimizer": optimizer, "precision": "fp32"}
    return Recipe.from_settings(settings | layers)


@pytest.mark.parametrize(
    "optimizer", ["lbfgs", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "sgd"))]
)
def test_a_replayed_step_is_the_step(weights: Weights, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    recipe = recipe_with(optimizer)
    expected, eager = curve(recipe, weights)
    monkeypatch.setattr(stylize._Painter, "_record", lambda self: Replayed(self._step))
    monkeypatch.setattr(Replayed, "recordings", 0)
    found, replayed = curve(recipe, weights)
    # After a picture has stopped, the step of those that are left is recorded anew.
    assert Replayed.recordings >= 1
    assert optimizer != "lbfgs" or len({len(totals) for totals in eager}) > 1
    assert all(map(torch.equal, replayed, eager))
    assert len(replayed) == len(eager) and torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gpu_replays_the_step(weights: Weights, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    recipe = recipe_with(optimizer)
    _, replayed = curve(recipe, weights, torch.device("cuda"))
    monkeypatch.setattr(stylize._Painter, "_record", lambda self: self._step)
    _, eager = curve(recipe, weights, torch.device("cuda"))
    for found, expected in zip(replayed[:20], eager, strict=False):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_step_that_cannot_be_recorded_is_called_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def __enter__(self) -> None:
            """Begin to record."""

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    calls: list[int] = []
    step = Recorded(lambda: calls.append(1))
    for _ in range(EAGER_CALLS + 3):
        step()
    assert len(calls) == EAGER_CALLS + 1 + 3  # once more while it was recorded, which computes nothing on a GPU
    assert step.graph is None
