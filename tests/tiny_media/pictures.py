"""Models that look at pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .parts import (
    BEGIN,
    END,
    EXTRA,
    IMAGE,
    TEXT,
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


def _llava(folder: Path) -> Path:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    config = LlavaConfig(text_config=llama(), vision_config=clip(), image_token_id=IMAGE, vision_feature_layer=-1)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28),
        tokenizer=write_tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(),
    )
    return save(config, LlavaForConditionalGeneration, processor, folder)


def _llava_next(folder: Path) -> Path:
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    grid = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        text_config=llama(),
        vision_config=clip(),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        image_grid_pinpoints=grid,
    )
    images = LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=28, image_grid_pinpoints=grid)
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=write_tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(),
    )
    return save(config, LlavaNextForConditionalGeneration, processor, folder)


def _gemma3(folder: Path) -> Path:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
    )

    text = Gemma3TextConfig(
        **TEXT | {"vocab_size": VOCABULARY, "tie_word_embeddings": True},
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    )
    config = Gemma3Config(
        text_config=text.to_dict(),
        vision_config=siglip(),
        image_token_index=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
        mm_tokens_per_image=4,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=write_tokenizer(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>"),
        image_seq_length=4,
        chat_template=template(image="<boi>"),
    )
    return save(config, Gemma3ForConditionalGeneration, processor, folder)


def _paligemma(folder: Path) -> Path:
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    text = GemmaConfig(**TEXT | {"vocab_size": VOCABULARY + 1200, "tie_word_embeddings": True})
    config = PaliGemmaConfig(
        text_config=text.to_dict(), vision_config=siglip(), image_token_index=IMAGE, projection_dim=32
    )
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=write_tokenizer(image_token="<image>"))
    return save(config, PaliGemmaForConditionalGeneration, processor, folder)


def _idefics3(folder: Path) -> Path:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    extra = (
        *EXTRA,
        "<fake_token_around_image>",
        "<end_of_utterance>",
        "<global-img>",
        "<row_1_col_1>",
        "<row_1_col_2>",
    )
    config = Idefics3Config(
        text_config=llama(vocab_size=VOCABULARY + 4),
        vision_config=VISION | {"model_type": "idefics3_vision"},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    images = Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = Idefics3Processor(images, write_tokenizer(extra), image_seq_len=4, chat_template=template())
    return save(config, Idefics3ForConditionalGeneration, processor, folder)


def _internvl(folder: Path) -> Path:
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLForConditionalGeneration
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    config = InternVLConfig(
        text_config=llama() | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    tokens = write_tokenizer(
        start_image_token="<boi>", end_image_token="<eoi>", context_image_token="<image>", video_token="<video>"
    )
    processor = unchecked(InternVLProcessor)(images, tokens, None, image_seq_length=4, chat_template=template())
    return save(config, InternVLForConditionalGeneration, processor, folder, settings={"image_seq_length": 4})


def _mistral3(folder: Path) -> Path:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    from kamado_models.language.media.classes import processor_class

    text = MistralConfig(**TEXT | {"vocab_size": VOCABULARY}, sliding_window=None)
    vision = PixtralVisionConfig(**VISION | {"image_size": 56, "head_dim": 12})
    config = Mistral3Config(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = processor_class("PixtralProcessor")(
        PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7}),
        write_tokenizer(),
        patch_size=7,
        spatial_merge_size=2,
        image_token="<image>",
        image_break_token="<more>",
        image_end_token="<eoi>",
        chat_template=template(),
    )
    return save(config, Mistral3ForConditionalGeneration, processor, folder)


KINDS: Mapping[str, Kind] = {
    "gemma3": Kind(make=_gemma3),
    "idefics3": Kind(make=_idefics3),
    "internvl": Kind(make=_internvl, kinds=("image", "video")),
    "llava": Kind(make=_llava),
    "llava_next": Kind(make=_llava_next),
    "mistral3": Kind(make=_mistral3),
    "paligemma": Kind(make=_paligemma, most=1, chat=False),
}
