"""Writes a transformers model as a GGUF file, with the `gguf` package's writer and its table of tensor names.

What llama.cpp's converter does to keys and weights is restated here from the other side: the code under test undoes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

_EXPERT = re.compile(r"\A(.+\.experts)\.(\d+)\.(.+)\Z")


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Halves of each head to neighbours."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def _llama(name: str, weight: Tensor, config: Any) -> Tensor:
    if ".q_proj." in name:
        return permuted(weight, config.num_attention_heads)
    if ".k_proj." in name:
        return permuted(weight, config.num_key_value_heads)
    return weight


def _plus_one(name: str, weight: Tensor, config: Any) -> Tensor:
    return weight + 1 if name.endswith("norm.weight") else weight


def _gpt2(name: str, weight: Tensor, config: Any) -> Tensor:
    return weight.t() if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else weight


def _heads_apart(name: str, weight: Tensor, config: Any) -> Tensor:
    """(q, k, v) of each head -> all q, all k, all v."""
    if "query_key_value" not in name:
        return weight
    parts = weight.reshape(config.num_attention_heads, 3, -1, *weight.shape[1:])
    return torch.cat([parts[:, i].reshape(-1, *weight.shape[1:]) for i in range(3)])


def _falcon(name: str, weight: Tensor, config: Any) -> Tensor:
    if "query_key_value" not in name:
        return weight
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    each = config.num_attention_heads // groups
    size = config.hidden_size // config.num_attention_heads
    parts = weight.reshape(groups, each + 2, size, -1)
    ordered = (parts[:, :-2].reshape(groups * each * size, -1), parts[:, -2].reshape(groups * size, -1))
    return torch.cat([*ordered, parts[:, -1].reshape(groups * size, -1)])


def _mamba(name: str, weight: Tensor, config: Any) -> Tensor:
    if name.endswith("A_log"):
        return -torch.exp(weight)
    return weight.squeeze(1) if name.endswith("conv1d.weight") else weight


def _qwen2moe(name: str, weight: Tensor, config: Any) -> Tensor:
    return weight.reshape(-1) if name.endswith("shared_expert_gate.weight") else weight


def _nemotron(name: str, weight: Tensor, config: Any) -> Tensor:
    return weight + 1 if "norm" in name and name.endswith(".weight") else weight


Change = Callable[[str, Tensor, Any], Tensor]
CHANGES: dict[str, Change] = {
    **dict.fromkeys(("llama", "granite", "granitemoe", "olmo", "smollm3"), _llama),
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), _plus_one),
    "gpt2": _gpt2,
    "bloom": _heads_apart,
    "gptneox": _heads_apart,
    "falcon": _falcon,
    "mamba": _mamba,
    "qwen2moe": _qwen2moe,
    "nemotron": _nemotron,
}


def stacked_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts of one layer become one tensor."""
    result: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _EXPERT.match(name):
            stacks.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
        else:
            result[name] = tensor
    return result | {name: torch.stack([parts[i] for i in range(len(parts))]) for name, parts in stacks.items()}


def _stacked_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """StableLM's norms of each head become one tensor."""
    pattern = re.compile(r"\A(.+layernorm)\.norms\.(\d+)\.weight\Z")
    stacks: dict[str, dict[int, Tensor]] = {}
    rest = {}
    for name, tensor in tensors.items():
        if match := pattern.match(name):
            stacks.setdefault(f"{match[1]}.weight", {})[int(match[2])] = tensor
        else:
            rest[name] = tensor
    return rest | {name: torch.stack([parts[i] for i in range(len(parts))]) for name, parts in stacks.items()}


