"""The language family: causal and encoder-decoder text models of transformers, from folders and GGUF files.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kamado.checkpoint.own_code import wishes
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadedModel, LoadEnvironment
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.memory.plan import LanePlan, Plan, PlanOptions
from kamado.sampling.scratch import scratch_bytes
from kamado.units import format_bytes

from ..environment import environment_kept
from .batching import PAGED, UNKNOWN, batching_of
from .config import as_stored, check_runnable, has_own_classes, language_config
from .rows_memory import WORKSPACE_FACTOR
from .shape import TextShape, describe, has_plain_embedding, text_shape, weight_bytes

BLOCK_TOKENS = 16
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED_DTYPES = {"BF16": "bfloat16", "F16": "float16"}
_USUAL_KV_TOKENS = {"cpu": 16384, "gpu": 131072}
"""Held where nobody asks for another number and it fits; up to four times that where one long context needs it."""
_UNBOUNDED_CONTEXT = 32768
_LEAST_TOKENS = 256
_LEAST_STEP = 32
_OWN_CODE_RUNS = "the checkpoint's own code runs, as allowed, with all rights of this process"


class LanguageFamily:
    """See kamado.contracts.Family."""

    name = "language"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Family. A GGUF file is always a language model."""
        return checkpoint.layout == "gguf" or language_config(checkpoint) is not None

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Family."""
        return ("text",)

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Family."""
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
            return {"architecture": checkpoint.config["architectures"][0], "batching": UNKNOWN}
        return describe(checkpoint, shape) | {"batching": UNKNOWN if own else batching_of(shape)}

    def plan(self, checkpoint: Checkpoint, options: PlanOptions) -> Plan:
        """See Family."""
        checkpoint = as_stored(configured(checkpoint))
        own = check_runnable(checkpoint, options.allow_code)
        shape, how = _shape(checkpoint, own)
        if own:  # What its class ties is known to that alone, so all that is stored counts.
            checkpoint = replace(checkpoint, config={**checkpoint.config, "tie_word_embeddings": False})
        dtype = _dtype(checkpoint, options)
        width = DTYPE_BYTES[dtype]
        context = shape.context_tokens or _UNBOUNDED_CONTEXT
        budget, rows = step_limits(options.device)
        weights = weight_bytes(checkpoint, dtype, options.quant)
        has_plain_head = (options.quant is None or options.quant.embeddings is None) and has_plain_embedding(checkpoint)
        if packs_linears(options.device, dtype, how) and shape.tied and has_plain_head:
            # The output matrix gets a layout of its own, beside the embedding's.
            weights += shape.vocab_size * shape.hidden_size * width
        per_token = shape.kv_values_per_token * width
        state = shape.state_values_per_sequence * width

        # Rows that come together in a new batch hold their state twice until the new one is final; pages never move.
        copies = 1 if how == PAGED else WORKSPACE_FACTOR

        def activations(tokens: int, num_rows: int, length: int, held: int) -> int:
            forward = shape.activation_bytes(
                tokens=tokens, rows=num_rows, context=length, dtype_bytes=width, held_tokens=held
            )
            return max(forward, scratch_bytes(num_rows, shape.vocab_size))

        least_tokens = _blocks(min(context, options.kv_tokens or _LEAST_TOKENS)) * BLOCK_TOKENS
        least_state = least_tokens * per_token + state
        minimum = weights + activations(_LEAST_STEP, 1, least_tokens, least_tokens) + copies * least_state
        # Longer sequences need larger temporaries, so what is left for pages is found in two rounds.
        kv_tokens, sequences = least_tokens, rows
        for _ in range(2):
            peak = activations(budget, rows, min(context, kv_tokens), kv_tokens)
            left = max(options.budget_bytes - weights - peak, 0)
            sequences = _num_sequences(state, per_token, left // copies, rows)
            kv_tokens = _kv_tokens(options, context, per_token, left // copies - sequences * state)
        peak += (copies - 1) * (kv_tokens * per_token + sequences * state)
        return Plan(
            reference=checkpoint.reference,
            family=self.name,
            architecture=shape.architecture,
            device=options.device,
            dtype=dtype,
            quant=options.quant,
            lanes=(
                LanePlan(lane="lm", device=options.device, dtype=dtype, weight_bytes=weights, activation_bytes=peak),
            ),
            context_tokens=context,
            kv_tokens=kv_tokens,
            kv_bytes_per_token=per_token,
            state_bytes_per_sequence=state,
            max_sequences=sequences if state else 0,
            available_bytes=options.budget_bytes,
            minimum_bytes=minimum,
            options=_smaller(checkpoint, shape, dtype, options, minimum) if minimum > options.budget_bytes else (),
            notes=(how, *([_OWN_CODE_RUNS] if own else [])),
            allow_code=options.allow_code if wishes(checkpoint) else None,
        )

    def load(self, checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> LoadedModel:
        """See Family."""
        checkpoint = configured(checkpoint)
        own = check_runnable(checkpoint, plan.allow_code)
        with environment_kept():
            from .loading import load

            return load(checkpoint, plan, env, own_code=own)


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


def packs_linears(device: str, dtype: str, how: str) -> bool:
    """Whether linear layers are laid out for the CPU's kernels: for the model types of which the tests compare every
    token with transformers' plain layers."""
    return device == "cpu" and dtype == "float32" and how == PAGED


def configured(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a configuration in the form of a `config.json`, also where it came from a GGUF header."""
    config = language_config(checkpoint)
    assert config is not None, "describe, plan and load are asked only for checkpoints that are claimed"
    return replace(checkpoint, config=config)


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


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _num_sequences(state: int, per_token: int, left: int, rows: int) -> int:
    """Sequences whose fixed-size state is held at once: at most half of what is left where there are pages too."""
    if not state:
        return rows
    share = left if not per_token else left // 2
    return max(1, min(rows, share // state))


def _kv_tokens(options: PlanOptions, context: int, per_token: int, left: int) -> int:
    if not per_token:
        return 0
    if options.kv_tokens is not None:
        return _blocks(options.kv_tokens) * BLOCK_TOKENS
    usual = _USUAL_KV_TOKENS["cpu" if options.device == "cpu" else "gpu"]
    wanted = max(usual, min(context, 4 * usual))
    fitting = max(left // per_token, min(context, _LEAST_TOKENS))
    return max(min(wanted, fitting) // BLOCK_TOKENS, 1) * BLOCK_TOKENS


def _smaller(
    checkpoint: Checkpoint, shape: TextShape, dtype: str, options: PlanOptions, minimum: int
) -> tuple[str, ...]:
    """What would make it fit; nothing that would not."""
    found: list[str] = []
    half = next((good for good in options.good_dtypes if good != "float32"), None)
    if dtype == "float32" and half is not None and minimum // 2 <= options.budget_bytes:
        found.append(f"--dtype {half} needs about {format_bytes(minimum // 2)}.")
    if options.kv_tokens is not None and options.kv_tokens > _LEAST_TOKENS:
        per_token = shape.kv_values_per_token * DTYPE_BYTES[dtype]
        saved = (options.kv_tokens - _LEAST_TOKENS) * per_token
        if minimum - saved <= options.budget_bytes:
            found.append(f"Fewer KV tokens (--kv-tokens) save {format_bytes(1000 * per_token)} for each 1000.")
    found.append(f"Give it --memory {-(-minimum // 2**20)}MiB or more, or take a smaller model.")
    return tuple(found)


FAMILY = LanguageFamily()
