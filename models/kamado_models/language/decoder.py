"""Decoders of the Llama kind without transformers: the same modules, under the same names, computing the same numbers.

transformers is what says how a model computes. A stand-in is used only where an earlier load compared it with
transformers' own modules on the model itself, bit for bit (`native_probe`), and left word of that beside the prepared
weights: importing transformers takes three times as long as importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import PackedStep, PagedAttention, PageWriter
from .pages import PageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSizes:
    """All that a stand-in must know beside its weights."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    """Of all norms."""
    scale: float
    """What products of queries and keys are multiplied with."""
    angle_scale: float
    """What cosines and sines are multiplied with."""
    angle_buffers: tuple[str, ...]
    """Names of the buffers that hold frequencies; `inv_freq` is the one that counts."""
    head_norms: bool
    """Whether queries and keys are normed, head by head."""
    biases: tuple[str, ...]
    """The linear layers of a block that have one."""

    def as_json(self) -> dict[str, Any]:
        """For `sizes_of_json`."""
        return asdict(self)


def sizes_of_json(told: Mapping[str, Any]) -> DecoderSizes:
    """Raises TypeError for what is none."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return DecoderSizes(**values)


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = _empty(size)
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        full = x.to(torch.float32)
        full = full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * full.to(x.dtype)


class Linear(nn.Module):
    """`nn.Linear` that is made without drawing weights."""

    bias: nn.Parameter | None

    def __init__(self, columns: int, out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, out
        self.weight = _empty(out, columns)
        self.register_parameter("bias", _empty(out) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """The token table."""

    def __init__(self, vocab: int, hidden: int) -> None:
        super().__init__()
        self.weight = _empty(vocab, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight)


class Angles(nn.Module):
    """Cosines and sines by position."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        for name in sizes.angle_buffers:
            self.register_buffer(name, torch.empty(sizes.head_dim // 2, device="meta"), persistent=False)
        self._scale = sizes.angle_scale

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        frequencies: Any = self.inv_freq
        turns = position_ids[..., None].float() * frequencies.to(device=x.device, dtype=torch.float)
        both = torch.cat((turns, turns), dim=-1)
        return (both.cos() * self._scale).to(dtype=x.dtype), (both.sin() * self._scale).to(dtype=x.dtype)


class Attention(nn.Module):
    """Queries, keys and values; what looks at pages is given to it."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.scaling = sizes.scale
        self._dim = sizes.head_dim
        queries, kept = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.q_proj = Linear(sizes.hidden, queries, bias="q_proj" in sizes.biases)
        self.k_proj = Linear(sizes.hidden, kept, bias="k_proj" in sizes.biases)
        self.v_proj = Linear(sizes.hidden, kept, bias="v_proj" in sizes.biases)
        self.o_proj = Linear(queries, sizes.hidden, bias="o_proj" in sizes.biases)
        if sizes.head_norms:
            self.q_norm, self.k_norm = RMSNorm(sizes.head_dim, sizes.eps), RMSNorm(sizes.head_dim, sizes.eps)
        self._head_norms = sizes.head_norms

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], pages: PageWriter, layer: int) -> Tensor:
        shape = (*x.shape[:-1], -1, self._dim)
        queries, keys = self.q_proj(x).view(shape), self.k_proj(x).view(shape)
        if self._head_norms:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        values = self.v_proj(x).view(shape).transpose(1, 2)
        cos, sin = (each.unsqueeze(1) for each in angles)
        queries, keys = _turned(queries.transpose(1, 2), cos, sin), _turned(keys.transpose(1, 2), cos, sin)
        keys, values = pages.update(keys, values, layer)
        seen, _ = PagedAttention(pages).attend(self, queries, keys, values, None, scaling=self.scaling)
        result: Tensor = self.o_proj(seen.reshape(*x.shape[:-1], -1).contiguous())
        return result


