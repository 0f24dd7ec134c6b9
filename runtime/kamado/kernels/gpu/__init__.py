"""Products and layers written for GPUs in Triton's language, which torch's builds for CUDA bring along.

Where there is none, everything works without them, on torch's own operations. Only the modules below import Triton.
"""

from __future__ import annotations

from functools import cache

import torch

_OLDEST = (8, 0)
"""Compute capability: the first with products of bfloat16."""


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on the device. A GPU fetches it when it comes to it: nobody waits."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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
