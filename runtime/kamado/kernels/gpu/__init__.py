"""Products and layers written for GPUs in Triton's language, which torch's builds for CUDA bring along.

Where there is none, everything works without them, on torch's own operations. Only the modules below import Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

_OLDEST = (8, 0)
"""Compute capability: the first with products of bfloat16."""


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on the device. A GPU fetches it when it comes to it: nobody waits."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """What gives a tensor of the device's on the host, once: whoever calls it waits for what was launched before now,
    and on a GPU for nothing that is launched between now and then."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    on_host.copy_(tensor, non_blocking=True)
    sent = torch.cuda.Event()
    sent.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        sent.synchronize()
        return on_host

    return wait


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether the kernels of this package run on the device."""
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < _OLDEST:
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
