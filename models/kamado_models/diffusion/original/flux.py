"""FLUX.1's transformer: from its authors' names to diffusers', for any width.

Their layers hold queries, keys and values in one matrix; the last modulation has shift before scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def diffusers_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under diffusers' names. One whose name is unknown keeps it."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, what = name.rpartition(".")
        what = "weight" if what == "scale" else what
        block = _BLOCK.fullmatch(layer)
        if block is None:
            target = _EMBEDDERS.get(layer)
            found[f"{target}.{what}" if target else name] = _swapped(tensor) if target == "norm_out.linear" else tensor
            continue
        kind, number, inner = block.groups()
        targets = (_DOUBLE if kind == "double" else _SINGLE).get(inner)
        if targets is None:
            found[name] = tensor
            continue
        place = f"{'transformer_blocks' if kind == 'double' else 'single_transformer_blocks'}.{number}"
        width = tensors["img_in.weight"].shape[0]
        sizes = [width] * (len(targets) - 1)
        pieces = [tensor] if len(targets) == 1 else tensor.split([*sizes, tensor.shape[0] - sum(sizes)])
        found |= {f"{place}.{target}.{what}": piece for target, piece in zip(targets, pieces, strict=True)}
    return found


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    shift, scale = tensor.chunk(2)
    return torch.cat([scale, shift])
