"""Models that see and hear."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parts import (
    AUDIO,
    BEGIN,
    END,
    IMAGE,
    MORE,
    TEXT,
    VIDEO,
    VOCABULARY,
    Kind,
    save,
    template,
    unchecked,
    write_tokenizer,
)
from .qwen import MROPE, QWEN3_TEXT, QWEN3_VISION

END_OF_SOUND = 4
_WHOLE = {"qwen2_5_omni": "Qwen2_5OmniModel", "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration"}


def _config() -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    vision: dict[str, Any] = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "num_heads": 2, "patch_size": 7,
        "spatial_patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 28,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    audio: dict[str, Any] = {
        "d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16,
        "max_source_positions": 100, "output_dim": 32, "n_window": 10,
    }  # fmt: skip
    return Qwen2_5OmniThinkerConfig(
        text_config=TEXT | {"vocab_size": VOCABULARY, "rope_parameters": MROPE},
        vision_config=vision,
        audio_config=audio,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
        audio_start_token_id=MORE,
        audio_end_token_id=END_OF_SOUND,
        pad_token_id=0,
    )


def _config_3() -> Any:
    from transformers import Qwen3OmniMoeThinkerConfig

    audio: dict[str, Any] = {
        "d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16,
        "max_source_positions": 100, "output_dim": 32, "n_window": 50, "n_window_infer": 100,
        "downsample_hidden_size": 8,
    }  # fmt: skip
    mixture = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3OmniMoeThinkerConfig(
        text_config=QWEN3_TEXT | mixture,
        vision_config=QWEN3_VISION,
        audio_config=audio,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
        audio_start_token_id=MORE,
        audio_end_token_id=END_OF_SOUND,
    )


def _qwen2_5_omni_thinker(folder: Path) -> Path:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration
    from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

    made = _processor(Qwen2_5OmniProcessor, 7)
    return _save(_config(), Qwen2_5OmniThinkerForConditionalGeneration, made, folder)


def _qwen3_omni_moe_thinker(folder: Path) -> Path:
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
    from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessor

    made = _processor(Qwen3OmniMoeProcessor, 8)
    return _save(_config_3(), Qwen3OmniMoeThinkerForConditionalGeneration, made, folder)


def _processor(own: Any, patch: int) -> Any:
    """Of the class `own`, whose pictures' patches have `patch` pixels a side."""
    from transformers import Qwen2VLImageProcessor, WhisperFeatureExtractor

    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": 36 * (2 * patch) ** 2}
    images = Qwen2VLImageProcessor(patch_size=patch, merge_size=2, size=size)
    sounds = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    tokens = write_tokenizer(
        image_token="<image>",
        video_token="<video>",
        audio_token="<audio>",
        vision_bos_token="<boi>",
        vision_eos_token="<eoi>",
        audio_bos_token="<more>",
        audio_eos_token="<|im_start|>",
    )
    chat = template(image="<boi><image><eoi>", video="<boi><video><eoi>", audio="<more><audio><|im_start|>")
    return unchecked(own)(images, None, sounds, tokens, chat_template=chat)


def _save(config: Any, model_class: Any, processor: Any, folder: Path) -> Path:
    save(config, model_class, processor, folder)
    path = folder / "preprocessor_config.json"
    told = json.loads(path.read_text())
    processor.feature_extractor.save_pretrained(folder)  # both have their settings in one file
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}), encoding="utf-8")
    return folder


def wrapped(thinker: Path, folder: Path, whole: str) -> Path:
    """The model of type `whole` as it is published: what speaks lies beside what thinks."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in thinker.iterdir():
        if path.suffix not in (".safetensors",):
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = {f"thinker.{name}": value for name, value in load_file(thinker / "model.safetensors").items()}
    save_file(tensors | {"talker.some.weight": torch.zeros(4, 4)}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((thinker / "config.json").read_text())
    told = {"architectures": [_WHOLE[whole]], "model_type": whole, "thinker_config": config, "talker_config": {}}
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


KINDS: Mapping[str, Kind] = {
    "qwen2_5_omni_thinker": Kind(make=_qwen2_5_omni_thinker, kinds=("image", "video", "audio")),
    "qwen3_omni_moe_thinker": Kind(make=_qwen3_omni_moe_thinker, kinds=("image", "video", "audio")),
}
