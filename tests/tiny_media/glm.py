"""The GLM-V models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parts import BEGIN, END, EXTRA, IMAGE, TEXT, VIDEO, VOCABULARY, Kind, save, template, unchecked, write_tokenizer

_MARKS = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": BEGIN,
    "image_end_token_id": END,
    "video_start_token_id": VOCABULARY,
    "video_end_token_id": VOCABULARY + 1,
    "tie_word_embeddings": False,
}
_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2, "image_size": 28,
    "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
_ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
_TEXT = TEXT | {"vocab_size": VOCABULARY + 4, "rope_parameters": _ROPE}
_MIXTURE = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "attention_bias": False,
}


def _save(config: Any, name: str, folder: Path, processor: str = "Glm4vProcessor") -> Path:
    import transformers

    images = transformers.Glm4vImageProcessor if processor == "Glm4vProcessor" else transformers.Glm46VImageProcessor
    size = {"shortest_edge": 14 * 14 * 2, "longest_edge": 36 * 14 * 14 * 2}
    tokens = write_tokenizer((*EXTRA, *_MARKS), image_token="<image>", video_token="<video>")
    chat = template(image="<|begin_of_image|><image><|end_of_image|>")
    made = unchecked(getattr(transformers, processor))(
        images(patch_size=7, merge_size=2, size=size), tokens, None, chat_template=chat
    )
    return save(config, getattr(transformers, name), made, folder)


def _glm4v(folder: Path) -> Path:
    from transformers import Glm4vConfig

    config = Glm4vConfig(text_config=_TEXT, vision_config=_VISION, **_TOKENS)
    return _save(config, "Glm4vForConditionalGeneration", folder)


def _glm4v_moe(folder: Path) -> Path:
    from transformers import Glm4vMoeConfig

    config = Glm4vMoeConfig(text_config=_TEXT | _MIXTURE, vision_config=_VISION, **_TOKENS)
    return _save(config, "Glm4vMoeForConditionalGeneration", folder)


def _glm46v(folder: Path) -> Path:
    from transformers import Glm46VConfig

    own = {"model_type": "glm4v_text"}, {"model_type": "glm4v_vision"}
    config = Glm46VConfig(text_config=_TEXT | own[0], vision_config=_VISION | own[1], **_TOKENS)
    return _save(config, "Glm46VForConditionalGeneration", folder, "Glm46VProcessor")


def _glm_ocr(folder: Path) -> Path:
    from transformers import GlmOcrConfig

    config = GlmOcrConfig(text_config=_TEXT, vision_config=_VISION, **_TOKENS)
    return _save(config, "GlmOcrForConditionalGeneration", folder, "Glm46VProcessor")


KINDS: Mapping[str, Kind] = {
    "glm46v": Kind(make=_glm46v),
    "glm4v": Kind(make=_glm4v),
    "glm4v_moe": Kind(make=_glm4v_moe),
    "glm_ocr": Kind(make=_glm_ocr),
}
