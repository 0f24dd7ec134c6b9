"""A model of a runtime, wherever it is; and the thread on which its lanes run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from ..contracts import LoadedModel, Parked
from ..errors import InvalidRequest
from .plan import Plan

T = TypeVar("T")
Place = Literal["out", "loading", "in", "leaving"]


class LoopThread(Protocol):
    """See `kamado.engine.session.Session`."""

    def call(self, function: Callable[[], T]) -> T:
        """Run it on the loop's thread, between two steps, and wait."""

    def later(self, due: float, function: Callable[[], None]) -> None:
        """Run it on the loop's thread once the clock shows `due`."""

    def is_own_thread(self) -> bool:
        """Whether the caller is the loop's thread."""


@dataclass(slots=True, kw_only=True, eq=False)
class Tenant:
    """One model, wherever it is. The keeper's to change."""

    owner: str
    """Name in the ledger, and the beginning of its lanes' names."""
    plan: Plan
    """What it was loaded by, and is brought back by."""
    load: Callable[[Parked | None], LoadedModel]
    """Bring it back, from RAM if its weights are there, or read it again. Raises what `Family.load` raises, and where
    its files are others now."""
    end_requests: Callable[[], None] = lambda: None
    """End all that are in flight. Called on the loop's thread."""
    draft: Tenant | None = None
    """The model that guesses for this one."""
    owns_draft: bool = False
    """Whether that is of use to this one alone: it goes with it."""
    keep_alive_s: float | None = None
    """How long it stays without requests; None: for ever."""
    pinned: bool = False
    place: Place = "out"
    gone: bool = False
    loaded: LoadedModel | None = None
    parked: Parked | None = None
    """Its weights, while it is out and they are in RAM."""
    users: int = 0
    """Requests that are prepared or in flight."""
    last_used: float = 0.0
    needed_bytes: int | None = None
    """What it had when it had just come in: its own, and room for its steps. None: it never was in memory, and is
    forgotten when it fails to come in."""
    num_returns: int = 0
    return_s: float = 0.0
    """What all returns took: making room, and reading."""
    has_timer: bool = False
    idle_bytes: int = 0
    """What it could let go of and stay in memory, when that was last asked."""
    turn_until: float = 0.0
    """Before that it takes new requests even if another one waits for its room."""

    def check_not_gone(self) -> None:
        """Raise InvalidRequest once it is unloaded."""
        if self.gone:
            raise InvalidRequest(f"{self.plan.reference} is unloaded; load it again")

    def trim(self) -> int:
        """Have it let go of that. Returns the bytes. On the loop's thread."""
        return self.loaded.trim() if self.loaded is not None else 0

    def figures(self, now: float) -> dict[str, Any]:
        """For `Runtime.stats`, with those of its state memory where it is in memory."""
        usage = self.loaded.usage() if self.loaded is not None else {}
        return {
            **usage,
            "place": "ram" if self.parked is not None else {"in": "memory"}.get(self.place, self.place),
            "pinned": self.pinned,
            "requests": self.users,
            "idle_s": 0.0 if self.users else max(now - self.last_used, 0.0),
            "returns": self.num_returns,
            "return_s": self.return_s,
            **({"draft": self.draft.owner} if self.draft is not None else {}),
        }

    def why_it_stays(self) -> str | None:
        """None: it may leave."""
        if self.users:
            return f"busy with {self.users} request{'s' if self.users > 1 else ''}"
        return "pinned" if self.pinned else None
