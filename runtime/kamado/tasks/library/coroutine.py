"""Code that asks for something in the middle of a call, and goes on with the answer.

A greenlet: the function needs to know nothing of it, however deep in a library the question comes up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import greenlet
import torch

_AUTOCAST_DEVICES = ("cpu", "cuda")
_MAX_REFUSALS = 16
"""How often code that is being closed may swallow that and ask again, before it is dropped as it stands."""

Autocast = tuple[tuple[str, torch.dtype], ...]
"""The device types for which autocast is on, each with its dtype."""


class Ended:
    """What `resume` returns when the function has returned."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Coroutine:
    """One function that runs until it asks, and goes on when it is answered. All on one thread.

    What torch keeps per thread (grad mode, autocast) belongs to whoever runs: it is put away at each question and put
    back with the answer, so that functions that take turns do not see each other's.
    """

    def __init__(self, function: Callable[[Coroutine], Any]) -> None:
        """`function(self)` starts with the first `resume`."""
        self._greenlet: greenlet.greenlet | None = greenlet.greenlet(lambda: function(self))

    @property
    def running(self) -> bool:
        """Whether it has neither returned nor raised nor been closed. True also before it starts."""
        return self._greenlet is not None

    def ask(self, question: Any) -> Any:
        """From inside: hand `question` to whoever resumed, and wait for the answer."""
        current = self._greenlet
        assert current is not None and current is greenlet.getcurrent(), "only the coroutine's own code may ask"
        grad, autocast = torch.is_grad_enabled(), active_autocast()
        _leave(autocast)
        torch.set_grad_enabled(False)
        try:
            return current.parent.switch(question)
        finally:
            torch.set_grad_enabled(grad)
            _enter(autocast)

    def resume(self, answer: Any = None) -> Any:
        """From outside: go on with `answer`, up to the next question, which is returned, or to the end: `Ended`.
        Raises what the function raises."""
        assert self._greenlet is not None, "it has ended"
        self._greenlet.parent = greenlet.getcurrent()
        grad = torch.is_grad_enabled()
        try:
            result = self._greenlet.switch(answer) if self._greenlet else self._greenlet.switch()
        except BaseException:
            self._greenlet = None
            raise
        finally:
            torch.set_grad_enabled(grad)
        if self._greenlet.dead:
            self._greenlet = None
            return Ended(result)
        return result

    def close(self) -> None:
        """From outside: end it where it waits. Its `finally` blocks run; what it raises meanwhile is dropped, and a
        further question is refused."""
        for _ in range(_MAX_REFUSALS):
            if self._greenlet is None or self._greenlet.dead:
                break
            self._greenlet.parent = greenlet.getcurrent()
            try:
                self._greenlet.throw(greenlet.GreenletExit)
            except Exception:  # noqa: BLE001 - nobody is left to hear it
                break
        self._greenlet = None


def active_autocast() -> Autocast:
    """What autocast does in this thread now."""
    return tuple(
        (device, torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)
    )


def _leave(autocast: Autocast) -> None:
    for device, _ in autocast:
        torch.set_autocast_enabled(device, False)


def _enter(autocast: Autocast) -> None:
    for device, dtype in autocast:
        torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_enabled(device, True)
