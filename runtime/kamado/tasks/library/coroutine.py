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
    """One function that runs until it asks, and goes on when it is answered. All on one thread, from the first `resume`
    on.

    What torch keeps per thread (grad mode, inference mode, autocast) belongs to whoever runs: functions that take turns
    do not see each other's, nor does who resumes them. Torch's function modes (`with torch.device(...)`) cannot be put
    away like that, so asking inside one that the function has entered is an error.
    """

    def __init__(self, function: Callable[[Coroutine], Any]) -> None:
        """`function(self)` starts with the first `resume`."""
        self._function: Callable[[Coroutine], Any] | None = function
        self._greenlet: greenlet.greenlet | None = None
        self._num_modes = 0
        """Function modes that are active for who resumed."""

    @property
    def running(self) -> bool:
        """Whether it has neither returned nor raised nor been closed. True also before it starts."""
        return self._function is not None or self._greenlet is not None

    def ask(self, question: Any) -> Any:
        """From inside: hand `question` to whoever resumed, and wait for the answer. Raises RuntimeError inside a torch
        function mode, and on another thread than the function's."""
        current = self._greenlet
        if current is None or current is not greenlet.getcurrent():
            raise RuntimeError("library code calls a model from a thread of its own, which is not supported")
        if torch._C._len_torch_function_stack() != self._num_modes:
            raise RuntimeError(
                "library code calls a model inside torch.device() or a like mode, which is not supported"
            )
        with _ModesKept():
            return current.parent.switch(question)

    def resume(self, answer: Any = None) -> Any:
        """From outside: go on with `answer`, up to the next question, which is returned, or to the end: `Ended`.
        Raises what the function raises. The first call starts it, and its answer goes nowhere."""
        assert self.running, "it has ended"
        self._num_modes = torch._C._len_torch_function_stack()
        with _ModesKept():
            try:
                result = self._switch(answer)
            except BaseException:
                self._greenlet = None
                raise
        if self._greenlet is not None and self._greenlet.dead:
            self._greenlet = None
            return Ended(result)
        return result

    def close(self) -> None:
        """From outside: end it where it waits. Its `finally` blocks run; what it raises meanwhile is dropped, and a
        further question is refused."""
        self._function = None
        with _ModesKept():
            for _ in range(_MAX_REFUSALS):
                if self._greenlet is None or self._greenlet.dead:
                    break
                self._greenlet.parent = greenlet.getcurrent()
                try:
                    self._greenlet.throw(greenlet.GreenletExit)
                except (Exception, SystemExit):  # noqa: BLE001 - nobody is left to hear it
                    break
        self._greenlet = None

    def _switch(self, answer: Any) -> Any:
        if self._greenlet is None:
            # Only now: tasks are made on other threads, and a greenlet belongs to the one that makes it.
            self._greenlet, self._function = greenlet.greenlet(self._function), None
            return self._greenlet.switch(self)
        self._greenlet.parent = greenlet.getcurrent()
        return self._greenlet.switch(answer)


def active_autocast() -> Autocast:
    """What autocast does in this thread now."""
    return tuple(
        (device, torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)
    )


class _ModesKept:
    """Afterwards grad mode, inference mode and autocast of this thread are as before, whoever ran in between. For one
    use; a class, and torch's own one beneath `inference_mode`, since more takes several times as long, four times a
    step."""

    __slots__ = ("_autocast", "_inference")

    def __enter__(self) -> None:
        grad = torch.is_grad_enabled()
        self._autocast = _autocast()
        # There is no other way to set it back. Leaving it brings the grad mode back as well.
        self._inference = torch._C._InferenceMode(torch.is_inference_mode_enabled())
        self._inference.__enter__()
        torch._C._set_grad_enabled(grad)

    def __exit__(self, *_: object) -> None:
        self._inference.__exit__(None, None, None)
        if _autocast() != self._autocast:
            for device, enabled, dtype in self._autocast:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)


def _autocast() -> list[tuple[str, bool, torch.dtype]]:
    return [
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES
    ]
