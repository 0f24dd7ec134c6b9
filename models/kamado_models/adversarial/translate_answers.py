"""Pictures made of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kamado.errors import DoesNotFit, InvalidRequest
from kamado.memory.plan import Plan
from kamado.outputs import Output
from kamado.units import format_bytes

from ..library.kinds import Bench
from ..pixels import edges_repeated, picture_of, tensor_of
from .translate_kind import FEATURES
from .translate_layouts import Translator

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LEAST = 16
"""Reflections need some pixels."""


class Translated:
    """See Generator."""

    def __init__(self, found: Translator, modules: Mapping[str, Any], plan: Plan) -> None:
        self.modules: Mapping[str, Any] = modules
        self._found = found
        self._room = plan.available_bytes - plan.held_weight_bytes
        self._size = torch.finfo(getattr(torch, plan.dtype)).bits // 8

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        if not {self._found.inputs, self._found.outputs} <= _MODES.keys():
            raise InvalidRequest(
                f"the generator makes {self._found.outputs} channels of {self._found.inputs}, which is no picture"
            )
        width, height = asked["image"].size
        needed = width * height * FEATURES * self._size // 2
        if needed > self._room:
            raise DoesNotFit(
                f"a picture of {width} x {height} pixels needs about {format_bytes(needed)} beside the weights, and "
                f"{format_bytes(self._room)} may be used. Make it smaller.",
                needed_bytes=needed, available_bytes=self._room,
            )  # fmt: skip
        return asked

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        picture = tensor_of(asked["image"], _MODES[self._found.inputs])[None] * 2 - 1
        height, width = picture.shape[-2:]
        multiple = self._found.multiple
        least = -(-_LEAST // multiple) * multiple
        filled = edges_repeated(
            picture, *(max(side + (-side) % multiple, least) for side in (height, width))
        )  # fmt: skip
        if filled.shape != picture.shape:
            bench.note(
                f"the generator takes sizes that are multiples of {multiple}: the picture of {width} x {height} was "
                f"made larger by repeating its edge, and cut again"
            )
        made = bench.model("generator")(filled.to(bench.device, bench.dtype))
        bench.progress(1, 1)
        return picture_of(made[0, :, :height, :width])
