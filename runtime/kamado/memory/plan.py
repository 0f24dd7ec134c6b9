"""What goes where, in which precision, in how many bytes: decided from header data, before a weight is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import DoesNotFit, InvalidRequest
from ..quant import Quant
from ..units import format_bytes

DTYPES = ("auto", "float32", "bfloat16", "float16")
OFFLOADS = ("auto", "never")
"""What may be done with weights that the device has no room for: read them when they are needed, or refuse."""
KV_DTYPES = ("auto", "float32", "float16", "int8", "fp8")
"""Forms of the KV cache: as the family sees fit, of 32 or 16 bits, or of 8 with a scale for each token and head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What was asked for, and what there is. Raises InvalidRequest."""

    device: str
    """`cpu`, `cuda:0`, ...: already resolved, never `auto`."""
    dtype: str = "auto"
    quant: Quant | None = None
    budget_bytes: int
    """The most that this model may hold on the device, everything counted."""
    good_dtypes: tuple[str, ...] = ("float32",)
    """Compute precisions that the device is fast at, best for inference first."""
    features: tuple[str, ...] = ()
    """Of the device; see `DeviceFacts`."""
    kv_tokens: int | None = None
    """Tokens of KV cache to hold; None: as the family sees fit within the budget."""
    kv_dtype: str = "auto"
    """One of KV_DTYPES."""
    offload: str = "auto"
    """One of OFFLOADS."""
    ram_bytes: int = 0
    """Room in RAM for weights that are not on the device; 0 for the CPU, whose weights go to the disk instead."""
    allow_code: str | None = None
    """The name of the one checkpoint whose own code may be run; see `kamado.checkpoint.own_code.check_permission`."""

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("kv_dtype", KV_DTYPES), ("offload", OFFLOADS)):
            if getattr(self, name) not in known:
                raise InvalidRequest(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    def tier(self, outside_bytes: int) -> str:
        """Where so many bytes of weights lie that are outside of the device: "ram" or "disk"; "" for none."""
        if not outside_bytes:
            return ""
        return "ram" if outside_bytes <= self.ram_bytes else "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """One component."""

    lane: str
    device: str
    dtype: str
    weight_bytes: int
    outside_bytes: int = 0
    """Of the weights, what is not held on the device, but read when it is needed."""
    activation_bytes: int
    """Peak of temporary tensors in one step of full size."""
    activation_basis: str = "estimated"
    """How that is known: "measured", "scaled" from another shape that was measured, or "estimated"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of one model."""

    reference: str
    family: str
    architecture: str
    device: str
    dtype: str
    quant: Quant | None
    lanes: tuple[LanePlan, ...]
    context_tokens: int
    """Longest prompt plus answer; 0 where the family has no such thing."""
    kv_tokens: int = 0
    kv_bytes_per_token: int = 0
    """Scales included, where it is held in 8 bits."""
    kv_dtype: str = "auto"
    """Its form, one of KV_DTYPES; "auto": the compute precision."""
    state_bytes_per_sequence: int = 0
    """State that does not grow with length (state-space models)."""
    max_sequences: int = 0
    step_tokens: int = 0
    """The most tokens of one forward that there is room for; 0 where the family has no such thing."""
    step_rows: int = 0
    """The same of requests."""
    available_bytes: int
    tier: str = ""
    """Where the weights lie that are outside of the device: "ram" or "disk"; "" if there are none."""
    window_bytes: int = 0
    """Room on the device for those of them that are in use."""
    minimum_bytes: int
    """The least that would run at all: weights, activations, and state for one short request."""
    options: tuple[str, ...] = ()
    """What would make it smaller, as sentences."""
    notes: tuple[str, ...] = ()
    allow_code: str | None = None
    """The name by which the checkpoint's own code was allowed; None where it wants none run."""
    draft: Plan | None = None
    """Of the model that guesses for this one. What it holds is not counted here, and not in `available_bytes`."""

    @property
    def quant_json(self) -> str | dict[str, Any]:
        """As `Runtime.load` takes it; "none" where nothing is quantized."""
        return "none" if self.quant is None else self.quant.as_json()

    @property
    def weight_bytes(self) -> int:
        return sum(lane.weight_bytes for lane in self.lanes)

    @property
    def outside_bytes(self) -> int:
        """Of the weights, what is not held on the device, but read when it is needed."""
        return sum(lane.outside_bytes for lane in self.lanes)

    @property
    def outside_note(self) -> str:
        """What a person should know of them; "" if there are none."""
        if not self.outside_bytes:
            return ""
        place = {"ram": "RAM", "disk": "the disk"}[self.tier]
        return (
            f"{format_bytes(self.outside_bytes)} of the weights do not fit on {self.device}; they are read from "
            f"{place} each time they are used, which is slower; more --memory or fewer bits (--quant) avoid it"
        )

    @property
    def held_weight_bytes(self) -> int:
        """What weights take on the device: those that stay there, and those that are in use."""
        return self.weight_bytes - self.outside_bytes + self.window_bytes

    @property
    def activation_bytes(self) -> int:
        """Lanes run one at a time, so the largest peak counts once."""
        return max((lane.activation_bytes for lane in self.lanes), default=0)

    @property
    def activation_basis(self) -> str:
        """How that is known; see LanePlan."""
        most = max(self.lanes, key=lambda lane: lane.activation_bytes, default=None)
        return "estimated" if most is None else most.activation_basis

    @property
    def kv_bytes(self) -> int:
        return self.kv_tokens * self.kv_bytes_per_token

    @property
    def state_bytes(self) -> int:
        return self.max_sequences * self.state_bytes_per_sequence

    @property
    def total_bytes(self) -> int:
        return self.held_weight_bytes + self.activation_bytes + self.kv_bytes + self.state_bytes

    def check(self) -> None:
        """Raise DoesNotFit if not even the minimum fits."""
        if self.minimum_bytes <= self.available_bytes:
            return
        hint = f" {self.options[0]}" if self.options else ""
        raise DoesNotFit(
            f"{self.reference} needs at least {format_bytes(self.minimum_bytes)} on {self.device}, "
            f"but only {format_bytes(self.available_bytes)} may be used.{hint}",
            needed_bytes=self.minimum_bytes,
            available_bytes=self.available_bytes,
            options=self.options,
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        totals = {
            "weight_bytes": self.weight_bytes,
            "outside_bytes": self.outside_bytes,
            "outside_note": self.outside_note,
            "activation_bytes": self.activation_bytes,
            "activation_basis": self.activation_basis,
            "kv_bytes": self.kv_bytes,
            "state_bytes": self.state_bytes,
            "total_bytes": self.total_bytes,
            "fits": self.minimum_bytes <= self.available_bytes,
        }
        draft = self.draft.as_dict() if self.draft is not None else None
        return asdict(self) | {"quant": self.quant_json, "draft": draft} | totals
