"""Models that see, of which the language model alone is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tiny import rescale

from .parts import IMAGE, TEXT, VOCABULARY, template, write_tokenizer
from .qwen import QWEN3_TEXT, QWEN3_VISION, QWEN_TOKENS

_TYPES = {"layer_types": ["linear_attention", "full_attention"]}
_LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
_ROPE = {"rope_parameters": QWEN3_TEXT["rope_parameters"] | {"partial_rotary_factor": 1.0}}
_MIXTURE = {
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
_VISION = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}


def _qwen3_5(folder: Path) -> Path:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    text = QWEN3_TEXT | _ROPE | _LINEAR | _TYPES
    config = Qwen3_5Config(text_config=text, vision_config=_VISION, **QWEN_TOKENS)
    return _save(config, Qwen3_5ForConditionalGeneration, folder)


def _qwen3_5_moe(folder: Path) -> Path:
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text = QWEN3_TEXT | _ROPE | _LINEAR | _TYPES | _MIXTURE
    config = Qwen3_5MoeConfig(text_config=text, vision_config=_VISION, **QWEN_TOKENS)
    return _save(config, Qwen3_5MoeForConditionalGeneration, folder)


def _lfm2_vl(folder: Path) -> Path:
    from transformers import Lfm2Config, Lfm2VlConfig, Lfm2VlForConditionalGeneration, Siglip2VisionConfig

    text = Lfm2Config(
        **TEXT | {"vocab_size": VOCABULARY, "tie_word_embeddings": True},
        conv_L_cache=3,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
    )
    vision: dict[str, Any] = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 7,
        "num_patches": 16,
    }  # fmt: skip
    config = Lfm2VlConfig(
        text_config=text.to_dict(),
        vision_config=Siglip2VisionConfig(**vision).to_dict(),
        image_token_id=IMAGE,
        downsample_factor=2,
        tie_word_embeddings=True,
    )
    return _save(config, Lfm2VlForConditionalGeneration, folder)


def _save(config: Any, model_class: Any, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        rescale(model)
    model.save_pretrained(folder)
    write_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template(), encoding="utf-8")
    return folder


KINDS: Mapping[str, Callable[[Path], Path]] = {
    "lfm2_vl": _lfm2_vl,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5_moe,
}
