"""The lane of one model that library code calls: calls of several requests are one forward where the model allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from ...contracts import Work
from ...errors import GenerationFailed
from ...memory.frames import forget_locals
from ...memory.shortage import is_shortage
from .compare import rows_differ, same
from .kept import Keeping
from .live_bytes import measuring
from .stacking import Form, Stacker
from .standin import ModelCall

_PIXELS_OF_A_LATENT = 64
"""An autoencoder encodes pixels and decodes latents; both count in latents."""
_MAX_FORMS = 8
"""Of a method; beyond, only larger calls are measured."""


def _nothing() -> None:
    """For callers who need not be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How much memory the temporary tensors of one call took."""

    method: str
    rows: int
    positions: int
    """See Form."""
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """Payload of a work."""

    call: ModelCall
    form: Form | None
    """None: it can only be made alone."""
    state: Hashable
    on_joined: Callable[[], None]
    on_eased: Callable[[], None]
    on_measured: Callable[[Measurement], None] | None
    eased: bool = False
    """Whether it is another call than the one that was asked for."""


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
        lighter: Callable[[ModelCall], ModelCall | None] = lambda call: None,
        device: str = "cpu",
        known: Mapping[str, Collection[tuple[int, int]]] | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        """`step_budget` is in positions (see Form). `trusted`: the model is known to compute each row for itself;
        others are compared when calls are joined for the first time. `without_effect`: see Stacker. Forwards run inside
        `around(state)`, which puts the shared model into the state that the calls ask for. `lighter(call)`: a call that
        gives about the same and takes less memory, if there is one. `device`: where the model is. `known`: the forms
        (rows, positions) of calls that were measured already, by method. `keeping`: for a model whose calls come again,
        what knows the results of those before."""
        self.name = name
        self.step_budget = step_budget
        self.max_rows = max_rows
        self.joins: dict[tuple[type, str, Hashable], bool] = {}
        """For each (class, method, kind of calls) that was compared: whether calls can be joined."""
        self._trusted = trusted
        self._stacker = Stacker(without_effect)
        self._alone = 0
        self._around = around
        self._lighter = lighter
        self._device = device
        self._known = {method: set(forms) for method, forms in (known or {}).items()}
        self._keeping = keeping

    def work(
        self,
        call: ModelCall,
        state: Hashable = None,
        on_joined: Callable[[], None] = _nothing,
        on_eased: Callable[[], None] = _nothing,
        on_measured: Callable[[Measurement], None] | None = None,
    ) -> Work:
        """The call as a work of this lane. Only calls for the same `state` of the model share forwards. `on_joined` is
        called if this one does: its result then differs by rounding from that of the call alone. `on_eased` is called
        if memory sufficed for a lighter call only, `on_measured` if the call was made alone and was the first of its
        form, or larger than all before."""
        form = None if call.positional else self._stacker.form(call.arguments)
        asked = _Asked(
            call=call, form=form, state=state, on_joined=on_joined, on_eased=on_eased, on_measured=on_measured
        )
        if form is None:
            self._alone += 1
            return Work(self.name, ("alone", self._alone), 1, asked)
        key = (type(call.module), call.method, call.autocast, call.settings, form.key, state)
        positions = form.positions // _PIXELS_OF_A_LATENT if call.method == "encode" else form.positions
        return Work(self.name, key, max(form.rows * positions, 1), asked)

    def run(self, works: Sequence[Work]) -> list[Any]:
        """See Lane. A call that is alone is made exactly as the library made it. Raises GenerationFailed for code that
        wants to end the program."""
        asked: list[_Asked] = [work.payload for work in works]
        try:
            with self._around(asked[0].state):
                results = self._results(asked)
        except (Exception, SystemExit) as error:
            forget_locals(error)
            if isinstance(error, SystemExit):
                raise _wanted_to_exit(error) from error
            raise
        for each, (_, joined) in zip(asked, results, strict=True):
            if joined:
                each.on_joined()
            if each.eased:
                each.on_eased()
        return [result for result, _ in results]

    def ease(self, work: Work) -> Work | None:
        """See Lane."""
        asked: _Asked = work.payload
        lighter = self._lighter(asked.call)
        return None if lighter is None else replace(work, payload=replace(asked, call=lighter, eased=True))

    def _results(self, asked: Sequence[_Asked]) -> list[tuple[Any, bool]]:
        """Each with whether it came out of a forward that several calls shared."""

        def make(numbers: Sequence[int]) -> tuple[Sequence[Any], bool]:
            chosen = [asked[number] for number in numbers]
            return ([self._made_alone(chosen[0])], False) if len(chosen) == 1 else self._run(chosen)

        if self._keeping is None or any(each.eased for each in asked):
            results, joined = make(range(len(asked)))
            return [(result, joined) for result in results]
        return self._keeping.results([each.call for each in asked], asked[0].state, make)

    def _made_alone(self, asked: _Asked) -> Any:
        if asked.on_measured is None or asked.eased:
            return asked.call.run()
        form = (1, 0) if asked.form is None else (asked.form.rows, asked.form.positions)
        known = self._known.setdefault(asked.call.method, set())
        if form in known or (len(known) >= _MAX_FORMS and math.prod(form) <= max(map(math.prod, known))):
            return asked.call.run()
        with measuring(self._device) as found:
            result = asked.call.run()
        if found.bytes is not None:
            known.add(form)
            asked.on_measured(Measurement(method=asked.call.method, rows=form[0], positions=form[1], bytes=found.bytes))
        return result

    def _run(self, asked: Sequence[_Asked]) -> tuple[list[Any], bool]:
        """Results of several calls, and whether they shared a forward."""
        calls = [each.call for each in asked]
        forms = [each.form for each in asked if each.form is not None]
        rows = [form.rows for form in forms]
        # Some models treat rows by twos (guidance), so numbers of rows are compared apart.
        kind = (type(calls[0].module), calls[0].method, (calls[0].settings, forms[0].kind, frozenset(rows)))
        verdict = self._trusted or self.joins.get(kind)
        if verdict is None:
            return self._compared(kind, calls, rows), False
        joined = self._joined(calls, rows) if verdict else None
        return ([call.run() for call in calls], False) if joined is None else (joined, True)

    def _joined(self, calls: Sequence[ModelCall], rows: Sequence[int]) -> list[Any] | None:
        """The results of one forward for all; None where its result cannot be taken apart."""
        arguments = self._stacker.join([call.arguments for call in calls], rows)
        return self._stacker.split(calls[0].run(arguments), arguments, rows)

    def _compared(self, kind: tuple[type, str, Hashable], calls: Sequence[ModelCall], rows: Sequence[int]) -> list[Any]:
        """The results of the calls, each made alone; beside that, find out whether one forward gives the same."""
        try:
            joined = self._joined(calls, rows)
        except Exception as error:
            if is_shortage(error):
                raise  # says nothing of the model
            joined = None  # if it is the fault of one of the calls, that one raises again below
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
        """See Lane. Raises GenerationFailed for code that wants to end the program."""
        try:
            return [None if work.payload is None else work.payload() for work in works]
        except SystemExit as error:
            forget_locals(error)
            raise _wanted_to_exit(error) from error

    def ease(self, work: Work) -> Work | None:
        """See Lane. What runs as a whole is not known here."""
        return None


def _wanted_to_exit(error: SystemExit) -> GenerationFailed:
    """It would end the loop's thread, and with it every request."""
    return GenerationFailed(f"the library wanted to end the program: exit({error.code!r})")
