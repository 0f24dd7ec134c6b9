"""Further models that look at pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parts import (
    BEGIN,
    END,
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


def _smolvlm(folder: Path) -> Path:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor

    from kamado_models.language.media.classes import processor_class, without_words

    extra = (*EXTRA, "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<row_1_col_1>")
    config = SmolVLMConfig(
        text_config=llama(vocab_size=VOCABULARY + 4),
        vision_config=VISION | {"model_type": "smolvlm_vision"},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    images = SmolVLMImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    own = processor_class("SmolVLMProcessor")
    with without_words(own):
        processor = unchecked(own)(images, write_tokenizer(extra), None, image_seq_len=4, chat_template=template())
    return save(config, SmolVLMForConditionalGeneration, processor, folder, settings={"image_seq_len": 4})


def _aya_vision(folder: Path) -> Path:
    from transformers import (
        AyaVisionConfig,
        AyaVisionForConditionalGeneration,
        AyaVisionProcessor,
        Cohere2Config,
        GotOcr2ImageProcessor,
    )

    text = Cohere2Config(
        **TEXT | {"vocab_size": VOCABULARY},
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = AyaVisionConfig(
        tie_word_embeddings=False,
        text_config=text.to_dict(),
        vision_config=siglip(),
        image_token_index=IMAGE,
        downsample_factor=2,
        vision_feature_layer=-1,
        alignment_intermediate_size=48,
    )
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4),
        write_tokenizer(),
        patch_size=7,
        img_size=28,
        image_token="<image>",
        downsample_factor=2,
        start_of_img_token="<boi>",
        end_of_img_token="<eoi>",
        img_patch_token="<image>",
        img_line_break_token="<more>",
        tile_token="<a>",
        tile_global_token="<b>",
        chat_template=template(),
    )
    return save(config, AyaVisionForConditionalGeneration, processor, folder, seed=1, loud=20.0)


def _llava_onevision(folder: Path) -> Path:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        Qwen2Config,
    )

    grid = [[28, 56], [56, 28], [56, 56]]
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**TEXT | {"vocab_size": VOCABULARY}).to_dict(),
        vision_config=siglip(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_4",
    )
    images = LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=grid)
    processor = unchecked(LlavaOnevisionProcessor)(
        images,
        write_tokenizer(),
        None,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        chat_template=template(),
    )
    more = {
        "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_4",
    }
    return save(config, LlavaOnevisionForConditionalGeneration, processor, folder, settings=more)


def _vipllava(folder: Path) -> Path:
    from transformers import CLIPImageProcessor, LlavaProcessor, VipLlavaConfig, VipLlavaForConditionalGeneration

    config = VipLlavaConfig(
        text_config=llama(),
        vision_config=clip(),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, -1],
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28),
        tokenizer=write_tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(),
    )
    return save(config, VipLlavaForConditionalGeneration, processor, folder)


def _gemma4(folder: Path) -> Path:
    from transformers import (
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4TextConfig,
    )

    text = Gemma4TextConfig(
        **TEXT | {"vocab_size": VOCABULARY, "tie_word_embeddings": True},
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=0,
        global_head_dim=8,
        use_bidirectional_attention="vision",
    )
    vision: dict[str, Any] = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 12, "patch_size": 7, "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }  # fmt: skip
    config = Gemma4Config(
        text_config=text.to_dict(),
        vision_config=vision,
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=BEGIN,
        eoi_token_id=END,
    )
    images = Gemma4ImageProcessor(patch_size=7, max_soft_tokens=70, pooling_kernel_size=2)
    named = {"audio_token": "<audio>", "boa_token": "<boi>", "eoa_token": "<eoi>"}
    tokens = write_tokenizer(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>", **named)
    processor = unchecked(Gemma4Processor)(None, images, tokens, None, image_seq_length=70, chat_template=template())
    return save(config, Gemma4ForConditionalGeneration, processor, folder, settings={"image_seq_length": 70})


KINDS: Mapping[str, Kind] = {
    "aya_vision": Kind(make=_aya_vision),
    "gemma4": Kind(make=_gemma4),
    "llava_onevision": Kind(make=_llava_onevision, kinds=("image", "video")),
    "smolvlm": Kind(make=_smolvlm),
    "vipllava": Kind(make=_vipllava),
}
