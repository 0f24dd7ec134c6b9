"""Tables that models make themselves and hold beside their parameters: no file has them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .shape_fields import Fields

_FLOAT_BYTES = 4


def buffer_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of the large ones: masks of every pair of positions, and sinusoids of every position. Raises
    UnsupportedCheckpoint for sizes that are absurd."""
    fields = Fields(config)
    kind, positions = fields.model_type, fields.find("context") or 0
    if kind in ("gpt_neo", "gpt_bigcode"):
        masks = fields.need("num_layers") if kind == "gpt_neo" else 1
        return masks * positions**2
    if kind in ("gptj", "codegen"):
        width = fields.optional("rotary_dim") or fields.need("hidden_size")
        return fields.need("num_layers") * positions * width * _FLOAT_BYTES
    if kind in ("xglm", "m2m_100", "nllb-moe"):
        tables = 2 if fields.flag("is_encoder_decoder") else 1
        return tables * (positions + 2) * fields.need("hidden_size") * _FLOAT_BYTES
    return 0