def _split(name: str, weight: Tensor, config: Any) -> dict[str, Tensor] | None:
    """Tensors that become several, or whose name the gguf package has in another form."""
    match = re.search(r"\.(\d+)\.", name)
    block = f"blk.{match[1]}" if match else ""
    if name.endswith("input_linear.weight"):  # granitemoe
        gate, up = weight.chunk(2, dim=1)
        return {f"{block}.ffn_gate_exps.weight": gate, f"{block}.ffn_up_exps.weight": up}
    if name.endswith("experts.gate_up_proj"):  # gpt-oss
        rows = weight.transpose(1, 2)
        return {f"{block}.ffn_gate_exps.weight": rows[:, ::2], f"{block}.ffn_up_exps.weight": rows[:, 1::2]}
    if name.endswith("experts.gate_up_proj_bias"):
        return {f"{block}.ffn_gate_exps.bias": weight[:, ::2], f"{block}.ffn_up_exps.bias": weight[:, 1::2]}
    if name.endswith("experts.down_proj"):
        return {f"{block}.ffn_down_exps.weight": weight.transpose(1, 2)}
    if name.endswith("experts.down_proj_bias"):
        return {f"{block}.ffn_down_exps.bias": weight}
    if name.endswith("self_attn.sinks"):
        return {f"{block}.attn_sinks.weight": weight}
    if name.endswith("e_score_correction_bias"):
        return {f"{block}.exp_probs_b.bias": weight}
    if name.endswith("kv_b_proj.weight"):  # DeepSeek, as newer files have it
        heads, nope = config.num_attention_heads, config.qk_nope_head_dim
        parts = weight.reshape(heads, nope + config.v_head_dim, -1)
        return {
            f"{block}.attn_k_b.weight": parts[:, :nope].transpose(1, 2),
            f"{block}.attn_v_b.weight": parts[:, nope:],
        }
    return None


def gguf_tensors(arch: str, tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """GGUF name -> weight in GGUF's form, for the tensors of a `save_pretrained` folder."""
    key = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(key, config.num_hidden_layers)
    change = CHANGES.get(arch, lambda name, weight, config: weight)
    result: dict[str, Tensor] = {}
    for name, weight in _stacked_norms(stacked_experts(tensors)).items():
        if (several := _split(name, weight, config)) is not None:
            result |= several
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        found = found or names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
        assert found is not None, f"{arch}: the gguf package knows no name for {name}"
        assert found not in result, found
        result[found] = change(name, weight, config)
    return result


def write_gguf(
    path: Path,
    arch: str,
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    *,
    half: bool = True,
    blocks: str | None = None,
) -> Path:
    """`metadata`: key -> value; `{arch}` in a key is filled in. Matrices are stored as float16 where `half`, or in the
    GGML type `blocks` where their rows are whole blocks of it."""
    packed = None if blocks is None else gguf.GGMLQuantizationType[blocks]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        name = key.format(arch=arch)
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, weight in tensors.items():
        array = weight.detach().contiguous().numpy()
        if packed is not None and array.ndim > 1 and array.shape[-1] % gguf.GGML_QUANT_SIZES[packed][0] == 0:
            writer.add_tensor(name, gguf.quants.quantize(array.astype(np.float32), packed), raw_dtype=packed)
            continue
        writer.add_tensor(name, array.astype(np.float16) if half and array.ndim > 1 else array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def base_metadata(config: Any) -> dict[str, Any]:
    """What most architectures have, from a transformers config."""
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    values: dict[str, Any] = {
        "{arch}.block_count": config.num_hidden_layers,
        "{arch}.context_length": config.max_position_embeddings,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "{arch}.attention.head_count": heads,
        "{arch}.attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
    }
    if rope.get("rope_theta"):
        values["{arch}.rope.freq_base"] = float(rope["rope_theta"])
    if getattr(config, "head_dim", None):
        values["{arch}.attention.key_length"] = config.head_dim
    if getattr(config, "rms_norm_eps", None):
        values["{arch}.attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    for name in ("layer_norm_epsilon", "layer_norm_eps", "norm_eps", "norm_epsilon"):
        if getattr(config, name, None):
            values["{arch}.attention.layer_norm_epsilon"] = getattr(config, name)
    if "partial_rotary_factor" in rope:
        values["{arch}.rope.dimension_count"] = int(rope["partial_rotary_factor"] * config.hidden_size // heads)
    return values