class Perceptron(nn.Module):
    """Gated."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.gate_proj = Linear(sizes.hidden, sizes.inner, bias="gate_proj" in sizes.biases)
        self.up_proj = Linear(sizes.hidden, sizes.inner, bias="up_proj" in sizes.biases)
        self.down_proj = Linear(sizes.inner, sizes.hidden, bias="down_proj" in sizes.biases)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Block(nn.Module):
    """One layer."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Perceptron(sizes)
        self.input_layernorm = RMSNorm(sizes.hidden, sizes.eps)
        self.post_attention_layernorm = RMSNorm(sizes.hidden, sizes.eps)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], pages: PageWriter, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, pages, layer)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class _Inner(nn.Module):
    """The layers, as transformers groups them."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.embed_tokens = Embedding(sizes.vocab, sizes.hidden)
        self.layers = nn.ModuleList([Block(sizes) for _ in range(sizes.layers)])
        self.norm = RMSNorm(sizes.hidden, sizes.eps)
        self.rotary_emb = Angles(sizes)


class Decoder(nn.Module):
    """A stand-in. Its parameters are on the meta device until others take their place."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.config = SimpleNamespace(num_attention_heads=sizes.heads, vocab_size=sizes.vocab)
        self.model = _Inner(sizes)
        self.lm_head = Linear(sizes.hidden, sizes.vocab)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation."""
        return self.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.model.norm.weight.device

    def get_input_embeddings(self) -> nn.Module:
        """As transformers has it."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """As transformers has it."""
        return self.lm_head

    def forward(self, tokens: Tensor, positions: Tensor, pages: PageWriter, keep: Tensor | None) -> Tensor:
        """See PagesForward."""
        x = self.model.embed_tokens(tokens)
        angles = self.model.rotary_emb(x, positions)
        for layer, block in enumerate(self.model.layers):
            x = block(x, angles, pages, layer)
        x = self.model.norm(x)
        logits: Tensor = self.lm_head(x if keep is None else x[:, keep, :])
        return logits[0]

    def take(self, model: nn.Module) -> bool:
        """Share the parameters and buffers of a model that has the same under the same names; False: it has not."""
        theirs, ours = _tensors(model), _tensors(self)
        if {name: each.shape for name, each in theirs.items()} != {name: each.shape for name, each in ours.items()}:
            return False
        for name, tensor in theirs.items():
            path, _, last = name.rpartition(".")
            module = self.get_submodule(path)
            table: Any = module._buffers if last in module._buffers else module._parameters
            table[last] = tensor
        return True


class DecoderForward:
    """See PagesForward."""

    def __init__(self, decoder: Decoder, store: PageStore) -> None:
        self._decoder = decoder
        self._pages = PageWriter(store)

    def __call__(self, tokens: Tensor, positions: Tensor, step: PackedStep, keep: Tensor | None) -> Tensor:
        """See PagesForward."""
        self._pages.step = step
        try:
            logits: Tensor = self._decoder(tokens, positions, self._pages, keep)
        finally:
            del self._pages.step  # with its masks
        return logits

    def close(self) -> None:
        """See PagesForward."""


def stand_in(model: Any, head_dim: int, kv_heads: int) -> Decoder | None:
    """What may compute the same as this model of transformers, with its very weights; None where it has others than a
    stand-in. That it does compute the same is for the caller to see. `model`: one that `native_step.recognised`
    knows, with keys of so many heads of such a size."""
    inner, first = model.model, model.model.layers[0]
    attention, perceptron = first.self_attn, first.mlp
    linears = {**dict(attention.named_children()), **dict(perceptron.named_children())}
    angles = inner.rotary_emb
    sizes = DecoderSizes(
        layers=len(inner.layers),
        hidden=inner.norm.weight.shape[0],
        inner=perceptron.gate_proj.out_features,
        heads=attention.q_proj.out_features // head_dim,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=model.lm_head.out_features,
        eps=float(inner.norm.variance_epsilon),
        scale=float(attention.scaling),
        angle_scale=float(angles.attention_scaling),
        angle_buffers=tuple(name for name, _ in angles.named_buffers()),
        head_norms=hasattr(attention, "q_norm"),
        biases=tuple(name for name, linear in linears.items() if getattr(linear, "bias", None) is not None),
    )
    made = Decoder(sizes)
    return made if made.take(model) else None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """By name; shared ones under each."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return (x * cos) + (torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin)
