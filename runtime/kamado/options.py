"""What a model can be asked: the names of its generation options, with a check for each.

Families of models that make neither plain text nor diffusers' pictures declare theirs with `Options`; the command line,
batches and `Model.generate` go by that declaration. Nothing here loads a model or a library.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from .errors import InvalidRequest

Check = Callable[[str, Any], Any]
"""`check(name, value)` returns the value as it will be used, or raises InvalidRequest, which names the option."""
Medium = Literal["image", "audio", "video", "latents", "notes"]

MAX_ANSWERS = 1024
MAX_CHARACTERS = 1_000_000
"""Of any text."""
LAST_SEED = 2**63 - 1 - MAX_ANSWERS


def text(*, empty: bool = False, longest: int = MAX_CHARACTERS) -> Check:
    """A text; `empty`: also an empty one."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} must be text, not {type(value).__name__}")
        if not empty and not value.strip():
            raise InvalidRequest(f"{name} is empty")
        if len(value) > longest:
            raise InvalidRequest(f"{name} has {len(value)} characters; at most {longest} can be given")
        return value

    return check


def whole(low: int, high: int) -> Check:
    """A whole number in [low, high]."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value!r:.80}")
        return value

    return check


def number(low: float, high: float, *, above: bool = False) -> Check:
    """A finite number in [low, high]; `above`: not `low` itself."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
            raise InvalidRequest(f"{name} must be a finite number, not {value!r:.80}")
        if not low <= value <= high or (above and value == low):
            least = "above" if above else "at least"
            raise InvalidRequest(f"{name} must be {least} {low:g} and at most {high:g}, not {value!r:.80}")
        return float(value)

    return check


def one_of(*choices: str) -> Check:
    """One of these texts."""

    def check(name: str, value: Any) -> str:
        if value not in choices:
            listed = ", ".join(choices[:20]) + (f" and {len(choices) - 20} more" if len(choices) > 20 else "")
            raise InvalidRequest(f"{name} must be one of {listed}, not {value!r:.80}")
        return str(value)

    return check


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, not {value!r:.80}")
    return value


def anything(name: str, value: Any) -> Any:
    """Whatever it is; who uses it judges it."""
    return value


def several(check: Check, *, most: int = 1024) -> Check:
    """A list of what `check` takes, or one of them; becomes a tuple."""

    def check_all(name: str, value: Any) -> tuple[Any, ...]:
        items = value if isinstance(value, (list, tuple)) else (value,)
        if not 0 < len(items) <= most:
            raise InvalidRequest(f"{name} must have 1 to {most} entries, not {len(items)}")
        return tuple(check(name if len(items) == 1 else f"{name}[{i}]", item) for i, item in enumerate(items))

    return check_all


_ALWAYS: Mapping[str, Check] = {"seed": whole(0, LAST_SEED), "deadline_s": number(0.0, 1e9, above=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one kind of model. `seed` and `deadline_s` are taken always."""

    what: str
    """What takes them, for messages: "a speech model"."""
    checks: Mapping[str, Check]
    inputs: Mapping[str, Medium] = field(default_factory=dict)
    """The options, among those of `checks`, that are files or what they hold: which kind each is. They may be paths."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other options that may name a file, which their check reads: the suffixes, in lower case, of texts that do."""
    needs: Collection[str] = ("prompt",)
    """Of these options, one at least must be given; empty: none must."""
    takes_n: bool = False
    """Whether `n` answers can be asked for, each with a seed of its own."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of options."""
    made: Callable[[Mapping[str, Any]], Sequence[str]] | None = None
    """What a checked request comes out as, of several kinds that the model makes (see `kamado.outputs.KINDS`); more
    than one where that shows only later. None: whatever the model makes."""

    @property
    def names(self) -> frozenset[str]:
        """What can be given."""
        return frozenset({*self.checks, *_ALWAYS, *(("n",) if self.takes_n else ())})

    def names_file(self, name: str, value: Any) -> bool:
        """Whether an option has a file opened by its name. What no file may be chosen by (recipes) asks this before
        `checked`."""
        own = self.aliases.get(name, name)
        if own in self.inputs:
            return True
        return isinstance(value, (str, PurePath)) and str(value).lower().endswith(self.files.get(own, ()))

    def checked(self, options: Mapping[str, Any], *, whole_request: bool = True) -> dict[str, Any]:
        """The options that were given, each checked for itself; None counts as missing. `whole_request`: also that
        nothing is missing. Files are not opened. Raises InvalidRequest."""
        given: dict[str, Any] = {}
        for name, value in options.items():
            if value is None:
                continue
            own = self.aliases.get(name, name)
            if own in given:
                raise InvalidRequest(f"{own} was given twice ({name})")
            if own not in self.names:
                raise InvalidRequest(f"{self.what} takes no {name}; it takes {', '.join(sorted(self.names))}")
            given[own] = self._check(own)(own, value)
        if whole_request and self.needs and not any(name in given for name in self.needs):
            raise InvalidRequest(f"give {self.what} {' or '.join(self.needs)}")
        return given

    def kinds_of(self, request: Mapping[str, Any], makes: Sequence[str]) -> Sequence[str]:
        """What a checked request comes out as; `makes`: what the model makes."""
        return makes if self.made is None else self.made(request)

    def resolved(self, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What was asked, checked, over `defaults` (those that the kind takes); with `seed`, and `n` where it is taken.
        Raises InvalidRequest."""
        usable = {name: value for name, value in (defaults or {}).items() if name in self.names}
        given = self.checked({**usable, **{name: value for name, value in options.items() if value is not None}})
        given.setdefault("seed", secrets.randbits(32))
        if self.takes_n:
            given.setdefault("n", 1)
        return given

    def _check(self, name: str) -> Check:
        return self.checks.get(name) or (whole(1, MAX_ANSWERS) if name == "n" else _ALWAYS[name])
