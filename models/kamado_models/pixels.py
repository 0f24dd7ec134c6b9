"""Tensors of pictures as outputs, and pictures as tensors."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from kamado.errors import DoesNotFit, GenerationFailed
from kamado.media.pictures import flattened, pictures_from_float
from kamado.memory.host import host_memory
from kamado.outputs import Picture
from kamado.units import format_bytes


def picture_of(tensor: Tensor, low: float = -1.0, high: float = 1.0) -> Picture:
    """A picture of a tensor (channels, height, width) with values in [low, high], clipped. Channels: 1, 3 or 4. Raises
    GenerationFailed for NaN."""
    return picture_of_array(_array(tensor, low, high))


def picture_of_array(array: Any) -> Picture:
    """The same, of floats (height, width, channels) in [0, 1]."""
    _check_finite(array)
    return Picture(image=pictures_from_float(array[None])[0], pixels=array)


def frames_of(tensor: Tensor, low: float = -1.0, high: float = 1.0) -> Any:
    """numpy uint8 (frames, height, width, 3) of a tensor (frames, channels, height, width)."""
    eight = (numpy.stack([_array(each, low, high) for each in tensor]) * 255).round().astype(numpy.uint8)
    if eight.shape[-1] == 1:
        return eight.repeat(3, axis=-1)
    return eight[..., :3]


def check_frames_fit(frames: int, width: int, height: int) -> None:
    """Raise DoesNotFit for a video whose frames, twice while they are joined, need more RAM than is free."""
    needed, free = 2 * 3 * frames * width * height, host_memory().available_bytes
    if needed > free:
        raise DoesNotFit(
            f"{frames} frames of {width} x {height} pixels need {format_bytes(needed)} of RAM, and "
            f"{format_bytes(free)} are free; ask for fewer (frames)",
            needed_bytes=needed,
            available_bytes=free,
            place="ram",
        )


def tensor_of(image: Any, mode: str = "RGB") -> Tensor:
    """A picture of `open_picture` as float32 (channels, height, width) in [0, 1], in mode `L`, `RGB` or `RGBA`."""
    array = numpy.asarray(flattened(image, mode), dtype=numpy.float32) / 255
    deep = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(numpy.ascontiguousarray(deep.transpose(2, 0, 1)))


def edges_repeated(pixels: Tensor, height: int, width: int) -> Tensor:
    """(..., height, width) made larger, to the right and below, by repeating the last column and row."""
    rows = torch.arange(height).clamp(max=pixels.shape[-2] - 1)
    columns = torch.arange(width).clamp(max=pixels.shape[-1] - 1)
    return pixels[..., rows, :][..., columns]


def _array(tensor: Tensor, low: float, high: float) -> Any:
    array = ((tensor.float().cpu() - low) / (high - low)).permute(1, 2, 0).contiguous().numpy()
    _check_finite(array)
    return array.clip(0.0, 1.0)


def _check_finite(array: Any) -> None:
    if not numpy.isfinite(array).all():
        raise GenerationFailed("the model made NaN or infinity; try --dtype float32")
