"""What can be said of how a model is to be loaded: keywords of `Runtime.plan` and `Runtime.load`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from .errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

    from .checkpoint.parts import Parts
    from .model import Model
    from .quant import QuantLike


class PlanSettings(TypedDict, total=False):
    """What decides where a model goes, in how many bytes. Each may be left out."""

    dtype: str
    """The compute precision, one of `kamado.memory.plan.DTYPES`.  ["auto"]"""
    quant: QuantLike
    """The form of the weights: `"int8"`, a name in `kamado.quant.SCHEMES`, a `Quant`, or a table with its fields.
    [None]"""
    kv_tokens: int | None
    """Tokens of KV cache to hold, from 1; None: as many as are of use.  [None]"""
    kv_dtype: str
    """Their form, one of `kamado.memory.plan.KV_DTYPES`.  ["auto"]"""
    offload: str
    """What becomes of weights that there is no room for: with "auto" they are read from RAM or disk each time they are
    used, as `Plan.outside_note` then says; "never" raises DoesNotFit instead.  ["auto"]"""
    allow_code: str | Path | None
    """The reference once more, to allow that this checkpoint's own code is run, with all the rights of this process; of
    a repository without its revision, too, of a folder also its full path. Without it a checkpoint that wants that is
    refused; for one that does not, it changes nothing.  [None]"""
    components: Parts | None
    """What takes the place of a pipeline's components, by name; see `kamado.checkpoint.parts`.  [None]"""
    base: str | Path | None
    """The pipeline that has what a single file lacks: tokenizers, configurations, further components.  [None]"""
    draft: str | Path | Model | None
    """A smaller model with the same tokens, which guesses what this one will say; answers are the same without. A
    reference is loaded for that, in the same dtype, quant and kv_dtype, and unloaded with the model; a `Model` of the
    same runtime stays what it is. Texts over pages only; not with `deterministic`.  [None]"""
    offline: bool
    """Whether the network must not be used.  [False]"""


SPECULATION = ("auto", "off")
COMPILE = ("auto", "off", "full")


class LoadSettings(PlanSettings, total=False):
    """Those, and what is said of a model that is loaded."""

    step_budget: int | None
    """The most tokens (of pictures: positions) in one forward, from 1; None: as the family sees fit.  [None]"""
    max_rows: int | None
    """The most requests in one forward, from 1.  [None]"""
    speculation: str
    """Whether tokens of an answer are guessed and then checked several at once, which changes no answer: "auto", where
    it pays, or "off". Texts over pages only; never with `deterministic`.  ["auto"]"""
    compile: str
    """Whether forwards that come again and again are recorded or compiled on a GPU, where that can be done and gives
    the same answers but for rounding: "auto", what takes no time worth mentioning; "full", also the blocks of
    denoisers, a matter of a minute when a size of picture first comes; "off". Never with `deterministic`.  ["auto"]"""
    prepared: bool
    """Whether quantized weights are taken from where an earlier load kept them, and are kept for later ones.  [True]"""
    request: Mapping[str, Any] | None
    """Options of one that will follow; what can be found wrong with it is raised before weights are read, and before
    others leave memory.  [None]"""
    keep_alive: float | None
    """Seconds without a request after which it leaves memory; None or -1: only when room is needed.  [None]"""
    pinned: bool
    """It stays in memory whatever happens; see `Model.pin`.  [False]"""
    progress: Callable[[int, int], None] | None
    """Called as `progress(done, total)`, of bytes read.  [None]"""


def check_names(function: str, given: Iterable[str], known: type[PlanSettings]) -> None:
    """Raise TypeError, as Python does, for a keyword that `function` does not have."""
    names = [*PlanSettings.__annotations__, *known.__annotations__]
    for name in given:
        if name not in names:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def choice_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """One of the choices. Raises InvalidRequest."""
    if value not in choices:
        raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value


def seconds(name: str, value: float | None) -> float | None:
    """A time from 0; None and -1 are None: for ever. Raises InvalidRequest."""
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise InvalidRequest(f"{name} must be a number of seconds from 0, or -1 for ever, not {value!r}")
    return value if value < threading.TIMEOUT_MAX else None
