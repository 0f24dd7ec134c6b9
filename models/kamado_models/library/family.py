"""The Family of kinds of models that a library's own code runs. Importing this loads no torch; `load` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kamado.checkpoint.own_code import wishes
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadedModel, LoadEnvironment
from kamado.errors import InvalidRequest, UnsafeCheckpoint, UnsupportedCheckpoint
from kamado.media.inputs import opened_media
from kamado.memory.advice import forms_that_fit
from kamado.memory.plan import LanePlan, Plan, PlanOptions
from kamado.options import Options
from kamado.quant import Quant
from kamado.units import format_bytes

from ..environment import environment_kept
from .kinds import Kind, Part
from .learning import lane_peak
from .placing import weight_sizes, with_outside

_STORED_DTYPES = {"BF16": "bfloat16", "F16": "float16"}


class LibraryFamily:
    """See kamado.contracts.Family."""

    claims_last = False
    unused = ("kv_tokens", "kv_dtype", "draft", "speculation", "compile")
    """See kamado.families.unused_settings."""

    def __init__(self, name: str, kinds: Sequence[Kind]) -> None:
        self.name = name
        self.kinds = tuple(kinds)

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Family."""
        return any(kind.claims(checkpoint) for kind in self.kinds)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Family."""
        return self.kind(checkpoint).makes(checkpoint)

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Family."""
        return self.kind(checkpoint).tasks(checkpoint)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Family."""
        return self.kind(checkpoint).options(checkpoint)

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Family."""
        return self.kind(checkpoint).describe(checkpoint)

    def sample_request(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Options of a usual request, as far as its kind names any: for measuring."""
        found = getattr(self.kind(checkpoint), "sample_request", None)
        return found(checkpoint) if found is not None else {}

    def kind(self, checkpoint: Checkpoint) -> Kind:
        """The first kind that claims it. There is one: nothing else is asked of a family."""
        return next(kind for kind in self.kinds if kind.claims(checkpoint))

    def components(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What the model takes from other checkpoints, by the names that `--component` knows."""
        asked = getattr(self.kind(checkpoint), "components", None)  # most kinds take nothing
        return () if asked is None else tuple(asked(checkpoint))

    def plan(self, checkpoint: Checkpoint, options: PlanOptions) -> Plan:
        """See Family."""
        if wishes(checkpoint):
            raise UnsafeCheckpoint(f"{checkpoint.reference} wants its own code run, which is done for text models only")
        if options.kv_tokens is not None or options.kv_dtype != "auto":
            raise InvalidRequest(
                "kv_tokens (--kv-tokens) and kv_dtype (--kv-dtype) are for text models; leave them out"
            )
        if checkpoint.base is not None:
            raise InvalidRequest(f"{checkpoint.reference} is whole, so it needs no base; leave that out (--base)")
        if foreign := sorted(checkpoint.parts.keys() - set(self.components(checkpoint))):
            raise InvalidRequest(f"{checkpoint.reference} has no component {foreign[0]}; leave it out (--component)")
        kind = self.kind(checkpoint)
        parts, dtype = kind.parts(checkpoint), _dtype(checkpoint, options)
        lanes = _lanes(checkpoint, parts, dtype, options)
        if options.quant is not None:
            plain = _lanes(checkpoint, parts, dtype, replace(options, quant=None))
            _check_quantized(
                checkpoint,
                parts,
                [(one.weight_bytes, other.weight_bytes) for one, other in zip(lanes, plain, strict=True)],
            )
        whole, window = _needed(lanes), 0
        can_split = not any(part.is_whole for part in parts.values())
        if whole > options.budget_bytes and options.offload == "auto" and can_split:
            room = options.budget_bytes - max(lane.activation_bytes for lane in lanes)
            lanes, window = with_outside(parts, lanes, options.quant, room)
        outside = sum(lane.outside_bytes for lane in lanes)
        needed = whole - outside + window
        return Plan(
            reference=checkpoint.reference,
            family=self.name,
            architecture=str(kind.describe(checkpoint)["architecture"]),
            device=options.device,
            dtype=dtype,
            quant=options.quant,
            lanes=lanes,
            context_tokens=0,
            available_bytes=options.budget_bytes,
            tier=options.tier(outside),
            window_bytes=window,
            minimum_bytes=needed,
            options=() if whole <= options.budget_bytes else _advice(checkpoint, parts, options, dtype, whole, needed),
        )

    def check_requests(
        self, checkpoint: Checkpoint, plan: Plan, requests: Iterable[Mapping[str, Any]], *, offline: bool = False
    ) -> None:
        """See Family."""
        kind = self.kind(checkpoint)
        options = kind.options(checkpoint)
        known: set[tuple[str, str]] = set()
        for request in requests:
            asked = options.resolved(request, checkpoint.defaults)
            kind.check(checkpoint, asked)
            for name in [name for name in options.inputs if name in asked]:
                path = (name, str(asked[name])) if isinstance(asked[name], (str, Path)) else None
                if path not in known:  # a file that many requests share is opened once
                    opened_media({name: asked[name]}, options.inputs)
                if path is not None:
                    known.add(path)

    def check_draft(self, checkpoint: Checkpoint, draft: Checkpoint) -> None:
        """See Family."""
        raise InvalidRequest(
            f"{checkpoint.reference} is no text model: no draft can guess for it; leave it out (--draft)"
        )

    def load(self, checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> LoadedModel:
        """See Family."""
        if env.request is not None:
            self.check_requests(checkpoint, plan, [env.request], offline=env.offline)
        with environment_kept():
            from .loading import load

            return load(self.kind(checkpoint), checkpoint, plan, env)

    def write_quantized(
        self, checkpoint: Checkpoint, quant: Quant, folder: Path, *, offline: bool
    ) -> Mapping[str, int]:
        """See Family."""
        is_whole = any(part.is_whole for part in self.kind(checkpoint).parts(checkpoint).values())
        advice = "" if is_whole else "; it can be loaded so (--quant)"
        raise UnsupportedCheckpoint(f"{checkpoint.reference} ({self.name}) cannot be written quantized{advice}")

    def compare(self, reference: tuple[Checkpoint, Plan], other: tuple[Checkpoint, Plan]) -> Mapping[str, float]:
        """See Family."""
        raise UnsupportedCheckpoint(f"{reference[0].reference} ({self.name}) cannot be compared with a quantized form")


def _lanes(checkpoint: Checkpoint, parts: Mapping[str, Part], dtype: str, options: PlanOptions) -> tuple[LanePlan, ...]:
    lanes = []
    for name, part in parts.items():
        own = "float32" if part.keeps_dtype else dtype
        quant = None if part.keeps_dtype else options.quant
        peak, basis = lane_peak(checkpoint, name, part, dtype=own, quant=quant, device=options.device)
        weights = sum(weight_sizes(name, part, own, quant).values())
        lane = LanePlan(
            lane=name,
            device=options.device,
            dtype=own,
            weight_bytes=weights,
            activation_bytes=peak,
            activation_basis=basis,
        )
        lanes.append(lane)
    return tuple(lanes)


def _check_quantized(checkpoint: Checkpoint, parts: Mapping[str, Part], sizes: Sequence[tuple[int, int]]) -> None:
    """Raise InvalidRequest where a quantization cannot be had, or changes nothing. `sizes`: bytes of each component's
    weights, with it and without."""
    if any(part.is_whole for part in parts.values()):
        raise InvalidRequest(
            f"{checkpoint.reference}: such networks cannot be held quantized; leave that out (--quant)"
        )
    if all(one == other for one, other in sizes):
        raise InvalidRequest(
            f"{checkpoint.reference}: none of its weights can be held in that form, which is for large matrices; leave "
            "it out (--quant)"
        )


def _dtype(checkpoint: Checkpoint, options: PlanOptions) -> str:
    """What was asked for; else float32 where the device is not fast at halves; else the stored half, or the best."""
    if options.dtype != "auto":
        if options.device == "cpu" and options.dtype not in options.good_dtypes:
            raise InvalidRequest(
                f"this CPU has no instructions for {options.dtype}: it would be 100 times slower; use --dtype float32"
            )
        return options.dtype
    if options.good_dtypes[0] == "float32":
        return "float32"
    stored = {_STORED_DTYPES.get(entry.dtype) for entry in checkpoint.tensors.values()}
    half = next(iter(stored)) if len(stored) == 1 else None
    # What was trained in single precision may overflow in halves: sound and pictures go by it.
    return half if half is not None and half in options.good_dtypes else "float32"


def _needed(lanes: Sequence[LanePlan]) -> int:
    """Bytes without which it does not run."""
    return sum(lane.weight_bytes for lane in lanes) + max((lane.activation_bytes for lane in lanes), default=0)


def _advice(
    checkpoint: Checkpoint, parts: Mapping[str, Part], options: PlanOptions, dtype: str, whole: int, least: int
) -> tuple[str, ...]:
    """`whole`: bytes with all weights on the device; `least`: with as many outside as are planned to be."""

    def needed_with(others: PlanOptions) -> int:
        return _needed(_lanes(checkpoint, parts, _dtype(checkpoint, others), others))

    quantizable = not any(part.is_whole for part in parts.values())
    forms = forms_that_fit(options, needed_with, dtype=dtype, quantizable=quantizable)
    if least <= options.budget_bytes:
        return (*forms, f"Allow {format_bytes(whole)} (--memory) to hold all of it.")
    return (*forms, f"Allow {format_bytes(least)} (--memory), or choose a smaller model.")
