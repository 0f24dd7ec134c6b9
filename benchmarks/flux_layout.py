"""A FLUX.1 pipeline with random weights, for measuring its denoiser: text encoders are as small as they can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FLUX_LAYOUTS: dict[str, dict[str, Any]] = {
    # To try programs out; its speed means nothing.
    "flux-tiny": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    | {"joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6)},
    # FLUX.1's width and half of its blocks, which are all alike: half the time a step, the same ratios.
    "flux-half": {"num_layers": 9, "num_single_layers": 19},
}


def write_flux(name: str, folder: Path, *, dtype: str = "bfloat16", device: str = "cpu") -> Path:
    """Write a diffusers folder of layout `name`. `device` makes the weights. Returns `folder`."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    sizes = FLUX_LAYOUTS[name]
    width, pooled = sizes.get("joint_attention_dim", 4096), sizes.get("pooled_projection_dim", 768)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{token}</w>" for token in alphabet), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=pooled, intermediate_size=pooled, num_hidden_layers=1,
        num_attention_heads=2, projection_dim=pooled, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    t5 = T5Config(vocab_size=128, d_model=width, d_kv=16, d_ff=width, num_layers=1, num_heads=2)
    words = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((chr(code), -4.0) for code in range(33, 127)),
    ]
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, dtype))  # made in it at once: in float32 it would not fit everywhere
        try:
            models = {
                "transformer": FluxTransformer2DModel(guidance_embeds=True, **sizes),
                "vae": AutoencoderKL(
                    latent_channels=16, block_out_channels=(32, 32, 64, 64), layers_per_block=1, scaling_factor=0.3611,
                    shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, **levels,
                ),
                "text_encoder": CLIPTextModel(clip),
                "text_encoder_2": T5EncoderModel(t5),
            }  # fmt: skip
        finally:
            torch.set_default_dtype(before)
    pipeline = FluxPipeline(
        **models,
        tokenizer=CLIPTokenizer(
            vocab={token: index for index, token in enumerate(tokens)}, merges=[], pad_token="<|endoftext|>",
            model_max_length=77,
        ),
        tokenizer_2=T5Tokenizer(vocab=words, extra_ids=0, model_max_length=512),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
