"""A step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from batchnst.redaction import get_logger

log = get_logger(__name__)

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
        """Call the function: from the fourth time on by replaying it, if it can be recorded."""
        self.calls += 1
        if self.calls == EAGER_CALLS + 1:
            self.graph = self._record()
        if self.graph:
            self.graph.replay()
        else:
            self.function()

    def _record(self) -> torch.cuda.CUDAGraph | None:
        """Record the function, which computes nothing meanwhile; None if a library that it calls cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("steps are slower, because they cannot be recorded as a CUDA graph: %s", error)
            return None
        return graph
