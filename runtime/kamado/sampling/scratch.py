"""How much temporary memory drawing tokens takes, and what bounds it. No torch: plans count with it."""

from __future__ import annotations

MAX_CHUNK_ELEMENTS = 2**21
"""Rows beyond this many logits take their turn, so that scratch memory is bounded."""
_BYTES_PER_ELEMENT = 112
"""Measured: up to 72 for tensors, when every row sorts the whole vocabulary; the rest is for the sort itself."""


def rows_at_once(vocab_size: int) -> int:
    """Rows of one piece."""
    return max(1, MAX_CHUNK_ELEMENTS // vocab_size)


def scratch_bytes(num_rows: int, vocab_size: int) -> int:
    """Upper bound on what `Sampler.draw` allocates on the device for `num_rows` rows with any sampling, in bytes."""
    return min(num_rows, rows_at_once(vocab_size)) * vocab_size * _BYTES_PER_ELEMENT
