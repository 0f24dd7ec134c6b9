"""How many bytes a text model takes, by what is asked for: the arithmetic behind plans. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kamado.checkpoint.types import Checkpoint
from kamado.memory.advice import forms_that_fit
from kamado.memory.placement import NOTHING_OUTSIDE, Placement, place
from kamado.memory.plan import Plan, PlanOptions
from kamado.sampling.scratch import scratch_bytes

from .batching import PAGED, cuts_prompts
from .buffers import buffer_bytes
from .media.sizes import encoder_peak
from .native_kinds import kv_dtype
from .rows_memory import ROUND_TOKENS, WORKSPACE_FACTOR
from .shape import DTYPE_BYTES, TextShape, has_plain_embedding, tensor_sizes, weight_bytes

BLOCK_TOKENS = 16
_LEAST_TOKENS = 256
LONG_PIECE = 1024
"""Tokens of an input that cannot be cut, and must have room. To plan for the longest that there could be would take all
memory for what hardly anybody asks for."""
LEAST_STEP = 32
"""Tokens of one forward."""
_MORE_TOKENS, _MORE_STEP, _MORE_ROWS = 4, 128, 16
"""Times the least tokens of KV cache, and tokens and rows of one forward: for these more weights stay outside, where
some have to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a model takes in one precision and form."""

    shape: TextShape
    device: str
    dtype: str
    kv_dtype: str
    """Of the KV cache, one of `kamado.memory.plan.KV_DTYPES`."""
    kv_tokens: int | None
    """Tokens of KV cache that were asked for; None: nobody asked."""
    context: int
    weights: int
    """Bytes on the device."""
    extra: int = 0
    """Of these, what a second layout for the CPU's kernels takes; none is made where weights are outside."""
    outside: Placement = NOTHING_OUTSIDE
    """What is not on the device."""
    encoder_peak: int = 0
    """Of the temporary tensors of what sees and hears."""
    copies: int
    """How often state is held at once. Rows that come together in a new batch hold theirs twice until the new one is
    final; pages never move."""

    @property
    def per_token(self) -> int:
        """Bytes of keys and values."""
        return self.shape.kv_bytes_per_token(DTYPE_BYTES[self.dtype], self.kv_dtype)

    @property
    def state(self) -> int:
        """Bytes of a sequence, however long."""
        return self.shape.state_values_per_sequence * DTYPE_BYTES[self.dtype]

    def most_rows(self, rows: int, held: int) -> int:
        """Sequences, `rows` at the most, that there is room for with `held` tokens of KV cache and as many states."""
        if self.copies == 1:
            return rows
        each = ROUND_TOKENS * self.per_token + self.state
        return max(1, min(rows, (held * self.per_token + rows * self.state) // each)) if each else rows

    def most_in_one_piece(self, held: int) -> int:
        """Tokens that are computed at once, however many, with `held` tokens of KV cache: what an encoder reads, and
        prompts that cannot be cut. 0 where there is no such thing; at most LONG_PIECE are counted."""
        if not self.reads_in_one_piece or not self.per_token:
            return 0
        if self.shape.is_encoder_decoder:
            each = (self.shape.cross_values_per_token + self.shape.hidden_size) * DTYPE_BYTES[self.dtype]
            held = max(0, (held - ROUND_TOKENS) * self.per_token // each)
        return min(self.context, held, LONG_PIECE)

    @property
    def reads_in_one_piece(self) -> bool:
        """Whether inputs are not cut."""
        return self.shape.is_encoder_decoder or not cuts_prompts(self.shape)

    @property
    def least_tokens(self) -> int:
        """Tokens of KV cache without which there is no use in loading it."""
        return whole_blocks(self.kv_tokens or min(self.context, _LEAST_TOKENS))

    @property
    def minimum(self) -> int:
        """Bytes without which it does not run."""
        return self.weights + self.beside(self.least_tokens)

    def beside(self, held: int, step: int = LEAST_STEP, rows: int = 1) -> int:
        """Bytes beside the weights, with `held` tokens of KV cache, and `step` tokens in a forward, `rows` sampled."""
        peak = self.activations(step, rows, min(self.context, held), held)
        return peak + self.copies * (held * self.per_token + self.state)

    def activations(self, tokens: int, rows: int, length: int, held: int) -> int:
        """Peak of temporary tensors; see TextShape.activation_bytes."""
        forward = self.shape.activation_bytes(
            tokens=tokens,
            rows=rows,
            context=length,
            dtype_bytes=DTYPE_BYTES[self.dtype],
            held_tokens=held,
            kv_dtype=self.kv_dtype,
        )
        return max(forward, scratch_bytes(rows, self.shape.vocab_size, self.device), self.encoder_peak)


def needs(checkpoint: Checkpoint, shape: TextShape, how: str, context: int, dtype: str, options: PlanOptions) -> Needs:
    """Of the model that `shape` describes and that runs as `how`, one of `batching`, in precision `dtype`."""
    weights, extra = weight_bytes(checkpoint, dtype, options.quant) + buffer_bytes(checkpoint.config), 0
    has_plain_head = (options.quant is None or options.quant.embeddings is None) and has_plain_embedding(checkpoint)
    if packs_linears(options.device, dtype, how) and shape.tied and has_plain_head:
        # The output matrix gets a layout of its own, beside the embedding's.
        extra = shape.vocab_size * shape.hidden_size * DTYPE_BYTES[dtype]
    return Needs(
        shape=shape,
        device=options.device,
        dtype=dtype,
        kv_dtype=kv_dtype(checkpoint, shape, how, dtype, options),
        kv_tokens=options.kv_tokens,
        context=context,
        weights=weights + extra,
        extra=extra,
        encoder_peak=encoder_peak(checkpoint.config, DTYPE_BYTES[dtype]),
        copies=1 if how == PAGED else WORKSPACE_FACTOR,
    )


def with_outside(need: Needs, checkpoint: Checkpoint, options: PlanOptions) -> Needs:
    """The same with as few weights outside of the device as its budget allows, or all that can be where that is too
    small; itself where everything fits."""
    if need.minimum <= options.budget_bytes or options.offload == "never":
        return need
    weights = need.weights - need.extra
    sizes = tensor_sizes(checkpoint, need.dtype, options.quant)
    unstored = weights - sum(sizes.values())
    least = need.least_tokens
    more = least if options.kv_tokens is not None else max(min(_MORE_TOKENS * least, whole_blocks(need.context)), least)
    found = need
    for beside in (need.beside(more, _MORE_STEP, _MORE_ROWS), need.beside(least)):
        outside = place([sizes], options.budget_bytes - beside - unstored)
        held = weights - outside.outside_bytes + outside.window_bytes
        found = replace(need, weights=held, extra=0, outside=outside)
        if held + beside <= options.budget_bytes:
            break
    return found


def names_outside(checkpoint: Checkpoint, plan: Plan) -> frozenset[str]:
    """Tensors that are not on the device, by a plan that `with_outside` had a part in."""
    if not plan.outside_bytes:
        return frozenset()
    sizes = tensor_sizes(checkpoint, plan.dtype, plan.quant)
    unstored = plan.weight_bytes - sum(sizes.values())
    found = place([sizes], plan.held_weight_bytes - unstored)
    assert found.outside_bytes == plan.outside_bytes, "it was planned with the same figures"
    return found.outside


def packs_linears(device: str, dtype: str, how: str) -> bool:
    """Whether linear layers are laid out for the CPU's kernels: for the model types of which the tests compare every
    token with transformers' plain layers."""
    return device == "cpu" and dtype == "float32" and how == PAGED


def whole_blocks(tokens: int) -> int:
    """Tokens of the pages that so many take."""
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS


def what_would_fit(
    asked: Needs,
    options: PlanOptions,
    other: Callable[[PlanOptions], Needs],
    *,
    pages: bool,
    quantizable: bool,
    runs: bool,
) -> tuple[str, ...]:
    """Sentences on what would make a model fit that does not; nothing that would not. `other` says what it needs with
    other options. `pages`: it runs over pages; `quantizable`: its weights can be quantized;
    `runs`: it does, with weights outside of the device."""
    found = forms_that_fit(
        options, lambda others: other(others).minimum, dtype=asked.dtype, quantizable=quantizable, pages=pages
    )
    if options.kv_tokens is not None and asked.per_token:
        left = options.budget_bytes - (asked.minimum - asked.copies * asked.least_tokens * asked.per_token)
        fitting = left // (asked.copies * asked.per_token) // BLOCK_TOKENS * BLOCK_TOKENS
        if fitting >= min(_LEAST_TOKENS, asked.context):
            found.append(f"--kv-tokens {fitting} would fit.")
    more = f"Give it --memory {-(-asked.minimum // 2**20)}MiB or more"
    found.append(f"{more} to hold all of it." if runs else f"{more}, or take a smaller model.")
    return tuple(found)
