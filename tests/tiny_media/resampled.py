"""Models that look at pictures and put what they see into fewer tokens."""

from __future__ import annotations

import json
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
    template,
    unchecked,
    write_tokenizer,
)


def _ovis2(folder: Path) -> Path:
    from transformers import (
        Ovis2Config,
        Ovis2ForConditionalGeneration,
        Ovis2ImageProcessor,
        Ovis2Processor,
        Qwen2Config,
    )

    marks = ("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    config = Ovis2Config(
        text_config=Qwen2Config(**TEXT | {"vocab_size": VOCABULARY + 6}).to_dict(),
        vision_config=VISION | {"hidden_stride": 2, "vocab_size": 40},
        image_token_id=VOCABULARY - 2,
        visual_indicator_token_ids=[VOCABULARY - 1 + number for number in range(5)],
        vocab_size=VOCABULARY + 6,
        hidden_size=32,
        tie_word_embeddings=False,
    )
    images = Ovis2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    tokens = write_tokenizer((*EXTRA, *marks))
    processor = Ovis2Processor(images, tokens, chat_template=template(), image_seq_length=4)
    return save(config, Ovis2ForConditionalGeneration, processor, folder)


def _idefics2(folder: Path) -> Path:
    from transformers import (
        Idefics2Config,
        Idefics2ForConditionalGeneration,
        Idefics2ImageProcessor,
        Idefics2Processor,
        MistralConfig,
    )

    perceiver: dict[str, Any] = {
        "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
        "resampler_head_dim": 8, "num_key_value_heads": 1,
    }  # fmt: skip
    extra = (*EXTRA, "<fake_token_around_image>", "<end_of_utterance>")
    config = Idefics2Config(
        text_config=MistralConfig(**TEXT | {"vocab_size": VOCABULARY + 4}, sliding_window=None).to_dict(),
        vision_config=VISION,
        perceiver_config=perceiver,
        image_token_id=IMAGE,
    )
    images = Idefics2ImageProcessor(size={"shortest_edge": 14, "longest_edge": 28}, do_image_splitting=True)
    processor = Idefics2Processor(images, write_tokenizer(extra), image_seq_len=4, chat_template=template())
    return save(config, Idefics2ForConditionalGeneration, processor, folder)


def _aria(folder: Path) -> Path:
    from transformers import AriaConfig, AriaForConditionalGeneration, AriaImageProcessor, AriaProcessor

    config = AriaConfig(
        text_config=TEXT | {"vocab_size": VOCABULARY, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        vision_config=VISION | {"image_size": 980, "patch_size": 140, "model_type": "idefics3_vision"},
        projector_patch_to_query_dict={49: 4},
        image_token_index=IMAGE,
    )
    tokens = write_tokenizer(image_token="<image>")
    processor = AriaProcessor(AriaImageProcessor(), tokens, chat_template=template(), size_conversion={980: 4})
    return save(config, AriaForConditionalGeneration, processor, folder)


def _llava_next_video(folder: Path) -> Path:
    from transformers import LlavaNextImageProcessor, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration
    from transformers.models.llava_next_video.processing_llava_next_video import LlavaNextVideoProcessor

    grid = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextVideoConfig(
        text_config=llama(),
        vision_config=clip(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        image_grid_pinpoints=grid,
    )
    images = LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=28, image_grid_pinpoints=grid)
    how = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = unchecked(LlavaNextVideoProcessor)(None, images, write_tokenizer(), chat_template=template(), **how)
    save(config, LlavaNextVideoForConditionalGeneration, processor, folder, settings=how)
    frames = {"video_processor_type": "LlavaNextVideoVideoProcessor", "size": {"shortest_edge": 28}}
    told = frames | {"crop_size": {"height": 28, "width": 28}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


KINDS: Mapping[str, Kind] = {
    "aria": Kind(make=_aria),
    "idefics2": Kind(make=_idefics2),
    "llava_next_video": Kind(make=_llava_next_video, kinds=("image", "video")),
    "ovis2": Kind(make=_ovis2),
}
