"""Pictures restored or enlarged by networks that spandrel builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from kamado.errors import DoesNotFit, InvalidRequest, UnsupportedCheckpoint
from kamado.memory.host import host_memory
from kamado.memory.plan import Plan
from kamado.outputs import Output, Picture
from kamado.units import format_bytes

from ..library.kinds import Bench
from ..pixels import picture_of_array, tensor_of
from .restore_kind import DRAWING, OVERLAP, TILE
from .restore_spandrel import spandrel
from .tiles import Canvas, Span, tiles

_COPIES = 3
"""Of the result that are in RAM at a time: the sum of tiles, its weights, the picture that is made of it."""
_CHANNELS = 64
"""About as many features of each pixel are in memory at a time, at the size of the input and at that of the result."""
_SIDES = {"GFPGAN": 512}
"""Height and width of the only pictures that an architecture takes."""
_SINGLE = ("ATD", "DRCT", "FFTformer", "LaMa", "Swin2SR", "SwinIR")
"""Architectures that spandrel says run in halves, and that compute masks or spectra in float32."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Network(nn.Module):
    """A network with what spandrel knows of it."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.network = descriptor.model
        self.descriptor = descriptor

    def forward(self, picture: Tensor, mask: Tensor | None = None) -> Tensor:
        """(rows, channels, height, width) in [0, 1] -> the same, times the scale. mask: (rows, 1, height, width), 1
        where to paint."""
        if self.descriptor.architecture.id == "GFPGAN":
            # Its authors' range is [-1, 1], also of what it makes; spandrel's call leaves [0, 1] as it is.
            face: Tensor = self.network(2 * picture - 1, return_rgb=False)[0]
            return (face / 2 + 0.5).clamp(0, 1)
        made: Tensor = self.descriptor(picture) if mask is None else self.descriptor(picture, mask)
        return made


def network(state: Mapping[str, Tensor], dtype: torch.dtype) -> Network:
    """Of the tensors of a checkpoint. Raises UnsupportedCheckpoint."""
    library = spandrel()
    try:
        found = library.MAIN_REGISTRY.load(dict(state))
    except library.UnsupportedModelError as error:
        raise UnsupportedCheckpoint("spandrel knows no such network") from error
    name = found.architecture.name
    for channels in (found.input_channels, found.output_channels):
        if channels not in _MODES:
            raise UnsupportedCheckpoint(f"this {name} network is for {channels} channels, which no picture file has")
    halves = {torch.float16: found.supports_half, torch.bfloat16: found.supports_bfloat16}
    if not halves.get(dtype, True) or (dtype != torch.float32 and found.architecture.id in _SINGLE):
        raise UnsupportedCheckpoint(f"{name} networks cannot run in {dtype}; use --dtype float32")
    return Network(found)


class Restored:
    """See Generator."""

    def __init__(self, modules: Mapping[str, Any], plan: Plan) -> None:
        self.modules: Mapping[str, Any] = modules
        self._about = modules["network"].descriptor
        self._takes_tiles = self._about.purpose in ("SR", "Restoration")
        self._room = plan.available_bytes - plan.held_weight_bytes
        self._size = torch.finfo(getattr(torch, plan.dtype)).bits // 8

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        image, mask = asked["image"], asked.get("mask")
        if mask is not None and mask.size != image.size:
            raise InvalidRequest(
                f"mask is {mask.width} x {mask.height} and the image {image.width} x {image.height}; they must be of "
                "one size"
            )
        side = _SIDES.get(self._about.architecture.id)
        if side is not None and image.size != (side, side):
            raise InvalidRequest(
                f"{self._about.architecture.name} networks take a face that fills {side} x {side} pixels, and the "
                f"image is {image.width} x {image.height}; cut the face out, upright, and resize it"
            )
        may_be_cut = self._takes_tiles and (self._about.tiling.name == "SUPPORTED" or "overlap" in asked)
        tile = asked.get("tile", TILE if may_be_cut and image.width * image.height > TILE**2 else 0)
        self._check_room(image.size, tile)
        return {**asked, "tile": tile}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        image: Image.Image = asked["image"]
        mode = _MODES[self._about.input_channels]
        picture = tensor_of(image.convert("RGB") if image.mode == "RGBA" and mode != "RGBA" else image, mode)
        mask = None
        if asked.get("mask") is not None:
            mask = (tensor_of(asked["mask"], "L") >= 0.5).float()
        size = asked["tile"] or max(image.size)
        overlap = asked.get("overlap", min(OVERLAP, size // 4))
        canvas = Canvas(image.height, image.width, self._about.output_channels, self._about.scale)
        parts = list(tiles(image.height, image.width, size, overlap))
        for number, (rows, columns) in enumerate(parts):
            canvas.put(rows, columns, self._made(bench, picture, mask, rows, columns))
            bench.progress(number + 1, len(parts))
        made = canvas.picture().clip(0.0, 1.0)
        if len(parts) > 1:
            bench.note(f"made of {len(parts)} tiles of {size} x {size} pixels; near their seams it differs a little")
        if self._about.scale != 1:
            bench.note(f"{self._about.scale} times as large: {made.shape[1]} x {made.shape[0]} pixels")
        return _with_alpha(made, image)

    def _made(self, bench: Bench, picture: Tensor, mask: Tensor | None, rows: Span, columns: Span) -> Any:
        """One tile as numpy float32 (height, width, channels)."""
        place = (slice(None), slice(rows.start, rows.end), slice(columns.start, columns.end))
        given = [part[place][None].to(bench.device, bench.dtype) for part in (picture, mask) if part is not None]
        network = self.modules["network"]
        if self._about.architecture.id in DRAWING:
            made: Tensor = bench.run("network", lambda: network(*given))
        else:
            made = bench.model("network")(*given)
        return made[0].float().cpu().permute(1, 2, 0).numpy()

    def _check_room(self, size: tuple[int, int], tile: int) -> None:
        """Raise DoesNotFit for a picture that is too large, before it is tried."""
        (width, height), scale = size, self._about.scale
        what = f"a picture of {width} x {height} pixels that is to be {width * scale} x {height * scale}"
        needed = _COPIES * 4 * width * height * scale**2 * self._about.output_channels
        free = host_memory().available_bytes
        if needed > free:
            raise DoesNotFit(
                f"{what} needs {format_bytes(needed)} of RAM, and {format_bytes(free)} are free; cut it, or make it "
                "smaller",
                needed_bytes=needed, available_bytes=free, place="ram",
            )  # fmt: skip
        area = min(width, tile or width) * min(height, tile or height)
        needed = _CHANNELS * self._size * area * (1 + scale**2)
        if needed > self._room:
            advice = "Ask for smaller tiles (tile)." if tile else "Have it cut into tiles: tile=512."
            advice = advice if self._takes_tiles else "Cut it, or make it smaller."
            raise DoesNotFit(
                f"{what} needs about {format_bytes(needed)} beside the weights, and {format_bytes(self._room)} may be "
                f"used. {advice}",
                needed_bytes=needed, available_bytes=self._room, options=(advice,),
            )  # fmt: skip


def _with_alpha(made: Any, image: Image.Image) -> Picture:
    """The picture, as transparent as the one that went in: that channel is enlarged by itself (Lanczos)."""
    if image.mode != "RGBA" or made.shape[-1] == 4:
        return picture_of_array(made)
    colours = numpy.broadcast_to(made, (*made.shape[:2], 3))
    alpha = image.getchannel("A").resize((made.shape[1], made.shape[0]), Image.Resampling.LANCZOS)
    deep = numpy.asarray(alpha, dtype=numpy.float32)[..., None] / 255
    return picture_of_array(numpy.concatenate((colours, deep), axis=-1))
