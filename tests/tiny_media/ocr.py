"""Models that read pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .parts import (
    BEGIN,
    END,
    IMAGE,
    TEXT,
    VIDEO,
    VISION,
    VOCABULARY,
    Kind,
    save,
    template,
    write_tokenizer,
)


def _paddleocr_vl(folder: Path) -> Path:
    from transformers import (
        PaddleOCRVLConfig,
        PaddleOCRVLForConditionalGeneration,
        PaddleOCRVLImageProcessor,
        PaddleOCRVLProcessor,
    )

    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = PaddleOCRVLConfig(
        text_config=TEXT | {"vocab_size": VOCABULARY, "rope_parameters": rope},
        vision_config=VISION | {"spatial_merge_size": 2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
        tie_word_embeddings=False,
    )
    images = PaddleOCRVLImageProcessor(
        patch_size=7, merge_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 36 * 14 * 14}
    )
    chat = template(image="<boi><image><eoi>")
    processor = PaddleOCRVLProcessor(images, write_tokenizer(image_token="<image>"), chat_template=chat)
    return save(config, PaddleOCRVLForConditionalGeneration, processor, folder)


def _lighton_ocr(folder: Path) -> Path:
    from transformers import (
        LightOnOcrConfig,
        LightOnOcrForConditionalGeneration,
        LightOnOcrProcessor,
        PixtralVisionConfig,
        Qwen3Config,
    )
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    config = LightOnOcrConfig(
        text_config=Qwen3Config(**TEXT | {"vocab_size": VOCABULARY}).to_dict(),
        vision_config=PixtralVisionConfig(**VISION | {"image_size": 56, "head_dim": 12}).to_dict(),
        image_token_id=IMAGE,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    processor = LightOnOcrProcessor(
        PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14}),
        write_tokenizer(image_token="<image>", image_break_token="<more>", image_end_token="<eoi>"),
        patch_size=7,
        spatial_merge_size=2,
        chat_template=template(),
    )
    return save(config, LightOnOcrForConditionalGeneration, processor, folder)


KINDS: Mapping[str, Kind] = {
    "lighton_ocr": Kind(make=_lighton_ocr),
    "paddleocr_vl": Kind(make=_paddleocr_vl),
}
