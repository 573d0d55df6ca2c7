"""A step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

EAGER_CALLS = 3
"""Calls of a function on a GPU before it is recorded: libraries choose their algorithms during these."""


class Recorded:
    """A function that is recorded as a CUDA graph, which starts hundreds of kernels in one call.

    The function takes and returns nothing, never waits for the device, and changes all its state in place.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self.function, self.calls = function, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Call the function: from the fourth time on, by replaying it."""
        self.calls += 1
        if self.calls <= EAGER_CALLS:
            self.function()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.function()
        self.graph.replay()
