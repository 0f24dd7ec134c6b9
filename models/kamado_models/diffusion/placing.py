"""Which weights of a pipeline stay outside of a device that has not room for all. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kamado.checkpoint.types import Checkpoint
from kamado.memory.placement import Placement, place
from kamado.memory.plan import LanePlan, Plan
from kamado.quant import Quant

from ..language.shape import tensor_bytes
from .original.assemble import ORIGINAL
from .parts import component_tensors
from .peaks import AUTOENCODERS, DTYPE_BYTES, is_denoiser, table_bytes


def weight_sizes(checkpoint: Checkpoint, name: str, dtype: str, quant: Quant | None) -> dict[str, int]:
    """Bytes of each tensor of a component once it is in memory, by `component/name`."""
    return {
        f"{name}/{key}": tensor_bytes(f"{name}/{key}", entry, DTYPE_BYTES[dtype], quant)
        for key, entry in component_tensors(checkpoint, name).items()
    }


def with_outside(
    checkpoint: Checkpoint, lanes: Sequence[LanePlan], quant: Quant | None, room: int
) -> tuple[tuple[LanePlan, ...], int]:
    """The lanes with as few weights outside as lets the rest take at most `room` bytes, or all that can be outside; and
    the room for those in use."""
    found = _placed(checkpoint, lanes, quant, room)
    placed = []
    for lane in lanes:
        sizes = weight_sizes(checkpoint, lane.lane, lane.dtype, quant)
        placed.append(replace(lane, outside_bytes=sum(sizes[name] for name in sizes if name in found.outside)))
    return tuple(placed), found.window_bytes


def names_outside(checkpoint: Checkpoint, plan: Plan) -> frozenset[str]:
    """Tensors that are not on the device, as `component/name`, by a plan that `with_outside` had a part in."""
    if not plan.outside_bytes:
        return frozenset()
    found = _placed(checkpoint, plan.lanes, plan.quant, plan.held_weight_bytes)
    assert found.outside_bytes == plan.outside_bytes, "it was planned with the same figures"
    return found.outside


def _placed(checkpoint: Checkpoint, lanes: Sequence[LanePlan], quant: Quant | None, room: int) -> Placement:
    """What runs once for a picture goes first, then decoders, then what runs in every step."""
    # The names of tensors in files of their authors' say nothing of the modules that they become.
    original = checkpoint.metadata.get(ORIGINAL, ())
    movable = sorted((lane for lane in lanes if lane.lane not in original), key=lambda lane: _uses(lane.lane))
    groups: list[Mapping[str, int]] = [weight_sizes(checkpoint, lane.lane, lane.dtype, quant) for lane in movable]
    staying = sum(lane.weight_bytes for lane in lanes if lane.lane in original)
    staying += sum(table_bytes(checkpoint, lane.lane) for lane in movable)
    return place(groups, room - staying)


def _uses(name: str) -> int:
    return 2 if is_denoiser(name) else 1 if name in AUTOENCODERS else 0
