"""A GGUF file of a real layout with random weights, which llama.cpp and Kamado both read.

Speed does not depend on what the weights are; answers of such a model mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from layouts import LAYOUTS

Q8_0 = gguf.GGMLQuantizationType.Q8_0
BLOCK = 32
"""Values that share a scale."""
DEVIATION = 0.02
"""Of weights, as transformers draws them."""


def write_gguf_layout(name: str, path: Path, *, seed: int = 0) -> Path:
    """Write layout `name` to `path`: matrices in Q8_0, the rest in float32; a tokenizer of bytes. Tensor by tensor, so
    that memory holds one at a time. Returns `path`."""
    layout = LAYOUTS[name]
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, layout)
    _add_tokenizer(writer, layout["vocab_size"])
    for tensor, shape in _tensors(layout):
        if len(shape) == 1:
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            stored = (shape[0], shape[1] // BLOCK * (BLOCK + 2))
            writer.add_tensor_info(tensor, stored, np.dtype(np.uint8), stored[0] * stored[1], Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for _, shape in _tensors(layout):
        writer.write_tensor_data(np.ones(shape, np.float32) if len(shape) == 1 else _blocks(random, *shape))
    writer.close()
    return path


def _add_sizes(writer: Any, layout: dict[str, Any]) -> None:
    heads = layout["num_attention_heads"]
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(layout["num_hidden_layers"])
    writer.add_context_length(layout["max_position_embeddings"])
    writer.add_embedding_length(layout["hidden_size"])
    writer.add_feed_forward_length(layout["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(layout["num_key_value_heads"])
    writer.add_rope_dimension_count(layout["hidden_size"] // heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(layout["vocab_size"])


def _add_tokenizer(writer: Any, size: int) -> None:
    """Bytes, one pair of them, an end token; the rest of the vocabulary is unused."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pair = alphabet[:2]
    used = [*alphabet, "".join(pair), "<|endoftext|>"]
    tokens = [*used, *(f"[unused{number}]" for number in range(size - len(used)))]
    kinds = [gguf.TokenType.NORMAL] * (len(used) - 1) + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * (size - len(used))])
    writer.add_token_merges([" ".join(pair)])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id):
        add(len(used) - 1)


def _tensors(layout: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes (out, in), in the order of the file."""
    hidden, inner, vocabulary = layout["hidden_size"], layout["intermediate_size"], layout["vocab_size"]
    keys = hidden // layout["num_attention_heads"] * layout["num_key_value_heads"]
    yield "token_embd.weight", (vocabulary, hidden)
    for block in range(layout["num_hidden_layers"]):
        for name, shape in (
            ("attn_norm", (hidden,)),
            ("attn_q", (hidden, hidden)),
            ("attn_k", (keys, hidden)),
            ("attn_v", (keys, hidden)),
            ("attn_output", (hidden, hidden)),
            ("ffn_norm", (hidden,)),
            ("ffn_gate", (inner, hidden)),
            ("ffn_up", (inner, hidden)),
            ("ffn_down", (hidden, inner)),
        ):
            yield f"blk.{block}.{name}.weight", shape
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (vocabulary, hidden)


def _blocks(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Bytes of a random matrix: of each block its scale and 32 whole numbers."""
    blocks = np.empty((rows * columns // BLOCK, BLOCK + 2), np.uint8)
    blocks[:, 2:] = random.integers(-127, 128, (len(blocks), BLOCK), dtype=np.int8).view(np.uint8)
    # Whole numbers drawn evenly from -127 to 127 have a deviation of 73.3.
    blocks[:, :2] = np.full((len(blocks), 1), DEVIATION / 73.3, np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
