"""How many bytes a step of a text model reads, and how many operations it takes: arithmetic, for shares of rates.

What is counted is what cannot be avoided: every weight is read once a step (of a table of token vectors only the rows
of the tokens, which is nothing), and the keys and values of every token before. Of a mixture of experts, those that are
expected to be hit if all are equally likely. Operations are those of the matrices, without attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..api import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Of one text model."""

    weight_bytes: float
    """Of all weights that a step may read."""
    expert_bytes: float = 0.0
    """Of these, the experts."""
    idle_experts: float = 0.0
    """Share of the experts that one token does not pass."""
    kv_bytes_per_token: int = 0
    state_bytes: int = 0
    """Of one sequence."""
    layer_parameters: float
    """That one token passes, without the matrix that makes logits."""
    head_parameters: float
    """Of that matrix."""

    def step_bytes(self, rows: float, context_tokens: float) -> float:
        """Bytes that a decoding step reads for `rows` sequences of so many tokens each."""
        idle_bytes: float = self.expert_bytes * self.idle_experts**rows
        return self.weight_bytes - idle_bytes + rows * (self.kv_bytes_per_token * context_tokens + self.state_bytes)

    def prefill_operations(self, tokens: int) -> float:
        """Of one prompt; logits are made of its last token alone."""
        return 2 * (self.layer_parameters * tokens + self.head_parameters)

    def token_operations(self) -> float:
        """Of one decoded token."""
        return 2 * (self.layer_parameters + self.head_parameters)


def text_traffic(model: Model, held: Mapping[str, Any]) -> Traffic | None:
    """`held`: bytes by kind, as the ledger has them under the model's name. None where the sizes are not known, or only
    half of the model takes part in a step (encoder-decoders)."""
    info, plan = model.info, model.plan
    module = getattr(model.loaded, "module", None)
    names = ("parameters", "vocab_size", "hidden_size")
    if not all(isinstance(info.get(name), int) for name in names) or _is_encoder_decoder(module):
        return None
    parameters, vocabulary, hidden = (info[name] for name in names)
    table, is_tied = _token_table(module)
    active = info.get("active_parameters", parameters)
    matrix = vocabulary * hidden
    experts, used = info.get("experts", 0), info.get("experts_per_token", 0)
    idle = 1 - used / experts if experts else 0.0
    # Weights that are outside of the device are brought there for each step.
    on_device = held.get("weights", plan.held_weight_bytes) - plan.window_bytes
    weight_bytes = float(on_device + plan.outside_bytes - table)
    return Traffic(
        weight_bytes=weight_bytes,
        expert_bytes=weight_bytes * (parameters - active) / idle / parameters if idle else 0.0,
        idle_experts=idle,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        state_bytes=plan.state_bytes_per_sequence,
        layer_parameters=max(active - (1 if is_tied else 2) * matrix, 0),
        head_parameters=matrix,
    )


def _is_encoder_decoder(module: Any) -> bool:
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def _token_table(module: Any) -> tuple[int, bool]:
    """(bytes of the table of token vectors that a step does not read, whether it is the output matrix as well)."""
    if module is None:
        return 0, True
    from ..weights.quantized.tensor import held_bytes

    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    if head is None:
        return 0, True
    # Where the output matrix was laid out anew for its kernel, the table is beside it and no longer read.
    is_read = getattr(head, "weight", None) is table.weight
    is_tied = is_read or bool(getattr(module.config, "tie_word_embeddings", False))
    return 0 if is_read else held_bytes([table.weight]), is_tied
