"""The diffusion family: whatever diffusers has a pipeline for, from its folders.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadedModel, LoadEnvironment
from kamado.errors import InvalidRequest, UnsafeCheckpoint, UnsupportedCheckpoint
from kamado.memory.advice import forms_that_fit
from kamado.memory.plan import LanePlan, Plan, PlanOptions
from kamado.options import Options
from kamado.quant import Quant
from kamado.units import format_bytes

from ..environment import environment_kept
from ..library.diffusers_code import diffusers_code
from .extents import Extent
from .learning import lane_peak
from .original.assemble import described, is_original
from .original.tokenizers import with_tokenizers
from .parts import assembled
from .peaks import table_bytes
from .placing import weight_sizes, with_outside
from .table import RUN, comes_out, makes, runs_alone, takes, words
from .tasks import tasks_of
from .usual import usual_extent

SHARED = "steps of all requests share forwards"
ALONE = "one at a time: the pipeline changes its models while it runs"
_STORED_DTYPES = {"BF16": "bfloat16", "F16": "float16"}


class DiffusionFamily:
    """See kamado.contracts.Family."""

    name = "diffusion"
    claims_last = False
    unused = ("kv_tokens", "kv_dtype", "draft", "speculation")
    """See kamado.families.unused_settings."""

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Family."""
        return checkpoint.layout == "diffusers" or is_original(checkpoint)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Family."""
        return (comes_out(_architecture(checkpoint)),)

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Family."""
        return tasks_of(_architecture(checkpoint))

    def options(self, checkpoint: Checkpoint) -> Options | None:
        """See Family."""
        return None

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Family."""
        if is_original(checkpoint):
            facts = described(checkpoint)
            return {**facts, "batching": SHARED, **_takes(str(facts["architecture"]))}
        checkpoint = assembled(checkpoint)
        return {
            "architecture": checkpoint.config.get("_class_name"),
            "components": sorted(checkpoint.metadata["components"]),
            "default_size": _default_size(checkpoint),
            "batching": ALONE if runs_alone(str(checkpoint.config.get("_class_name"))) else SHARED,
            **_takes(str(checkpoint.config.get("_class_name"))),
        }

    def plan(self, checkpoint: Checkpoint, options: PlanOptions) -> Plan:
        """See Family. Activations are estimated for one answer of the model's usual size."""
        checkpoint = assembled(checkpoint)
        if wants := checkpoint.metadata.get("wants_code"):
            raise UnsafeCheckpoint(
                f"{checkpoint.reference} wants its own code run ({', '.join(map(str, wants))}); pipelines' own code is "
                "never run"
            )
        pipeline = str(checkpoint.config.get("_class_name"))
        if (made := makes(pipeline)) not in RUN:
            raise UnsupportedCheckpoint(
                f"{checkpoint.reference} ({pipeline}) makes {made}; of diffusers' pipelines, this version runs those "
                f"that make {', '.join(RUN)}"
            )
        for name in ("kv_tokens", "kv_dtype"):
            if getattr(options, name) not in (None, "auto"):
                flag = f"--{name.replace('_', '-')}"
                raise InvalidRequest(f"{name} ({flag}) is for language models; this one makes {words(made)}")
        dtype = _dtype(checkpoint, options)
        extent, lanes = _usual(checkpoint, options)
        whole, window = _needed(lanes), 0
        if whole > options.budget_bytes and options.offload == "auto":
            room = options.budget_bytes - max(lane.activation_bytes for lane in lanes)
            lanes, window = with_outside(checkpoint, lanes, options.quant, room)
        outside = sum(lane.outside_bytes for lane in lanes)
        needed = whole - outside + window
        return Plan(
            reference=checkpoint.reference,
            family=self.name,
            architecture=str(checkpoint.config.get("_class_name")),
            device=options.device,
            dtype=dtype,
            quant=options.quant,
            lanes=lanes,
            context_tokens=0,
            available_bytes=options.budget_bytes,
            tier=options.tier(outside),
            window_bytes=window,
            minimum_bytes=needed,
            options=() if whole <= options.budget_bytes else _advice(checkpoint, options, dtype, whole, needed),
            notes=(
                f"activations for {str(extent).replace('a ', 'one ', 1)}",
                *_swapped(checkpoint),
            ),
        )

    def check_requests(
        self, checkpoint: Checkpoint, plan: Plan, requests: Iterable[Mapping[str, Any]], *, offline: bool = False
    ) -> None:
        """See Family."""
        with environment_kept():
            with diffusers_code():
                from .loading import check_requests

            check_requests(assembled(with_tokenizers(checkpoint, offline=offline)), plan, requests, offline=offline)

    def check_draft(self, checkpoint: Checkpoint, draft: Checkpoint) -> None:
        """See Family."""
        made = words(makes(_architecture(checkpoint)))
        raise InvalidRequest(
            f"{checkpoint.reference} makes {made}: no draft can guess for it; leave that out (--draft)"
        )

    def load(self, checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> LoadedModel:
        """See Family."""
        with environment_kept():
            with diffusers_code():
                from .loading import load

            return load(assembled(with_tokenizers(checkpoint, offline=env.offline)), plan, env)

    def write_quantized(
        self, checkpoint: Checkpoint, quant: Quant, folder: Path, *, offline: bool
    ) -> Mapping[str, int]:
        """See Family. Single files become folders."""
        with environment_kept():
            with diffusers_code():
                from .writing import write_quantized

            return write_quantized(assembled(with_tokenizers(checkpoint, offline=offline)), quant, folder)

    def compare(self, reference: tuple[Checkpoint, Plan], other: tuple[Checkpoint, Plan]) -> Mapping[str, float]:
        """See Family. Pictures from the same seeds."""
        with environment_kept():
            with diffusers_code():
                from .quality import picture_figures

            first, second = (assembled(with_tokenizers(each, offline=True)) for each, _ in (reference, other))
            return picture_figures((reference[1], other[1]), (first, second))


def _takes(pipeline: str) -> dict[str, str]:
    found = takes(pipeline)
    return {} if found is None else {"takes": found}


def _default_size(checkpoint: Checkpoint) -> str:
    extent = usual_extent(checkpoint)
    if extent.seconds:
        return f"{extent.seconds:g} s"
    if not extent.width:
        return "a mesh"
    return f"{extent.width} x {extent.height}" + (f" x {extent.frames} frames" if extent.frames > 1 else "")


def _architecture(checkpoint: Checkpoint) -> str:
    """The class of the pipeline. Raises UnsupportedCheckpoint."""
    if is_original(checkpoint):
        return str(described(checkpoint)["architecture"])
    return str(checkpoint.config.get("_class_name"))


def component_dtypes(checkpoint: Checkpoint, dtype: str) -> dict[str, str]:
    """The precision of each component: `dtype`, but for autoencoders that overflow in float16."""
    components: Mapping[str, Mapping[str, Any]] = checkpoint.metadata["components"]
    return {
        name: "float32" if dtype == "float16" and config.get("force_upcast") is True else dtype
        for name, config in components.items()
    }


def _dtype(checkpoint: Checkpoint, options: PlanOptions) -> str:
    """What was asked for; else float32 where the device is not fast at halves; else the stored half, or bfloat16."""
    if options.dtype != "auto":
        if options.device == "cpu" and options.dtype not in options.good_dtypes:
            raise InvalidRequest(
                f"this CPU has no instructions for {options.dtype}: it would be 100 times slower; use --dtype float32"
            )
        return options.dtype
    if options.good_dtypes[0] == "float32":
        return "float32"
    stored = {_STORED_DTYPES.get(entry.dtype) for entry in checkpoint.tensors.values()}
    if stored == {"float16"} and "float16" in options.good_dtypes:
        return "float16"
    return options.good_dtypes[0]


def _usual(checkpoint: Checkpoint, options: PlanOptions) -> tuple[Extent, tuple[LanePlan, ...]]:
    """What is made unless a request says otherwise, and the lanes for that. What takes time is taken shorter until it
    leaves half of the memory to the weights: requests are judged by what they ask for."""
    extent = usual_extent(checkpoint)
    while True:
        lanes = _lanes(checkpoint, options, extent)
        shorter = extent.shorter()
        if shorter is None or 2 * max(lane.activation_bytes for lane in lanes) <= options.budget_bytes:
            return extent, lanes
        extent = shorter


def _lanes(checkpoint: Checkpoint, options: PlanOptions, extent: Extent) -> tuple[LanePlan, ...]:
    """One for each component."""
    dtypes = component_dtypes(checkpoint, _dtype(checkpoint, options))
    lanes = []
    for name in sorted(checkpoint.metadata["components"]):
        peak, basis = lane_peak(
            checkpoint, name, extent, dtype=dtypes[name], quant=options.quant, device=options.device
        )
        weights = sum(weight_sizes(checkpoint, name, dtypes[name], options.quant).values())
        lane = LanePlan(
            lane=name,
            device=options.device,
            dtype=dtypes[name],
            weight_bytes=weights + table_bytes(checkpoint, name),
            activation_bytes=peak,
            activation_basis=basis,
        )
        lanes.append(lane)
    return tuple(lanes)


def _needed(lanes: Sequence[LanePlan]) -> int:
    """Bytes without which it does not run."""
    return sum(lane.weight_bytes for lane in lanes) + max((lane.activation_bytes for lane in lanes), default=0)


def _swapped(checkpoint: Checkpoint) -> list[str]:
    base = [f"base: {checkpoint.base.reference}"] if checkpoint.base is not None else []
    return base + [
        f"{name}: {part.reference}" if part is not None else f"{name}: left out"
        for name, part in checkpoint.parts.items()
    ]


def _advice(checkpoint: Checkpoint, options: PlanOptions, dtype: str, whole: int, least: int) -> tuple[str, ...]:
    """`whole`: bytes with all weights on the device; `least`: with as many outside as are planned to be."""
    forms = forms_that_fit(
        options, lambda others: _needed(_usual(checkpoint, others)[1]), dtype=dtype, quantizable=True
    )
    if least <= options.budget_bytes:
        return (*forms, f"Allow {format_bytes(whole)} (--memory) to hold all of it.")
    return (*forms, f"Allow {format_bytes(least)} (--memory), or choose a smaller model.")


FAMILY = DiffusionFamily()
