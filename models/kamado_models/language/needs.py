"""How many bytes a text model takes, by what is asked for: the arithmetic behind plans. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kamado.checkpoint.types import Checkpoint
from kamado.memory.advice import forms_that_fit
from kamado.memory.plan import PlanOptions
from kamado.sampling.scratch import scratch_bytes

from .batching import PAGED
from .rows_memory import WORKSPACE_FACTOR
from .shape import DTYPE_BYTES, TextShape, has_plain_embedding, weight_bytes

BLOCK_TOKENS = 16
_LEAST_TOKENS = 256
_LEAST_STEP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a model takes in one precision and form."""

    shape: TextShape
    dtype: str
    kv_dtype: str
    kv_tokens: int | None
    """Tokens of KV cache that were asked for; None: nobody asked."""
    context: int
    weights: int
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

    @property
    def least_tokens(self) -> int:
        """Tokens of KV cache without which there is no use in loading it."""
        return whole_blocks(self.kv_tokens or min(self.context, _LEAST_TOKENS))

    @property
    def minimum(self) -> int:
        """Bytes without which it does not run."""
        held = self.least_tokens
        peak = self.activations(_LEAST_STEP, 1, min(self.context, held), held)
        return self.weights + peak + self.copies * (held * self.per_token + self.state)

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
        return max(forward, scratch_bytes(rows, self.shape.vocab_size))


def needs(checkpoint: Checkpoint, shape: TextShape, how: str, context: int, dtype: str, options: PlanOptions) -> Needs:
    """Of the model that `shape` describes and that runs as `how`, one of `batching`, in precision `dtype`."""
    weights = weight_bytes(checkpoint, dtype, options.quant)
    has_plain_head = (options.quant is None or options.quant.embeddings is None) and has_plain_embedding(checkpoint)
    if packs_linears(options.device, dtype, how) and shape.tied and has_plain_head:
        # The output matrix gets a layout of its own, beside the embedding's.
        weights += shape.vocab_size * shape.hidden_size * DTYPE_BYTES[dtype]
    return Needs(
        shape=shape,
        dtype=dtype,
        kv_dtype=options.kv_dtype,
        kv_tokens=options.kv_tokens,
        context=context,
        weights=weights,
        copies=1 if how == PAGED else WORKSPACE_FACTOR,
    )


def packs_linears(device: str, dtype: str, how: str) -> bool:
    """Whether linear layers are laid out for the CPU's kernels: for the model types of which the tests compare every
    token with transformers' plain layers."""
    return device == "cpu" and dtype == "float32" and how == PAGED


def whole_blocks(tokens: int) -> int:
    """Tokens of the pages that so many take."""
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS


def what_would_fit(
    asked: Needs, options: PlanOptions, other: Callable[[PlanOptions], Needs], *, pages: bool, quantizable: bool
) -> tuple[str, ...]:
    """Sentences on what would make a model fit that does not; nothing that would not. `other` says what it needs with
    other options. `pages`: it runs over pages; `quantizable`: its weights can be quantized."""
    found = forms_that_fit(
        options, lambda others: other(others).minimum, dtype=asked.dtype, quantizable=quantizable, pages=pages
    )
    if options.kv_tokens is not None and asked.per_token:
        left = options.budget_bytes - (asked.minimum - asked.copies * asked.least_tokens * asked.per_token)
        fitting = left // (asked.copies * asked.per_token) // BLOCK_TOKENS * BLOCK_TOKENS
        if fitting >= min(_LEAST_TOKENS, asked.context):
            found.append(f"--kv-tokens {fitting} would fit.")
    found.append(f"Give it --memory {-(-asked.minimum // 2**20)}MiB or more, or take a smaller model.")
    return tuple(found)
