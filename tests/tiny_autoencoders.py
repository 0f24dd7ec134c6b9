"""Tiny random autoencoders of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
_TWO = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "AutoencoderKL": {
        **_TWO, "down_block_types": [_DOWN] * 2, "up_block_types": [_UP] * 2, "latent_channels": 4,
        "scaling_factor": 0.5, "shift_factor": 0.1,
    },
    "AsymmetricAutoencoderKL": {
        "down_block_types": [_DOWN] * 2, "up_block_types": [_UP] * 2, "down_block_out_channels": [8, 8],
        "up_block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 4,
    },
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "spatial_compression_ratio": 2, "sample_size": 16,
    },
    "VQModel": {
        **_TWO, "down_block_types": [_DOWN] * 2, "up_block_types": [_UP] * 2, "latent_channels": 3,
        "num_vq_embeddings": 16,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8],
        "num_encoder_blocks": [1, 1, 1], "num_decoder_blocks": [1, 1, 1],
    },
    "AutoencoderDC": {
        "in_channels": 3, "latent_channels": 4, "attention_head_dim": 4, "encoder_block_out_channels": [8, 8],
        "decoder_block_out_channels": [8, 8], "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "decoder_block_types": ["ResBlock", "EfficientViTBlock"], "encoder_layers_per_block": [1, 1],
        "decoder_layers_per_block": [1, 1], "encoder_qkv_multiscales": [[], [5]], "decoder_qkv_multiscales": [[], [5]],
    },
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": [32, 32], "layers_per_block": 1, "down_block_types": [_DOWN] * 2,
    },
    "AutoencoderKLWan": {
        "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "latents_mean": [0.1, 0.2, 0.3, 0.4],
        "latents_std": [1.0, 2.0, 0.5, 1.5],
    },
    "AutoencoderKLQwenImage": {
        "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 4, "block_out_channels": [8, 8, 8, 8], "decoder_block_out_channels": [8, 8, 8, 8],
        "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5, "patch_size": 1,
    },
    "AutoencoderKLCogVideoX": {
        "down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4,
        "block_out_channels": [8, 8, 8, 8], "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
    },
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4,
    },
    "AutoencoderKLMochi": {
        "latent_channels": 4, "encoder_block_out_channels": [32, 32, 32, 32],
        "decoder_block_out_channels": [32, 32, 32, 32], "layers_per_block": [1, 1, 1, 1, 1],
        "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
    },
    "AutoencoderKLCosmos": {
        "latent_channels": 4, "encoder_block_out_channels": [8, 8, 8, 8], "decode_block_out_channels": [8, 8, 8, 8],
        "attention_resolutions": [4], "resolution": 32, "num_layers": 1,
    },
}  # fmt: skip


def saved(name: str, folder: Path) -> tuple[Path, Any]:
    """A folder of diffusers, and the model itself."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**CONFIGS[name]).eval()
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                tensor.add_(0.05 * torch.randn_like(tensor)) if "norm" not in key else None
    model.save_pretrained(folder / name)
    return folder / name, model
