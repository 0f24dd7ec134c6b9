"""The options that many commands share, and the `Output` they all speak through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from ..errors import InvalidRequest
from ..memory.plan import KV_DTYPES
from .code_options import CODE_OPTIONS, code_given
from .naming import flags_of
from .output import Output, Update

__all__ = [
    "CliState",
    "LoadOptions",
    "Output",
    "SectionedCommand",
    "Update",
    "apply_options",
    "common_options",
    "model_options",
    "text_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(slots=True)
class CliState:
    """What `main` must know of a command that failed."""

    verbose: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)
    """What the library's options are called here; see `naming`."""


class SectionedCommand(click.Command):
    """Shows options by section: those of its own first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


def apply_options(
    command: Callable[..., Any], options: list[Callable[[Any], Any]], section: str | None = None
) -> Callable[..., Any]:
    """Decorate with the options; `section`: under which heading help shows them."""
    for option in reversed(options):  # click shows them in the order of decoration, bottom up
        command = option(command)
        if section is not None:
            vars(command)["__click_params__"][-1].section = section
    return command


def _note_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Noted while options are parsed, so that it holds for whatever fails afterwards."""
    state = ctx.find_object(CliState)
    if state is not None:
        state.verbose = value
    return value


def _note_flags() -> None:
    ctx = click.get_current_context()
    state = ctx.find_object(CliState)
    if state is not None:
        state.flags = flags_of(ctx)


