"""The lane of one model that library code calls: calls of several requests are one forward where the model allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...contracts import Work
from .stacking import Form, Stacker, same, split
from .standin import ModelCall

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
_COARSE = 5e-2
"""Largest difference between a row alone and in a batch, relative to the largest value: other orders of summation."""


class ModelLane:
    """See kamado.contracts.Lane. Its works come from `work`."""

    def __init__(
        self,
        name: str,
        *,
        step_budget: int,
        max_rows: int,
        trusted: bool = False,
        without_effect: frozenset[str] = frozenset(),
    ) -> None:
        """`step_budget` is in positions (see Form). `trusted`: the model is known to compute each row for itself;
        others are compared when calls are joined for the first time. `without_effect`: see Stacker."""
        self.name = name
        self.step_budget = step_budget
        self.max_rows = max_rows
        self.joins: dict[tuple[type, str, tuple[str, ...]], bool] = {}
        """For each (class, method, kind of arguments) that was compared: whether calls can be joined."""
        self._trusted = trusted
        self._stacker = Stacker(without_effect)
        self._alone = 0

    def work(self, call: ModelCall) -> Work:
        """The call as a work of this lane."""
        form = self._stacker.form(call.arguments)
        if form is None:
            self._alone += 1
            return Work(self.name, ("alone", self._alone), 1, (call, None))
        key = (type(call.module), call.method, call.autocast, call.settings, form.key)
        return Work(self.name, key, form.rows * form.positions, (call, form))

    def run(self, works: Sequence[Work]) -> list[Any]:
        """See Lane. A call that is alone is made exactly as the library made it."""
        calls: list[ModelCall] = [work.payload[0] for work in works]
        if len(calls) == 1:
            return [calls[0].run()]
        forms: list[Form] = [work.payload[1] for work in works]
        kind = (type(calls[0].module), calls[0].method, tuple(sorted(calls[0].arguments)))
        verdict = True if self._trusted else self.joins.get(kind)
        joined = self._joined(calls, [form.rows for form in forms]) if verdict is not False else None
        if verdict and joined is not None:
            return joined
        alone = [call.run() for call in calls]
        if verdict is None:
            self.joins[kind] = joined is not None and all(
                same(one, other, _tolerance(other)) for one, other in zip(joined, alone, strict=True)
            )
        return alone

    def _joined(self, calls: Sequence[ModelCall], rows: Sequence[int]) -> list[Any] | None:
        result = calls[0].run(self._stacker.join([call.arguments for call in calls], rows))
        return split(result, rows)


def _tolerance(result: Any) -> float:
    dtype = next((leaf.dtype for leaf in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(leaf)), None)
    return _TOLERANCES.get(dtype, _COARSE) if dtype is not None else _TOLERANCES[torch.float32]


class StartLane:
    """The lane of answers that have not begun: its works compute nothing."""

    step_budget = 1 << 30

    def __init__(self, name: str, max_rows: int) -> None:
        self.name = name
        self.max_rows = max_rows

    def run(self, works: Sequence[Work]) -> list[None]:
        """See Lane."""
        return [None] * len(works)
