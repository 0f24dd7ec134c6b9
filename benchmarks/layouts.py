"""Checkpoints of real layouts with random weights, for measuring speed where no trained ones are at hand.

Speed does not depend on what the weights are; answers of such a model mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LAYOUTS: dict[str, dict[str, Any]] = {
    # To try programs out; its speed means nothing.
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    },
    # TinyLlama 1.1B
    "llama-1b": {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
    },
    # Llama 3.1 8B
    "llama-8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
}


PICTURE_LAYOUTS = ("sd15",)
"""Stable Diffusion 1.5: UNet of 860 million parameters, pictures of 512 x 512."""


def write_layout(name: str, folder: Path, *, dtype: str = "bfloat16", device: str = "cpu") -> Path:
    """Write a checkpoint of layout `name` to `folder`, with a tokenizer of bytes. `device` makes the weights.
    Returns `folder`."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**LAYOUTS[name])
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def write_picture_layout(name: str, folder: Path, *, dtype: str = "float16", device: str = "cpu") -> Path:
    """Write a diffusers folder of layout `name`. `device` makes the weights. Returns `folder`."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    assert name in PICTURE_LAYOUTS
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{token}</w>" for token in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    text = CLIPTextConfig(
        vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        models = {
            "unet": UNet2DConditionModel(cross_attention_dim=768, sample_size=64),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, **levels
            ),
            "text_encoder": CLIPTextModel(text),
        }
    pipeline = StableDiffusionPipeline(
        **{part: model.to(getattr(torch, dtype)) for part, model in models.items()},
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=77),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
