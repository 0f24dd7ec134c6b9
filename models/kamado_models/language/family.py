"""The language family: causal and encoder-decoder text models of transformers, from folders and GGUF files.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kamado.checkpoint.own_code import wishes
from kamado.checkpoint.types import Checkpoint
from kamado.code_requests import CODE_OPTION_NAMES
from kamado.contracts import LoadedModel, LoadEnvironment
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.memory.learned import ESTIMATED, Learning
from kamado.memory.plan import KV_DTYPES, LanePlan, Plan, PlanOptions
from kamado.options import Options
from kamado.quant import Quant
from kamado.requests import TEXT_OPTION_NAMES
from kamado.sampling.scratch import scratch_bytes
from kamado.turns import KINDS

from ..environment import environment_kept
from .batching import PAGED, UNKNOWN, batching_of
from .config import as_stored, check_runnable, has_own_classes, language_config
from .learning import LANE, learning
from .media.sizes import in_encoders
from .media.table import ENCODER, TEXT_PARTS, THINKER, senses_of, tasks_of, text_part_name, text_part_of, thinker_of
from .needs import BLOCK_TOKENS, LEAST_STEP, LONG_PIECE, Needs, needs, what_would_fit, with_outside
from .shape import DTYPE_BYTES, TextShape, describe, tensor_sizes, text_shape

_STORED_DTYPES = {"BF16": "bfloat16", "F16": "float16"}
_USUAL_KV_TOKENS = {"cpu": 16384, "gpu": 131072}
"""Held where nobody asks for another number and it fits; up to four times that where one long context needs it."""
_ENOUGH_KV_TOKENS = 1024
"""Rather than have fewer, steps are made shorter."""
_UNBOUNDED_CONTEXT = 32768
_OWN_CODE_RUNS = "the checkpoint's own code runs, as allowed, with all rights of this process"


class LanguageFamily:
    """See kamado.contracts.Family."""

    name = "language"
    claims_last = True

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Family. A GGUF file is always a language model."""
        return checkpoint.layout == "gguf" or language_config(checkpoint) is not None

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Family."""
        return ("text",)

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Family."""
        usual = "text2text-generation" if checkpoint.config.get("is_encoder_decoder") is True else "text-generation"
        return tasks_of(thinker_of(checkpoint.config) or checkpoint.config) or (usual,)

    def options(self, checkpoint: Checkpoint) -> Options | None:
        """See Family."""
        return None

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Family."""
        sees = checkpoint.config.get("model_type") in TEXT_PARTS
        checkpoint = configured(checkpoint)
        with suppress(UnsupportedCheckpoint):  # what cannot be loaded is shown as well
            checkpoint = as_stored(checkpoint)
        own = has_own_classes(checkpoint)
        try:
            shape = text_shape(checkpoint.config)
        except UnsupportedCheckpoint:
            if not own:
                raise
            # What its own code calls the sizes is not known without running it, which describing never does.
            return {"architecture": checkpoint.config["architectures"][0], "batching": UNKNOWN, "takes": _takes()}
        facts = describe(checkpoint, shape) | {"batching": UNKNOWN if own else batching_of(shape)}
        senses = senses_of(checkpoint.config) if facts["batching"] == PAGED else ()
        facts["takes"] = _takes(senses, fills=not shape.is_encoder_decoder)
        if senses or sees:
            facts["reads"] = ["text", *senses]
        if facts["batching"] == PAGED:
            facts["kv_bytes_per_token"] |= {name: shape.kv_bytes_per_token(1, name) for name in KV_DTYPES[1:]}
        return facts

    def plan(self, checkpoint: Checkpoint, options: PlanOptions) -> Plan:
        """See Family."""
        checkpoint = as_stored(configured(checkpoint), options.quant)
        own = check_runnable(checkpoint, options.allow_code)
        shape, how = _shape(checkpoint, own)
        if own:  # What its class ties is known to that alone, so all that is stored counts.
            checkpoint = replace(checkpoint, config={**checkpoint.config, "tie_word_embeddings": False})
        _check_kv(checkpoint, how, _dtype(checkpoint, options), options)
        context = shape.context_tokens or _UNBOUNDED_CONTEXT

        def all_inside(options: PlanOptions) -> Needs:
            return needs(checkpoint, shape, how, context, _dtype(checkpoint, options), options)

        def needed(options: PlanOptions) -> Needs:
            return with_outside(all_inside(options), checkpoint, options)

        need = needed(options)
        known = learning(
            checkpoint, shape, dtype=need.dtype, quant=options.quant, kv_dtype=need.kv_dtype, device=options.device
        )
        room = _room(need, options, known)
        seeing = in_encoders(checkpoint.config, tensor_sizes(checkpoint, need.dtype, options.quant))
        fits = need.minimum <= options.budget_bytes
        pages, quantizable = how == PAGED, not checkpoint.config.get("quantization_config")
        advice: tuple[str, ...] = ()
        if not fits or need.outside.outside:
            found, other = (all_inside(options), all_inside) if fits else (need, needed)
            advice = what_would_fit(found, options, other, pages=pages, quantizable=quantizable, runs=fits)
        return Plan(
            reference=checkpoint.reference,
            family=self.name,
            architecture=shape.architecture,
            device=options.device,
            dtype=need.dtype,
            quant=options.quant,
            lanes=_lanes(need, room, seeing),
            context_tokens=context,
            kv_tokens=room.kv_tokens,
            kv_bytes_per_token=need.per_token,
            kv_dtype=need.kv_dtype,
            state_bytes_per_sequence=need.state,
            max_sequences=room.sequences if need.state else 0,
            step_tokens=room.step_tokens,
            step_rows=room.step_rows,
            available_bytes=options.budget_bytes,
            tier=options.tier(need.outside.outside_bytes),
            window_bytes=need.outside.window_bytes,
            minimum_bytes=need.minimum,
            options=advice,
            notes=(how, *_more_notes(need, room.step_tokens, own=own)),
            allow_code=options.allow_code if wishes(checkpoint) else None,
        )

    def check_requests(
        self, checkpoint: Checkpoint, plan: Plan, requests: Iterable[Mapping[str, Any]], *, offline: bool = False
    ) -> None:
        """See Family. What a checkpoint's own code would say of it is not known without running that."""
        checkpoint = configured(checkpoint)
        if check_runnable(checkpoint, plan.allow_code):
            return
        with environment_kept():
            from .loading import check_requests

            check_requests(requests, checkpoint, plan)

    def check_draft(self, checkpoint: Checkpoint, draft: Checkpoint) -> None:
        """See Family."""
        if not self.claims(draft):
            raise InvalidRequest(f"{draft.reference} makes no text, so it cannot guess for {checkpoint.reference}")
        checkpoint, draft = configured(checkpoint), configured(draft)
        for each in (checkpoint, draft):
            if has_own_classes(each):
                raise InvalidRequest(f"{each.reference} wants its own code run, which knows no drafts; leave it out")
        with environment_kept():
            from .drafts import check_draft

            check_draft(checkpoint, draft)

    def load(self, checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> LoadedModel:
        """See Family."""
        checkpoint = configured(checkpoint)
        own = check_runnable(checkpoint, plan.allow_code)
        with environment_kept():
            from .loading import load

            return load(checkpoint, plan, env, own_code=own)

    def write_quantized(
        self, checkpoint: Checkpoint, quant: Quant, folder: Path, *, offline: bool
    ) -> Mapping[str, int]:
        """See Family."""
        checkpoint = configured(checkpoint)
        check_runnable(checkpoint, None)
        with environment_kept():
            from .writing import write_quantized

            return write_quantized(checkpoint, quant, folder)

    def compare(self, reference: tuple[Checkpoint, Plan], other: tuple[Checkpoint, Plan]) -> Mapping[str, float]:
        """See Family. Over a text that comes with this package."""
        with environment_kept():
            from .quality import text_figures

            plan = reference[1]
            return text_figures(configured(reference[0]), configured(other[0]), dtype=plan.dtype, device=plan.device)


def _takes(senses: Collection[str] = (), *, fills: bool = True) -> str:
    """What it can be asked, by headers; `fills`: whether it may know how to fill in code. A system prompt needs a chat
    template too."""
    not_so = {*KINDS} - {*senses} | {*(() if fills else CODE_OPTION_NAMES)}
    return ", ".join(sorted(TEXT_OPTION_NAMES - not_so))


def _shape(checkpoint: Checkpoint, own_code: bool) -> tuple[TextShape, str]:
    """The model's shape, and how its requests share forwards. With `own_code` by running that, and with torch."""
    if not own_code:
        shape = text_shape(checkpoint.config)
        return shape, batching_of(shape)
    with environment_kept():
        from .own_shape import own_shape

        return own_shape(checkpoint), UNKNOWN


def step_limits(device: str) -> tuple[int, int]:
    """(tokens, rows) of one forward at most. A CPU is busy with few tokens, and long steps would make others wait."""
    return (512, 64) if device == "cpu" else (4096, 256)


def configured(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a configuration in the form of a `config.json`, also where it came from a GGUF header."""
    config = language_config(checkpoint)
    assert config is not None, "describe, plan and load are asked only for checkpoints that are claimed"
    if thinker_of(checkpoint.config) is not None:
        renamed = {name: name.removeprefix(THINKER) for name in checkpoint.tensors if name.startswith(THINKER)}
    elif text_part_of(checkpoint.config, checkpoint.tensors) is not None:
        renamed = {name: inside for name in checkpoint.tensors if (inside := text_part_name(name)) is not None}
    else:
        return replace(checkpoint, config=config)
    tensors = {inside: replace(checkpoint.tensors[name], name=inside) for name, inside in renamed.items()}
    return replace(checkpoint, config=config, tensors=tensors)


def _dtype(checkpoint: Checkpoint, options: PlanOptions) -> str:
    """The compute precision: what was asked for; else the stored one where the device is good at it; else the best
    that the device is good at and that holds the stored one."""
    if options.dtype != "auto":
        if options.device == "cpu" and options.dtype not in options.good_dtypes:
            raise InvalidRequest(
                f"this CPU has no instructions for {options.dtype}: it would be 100 times slower; use --dtype float32"
            )
        return options.dtype
    entries = checkpoint.tensors.values()
    stored = {_STORED_DTYPES.get(entry.dtype) for entry in entries if entry.dtype in ("F32", *_STORED_DTYPES)}
    packed = any(entry.dtype not in ("F32", *_STORED_DTYPES) for entry in entries)
    half = next((dtype for dtype in options.good_dtypes if dtype != "float32"), None)
    if half is not None and options.good_dtypes[0] != "float32" and (packed or None not in stored or len(stored) > 1):
        return half if not (stored == {"float16"} and "float16" in options.good_dtypes) else "float16"
    return "float32"


def _check_kv(checkpoint: Checkpoint, how: str, dtype: str, options: PlanOptions) -> None:
    """Raise InvalidRequest where the KV cache cannot have the form that was asked for. `dtype`: of the computation."""
    if options.kv_dtype != "auto" and how != PAGED:
        raise InvalidRequest(
            f"kv_dtype {options.kv_dtype!r} is for models that are known to run over pages, and {checkpoint.reference} "
            f"is not ({how}); leave kv_dtype (--kv-dtype) out"
        )
    if options.kv_dtype == "fp8" and options.device.startswith("mps"):
        raise InvalidRequest(f"{options.device} has no 8-bit floats; use kv_dtype 'int8' (--kv-dtype int8)")
    if options.kv_dtype in DTYPE_BYTES and dtype not in ("float32", options.kv_dtype):
        raise InvalidRequest(
            f"kv_dtype {options.kv_dtype!r} saves nothing beside {dtype}; use 'int8' or leave kv_dtype (--kv-dtype) out"
        )


def _more_notes(need: Needs, step: int, *, own: bool) -> Iterator[str]:
    if need.reads_in_one_piece:
        most = max(step, LONG_PIECE) if need.per_token else step
        yield f"inputs are read in one piece: of more than {most} tokens, they take more memory than is planned"
    if own:
        yield _OWN_CODE_RUNS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What a budget is spent on beside the weights."""

    kv_tokens: int
    sequences: int
    """With a state of their own."""
    step_tokens: int
    """The most of one forward."""
    step_rows: int
    """Of them, the most that are sampled."""
    peak: int
    """Of temporary tensors."""
    basis: str
    """How the peak is known; see `kamado.memory.learned`."""


def _room(need: Needs, options: PlanOptions, known: Learning) -> _Room:
    """Where there is little memory, steps are short before there are few tokens of KV cache, and what cannot be cut is
    not counted at its longest if there is no room for that."""
    step, rows = step_limits(options.device)
    whole = False

    def forward_peak(kv_tokens: int, tokens: int | None = None) -> tuple[int, str]:
        """Of the temporary tensors of a forward (of `tokens`, or of all that one may have) and of drawing tokens, and
        how it is known."""
        piece = 0 if tokens else need.most_in_one_piece(kv_tokens)
        tokens = tokens or max(step, piece if whole else 0)
        at_once = min(need.most_rows(rows, kv_tokens), tokens)
        held = kv_tokens if need.per_token else tokens
        forward, basis = known.peak((tokens, at_once, piece or min(need.context, held), held, tokens, tokens))
        scratch = max(scratch_bytes(at_once, need.shape.vocab_size, options.device), need.encoder_peak)
        return (forward, basis) if forward >= scratch else (scratch, ESTIMATED)

    def held_beside(kv_tokens: int) -> tuple[int, int, bool]:
        """Sequences and the peak, and whether it all fits. Longer sequences need larger temporaries."""
        peak = forward_peak(kv_tokens)[0]
        left = max(options.budget_bytes - need.weights - peak, 0) // need.copies
        sequences = _num_sequences(need.state, need.per_token, left, rows)
        kept = kv_tokens * need.per_token + sequences * need.state
        if need.copies > 1:
            # Tokens of a prompt go to a copy of what their sequence held before them; single ones, perhaps, to a copy
            # of what all hold.
            before = max(min(need.context, kv_tokens) - step, 0) * need.per_token + need.state
            peak = max(peak + before, forward_peak(kv_tokens, rows)[0] + kept)
        return sequences, peak, need.weights + kept + peak <= options.budget_bytes

    enough = max(need.least_tokens, min(_ENOUGH_KV_TOKENS, _wanted_tokens(options, need)))
    while not held_beside(enough)[2] and (step, rows) != (LEAST_STEP, 1):
        step, rows = max(step // 2, LEAST_STEP), max(rows // 2, 1)
    whole = True
    whole = held_beside(need.least_tokens)[2]
    steps = range(need.least_tokens, max(_wanted_tokens(options, need), need.least_tokens) + 1, BLOCK_TOKENS)
    fitting = bisect_left(steps, True, key=lambda kv_tokens: not held_beside(kv_tokens)[2])
    kv_tokens = steps[max(fitting - 1, 0)] if need.per_token else 0
    sequences, peak, _ = held_beside(kv_tokens)
    return _Room(
        kv_tokens=kv_tokens,
        sequences=sequences,
        step_tokens=step,
        step_rows=rows,
        peak=peak,
        basis=forward_peak(kv_tokens)[1],
    )


def _lanes(need: Needs, room: _Room, seeing: int) -> tuple[LanePlan, ...]:
    """The language model's and, where `seeing` bytes of the weights are in front of that, theirs."""
    text = LanePlan(
        lane=LANE,
        device=need.device,
        dtype=need.dtype,
        weight_bytes=need.weights + need.outside.outside_bytes - need.outside.window_bytes - seeing,
        outside_bytes=need.outside.outside_bytes,
        activation_bytes=room.peak,
        activation_basis=room.basis,
    )
    if not seeing:
        return (text,)
    peak = need.encoder_peak
    return text, LanePlan(
        lane=ENCODER, device=need.device, dtype=need.dtype, weight_bytes=seeing, activation_bytes=peak
    )


def _num_sequences(state: int, per_token: int, left: int, rows: int) -> int:
    """Sequences whose fixed-size state is held at once: at most half of what is left where there are pages too."""
    if not state:
        return rows
    share = left if not per_token else left // 2
    return max(1, min(rows, share // state))


def _wanted_tokens(options: PlanOptions, need: Needs) -> int:
    """Tokens of KV cache that are of use where there is room for them."""
    if options.kv_tokens is not None:
        return need.least_tokens
    usual = _USUAL_KV_TOKENS["cpu" if options.device == "cpu" else "gpu"]
    return max(usual, min(need.context, 4 * usual)) // BLOCK_TOKENS * BLOCK_TOKENS


FAMILY = LanguageFamily()
