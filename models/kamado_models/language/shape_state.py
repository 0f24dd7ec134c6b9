"""How many numbers each kind of layer remembers: keys and values of a token, or the state of a sequence.

Counted as transformers' caches hold them, which is what Kamado's pages and rows hold too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .shape_fields import Fields
from .shape_layers import LayerKind

_MLA = frozenset(
    {
        "axk1",
        "axk2",
        "bailing_hybrid",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "kimi_linear",
        "longcat_flash",
        "minicpm3",
        "mistral4",
        "youtu",
    }
)
"""Multi-head latent attention (DeepSeek-V2, 2405.04434): the cache keeps the latent and the rotary key, not heads."""
_INDEXED = frozenset({"axk2", "deepseek_v32", "glm_moe_dsa"})
"""Those with sparse attention, whose indexer keeps a key of its own."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention of one layer, as it is cached."""

    num_heads: int
    """Query heads."""
    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def values_per_token(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


def attention_heads(fields: Fields, kind: LayerKind) -> Heads:
    """The attention of layers of this kind."""
    num_heads = fields.need("num_heads")
    if fields.model_type in _MLA:
        indexer = fields.integer("index_head_dim", 0) if fields.model_type in _INDEXED else 0
        return Heads(num_heads, 1, fields.integer("kv_lora_rank") + indexer, fields.integer("qk_rope_head_dim"))
    head_dim = _head_dim(fields, num_heads)
    num_kv_heads = _num_kv_heads(fields, num_heads)
    if fields.model_type.startswith("gemma4") and kind == "full" and fields.get("per_layer_config") is None:
        # Full layers have wider heads than those with a window, and may have fewer.
        head_dim = fields.integer("global_head_dim", 512)
        if fields.flag("attention_k_eq_v"):
            num_kv_heads = fields.optional("num_global_key_value_heads") or num_kv_heads
    return Heads(num_heads, num_kv_heads, head_dim, head_dim)


def _head_dim(fields: Fields, num_heads: int) -> int:
    if fields.model_type == "cohere_compass_text":
        return fields.need("hidden_size") // num_heads
    stated = fields.find("head_dim")
    if stated:
        return stated
    hidden_size = fields.need("hidden_size")
    if fields.model_type in ("zamba", "zamba2"):
        hidden_size *= 2  # attends over the hidden state and the embeddings side by side
    return hidden_size // num_heads


def _num_kv_heads(fields: Fields, num_heads: int) -> int:
    if fields.model_type == "falcon":
        if fields.flag("new_decoder_architecture"):
            return num_heads  # repeated before it is cached
        return 1 if fields.flag("multi_query", True) else (fields.find("num_kv_heads") or num_heads)
    if fields.model_type == "gpt_bigcode":
        return 1 if fields.flag("multi_query", True) else num_heads
    return fields.find("num_kv_heads") or num_heads


def state_values(fields: Fields, kind: LayerKind) -> int | None:
    """Numbers that one layer of a recurrent kind keeps for a sequence; None where the architecture is unknown here."""
    if kind == "conv":
        return fields.need("hidden_size") * fields.integer("conv_L_cache", 3)
    if fields.model_type in _MAMBA_2:
        return _MAMBA_2[fields.model_type](fields).values
    rule = _STATES.get(fields.model_type)
    return None if rule is None else rule(fields)


def scan_values(fields: Fields) -> int:
    """Numbers per token that a recurrent layer lays out at once while it computes a prompt, an estimate."""
    if fields.model_type in _MAMBA_1:
        state_size = fields.optional("state_size") or fields.integer("mamba_d_state", 16)
        return _inner_size(fields) * (4 * state_size + 6)
    chunk = _chunk(fields)
    if fields.model_type in _MAMBA_2:
        mixer = _MAMBA_2[fields.model_type](fields)
        per_chunk = _STATE_COPIES * mixer.inner * mixer.state_size // chunk
        return 4 * mixer.heads * (chunk + mixer.state_size) + 12 * mixer.inner + per_chunk
    if fields.model_type == "kimi_linear":
        # Each number of a key decays at a rate of its own, so pairs of tokens of a chunk are laid out for each.
        return fields.integer("linear_num_heads") * fields.integer("linear_head_dim") * (4 * chunk + 12)
    if fields.model_type in _STATES and fields.optional("linear_value_head_dim"):
        num_values = fields.optional("linear_num_value_heads") or fields.need("num_heads")
        sizes = 2 * fields.integer("linear_key_head_dim") + fields.integer("linear_value_head_dim")
        return num_values * (6 * chunk + 12 * sizes)
    return 12 * fields.need("hidden_size")


def scan_chunk(fields: Fields) -> int:
    """Tokens that a recurrent layer computes at a time; prompts are padded to whole multiples. 1: as they are."""
    by_chunks = fields.model_type in (*_MAMBA_2, *_DELTA_NETS, "kimi_linear")
    return _chunk(fields) if by_chunks else 1


def scan_row_values(fields: Fields) -> int:
    """Numbers that it lays out for each row: states between chunks, of which there is one before the first."""
    if fields.model_type not in _MAMBA_2:
        return 0
    mixer = _MAMBA_2[fields.model_type](fields)
    return _STATE_COPIES * mixer.inner * mixer.state_size


def _chunk(fields: Fields) -> int:
    return fields.optional("chunk_size") or fields.optional("mamba_chunk_size") or 64


def _inner_size(fields: Fields) -> int:
    expand = fields.get("expand") or fields.get("mamba_expand") or 2
    return int(expand * fields.need("hidden_size"))


def _mamba(fields: Fields) -> int:
    """Mamba (Gu and Dao 2023): convolution window and (inner, state)."""
    window = fields.optional("conv_kernel") or fields.integer("mamba_d_conv", 4)
    state_size = fields.optional("state_size") or fields.integer("mamba_d_state", 16)
    return _inner_size(fields) * (window + state_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mamba2:
    """Mamba-2 (Dao and Gu 2024)."""

    inner: int
    heads: int
    groups: int
    state_size: int
    window: int

    @property
    def values(self) -> int:
        """The convolution's window over x, B and C, and (heads, head, state)."""
        return (self.inner + 2 * self.groups * self.state_size) * self.window + self.inner * self.state_size


def _mamba2(fields: Fields) -> _Mamba2:
    heads = fields.integer("num_heads")
    return _Mamba2(
        inner=heads * fields.integer("head_dim"),
        heads=heads,
        groups=fields.integer("n_groups"),
        state_size=fields.integer("state_size"),
        window=fields.integer("conv_kernel"),
    )


def _mamba2_hybrid(fields: Fields) -> _Mamba2:
    return _Mamba2(
        inner=fields.optional("mamba_d_ssm") or _inner_size(fields),
        heads=fields.integer("mamba_n_heads"),
        groups=fields.integer("mamba_n_groups", 1),
        state_size=fields.integer("mamba_d_state"),
        window=fields.integer("mamba_d_conv", 4),
    )


def _zamba2(fields: Fields) -> _Mamba2:
    return _Mamba2(
        inner=_inner_size(fields),
        heads=fields.integer("n_mamba_heads"),
        groups=fields.integer("mamba_ngroups", 1),
        state_size=fields.integer("mamba_d_state"),
        window=fields.integer("mamba_d_conv", 4),
    )


def _nemotron_h(fields: Fields) -> _Mamba2:
    heads = fields.integer("mamba_num_heads")
    return _Mamba2(
        inner=heads * fields.integer("mamba_head_dim"),
        heads=heads,
        groups=fields.integer("n_groups"),
        state_size=fields.integer("ssm_state_size"),
        window=fields.integer("conv_kernel", 4),
    )


def _delta_net(fields: Fields) -> int:
    """Gated delta rule (2412.06464): the window over q, k and v, and (value heads, key size, value size)."""
    key_dim, value_dim = fields.integer("linear_key_head_dim"), fields.integer("linear_value_head_dim")
    num_keys = fields.optional("linear_num_key_heads") or fields.need("num_heads")
    num_values = fields.optional("linear_num_value_heads") or fields.need("num_heads")
    window = fields.integer("linear_conv_kernel_dim", 4)
    return (2 * num_keys * key_dim + num_values * value_dim) * window + num_values * key_dim * value_dim


def _kimi_linear(fields: Fields) -> int:
    heads, dim = fields.integer("linear_num_heads"), fields.integer("linear_head_dim")
    return 3 * heads * dim * fields.integer("linear_conv_kernel_dim", 4) + heads * dim * dim


def _minimax(fields: Fields) -> int:
    num_heads = fields.need("num_heads")
    return num_heads * _head_dim(fields, num_heads) ** 2


def _recurrent_gemma(fields: Fields) -> int:
    """RG-LRU (Griffin, 2402.19427)."""
    width = fields.optional("lru_width") or fields.need("hidden_size")
    return width * (fields.integer("conv1d_width", 4) - 1) + width


def _rwkv(fields: Fields) -> int:
    """RWKV-4: last inputs of both mixers; numerator, denominator and maximum of the time mixer."""
    hidden_size = fields.need("hidden_size")
    return 2 * hidden_size + 3 * (fields.optional("attention_hidden_size") or hidden_size)


_STATE_COPIES = 4
_DELTA_NETS = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid")
_MAMBA_1 = ("mamba", "falcon_mamba", "jamba", "zamba")
_MAMBA_2: dict[str, Callable[[Fields], _Mamba2]] = {
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid"), _mamba2_hybrid),
    "mamba2": _mamba2,
    "nemotron_h": _nemotron_h,
    "zamba2": _zamba2,
}
_STATES: dict[str, Callable[[Fields], int]] = {
    **dict.fromkeys(_MAMBA_1, _mamba),
    **dict.fromkeys(_DELTA_NETS, _delta_net),
    "kimi_linear": _kimi_linear,
    "minimax": _minimax,
    "recurrent_gemma": _recurrent_gemma,
    "rwkv": _rwkv,
}
