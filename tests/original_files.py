"""Single files as the models' own authors lay them out, made of diffusers' models: their names, their joined matrices.

The inverse of what loading does, written from the names in such files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet(model: Any) -> Tensors:
    """The UNet of Stable Diffusion 1, 2 and XL: blocks are counted through, whatever their resolution."""
    per_level = model.config.layers_per_block
    attends = [kind.startswith("CrossAttn") for kind in model.config.up_block_types]
    return {
        f"model.diffusion_model.{_unet_name(name, per_level, attends)}": t for name, t in model.state_dict().items()
    }


def _unet_name(name: str, per_level: int, attends: list[bool]) -> str:
    layer, _, what = name.rpartition(".")
    if layer in _UNET_ENDS:
        return f"{_UNET_ENDS[layer]}.{what}"
    kind, *rest = name.split(".")
    if kind == "mid_block":
        part, number, *inner = rest
        place = f"middle_block.{2 * int(number) if part == 'resnets' else 1}"
    else:
        level, part, number, *inner = rest
        down = kind == "down_blocks"
        count = int(level) * (per_level + 1) + int(number) + down
        if part == "downsamplers":
            return f"input_blocks.{(int(level) + 1) * (per_level + 1)}.0.op.{what}"
        if part == "upsamplers":
            return f"output_blocks.{count + per_level}.{2 if attends[int(level)] else 1}.conv.{what}"
        place = f"{'input' if down else 'output'}_blocks.{count}.{0 if part == 'resnets' else 1}"
    if part == "resnets":
        inner[0] = _RESNET[inner[0]]
    return ".".join([place, *inner])


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae(model: Any, prefix: str) -> Tensors:
    """AutoencoderKL: its attention as convolutions, the decoder's levels counted from the finest."""
    levels = len(model.config.block_out_channels)
    found = {}
    for key, tensor in model.state_dict().items():
        if attention := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", key):
            half, layer, what = attention.groups()
            is_matrix = tensor.ndim == 2
            found[f"{half}.mid.attn_1.{_VAE_ATTENTION[layer]}.{what}"] = (
                tensor[..., None, None] if is_matrix else tensor
            )
            continue
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(
            r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
            lambda m: f"up.{levels - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
            name,
        )
        found[name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")] = tensor
    return {prefix + name: tensor for name, tensor in found.items()}


def clip(model: Any, prefix: str) -> Tensors:
    """CLIP's text encoder as transformers has named it from the beginning, with the positions that it used to store."""
    found = {_old_clip_name(name): tensor for name, tensor in model.state_dict().items()}
    found["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {prefix + name: tensor for name, tensor in found.items()}


def _old_clip_name(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def open_clip(model: Any, prefix: str) -> Tensors:
    """The same network as OpenCLIP lays it out: queries, keys and values in one matrix, the projection transposed."""
    own = {_old_clip_name(name).removeprefix("text_model."): t for name, t in model.state_dict().items()}
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    found = {
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "token_embedding.weight": own["embeddings.token_embedding.weight"],
        "ln_final.weight": own["final_layer_norm.weight"],
        "ln_final.bias": own["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in own:
        found["text_projection"] = own["text_projection.weight"].T.contiguous()
    for number in range(model.config.num_hidden_layers):
        here, place = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
        for what in ("weight", "bias"):
            pieces = [own[f"{here}.self_attn.{each}_proj.{what}"] for each in "qkv"]
            found[f"{place}.attn.in_proj_{what}"] = torch.cat(pieces)
            found[f"{place}.attn.out_proj.{what}"] = own[f"{here}.self_attn.out_proj.{what}"]
            found |= {f"{place}.{new}.{what}": own[f"{here}.{old}.{what}"] for old, new in names.items()}
    return {prefix + name: tensor for name, tensor in found.items()}


def t5(model: Any, prefix: str) -> Tensors:
    """T5's encoder: its own names."""
    own = {name: t for name, t in model.state_dict().items() if name != "encoder.embed_tokens.weight"}
    return {prefix + name: tensor for name, tensor in own.items()}


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    scale, shift = tensor.chunk(2)
    return torch.cat([shift, scale])


_SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_SD3_BLOCK = {
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_SD3_JOINED = {
    "attn.to_{}": "x_block.attn.qkv",
    "attn.add_{}_proj": "context_block.attn.qkv",
    "attn2.to_{}": "x_block.attn2.qkv",
}


def sd3(model: Any) -> Tensors:
    """Stable Diffusion 3's transformer."""
    own = model.state_dict()
    last = model.config.num_layers - 1
    found = {"pos_embed": own["pos_embed.pos_embed"]}
    found |= {
        f"{theirs}.{what}": _swapped(own[f"{ours}.{what}"]) if ours == "norm_out.linear" else own[f"{ours}.{what}"]
        for ours, theirs in _SD3_ENDS.items()
        for what in ("weight", "bias")
    }
    for number in range(last + 1):
        here, place = f"transformer_blocks.{number}", f"joint_blocks.{number}"
        found |= _block(own, here, place, _SD3_BLOCK, _SD3_JOINED)
        if number == last:
            for what in ("weight", "bias"):
                key = f"{place}.context_block.adaLN_modulation.1.{what}"
                found[key] = _swapped(found[key])
    return {f"model.diffusion_model.{name}": tensor for name, tensor in found.items()}


def _block(own: Tensors, here: str, place: str, names: Mapping[str, str], joined: Mapping[str, str]) -> Tensors:
    found = {}
    for what in ("weight", "bias"):
        for ours, theirs in names.items():
            if f"{here}.{ours}.{what}" in own:
                found[f"{place}.{theirs}.{what}"] = own[f"{here}.{ours}.{what}"]
        for ours, theirs in joined.items():
            if f"{here}.{ours.format('q')}.{what}" in own:
                pieces = [own[f"{here}.{ours.format(each)}.{what}"] for each in "qkv"]
                found[f"{place}.{theirs}.{what}"] = torch.cat(pieces)
    return found


_FLUX_ENDS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_NORMS = {
    "transformer_blocks": {
        "norm_q": "img_attn.norm.query_norm",
        "norm_k": "img_attn.norm.key_norm",
        "norm_added_q": "txt_attn.norm.query_norm",
        "norm_added_k": "txt_attn.norm.key_norm",
    },
    "single_transformer_blocks": {"norm_q": "norm.query_norm", "norm_k": "norm.key_norm"},
}


def flux(model: Any, prefix: str = "") -> Tensors:
    """FLUX.1's transformer."""
    own = model.state_dict()
    found = {
        f"{theirs}.{what}": _swapped(own[f"{ours}.{what}"]) if ours == "norm_out.linear" else own[f"{ours}.{what}"]
        for ours, theirs in _FLUX_ENDS.items()
        for what in ("weight", "bias")
        if f"{ours}.{what}" in own
    }
    for number in range(model.config.num_layers):
        here, place = f"transformer_blocks.{number}", f"double_blocks.{number}"
        joined = {"attn.to_{}": "img_attn.qkv", "attn.add_{}_proj": "txt_attn.qkv"}
        found |= _block(own, here, place, _FLUX_DOUBLE, joined)
    for number in range(model.config.num_single_layers):
        here, place = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        found |= _block(own, here, place, {"norm.linear": "modulation.lin", "proj_out": "linear2"}, {})
        for what in ("weight", "bias"):
            pieces = [own[f"{here}.{each}.{what}"] for each in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
            found[f"{place}.linear1.{what}"] = torch.cat(pieces)
    for blocks, norms in _FLUX_NORMS.items():
        for name, tensor in own.items():
            if match := re.fullmatch(rf"{blocks}\.(\d+)\.attn\.(\w+)\.weight", name):
                number, layer = match.groups()
                if layer in norms:
                    theirs = "double_blocks" if blocks == "transformer_blocks" else "single_blocks"
                    found[f"{theirs}.{number}.{norms[layer]}.scale"] = tensor
    return {prefix + name: tensor for name, tensor in found.items()}


Writer = Callable[[Any], Tensors]
"""From a pipeline's component to the tensors of a file."""


def written(tensors: Tensors, path: Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write them to `path`."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(own, path, metadata={"format": "pt", **(metadata or {})})
    return path


LAYOUTS: dict[str, dict[str, Writer]] = {
    "sd15": {
        "unet": unet,
        "vae": lambda model: vae(model, "first_stage_model."),
        "text_encoder": lambda model: clip(model, "cond_stage_model.transformer."),
    },
    "sdxl": {
        "unet": unet,
        "vae": lambda model: vae(model, "first_stage_model."),
        "text_encoder": lambda model: clip(model, "conditioner.embedders.0.transformer."),
        "text_encoder_2": lambda model: open_clip(model, "conditioner.embedders.1.model."),
    },
    "sdxl-refiner": {
        "unet": unet,
        "vae": lambda model: vae(model, "first_stage_model."),
        "text_encoder_2": lambda model: open_clip(model, "conditioner.embedders.0.model."),
    },
    "sd3": {
        "transformer": sd3,
        "vae": lambda model: vae(model, "first_stage_model."),
        "text_encoder": lambda model: clip(model, "text_encoders.clip_l.transformer."),
        "text_encoder_2": lambda model: clip(model, "text_encoders.clip_g.transformer."),
        "text_encoder_3": lambda model: t5(model, "text_encoders.t5xxl.transformer."),
    },
    "flux": {
        "transformer": lambda model: flux(model, "model.diffusion_model."),
        "vae": lambda model: vae(model, "vae."),
        "text_encoder": lambda model: clip(model, "text_encoders.clip_l.transformer."),
        "text_encoder_2": lambda model: t5(model, "text_encoders.t5xxl.transformer."),
    },
}
LAYOUTS["sd2"] = LAYOUTS["sd15"] | {"text_encoder": lambda model: open_clip(model, "cond_stage_model.model.")}
LAYOUTS["flux-schnell"] = LAYOUTS["flux"]
LAYOUTS["sd15-inpaint"] = LAYOUTS["sd15"]
"""By tiny pipeline: how each component goes into a file."""


def single_file(pipeline: Any, layout: str, path: Path, *, leave_out: tuple[str, ...] = ()) -> Path:
    """The pipeline's models as one file in the layout of its authors."""
    tensors: Tensors = {}
    for component, write in LAYOUTS[layout].items():
        if component not in leave_out:
            tensors |= write(getattr(pipeline, component))
    return written(tensors, path)
