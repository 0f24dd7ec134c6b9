"""How much temporary memory drawing tokens takes, and what bounds it. No torch: plans count with it."""

from __future__ import annotations

MAX_CHUNK_ELEMENTS = {"cpu": 2**19, "gpu": 2**21}
"""Rows beyond this many logits take their turn, so that scratch memory is bounded. A CPU gains nothing from more."""
_BYTES_PER_ELEMENT = {"cpu": 72, "gpu": 112}
"""Measured on a CPU: up to 64 for tensors, when every row sorts the whole vocabulary. The rest is for the logits,
and for the sort itself of a GPU, which works beside them."""


def rows_at_once(vocab_size: int, device: str) -> int:
    """Rows of one piece. `device`: its name or kind."""
    return max(1, MAX_CHUNK_ELEMENTS[_kind(device)] // vocab_size)


def scratch_bytes(num_rows: int, vocab_size: int, device: str) -> int:
    """Upper bound on what `Sampler.draw` allocates on the device for `num_rows` rows with any sampling, in bytes."""
    return min(num_rows, rows_at_once(vocab_size, device)) * vocab_size * _BYTES_PER_ELEMENT[_kind(device)]


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "gpu"
