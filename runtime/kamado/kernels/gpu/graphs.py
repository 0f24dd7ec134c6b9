"""CUDA graphs: what a function launches, recorded once and launched again as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import torch

_one_at_a_time = threading.Lock()
"""torch has no place for two recordings at once in a process."""


class Recorder(Protocol):
    """Records functions over tensors that stay where they are. What one leaves in memory of its own may be overwritten
    when another of the same recorder is run again."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """What runs it again, on whatever its tensors hold then. It ran before, so that all that is made on first use
        is there. Raises RuntimeError for what cannot be recorded."""

    def held_bytes(self) -> int:
        """Memory that the recordings hold, in all."""

    def clear(self) -> None:
        """Let go of it. No recording is run any more."""


class CudaGraphs:
    """See Recorder. All of them share one pool of memory, since they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """See Recorder."""
        graph = torch.cuda.CUDAGraph()
        with _one_at_a_time, torch.cuda.device(self._device):
            main = torch.cuda.current_stream()
            self._stream.wait_stream(main)
            with torch.cuda.stream(self._stream):
                function()  # workspaces of this stream are laid out by that, in the program's memory
                torch.cuda.synchronize()
                torch.cuda.empty_cache()  # what that left would be of use to this stream alone
                # What other threads do meanwhile (reading a model, say) must neither fail nor be recorded.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    function()
                finally:
                    graph.capture_end()
            main.wait_stream(self._stream)
        self._graphs.append(graph)
        return graph.replay

    def held_bytes(self) -> int:
        """See Recorder."""
        return sum(
            segment["total_size"]
            for segment in torch.cuda.memory_snapshot()
            if tuple(segment.get("segment_pool_id", ())) == tuple(self._pool)
        )

    def clear(self) -> None:
        """See Recorder."""
        torch.cuda.synchronize(self._device)
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()
