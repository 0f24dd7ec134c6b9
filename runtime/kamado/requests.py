"""Generation options of text models, in two stages: what was asked (anything may be missing) and what is run."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .code_requests import CODE_OPTION_NAMES, resolve_code
from .errors import InvalidRequest
from .turns import KINDS, Item, as_list, split_turns

MAX_ANSWERS = 128
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one token is drawn from the logits. Order of operations: logit bias, repetition, presence and frequency
    penalty, temperature, top-k, top-p, min-p, typical, draw."""

    temperature: float = 0.0
    """0 takes the most probable token; above 0, logits are divided by it. [0, 100]"""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens whose mass reaches p. (0, 1]"""
    min_p: float = 0.0
    """Keep tokens at least this many times as probable as the best one. [0, 1]"""
    typical_p: float = 1.0
    """Locally typical sampling (Meister et al. 2022): mass kept of the tokens nearest to the entropy. (0, 1]"""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens seen in prompt or answer (Keskar et al. 2019). (0, 100]"""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token already in the answer. [-100, 100]"""
    frequency_penalty: float = 0.0
    """Subtracted for each time a token is in the answer. [-100, 100]"""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logit of a token id before everything else. [-100, 100]; -100 bans and 100 forces it in practice."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """One text request, resolved: nothing is missing any more."""

    prompt: str | None
    messages: tuple[Mapping[str, Any], ...]
    """Chat turns `{"role", "content"}`; empty when `prompt` or `prompt_tokens` is given. A content is a text, or a list
    of parts that only say where something stands: see `kamado.turns.split_turns`."""
    prompt_tokens: tuple[int, ...]
    system: str | None
    chat: bool
    """Whether `prompt` is wrapped in the model's chat template."""
    max_tokens: int | None
    """Tokens to make at most; None: up to the end of the context."""
    sampling: Sampling
    seed: int
    n: int
    stop: tuple[str, ...]
    ignore_eos: bool
    logprobs: int | None
    """Number of alternatives to report beside each chosen token's log-probability; None reports nothing."""
    deadline_s: float | None
    media: tuple[Item, ...] = ()
    """What the parts of `messages` stand for, or what is shown with `prompt`, in order."""
    suffix: str | None = None
    """Text behind the cursor, of which `prompt` is the text before: the answer is what goes between."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Other files of the repository: path -> text."""
    repository: str | None = None
    """Its name."""
    filename: str | None = None
    """Path of the file that is written."""
    stop_at: str | None = None
    """"block": end where the block of code ends that the cursor is in."""

    @property
    def is_code(self) -> bool:
        """Whether `prompt` is the text before a cursor."""
        given = (self.suffix, self.repository, self.filename, self.stop_at)
        return bool(self.files) or any(value is not None for value in given)


_RANGES: dict[str, tuple[float, float, bool]] = {
    # name: lowest, highest, whether the lowest itself is allowed
    "temperature": (0.0, 100.0, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "typical_p": (0.0, 1.0, False),
    "repetition_penalty": (0.0, 100.0, False),
    "presence_penalty": (-100.0, 100.0, True),
    "frequency_penalty": (-100.0, 100.0, True),
}
_SAMPLING_NAMES = frozenset(f.name for f in fields(Sampling))
TEXT_OPTION_NAMES = frozenset(
    {
        "prompt",
        "messages",
        "prompt_tokens",
        "system",
        "chat",
        "max_tokens",
        "seed",
        "n",
        "stop",
        "ignore_eos",
        "logprobs",
    }
    | {"deadline_s", *KINDS, *CODE_OPTION_NAMES}
    | _SAMPLING_NAMES
)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidRequest(f"{name} must be a finite number, not {value!r}")
    return float(value)


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return value


def _ranged(name: str, value: Any) -> float:
    number = _number(name, value)
    low, high, closed = _RANGES[name]
    if not (low <= number <= high) or (number == low and not closed):
        raise InvalidRequest(
            f"{name} must be {'at least' if closed else 'above'} {low:g} and at most {high:g}, not {value!r}"
        )
    return number


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"logit_bias must map token ids to numbers, not {value!r}")
    bias: dict[int, float] = {}
    for key, amount in value.items():
        if isinstance(key, bool) or not str(key).isdecimal():
            raise InvalidRequest(f"logit_bias: {key!r} is not a token id")
        number = _number(f"logit_bias[{key}]", amount)
        if abs(number) > 100:
            raise InvalidRequest(f"logit_bias[{key}] must be from -100 to 100, not {amount!r}")
        bias[int(key)] = number
    return bias


def resolve_sampling(options: Mapping[str, Any], defaults: Sampling | None = None) -> Sampling:
    """The sampling part of `options` (None counts as missing) over `defaults`. Raises InvalidRequest."""
    changes: dict[str, Any] = {}
    for name in _SAMPLING_NAMES:
        value = options.get(name)
        if value is None:
            continue
        if name == "top_k":
            changes[name] = _integer(name, value, 0, 2**31 - 1)
        elif name == "logit_bias":
            changes[name] = _logit_bias(value)
        else:
            changes[name] = _ranged(name, value)
    return replace(defaults or Sampling(), **changes)


