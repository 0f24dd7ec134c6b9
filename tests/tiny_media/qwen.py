"""Models whose tokens have places in time, height and width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parts import BEGIN, END, IMAGE, TEXT, VIDEO, VOCABULARY, Kind, save, template, unchecked, write_tokenizer

MROPE = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": BEGIN,
    "vision_end_token_id": END,
}
QWEN3_TEXT = TEXT | {"vocab_size": VOCABULARY, "rope_parameters": MROPE | {"mrope_interleaved": True}}
QWEN3_VISION: dict[str, Any] = {
    "depth": 3, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2, "patch_size": 8,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": [0, 1],
    "num_position_embeddings": 16,
}  # fmt: skip


def _qwen_processor(name: str, patch: int, merge: int = 2) -> Any:
    """Its class checks for a video processor, which torchvision has to be there for."""
    import importlib

    from transformers import Qwen2VLImageProcessor

    module = importlib.import_module(f"transformers.models.{name}.processing_{name}")
    names = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
    own = getattr(module, names[name])
    size = {"shortest_edge": (patch * merge) ** 2, "longest_edge": 36 * (patch * merge) ** 2}
    images = Qwen2VLImageProcessor(patch_size=patch, merge_size=merge, size=size)
    tokens = write_tokenizer(
        image_token="<image>", video_token="<video>", vision_bos_token="<boi>", vision_eos_token="<eoi>"
    )
    chat = template(image="<boi><image><eoi>", video="<boi><video><eoi>")
    return unchecked(own)(images, tokens, None, chat_template=chat)


def _qwen2_vl(folder: Path) -> Path:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config=TEXT | {"vocab_size": VOCABULARY, "rope_parameters": MROPE},
        vision_config={
            "depth": 2, "embed_dim": 24, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        **QWEN_TOKENS,
    )  # fmt: skip
    return save(config, Qwen2VLForConditionalGeneration, _qwen_processor("qwen2_vl", 7), folder)


def _qwen2_5_vl(folder: Path) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"vocab_size": VOCABULARY, "rope_parameters": MROPE},
        vision_config={
            "depth": 2, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2,
            "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 28,
            "fullatt_block_indexes": [1],
        },
        **QWEN_TOKENS,
    )  # fmt: skip
    return save(config, Qwen2_5_VLForConditionalGeneration, _qwen_processor("qwen2_5_vl", 7), folder)


def _qwen3_vl(folder: Path) -> Path:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(text_config=QWEN3_TEXT, vision_config=QWEN3_VISION, **QWEN_TOKENS)
    return save(config, Qwen3VLForConditionalGeneration, _qwen_processor("qwen3_vl", 8), folder)


def _qwen3_vl_moe(folder: Path) -> Path:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    mixture = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3VLMoeConfig(text_config=QWEN3_TEXT | mixture, vision_config=QWEN3_VISION, **QWEN_TOKENS)
    return save(config, Qwen3VLMoeForConditionalGeneration, _qwen_processor("qwen3_vl", 8), folder)


KINDS: Mapping[str, Kind] = {
    "qwen2_5_vl": Kind(make=_qwen2_5_vl, kinds=("image", "video")),
    "qwen2_vl": Kind(make=_qwen2_vl, kinds=("image", "video")),
    "qwen3_vl": Kind(make=_qwen3_vl, kinds=("image", "video")),
    "qwen3_vl_moe": Kind(make=_qwen3_vl_moe, kinds=("image", "video")),
}
