"""The lane of one model that library code calls: calls of several requests are one forward where the model allows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ...contracts import Work
from .compare import rows_differ, same
from .frames import forget_locals
from .stacking import Form, Stacker
from .standin import ModelCall

_PIXELS_OF_A_LATENT = 64
"""An autoencoder encodes pixels and decodes latents; both count in latents."""


class ModelLane:
    """See kamado.contracts.Lane. Its works come from `work`."""

    interactive = False

    def __init__(
        self,
        name: str,
        *,
        step_budget: int,
        max_rows: int,
        trusted: bool = False,
        without_effect: frozenset[str] = frozenset(),
        around: Callable[[Any], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`step_budget` is in positions (see Form). `trusted`: the model is known to compute each row for itself;
        others are compared when calls are joined for the first time. `without_effect`: see Stacker. Forwards run inside
        `around(state)`, which puts the shared model into the state that the calls ask for."""
        self.name = name
        self.step_budget = step_budget
        self.max_rows = max_rows
        self.joins: dict[tuple[type, str, Hashable], bool] = {}
        """For each (class, method, kind of calls) that was compared: whether calls can be joined."""
        self._trusted = trusted
        self._stacker = Stacker(without_effect)
        self._alone = 0
        self._around = around

    def work(self, call: ModelCall, state: Hashable = None, on_joined: Callable[[], None] = lambda: None) -> Work:
        """The call as a work of this lane. Only calls for the same `state` of the model share forwards. `on_joined` is
        called if this one does: its result then differs by rounding from that of the call alone."""
        form = None if call.positional else self._stacker.form(call.arguments)
        if form is None:
            self._alone += 1
            return Work(self.name, ("alone", self._alone), 1, (call, None, state, on_joined))
        key = (type(call.module), call.method, call.autocast, call.settings, form.key, state)
        positions = form.positions // _PIXELS_OF_A_LATENT if call.method == "encode" else form.positions
        return Work(self.name, key, max(form.rows * positions, 1), (call, form, state, on_joined))

    def run(self, works: Sequence[Work]) -> list[Any]:
        """See Lane. A call that is alone is made exactly as the library made it."""
        calls: list[ModelCall] = [work.payload[0] for work in works]
        try:
            with self._around(works[0].payload[2]):
                return [calls[0].run()] if len(calls) == 1 else self._run(works, calls)
        except Exception as error:
            forget_locals(error)
            raise

    def _run(self, works: Sequence[Work], calls: Sequence[ModelCall]) -> list[Any]:
        forms: list[Form] = [work.payload[1] for work in works]
        rows = [form.rows for form in forms]
        # Some models treat rows by twos (guidance), so numbers of rows are compared apart.
        kind = (type(calls[0].module), calls[0].method, (calls[0].settings, forms[0].kind, frozenset(rows)))
        verdict = self._trusted or self.joins.get(kind)
        if verdict is None:
            return self._compared(kind, calls, rows)
        joined = self._joined(calls, rows) if verdict else None
        if joined is None:
            return [call.run() for call in calls]
        for work in works:
            work.payload[3]()
        return joined

    def _joined(self, calls: Sequence[ModelCall], rows: Sequence[int]) -> list[Any] | None:
        """The results of one forward for all; None where its result cannot be taken apart."""
        arguments = self._stacker.join([call.arguments for call in calls], rows)
        return self._stacker.split(calls[0].run(arguments), arguments, rows)

    def _compared(self, kind: tuple[type, str, Hashable], calls: Sequence[ModelCall], rows: Sequence[int]) -> list[Any]:
        """The results of the calls, each made alone; beside that, find out whether one forward gives the same."""
        try:
            joined = self._joined(calls, rows)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # noqa: BLE001 - if it is the fault of one of the calls, that one raises again below
            joined = None
        alone = [call.run() for call in calls]
        if joined is None or not all(map(same, joined, alone)):
            self.joins[kind] = False
        elif rows_differ(alone):
            self.joins[kind] = True
        return alone


class HostLane:
    """The lane of what is not a model's forward: answers that have not begun (no payload), and library code that must
    run as a whole (the payload is called), since nobody else may use its models meanwhile."""

    step_budget = 1 << 30
    interactive = False

    def __init__(self, name: str, max_rows: int) -> None:
        self.name = name
        self.max_rows = max_rows

    def run(self, works: Sequence[Work]) -> list[Any]:
        """See Lane."""
        return [None if work.payload is None else work.payload() for work in works]