def _messages(value: Any) -> tuple[tuple[Mapping[str, Any], ...], tuple[Item, ...]]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidRequest('messages must be a list of {"role": ..., "content": ...}')
    if not value:
        raise InvalidRequest("messages is empty; give at least one turn")
    for i, turn in enumerate(value):
        if (
            not isinstance(turn, Mapping)
            or not isinstance(turn.get("role"), str)
            or not isinstance(turn.get("content"), (str, list, tuple))
        ):
            raise InvalidRequest(
                f'messages[{i}] must be {{"role": text, "content": text or a list of parts}}, not {turn!r:.80}'
            )
    turns, items = split_turns(value)
    return tuple(turns), tuple(items)


def _shown(given: Mapping[str, Any]) -> tuple[Item, ...]:
    """What is shown with a prompt: the options `image`, `video` and `audio`. Raises InvalidRequest."""
    found = [(kind, given[kind]) for kind in KINDS if kind in given]
    if found and "prompt" not in given:
        raise InvalidRequest(f"{found[0][0]} goes with a prompt; messages have it among the parts of a turn's content")
    return tuple(Item(kind, source) for kind, value in found for source in as_list(kind, value))


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else None
    if stops is None or not all(isinstance(s, str) and 0 < len(s) <= 1000 for s in stops) or len(stops) > MAX_STOPS:
        raise InvalidRequest(
            f"stop must be a text or a list of at most {MAX_STOPS} texts of 1 to 1000 characters, not {value!r:.80}"
        )
    return stops


def _prompt_tokens(value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise InvalidRequest("prompt_tokens must be a non-empty list of token ids")
    return tuple(_integer(f"prompt_tokens[{i}]", token, 0, 2**31 - 1) for i, token in enumerate(value))


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, not {value!r}")
    return value


def resolve_text_options(
    options: Mapping[str, Any], *, sampling_defaults: Sampling | None = None, chat_default: bool = False
) -> TextOptions:
    """Check and complete what was asked. Values that are None count as missing. Raises InvalidRequest."""
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - TEXT_OPTION_NAMES):
        raise InvalidRequest(f"unknown or unusable option for a text model: {', '.join(unknown)}")
    inputs = [name for name in ("prompt", "messages", "prompt_tokens") if name in given]
    if len(inputs) != 1:
        raise InvalidRequest(
            "give exactly one of prompt, messages and prompt_tokens"
            + (f", not {' and '.join(inputs)}" if inputs else "")
        )
    prompt = given.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise InvalidRequest(f"prompt must be text, not {type(prompt).__name__}")
    code = resolve_code(given)
    if prompt == "" and not code.get("suffix"):
        raise InvalidRequest("the prompt is empty; give the model something to answer")
    media = _shown(given)
    messages, in_messages = _messages(given["messages"]) if "messages" in given else ((), ())
    useless = {"prompt": set[str](), "messages": {"chat"}, "prompt_tokens": {"chat", "system"}}[inputs[0]] & set(given)
    if useless:
        raise InvalidRequest(f"{inputs[0]} are taken as they are; leave out {' and '.join(sorted(useless))}")
    system = given.get("system")
    if system is not None and not isinstance(system, str):
        raise InvalidRequest(f"system must be text, not {type(system).__name__}")
    deadline_s = given.get("deadline_s")
    if deadline_s is not None and _number("deadline_s", deadline_s) <= 0:
        raise InvalidRequest(f"deadline_s must be above 0, not {deadline_s!r}")
    logprobs = given.get("logprobs")
    if isinstance(logprobs, bool):
        logprobs = 0 if logprobs else None
    return TextOptions(
        prompt=prompt,
        messages=messages,
        prompt_tokens=_prompt_tokens(given["prompt_tokens"]) if "prompt_tokens" in given else (),
        system=system,
        chat=_flag("chat", given.get("chat", chat_default and not code)),
        max_tokens=_integer("max_tokens", given["max_tokens"], 1, 2**31 - 1) if "max_tokens" in given else None,
        sampling=resolve_sampling(given, sampling_defaults),
        seed=_integer("seed", given["seed"], 0, 2**64 - 1) if "seed" in given else secrets.randbits(32),
        n=_integer("n", given.get("n", 1), 1, MAX_ANSWERS),
        stop=_stops(given["stop"]) if "stop" in given else (),
        ignore_eos=_flag("ignore_eos", given.get("ignore_eos", False)),
        logprobs=_integer("logprobs", logprobs, 0, MAX_TOP_LOGPROBS) if logprobs is not None else None,
        deadline_s=float(deadline_s) if deadline_s is not None else None,
        media=(*media, *in_messages),
        **code,
    )
