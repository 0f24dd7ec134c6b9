"""Which ControlNets were made for a denoiser, by their configurations."""

from __future__ import annotations

from typing import Any

import pytest

from kamado.errors import UnsupportedCheckpoint
from kamado_models.diffusion.control import check_fit

UNET: dict[str, Any] = {
    "cross_attention_dim": 768,
    "block_out_channels": [320, 640, 1280, 1280],
    "addition_embed_type": None,
    "attention_head_dim": 8,
}
FLUX: dict[str, Any] = {
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
}


@pytest.mark.parametrize(("denoiser", "config", "net"), [
    ("unet", UNET, UNET),
    ("unet", UNET, UNET | {"cross_attention_dim": [768, 768, 768, 768], "block_out_channels": (320, 640, 1280, 1280)}),
    ("unet", UNET, {"cross_attention_dim": 768}),
    ("unet", UNET, {"block_out_channels": [4, 8], "base_block_out_channels": [320, 640, 1280, 1280]}),
    ("transformer", FLUX, FLUX | {"num_layers": 1}),
    ("transformer", FLUX, FLUX | {"joint_attention_dim": None}),
    ("prior", FLUX, UNET),
])  # fmt: skip
def test_nets_that_fit(denoiser: str, config: dict[str, Any], net: dict[str, Any]) -> None:
    check_fit("model", {denoiser: config, "controlnet": net, "controlnet_2": net, "vae": {"cross_attention_dim": 1}})


@pytest.mark.parametrize(("denoiser", "config", "change", "words"), [
    ("unet", UNET, {"cross_attention_dim": 2048}, "cross_attention_dim is 2048, and that of the unet 768"),
    ("unet", UNET, {"block_out_channels": [320, 640]}, r"block_out_channels is \[320, 640\]"),
    ("unet", UNET, {"addition_embed_type": "text_time"}, "addition_embed_type is text_time"),
    ("transformer", FLUX, {"num_attention_heads": 12}, "width is 1536, and that of the transformer 3072"),
    ("transformer", FLUX, {"joint_attention_dim": 2048}, "joint_attention_dim is 2048"),
])  # fmt: skip
def test_nets_of_others(denoiser: str, config: dict[str, Any], change: dict[str, Any], words: str) -> None:
    configs = {denoiser: config, "controlnet": config, "controlnet_2": config | change}
    with pytest.raises(UnsupportedCheckpoint, match=f"model: its controlnet_2 was made for another .*{words}"):
        check_fit("model", configs)
