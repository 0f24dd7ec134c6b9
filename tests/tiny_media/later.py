"""Models of other layouts that look at pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parts import (
    EXTRA,
    IMAGE,
    TEXT,
    VIDEO,
    VISION,
    VOCABULARY,
    Kind,
    clip,
    llama,
    save,
    siglip,
    template,
    unchecked,
    write_tokenizer,
)


def _exaone4_5(folder: Path) -> Path:
    from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration, Exaone4Config, Qwen2VLImageProcessor
    from transformers.models.exaone4_5.processing_exaone4_5 import Exaone4_5_Processor

    text = Exaone4Config(
        **TEXT | {"vocab_size": VOCABULARY}, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    )
    vision: dict[str, Any] = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2,
        "num_key_value_heads": 1, "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 28,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Exaone4_5_Config(
        text_config=text.to_dict(), vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO
    )
    images = Qwen2VLImageProcessor(
        patch_size=7, merge_size=2, size={"shortest_edge": 14**2, "longest_edge": 36 * 14**2}
    )
    tokens = write_tokenizer(image_token="<image>", video_token="<video>")
    processor = unchecked(Exaone4_5_Processor)(images, tokens, None, chat_template=template(image="<boi><image><eoi>"))
    return save(config, Exaone4_5_ForConditionalGeneration, processor, folder)


def _granite_docling(folder: Path) -> Path:
    from transformers import (
        GraniteDoclingConfig,
        GraniteDoclingForConditionalGeneration,
        GraniteDoclingImageProcessor,
        GraniteDoclingProcessor,
    )

    extra = (*EXTRA, "<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>")
    config = GraniteDoclingConfig(
        text_config={name: value for name, value in TEXT.items() if name != "head_dim"}
        | {"vocab_size": VOCABULARY + 5, "attention_multiplier": 0.35, "embedding_multiplier": 1.0},
        vision_config=VISION | {"out_hidden_size": 32, "scale_factor": 2, "deepstack_visual_indexes": [0]},
        image_token_id=IMAGE,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    images = GraniteDoclingImageProcessor(size={"height": 28, "width": 28}, max_patches=4)
    processor = GraniteDoclingProcessor(images, write_tokenizer(extra), image_seq_len=4, chat_template=template())
    return save(config, GraniteDoclingForConditionalGeneration, processor, folder)


def _video_llava(folder: Path) -> Path:
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration, VideoLlavaImageProcessor
    from transformers.models.video_llava.processing_video_llava import VideoLlavaProcessor

    config = VideoLlavaConfig(
        text_config=llama(),
        vision_config=clip(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
    )
    images = VideoLlavaImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    how: dict[str, Any] = {
        "patch_size": 7,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    processor = unchecked(VideoLlavaProcessor)(images, None, write_tokenizer(), chat_template=template(), **how)
    return save(config, VideoLlavaForConditionalGeneration, processor, folder, settings=how)


def _llama4(folder: Path) -> Path:
    from transformers import Llama4Config, Llama4ForConditionalGeneration, Llama4ImageProcessor, Llama4Processor

    marks = ("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>")
    text: dict[str, Any] = TEXT | {
        "vocab_size": VOCABULARY + 6, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1,
        "attention_chunk_size": 16, "no_rope_layers": [1, 0],
    }  # fmt: skip
    vision: dict[str, Any] = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
        "vision_output_dim": 32, "image_size": 28, "patch_size": 7, "projector_input_dim": 32,
        "projector_output_dim": 32, "pixel_shuffle_ratio": 0.5,
    }  # fmt: skip
    config = Llama4Config(
        text_config=text,
        vision_config=vision,
        image_token_index=VOCABULARY + 1,
        boi_token_index=VOCABULARY - 1,
        eoi_token_index=VOCABULARY,
    )
    processor = Llama4Processor(
        Llama4ImageProcessor(size={"height": 28, "width": 28}, max_patches=4),
        write_tokenizer((*EXTRA, *marks, "<|tile_y_separator|>")),
        patch_size=7,
        chat_template=template(image="<|image|>"),
    )
    return save(config, Llama4ForConditionalGeneration, processor, folder)


def _cohere2_vision(folder: Path) -> Path:
    from transformers import (
        Cohere2Config,
        Cohere2VisionConfig,
        Cohere2VisionForConditionalGeneration,
        Cohere2VisionImageProcessor,
        Cohere2VisionProcessor,
    )

    text = Cohere2Config(
        **TEXT | {"vocab_size": VOCABULARY}, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    )
    config = Cohere2VisionConfig(
        text_config=text.to_dict(),
        vision_config=siglip(),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=48,
        tie_word_embeddings=False,
    )
    named = {"boi_token": "<boi>", "eoi_token": "<eoi>", "img_line_break_token": "<more>"}
    processor = Cohere2VisionProcessor(
        Cohere2VisionImageProcessor(size={"height": 28, "width": 28}, max_patches=4, patch_size=2),
        write_tokenizer(image_token="<image>", **named),
        chat_template=template(),
    )
    return save(config, Cohere2VisionForConditionalGeneration, processor, folder, loud=20.0)


KINDS: Mapping[str, Kind] = {
    "cohere2_vision": Kind(make=_cohere2_vision, wants="torchvision"),
    "exaone4_5": Kind(make=_exaone4_5),
    "granite_docling": Kind(make=_granite_docling),
    "llama4": Kind(make=_llama4, wants="torchvision"),
    "video_llava": Kind(make=_video_llava, kinds=("image", "video")),
}
