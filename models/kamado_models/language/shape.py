"""Arithmetic on a text model's configuration and tensor list: what it holds, before a weight is read. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado.quant import Quant, stack_shape
from kamado.weights.quantized.stored.entries import StoredWeight

from .media.sizes import text_quant
from .positions import shifting_positions
from .shape_activations import Temporaries, dense_width, temporaries
from .shape_fields import Fields
from .shape_layers import ATTENTION, RECURRENT, LayerKind, layer_kinds, window_of
from .shape_state import attention_heads, state_values

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_WITH_SCALES = frozenset({"int8", "fp8"})
_KV_SCALE_BYTES = 4
"""Of each vector of a KV cache in 8 bits."""
_ROUNDING_BYTES = 8
"""Laid out for each number that is rounded."""
_LOGITS_BYTES = 4
_WHOLE_NUMBERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_STORED_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_EXPERT = re.compile(r"\.experts\.|_exps\.|block_sparse_moe\.(input|output)_linear\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|shared|embeddings?|tok_embeddings)\.weight$")
_SHARED_COPY = re.compile(r"^(model\.)?(encoder|decoder)\.embed_tokens\.weight$")
_NOT_WEIGHTS = re.compile(
    r"rotary_emb\.inv_freq$|\.masked_bias$|(^|\.)attn\.bias$|\.attention\.bias$|^rope_(freqs|factors_\w+)\.weight$"
)
_TURNED = frozenset({"gpt_oss", "llama4", "llama4_text", "openai_privacy_filter"})
"""Model types whose layers multiply with experts' matrices as (in, out)."""
_UNBOUNDED = frozenset({"mamba", "mamba2", "falcon_mamba", "xlstm", "t5", "mt5", "umt5", "bloom", "zamba"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """Sizes of one text model, from its configuration alone."""

    model_type: str
    architecture: str
    """Name of transformers' class where the configuration says one, else the model type."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_tokens: int | None
    """Positions there are; None where nothing bounds them."""
    is_encoder_decoder: bool
    tied: bool
    """Whether the output matrix is the embedding matrix."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kinds: tuple[LayerKind, ...]
    """One for each layer of the decoder."""
    window: tuple[int | None, ...]
    """For each layer: tokens that it looks back at most; None: all of them."""
    kv_values_per_token: int
    """Numbers of keys and values of one token over all layers, those with a window included."""
    kv_vectors_per_token: int
    """Keys and values of one token over all layers and heads, each counted once."""
    cross_values_per_token: int
    """The same for a source token of an encoder-decoder model; otherwise 0."""
    state_values_per_sequence: int
    """Numbers of state that does not grow with length."""
    state_exact: bool
    """False where `state_values_per_sequence` is an upper guess, the architecture's state being unknown here."""
    num_experts: int
    """0 where the model is no mixture of experts."""
    experts_per_token: int
    shifting_positions: str | None
    """See `positions`."""
    temporaries: Temporaries

    @property
    def attention(self) -> dict[str, int]:
        """How many layers there are of each kind."""
        return dict(Counter(self.kinds))

    @property
    def max_window(self) -> int | None:
        """The furthest that any layer looks back; None where one looks back to the beginning, or none has a window."""
        windows = [window for window, kind in zip(self.window, self.kinds, strict=True) if kind in ATTENTION]
        if not windows or None in windows:
            return None
        return max(window for window in windows if window is not None)

    def kv_bytes_per_token(self, dtype_bytes: int, kv_dtype: str = "auto") -> int:
        """Bytes of keys and values of one token, where numbers of the compute precision take `dtype_bytes`; `kv_dtype`:
        one of `kamado.memory.plan.KV_DTYPES`."""
        return kv_bytes(self.kv_values_per_token, self.kv_vectors_per_token, dtype_bytes, kv_dtype)

    def activation_bytes(
        self,
        *,
        tokens: int,
        rows: int,
        context: int,
        dtype_bytes: int,
        held_tokens: int | None = None,
        masked_tokens: int | None = None,
        kv_dtype: str = "auto",
    ) -> int:
        """Peak of temporary tensors in one forward of `tokens` tokens of which `rows` are sampled, an estimate that is
        meant to lie above it.

        `context` is the longest sequence in the forward; `held_tokens` is what all sequences hold together, if that is
        known to be less than `rows` times `context`. `masked_tokens`: those that others lie before, if not all: a
        mask tells them what they see, and all tokens in layers with a window."""
        needs = self.temporaries
        read = rows * context if held_tokens is None else min(rows * context, 2 * held_tokens)
        kept = self.kv_values_per_token // max(sum(kind in ATTENTION for kind in self.kinds), 1)
        attention = tokens * needs.projections + max(context * needs.expanded, read * kept)
        if kv_dtype in _WITH_SCALES or DTYPE_BYTES.get(kv_dtype, dtype_bytes) != dtype_bytes:
            # What is read is a copy always; new tokens are rounded, and seen rounded.
            attention += context * kept + tokens * kept * (1 + _ROUNDING_BYTES // dtype_bytes)
        # Rows of a forward have about the same length; with one token each, nothing is computed in chunks.
        chunked = rows * (-(-tokens // (rows * needs.chunk)) * needs.chunk) if tokens > rows else tokens
        layer = max(attention, tokens * needs.feed_forward, chunked * needs.scan + rows * needs.scan_row)
        masked = tokens if masked_tokens is None else masked_tokens
        attending = {window for window, kind in zip(self.window, self.kinds, strict=True) if kind in ATTENTION}
        pairs = (tokens * min(context, window + tokens) if window else masked * context for window in attending)
        masks = 5 * sum(pairs)
        scores = 4 * needs.scores * tokens * context
        logits = 2 * rows * self.vocab_size * _LOGITS_BYTES
        return max(tokens * needs.stream * dtype_bytes + layer * dtype_bytes + masks + scores, logits)


def kv_bytes(values: int, vectors: int, dtype_bytes: int, kv_dtype: str) -> int:
    """Bytes of so many numbers in so many vectors, where numbers of the compute precision take `dtype_bytes`;
    `kv_dtype`: one of `kamado.memory.plan.KV_DTYPES`."""
    if kv_dtype in _WITH_SCALES:
        return values + vectors * _KV_SCALE_BYTES
    return values * DTYPE_BYTES.get(kv_dtype, dtype_bytes)


def text_shape(config: Mapping[str, Any]) -> TextShape:
    """The shape of the text model that a `config.json` describes, at its top or nested as `text_config`.

    Raises UnsupportedCheckpoint, naming the field, where an essential one is missing or absurd."""
    fields = Fields(config)
    num_layers = _num_layers(fields)
    kinds = layer_kinds(fields, num_layers)
    layers = [(fields.of_layer(index), kind) for index, kind in enumerate(kinds)]
    heads = [attention_heads(own, kind) for own, kind in layers if kind in ATTENTION]
    attentions = 2 if fields.model_type == "longcat_flash" else 1  # in each layer
    per_token = attentions * sum(layer.values_per_token for layer in heads)
    states = [state_values(fields, kind) for kind in kinds if kind in RECURRENT]
    num_heads = fields.find("num_heads") or 0
    head_dim = max((layer.key_dim for layer in heads), default=0)
    hidden_size = fields.need("hidden_size")
    guess = num_heads * max(head_dim, 1) ** 2 + 8 * hidden_size
    encoder_decoder = fields.flag("is_encoder_decoder")
    return TextShape(
        model_type=fields.model_type,
        architecture=_architecture(fields),
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=dense_width(fields, hidden_size),
        vocab_size=_vocab_size(fields),
        context_tokens=_context(fields),
        is_encoder_decoder=encoder_decoder,
        tied=fields.flag("tie_word_embeddings", True),
        num_heads=num_heads,
        num_kv_heads=heads[0].num_kv_heads if heads else 0,
        head_dim=head_dim,
        kinds=kinds,
        window=tuple(window_of(own, kind) for own, kind in layers),
        kv_values_per_token=per_token,
        kv_vectors_per_token=attentions * sum(2 * layer.num_kv_heads for layer in heads),
        cross_values_per_token=per_token if encoder_decoder else 0,
        state_values_per_sequence=sum(guess if values is None else values for values in states),
        state_exact=None not in states,
        num_experts=fields.find("num_experts") or 0,
        experts_per_token=_experts_per_token(fields),
        shifting_positions=shifting_positions(fields.get),
        temporaries=temporaries(fields, bool(states)),
    )


def _num_layers(fields: Fields) -> int:
    if fields.model_type == "nemotron_h":
        pattern = fields.get("hybrid_override_pattern") or fields.names("layers_block_type") or ()
        if pattern:
            return len(pattern)
    return fields.need("num_layers")


def _architecture(fields: Fields) -> str:
    names = fields.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else fields.model_type


def _vocab_size(fields: Fields) -> int:
    size = fields.integer("vocab_size")
    if size < 1:
        raise UnsupportedCheckpoint(f"vocab_size in the configuration is {size}")
    return size


def _context(fields: Fields) -> int | None:
    if fields.model_type in _UNBOUNDED and fields.get("max_position_embeddings") is None:
        return None
    return fields.find("context") or None


def _experts_per_token(fields: Fields) -> int:
    return (fields.find("experts_per_token") or 1) if fields.find("num_experts") else 0


def weight_bytes(checkpoint: Checkpoint, dtype: str, quant: Quant | None = None) -> int:
    """Bytes of the parameters once they are in memory, float ones in `dtype` ("float32", "bfloat16", "float16") or as
    `quant` has them.

    Integer tensors stay as they are; GGML-quantized ones count as what they are unpacked to. What is stored twice but
    tied is counted once; what is stored but is no parameter (old buffers, layers beyond the last) is not counted."""
    stored = sum(tensor_sizes(checkpoint, dtype, quant).values())
    return stored + _unstored_parameters(checkpoint) * DTYPE_BYTES[dtype]


def tensor_sizes(checkpoint: Checkpoint, dtype: str, quant: Quant | None = None) -> dict[str, int]:
    """The same for each tensor that the checkpoint stores."""
    quant = text_quant(checkpoint.config, quant)
    size, turned = DTYPE_BYTES[dtype], checkpoint.layout != "gguf" and stacks_turned(checkpoint.config)
    return {entry.name: tensor_bytes(entry.name, entry, size, quant, turned=turned) for entry in _loaded(checkpoint)}


def stacks_turned(config: Mapping[str, Any]) -> bool:
    """Whether the model has stacks of experts as (experts, in, out), and its checkpoints too; GGUF files never do."""
    return config.get("model_type") in _TURNED


def tensor_bytes(name: str, entry: TensorEntry, size: int, quant: Quant | None, *, turned: bool = False) -> int:
    """Bytes of the parameter `name` in memory, where values that are not quantized take `size` bytes. `turned`: see
    `stacks_turned`."""
    if entry.dtype in _WHOLE_NUMBERS:
        return entry.nbytes
    shape = stack_shape(entry.shape, turned=turned)
    scheme = None if quant is None else quant.scheme_for(name, shape)
    if scheme is not None:
        return scheme.num_bytes(shape)
    return entry.held_bytes(size) if isinstance(entry, StoredWeight) else entry.numel * size


def has_plain_embedding(checkpoint: Checkpoint) -> bool:
    """Whether its table of token vectors is stored in full precision."""
    names = [name for name in checkpoint.tensors if _EMBEDDING.search(name) or name == "token_embd.weight"]
    return not any(isinstance(checkpoint.tensors[name], StoredWeight) for name in names)


def _unstored_parameters(checkpoint: Checkpoint) -> int:
    """Parameters that the model makes itself: Marian's sinusoids, of encoder and decoder."""
    if checkpoint.config.get("model_type") != "marian":
        return 0
    fields = Fields(checkpoint.config)
    if any("embed_positions" in name for name in checkpoint.tensors):
        return 0
    return 2 * fields.integer("max_position_embeddings", 1024) * fields.need("hidden_size")


def _loaded(checkpoint: Checkpoint) -> Iterable[TensorEntry]:
    """The tensors of a checkpoint that become parameters."""
    tied = tied_names(checkpoint)
    for name, entry in checkpoint.tensors.items():
        if name not in tied and not _NOT_WEIGHTS.search(name):
            yield entry


def tied_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Tensors that are stored, but are another tensor once loaded."""
    # A GGUF file has no configuration of that form, and stores nothing twice.
    if not checkpoint.config or not Fields(checkpoint.config).flag("tie_word_embeddings", True):
        return frozenset()
    names = checkpoint.tensors
    has_embedding = any(_EMBEDDING.search(name) for name in names)
    has_shared = any(re.fullmatch(r"(model\.)?shared\.weight", name) for name in names)
    return frozenset(
        name for name in names if (has_embedding and _HEAD.search(name)) or (has_shared and _SHARED_COPY.search(name))
    )


def active_parameters(checkpoint: Checkpoint, shape: TextShape) -> int | None:
    """Parameters that one token passes; None where the model is no mixture, or its experts cannot be told apart."""
    if not shape.num_experts:
        return None
    experts = sum(entry.numel for name, entry in checkpoint.tensors.items() if _EXPERT.search(name))
    if not experts:
        return None
    everything = sum(entry.numel for entry in _loaded(checkpoint))
    return everything - experts + experts * shape.experts_per_token // shape.num_experts


def describe(checkpoint: Checkpoint, shape: TextShape) -> dict[str, Any]:
    """Facts for `kamado show`."""
    stored = Counter[str]()
    for entry in checkpoint.tensors.values():
        stored[entry.dtype] += entry.numel
    facts: dict[str, Any] = {
        "architecture": shape.architecture,
        "model_type": shape.model_type,
        "parameters": sum(entry.numel for entry in _loaded(checkpoint)),
        "active_parameters": active_parameters(checkpoint, shape),
        "stored_dtype": _STORED_NAMES.get(most := stored.most_common(1)[0][0], most) if stored else None,
        "context_tokens": shape.context_tokens,
        "vocab_size": shape.vocab_size,
        "layers": shape.num_layers,
        "layer_kinds": shape.attention,
        "hidden_size": shape.hidden_size,
        "heads": shape.num_heads or None,
        "kv_heads": shape.num_kv_heads or None,
        "window_tokens": next((window for window in shape.window if window), None),
        "experts": shape.num_experts or None,
        "experts_per_token": shape.experts_per_token or None,
        "kv_bytes_per_token": {name: shape.kv_values_per_token * DTYPE_BYTES[name] for name in ("bfloat16", "float32")},
        "state_bytes_per_sequence": {
            name: shape.state_values_per_sequence * DTYPE_BYTES[name] for name in ("bfloat16", "float32")
        },
        "chat_template": has_chat_template(checkpoint),
        "licence": licence(checkpoint),
    }
    return {name: value for name, value in facts.items() if value is not None}


def has_chat_template(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint brings one: in the GGUF header, in a file of its own, or with the tokenizer."""
    if "tokenizer.chat_template" in checkpoint.metadata:
        return True
    if any(name in checkpoint.files for name in ("chat_template.jinja", "chat_template.json")):
        return True
    path = checkpoint.files.get("tokenizer_config.json")
    return path is not None and '"chat_template"' in _head(path)


_LICENCE = re.compile(r"^licen[sc]e:\s*['\"]?([\w.+-]{1,64})", re.MULTILINE)


def licence(checkpoint: Checkpoint) -> str | None:
    """The licence that the GGUF header or the front matter of README.md names."""
    stated = checkpoint.metadata.get("general.license")
    if isinstance(stated, str) and stated:
        return stated[:64]
    path = checkpoint.files.get("README.md")
    if path is None:
        return None
    text = _head(path)
    end = text.find("\n---", 3)
    found = _LICENCE.search(text[:end]) if text.startswith("---") and end > 0 else None
    return found.group(1) if found else None


def _head(path: Any, size: int = 1 << 20) -> str:
    try:
        with path.open("rb") as file:
            return str(file.read(size), "utf-8", "replace")
    except OSError:
        return ""
