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
from .qwen import MROPE

END_OF_SOUND = 4


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


def _qwen2_5_omni_thinker(folder: Path) -> Path:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration, Qwen2VLImageProcessor, WhisperFeatureExtractor
    from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

    size = {"shortest_edge": 14**2, "longest_edge": 36 * 14**2}
    images = Qwen2VLImageProcessor(patch_size=7, merge_size=2, size=size)
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
    processor = unchecked(Qwen2_5OmniProcessor)(images, None, sounds, tokens, chat_template=chat)
    save(_config(), Qwen2_5OmniThinkerForConditionalGeneration, processor, folder)
    path = folder / "preprocessor_config.json"
    told = json.loads(path.read_text())
    sounds.save_pretrained(folder)  # both have their settings in one file
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}), encoding="utf-8")
    return folder


def wrapped(thinker: Path, folder: Path) -> Path:
    """The whole model as it is published: what speaks lies beside what thinks."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in thinker.iterdir():
        if path.suffix not in (".safetensors",):
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = {f"thinker.{name}": value for name, value in load_file(thinker / "model.safetensors").items()}
    save_file(tensors | {"talker.some.weight": torch.zeros(4, 4)}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((thinker / "config.json").read_text())
    whole = {"architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "thinker_config": config}
    (folder / "config.json").write_text(json.dumps(whole | {"talker_config": {}}), encoding="utf-8")
    return folder


KINDS: Mapping[str, Kind] = {
    "qwen2_5_omni_thinker": Kind(make=_qwen2_5_omni_thinker, kinds=("image", "video", "audio")),
}
