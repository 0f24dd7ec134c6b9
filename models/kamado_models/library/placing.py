"""Which weights stay outside of a device that has not room for all. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kamado.memory.placement import Placement, place
from kamado.memory.plan import LanePlan, Plan
from kamado.quant import Quant

from ..language.shape import tensor_bytes
from .kinds import Part

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def weight_sizes(name: str, part: Part, dtype: str, quant: Quant | None) -> dict[str, int]:
    """Bytes of each tensor of a component once it is in memory, by `component/name`."""
    form = None if part.keeps_dtype else quant
    return {f"{name}/{key}": tensor_bytes(key, entry, _BYTES[dtype], form) for key, entry in part.tensors.items()}


def with_outside(
    parts: Mapping[str, Part], lanes: Sequence[LanePlan], quant: Quant | None, room: int
) -> tuple[tuple[LanePlan, ...], int]:
    """The lanes with as few weights outside as lets the rest take at most `room` bytes, or all that can be outside; and
    the room for those in use."""
    found = _placed(parts, lanes, quant, room)
    placed = []
    for lane in lanes:
        sizes = weight_sizes(lane.lane, parts[lane.lane], lane.dtype, quant)
        placed.append(replace(lane, outside_bytes=sum(sizes[name] for name in sizes if name in found.outside)))
    return tuple(placed), found.window_bytes


def names_outside(parts: Mapping[str, Part], plan: Plan) -> frozenset[str]:
    """Tensors that are not on the device, as `component/name`, by a plan that `with_outside` had a part in."""
    if not plan.outside_bytes:
        return frozenset()
    found = _placed(parts, plan.lanes, plan.quant, plan.held_weight_bytes)
    assert found.outside_bytes == plan.outside_bytes, "it was planned with the same figures"
    return found.outside


def _placed(parts: Mapping[str, Part], lanes: Sequence[LanePlan], quant: Quant | None, room: int) -> Placement:
    sizes = []
    for lane in lanes:
        part, found = parts[lane.lane], weight_sizes(lane.lane, parts[lane.lane], lane.dtype, quant)
        staying = {name for name in found if part.stays(name.partition("/")[2])}
        room -= sum(found[name] for name in staying)
        sizes.append({name: size for name, size in found.items() if name not in staying})
    return place(sizes, room)