def common_options(command: Command) -> Command:
    """Adds --json, -q and -v, and calls the command with `out: Output`. Stands last, next to the function:

    @click.command()
    @click.argument("model")
    @common_options
    def show(model: str, out: Output) -> None: ...
    """

    @functools.wraps(command)
    def wrapper(*args: Any, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        _note_flags()
        return command(*args, out=Output(is_json=as_json, quiet=quiet, verbose=verbose), **kwargs)

    options = [
        click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else there."),
        click.option("-q", "--quiet", is_flag=True, help="Print the answer only."),
        click.option("-v", "--verbose", is_flag=True, callback=_note_verbose, help="Say more, and show tracebacks."),
    ]
    return apply_options(wrapper, options)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Where and how a model is loaded: what was typed, completed from the preset."""

    device: str = "auto"
    dtype: str = "auto"
    quant: str = "none"
    memory: str | int | None = None
    offline: bool = False
    deterministic: bool = False
    kv_tokens: int | None = None
    kv_dtype: str = "auto"
    offload: str = "auto"
    allow_code: str | None = None
    """Only typed: no file may give leave to run code."""
    components: Mapping[str, list[str] | None] | None = None
    """What takes the place of a pipeline's components."""
    base: str | None = None
    """The pipeline that has what a single file lacks."""
    draft: str | None = None
    """The model that guesses for a text model."""
    speculation: str = "auto"
    compile: str = "auto"
    prepared: bool = True
    step_budget: int | None = None
    """Only presets set it."""
    preset: frozenset[str] = frozenset()
    """Which of these only the preset says: what the model cannot use of them is no error; see `loading.fitted`."""

    def of_model(self) -> dict[str, Any]:
        """What `Runtime.load` and `Runtime.plan` want to know of a model beside its reference."""
        return {
            "dtype": self.dtype,
            "quant": self.quant,
            "kv_tokens": self.kv_tokens,
            "kv_dtype": self.kv_dtype,
            "offload": self.offload,
            "allow_code": self.allow_code,
            "components": self.components,
            "base": self.base,
            "draft": self.draft,
            "offline": self.offline,
        }

    def of_lanes(self) -> dict[str, Any]:
        """What only `Runtime.load` wants to know beside those."""
        return {
            "step_budget": self.step_budget,
            "speculation": self.speculation,
            "compile": self.compile,
            "prepared": self.prepared,
        }


_PRESET_NAMES = ("device", "dtype", "quant", "memory", "kv_tokens", "kv_dtype", "offload", "step_budget")
_TYPED_NAMES = (
    *("device", "dtype", "quant", "memory", "kv_tokens", "kv_dtype", "offload"),
    *("allow_code", "base", "offline", "deterministic", "draft", "speculation", "compile", "prepared"),
)


def parse_components(items: Sequence[str]) -> dict[str, list[str] | None] | None:
    """`["vae=org/name", "safety_checker="]` -> `{"vae": ["org/name"], "safety_checker": None}`; None if there are none.
    Raises InvalidRequest."""
    found: dict[str, list[str]] = {}
    for item in items:
        name, separator, reference = item.partition("=")
        if not separator or not name.isidentifier():
            raise InvalidRequest(f"--component {item!r:.80}: write it as NAME=MODEL, like vae=org/name")
        found.setdefault(name, []).append(reference)
    for name, references in found.items():
        if "" in references and len(references) > 1:
            raise InvalidRequest(f"--component {name}= leaves it out, so it cannot be given as well")
    return {name: None if references == [""] else references for name, references in found.items()} or None


def resolve_load_options(typed: Mapping[str, Any], preset: Mapping[str, Any]) -> LoadOptions:
    """What was typed wins over the preset, the preset over the defaults."""
    given = {name: value for name, value in typed.items() if value is not None}
    chosen = {name: preset[name] for name in _PRESET_NAMES if preset.get(name) is not None and name not in given}
    return LoadOptions(**chosen, **given, preset=frozenset(chosen))


def model_options(command: Command) -> Command:
    """Adds the options that say how a model is loaded; calls with `load: LoadOptions`."""

    @functools.wraps(command)
    def wrapper(*args: Any, config: str | None, **kwargs: Any) -> Any:
        typed = {name: kwargs.pop(name) for name in _TYPED_NAMES}
        typed["components"] = parse_components(kwargs.pop("components"))
        preset: Mapping[str, Any] = {}
        if config is not None:
            from ..presets import load_preset

            preset = load_preset(config)
        return command(*args, load=resolve_load_options(typed, preset), **kwargs)

    options = [
        click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...  [auto]"),
        click.option(
            "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Compute precision.  [auto]"
        ),
        click.option("--quant", metavar="NAME", help="Quantize the weights.  [none]"),
        click.option("--memory", metavar="SIZE", help="The most memory to use, like 8GiB.  [most of what is free]"),
        click.option("--kv-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of attention state to hold."),
        click.option("--kv-dtype", type=click.Choice(KV_DTYPES), help="Form of attention state.  [auto]"),
        click.option(
            "--offload", type=click.Choice(["auto", "never"]),
            help="Weights beyond the memory: read them when they are used, or refuse.  [auto]",
        ),
        click.option(
            "--allow-code", metavar="NAME", help="Run the checkpoint's own code, with your rights; NAME is MODEL again."
        ),
        click.option(
            "--component", "components", multiple=True, metavar="NAME=MODEL",
            help="In place of a pipeline's component, or beside it: vae=org/name. NAME= leaves it out. Repeatable.",
        ),
        click.option(
            "--base", metavar="MODEL", help="The pipeline that has what a single file lacks: tokenizers, other parts."
        ),
        click.option("--config", metavar="NAME_OR_FILE", help="Take these settings from a preset; typed ones win."),
        click.option(
            "--draft", metavar="MODEL", help="A smaller text model with the same tokens, which guesses for this one."
        ),
        click.option(
            "--speculation", type=click.Choice(["auto", "off"]),
            help="Guess tokens of a text and check several at once, where that is faster.  [auto]",
        ),
        click.option(
            "--compile", type=click.Choice(["auto", "off", "full"]),
            help="Record on a GPU what runs again and again; full: compile denoisers, too.  [auto]",
        ),
        click.option(
            "--no-prepared", "prepared", flag_value=False, default=None,
            help="Prepare quantized weights anew; neither use nor keep what was prepared before.",
        ),
        click.option("--offline", is_flag=True, help="Never use the network."),
        click.option("--deterministic", is_flag=True, help="Bit-equal answers whatever else runs; slower."),
    ]  # fmt: skip
    return apply_options(wrapper, options, "Loading")  # type: ignore[return-value]


_TEXT_NAMES = (
    *("system", "max_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed", "n", "logprobs", "repository", "filename", "stop_at"),
)


def text_options(command: Command) -> Command:
    """Adds the generation options of text models, and those of all models (`SHARED`); calls with `text: dict` of those
    that were given. Their values are for `kinds.check_values` to judge."""

    @functools.wraps(command)
    def wrapper(
        *args: Any, stop: tuple[str, ...], logit_bias: tuple[str, ...], ignore_eos: bool, raw: bool, **kwargs: Any
    ) -> Any:
        values = {name: kwargs.pop(name) for name in _TEXT_NAMES}
        text: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        text |= code_given(kwargs.pop("suffix"), kwargs.pop("context_files"))
        if stop:
            text["stop"] = list(stop)
        if logit_bias:
            text["logit_bias"] = dict(parse_bias(item) for item in logit_bias)
        if ignore_eos:
            text["ignore_eos"] = True
        if raw:
            text["chat"] = False
        return command(*args, text=text, **kwargs)

    options = [
        click.option("--system", metavar="TEXT", help="System message of the chat."),
        click.option(
            "--max-tokens", type=int, metavar="N", help="Tokens to make at most.  [up to the model's context]"
        ),
        click.option("--temperature", type=float, metavar="T", help="0 takes the most probable token each time."),
        click.option("--top-p", type=float, metavar="P", help="Draw from the most probable tokens of this mass."),
        click.option("--top-k", type=int, metavar="K", help="Draw from the K most probable tokens; 0 for all."),
        click.option("--min-p", type=float, metavar="P", help="Drop tokens this much less probable than the best."),
        click.option("--typical-p", type=float, metavar="P", help="Locally typical sampling: mass to keep."),
        click.option("--repetition-penalty", type=float, metavar="X", help="Above 1: tokens seen before count less."),
        click.option(
            "--presence-penalty", type=float, metavar="X", help="Taken once from tokens already in the answer."
        ),
        click.option(
            "--frequency-penalty", type=float, metavar="X", help="Taken for each time a token is in the answer."
        ),
        click.option(
            "--logit-bias", multiple=True, metavar="ID=X", help="Add X to the logit of a token id. Repeatable."
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. Repeatable."),
        click.option("--logprobs", type=int, metavar="N", help="Report log-probabilities and N alternatives (--json)."),
        click.option("--ignore-eos", is_flag=True, help="Go on after the model's end token."),
        click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template."),
        *CODE_OPTIONS,
    ]
    shared = [
        click.option("--seed", type=int, metavar="N", help="Makes draws repeatable."),
        click.option("--n", type=int, metavar="N", help="Number of answers, or of pictures."),
    ]
    return apply_options(apply_options(wrapper, options, "Text"), shared, "Text and pictures")  # type: ignore[return-value]


def parse_bias(item: str) -> tuple[int, float]:
    """`"42=-1.5"` -> `(42, -1.5)`. Raises InvalidRequest."""
    token_id, separator, amount = item.partition("=")
    try:
        if not separator or not token_id.strip().isdecimal():
            raise ValueError
        return int(token_id), float(amount)
    except ValueError:
        raise InvalidRequest(f"--logit-bias {item!r}: write it as TOKEN_ID=NUMBER, like 42=-100") from None
