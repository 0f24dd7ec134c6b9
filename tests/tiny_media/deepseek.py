"""DeepSeek's models that look at pictures with a number of tokens that is always the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parts import IMAGE, VISION, Kind, llama, save, siglip, template, write_tokenizer

_SIZE = {"height": 28, "width": 28}


def _deepseek_vl(folder: Path) -> Path:
    from transformers import (
        DeepseekVLConfig,
        DeepseekVLForConditionalGeneration,
        DeepseekVLImageProcessor,
        DeepseekVLProcessor,
    )

    config = DeepseekVLConfig(
        text_config=llama(), vision_config=siglip(), image_token_id=IMAGE, tie_word_embeddings=False
    )
    images = DeepseekVLImageProcessor(size=_SIZE, min_size=7)
    tokens = write_tokenizer(image_token="<image>")
    processor = DeepseekVLProcessor(images, tokens, chat_template=template(), num_image_tokens=16)
    return save(config, DeepseekVLForConditionalGeneration, processor, folder)


def _deepseek_vl_hybrid(folder: Path) -> Path:
    from transformers import (
        DeepseekVLHybridConfig,
        DeepseekVLHybridForConditionalGeneration,
        DeepseekVLHybridImageProcessor,
        DeepseekVLHybridProcessor,
        SamVisionConfig,
    )

    sam: dict[str, Any] = {
        "hidden_size": 24, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 4, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 32,
    }  # fmt: skip
    config = DeepseekVLHybridConfig(
        text_config=llama(),
        vision_config=siglip(),
        high_res_vision_config=SamVisionConfig(**sam).to_dict(),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    images = DeepseekVLHybridImageProcessor(size=_SIZE, high_res_size={"height": 64, "width": 64}, min_size=7)
    tokens = write_tokenizer(image_token="<image>")
    processor = DeepseekVLHybridProcessor(images, tokens, chat_template=template(), num_image_tokens=16)
    return save(config, DeepseekVLHybridForConditionalGeneration, processor, folder)


def _janus(folder: Path) -> Path:
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusImageProcessor,
        JanusProcessor,
        JanusVisionConfig,
        JanusVQVAEConfig,
    )

    drawing: dict[str, Any] = {
        "embed_dim": 4, "num_embeddings": 8, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1],
        "num_res_blocks": 1, "projection_dim": 32, "num_patches": 4, "image_token_embed_dim": 32,
    }  # fmt: skip
    config = JanusConfig(
        text_config=llama(),
        vision_config=JanusVisionConfig(**VISION | {"projection_dim": 32, "num_image_tokens": 16}).to_dict(),
        vq_config=JanusVQVAEConfig(**drawing).to_dict(),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    tokens = write_tokenizer(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    images = JanusImageProcessor(size=_SIZE, min_size=7)
    processor = JanusProcessor(images, tokens, chat_template=template(), num_image_tokens=16)
    return save(config, JanusForConditionalGeneration, processor, folder)


KINDS: Mapping[str, Kind] = {
    "deepseek_vl": Kind(make=_deepseek_vl),
    "deepseek_vl_hybrid": Kind(make=_deepseek_vl_hybrid),
    "janus": Kind(make=_janus),
}
