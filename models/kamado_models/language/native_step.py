"""Models whose whole forward the library in C can do, of prompts and answers.

They are known by transformers' own classes, unchanged, and by what their layers hold; others go through the modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kamado.kernels import step as kernel
from kamado.kernels.native import Native, native
from kamado.sequence import TextStep
from kamado.weights.quantized.tensor import is_quantized
from kamado.weights.quantized.tiled import TiledIntegers

from .decoder import Decoder
from .native_kinds import FAMILIES
from .pages import PageStore

_PARTS = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
_PLAIN = (torch.nn.Linear, torch.nn.Embedding, torch.nn.ModuleList)
_FIXED_ANGLES = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotation that do not depend on how long the longest sequence of a step is."""

KEPT_ANGLES = 4096
"""Positions whose angles are kept: a few megabytes."""
ANGLES_AT_ONCE = 512


class NativeStep:
    """The forward of one model over the pages of one store."""

    def __init__(self, model: Any, store: PageStore, decoder: kernel.Decoder, kernels: Native) -> None:
        """Raises ValueError for sizes that the library does not know."""
        self._embed = model.get_input_embeddings()
        self._angles = model.model.rotary_emb
        self._block_tokens = store.block_tokens
        self._like = torch.empty((), dtype=torch.float32)
        self._kept = (torch.empty(0), torch.empty(0))
        self._run = kernel.DecoderStep(kernels, decoder)
        self.activation_bits = min(matrix.activation_bits for layer in decoder.layers for matrix in layer.matrices)
        """The fewest of any layer."""

    def forward(self, steps: Sequence[TextStep]) -> Tensor:
        """Logits (R, vocab), in order: of the last token of each step, and of each of its proposals. They do not depend
        on rows of other sequences, nor on how the tokens of one are spread over calls."""
        tokens: list[int] = []
        positions: list[int] = []
        runs = []
        for step in steps:
            start, state = step.sequence.num_computed, step.sequence.state
            end = start + step.num_new
            tokens += step.sequence.tokens[start:end]
            tokens += step.proposed
            positions += range(start, end)
            pages = state.held[: -(-end // self._block_tokens)]
            runs.append(kernel.Run(rows=step.num_new, keys=start + 1, pages=pages, wanted=1 + len(step.proposed)))
        table = self._embed.weight
        # Past torch's ways to a function of quantized weights, which take as long as the look-up.
        found = torch.tensor(tokens)
        x = table.packed.rows(found, torch.float32) if is_quantized(table) else self._embed(found).contiguous()
        cos, sin = self._turns(torch.tensor(positions), max(positions) + 1)
        return self._run(x, cos, sin, runs)

    def _turns(self, positions: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (R, D) at positions below `end`. The first ones are kept: making them takes longer than a
        layer does."""
        if end > KEPT_ANGLES:
            return self._turns_of(positions)
        if end > len(self._kept[0]):
            wanted = -(-end // ANGLES_AT_ONCE) * ANGLES_AT_ONCE
            self._kept = self._turns_of(torch.arange(wanted))
        cos, sin = self._kept
        return cos[positions], sin[positions]

    def _turns_of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._angles(self._like, positions[None])
        return cos[0].contiguous(), sin[0].contiguous()


def recognised(model: Any, store: PageStore) -> NativeStep | None:
    """The model's native forward over the pages of `store`; None where it, the store or this CPU is of another kind.
    That it computes the same is for the caller to see (`native_probe`)."""
    kernels = native()
    if kernels is None:
        return None
    if model.dtype != torch.float32 or model.device.type != "cpu":
        return None
    if not isinstance(model, Decoder) and not is_llama_kind(model):
        return None
    decoder = _decoder(model, store)
    try:
        return None if decoder is None else NativeStep(model, store, decoder, kernels)
    except ValueError:
        return None


def is_llama_kind(model: Any) -> bool:
    """Whether all modules are those of a known family, as transformers has them, and the config asks for nothing that
    is not in `fused_step` and the library in C."""
    config = model.config
    name = FAMILIES.get(getattr(config, "model_type", ""))
    if name is None:
        return False
    home = f"transformers.models.{config.model_type}.modeling_{config.model_type}"
    classes = {(home, name + part) for part in _PARTS}
    for module in model.modules():
        kind = type(module)
        fits = (
            (kind.__module__, kind.__name__) in classes or kind in _PLAIN or kind.__name__ in ("SiLU", "SiLUActivation")
        )
        if not fits or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
    return (
        config.hidden_act == "silu"
        and getattr(config, "sliding_window", None) is None
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
        and (getattr(config, "rope_parameters", None) or {}).get("rope_type") in _FIXED_ANGLES
    )


def _decoder(model: Any, store: PageStore) -> kernel.Decoder | None:
    """What the model's modules hold; None where a matrix is of another form, or layers differ."""
    inner, config = model.model, model.config
    if len(inner.layers) != len(store.keys):
        return None
    layers = []
    for index, block in enumerate(inner.layers):
        attention, perceptron = block.self_attn, block.mlp
        matrices = {
            name: _matrix(getattr(part, f"{name}_proj"))
            for part, names in ((attention, "qkvo"), (perceptron, ("gate", "up", "down")))
            for name in names
        }
        found = {name: matrix for name, matrix in matrices.items() if matrix is not None}
        if len(found) < len(matrices):
            return None
        layers.append(
            kernel.Layer(
                norm=_norm(block.input_layernorm),
                inner_norm=_norm(block.post_attention_layernorm),
                q_norm=_norm(getattr(attention, "q_norm", None)),
                k_norm=_norm(getattr(attention, "k_norm", None)),
                keys=store.keys[index].view(store.code),
                values=store.values[index].view(store.code),
                key_scales=store.key_scales[index] if store.key_scales else None,
                value_scales=store.value_scales[index] if store.value_scales else None,
                **found,
            )
        )
    head = _matrix(model.lm_head)
    scales = {block.self_attn.scaling for block in inner.layers}
    eps = {norm.variance_epsilon for norm in _norms(model)}
    if head is None or len(scales) != 1 or len(eps) != 1:
        return None
    return kernel.Decoder(
        layers=layers,
        norm=_norm(inner.norm),
        head=head,
        heads=config.num_attention_heads,
        eps=eps.pop(),
        scale=scales.pop(),
    )


def _norm(module: Any) -> Any:
    return None if module is None else module.weight.data


def _norms(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if type(module).__name__.endswith("RMSNorm"))


def _matrix(linear: Any) -> kernel.Matrix | None:
    weight = linear.weight
    if not is_quantized(weight) or weight.turned or type(weight.packed) is not TiledIntegers:
        return None
    packed = weight.packed
    return kernel.Matrix(
        values=packed.parts["values"],
        scales=packed.parts["scale"],
        out_features=packed.shape[0],
        in_features=packed.shape[1],
        bits=packed.bits,
        activation_bits=packed.activation_bits,
        bias=None if linear.bias is None else linear.bias.data,
    )
